"""What a person sees on standard error: progress, warnings, the summary."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.run import RunSummary


class TerminalProgress:
    """A progress bar, used as a context manager."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase of `total` inputs."""
        self._bar.reset(self._task, description=name, total=total)

    def advance(self, inputs: int) -> None:
        """Count finished inputs."""
        self._bar.advance(self._task, inputs)


def print_summary(summary: RunSummary, console: Console) -> None:
    """Counts, thresholds, times, and where to look."""
    for warning in summary.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)
    table = Table(title=f"{summary.detector_name} · {summary.scheduler}", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("inputs", _share(summary.n_inputs - summary.n_errors, summary.n_inputs, "done"))
    if summary.n_errors:
        table.add_row("errors", Text(f"{summary.n_errors} (their records say why)", style="red"))
    thresholds = summary.thresholds
    if thresholds.score is not None:
        table.add_row("anomalous", _share(summary.n_anomalous, summary.n_inputs, f"score ≥ {thresholds.score:.6g}"))
    if thresholds.pixel is not None:
        table.add_row("with defects", _share(summary.n_defective, summary.n_inputs, f"pixels ≥ {thresholds.pixel:.6g}"))
        table.add_row("regions", str(summary.n_regions))
    inspecting = summary.seconds - summary.training_seconds
    per_image = 1000 * inspecting / max(1, summary.n_inputs)
    table.add_row(
        "time", f"{summary.seconds:.2f} s, {per_image:.1f} ms an image after {summary.training_seconds:.2f} s of setup"
    )
    total = sum(summary.stage_seconds.values())
    if total:
        stages = ", ".join(f"{name} {100 * seconds / total:.0f} %" for name, seconds in summary.stage_seconds.items())
        table.add_row("stages", stages)
    output = summary.settings.output
    for label, path in (
        ("records", output.save_jsonl),
        ("maps", output.save_maps),
        ("masks", output.save_masks),
        ("overlays", output.save_overlays),
    ):
        if path is not None:
            table.add_row(label, Text(path))
    console.print(table)
    for path, message in summary.errors:
        console.print(Text(f"  {path!r}: {message}", style="red"), soft_wrap=True)
    if summary.n_errors > len(summary.errors):
        console.print(f"  … and {summary.n_errors - len(summary.errors)} more errors")


def _share(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} ({what})"
