"""What a person sees on standard error: progress, warnings, the summary."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pyimgano_dask.cli.width import UNLIMITED
from pyimgano_dask.settings.defects import DefectSettings
from pyimgano_dask.settings.run import StoredMapSettings

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.inspection import RunSummary
    from pyimgano_dask.defects import Waterfall

BAR_WIDTH = 6
# The longest name of a control; its value goes on the next line where numbers need the room.
CONTROL_WIDTH = 17


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
        """Begin a phase of `total` steps."""
        self._bar.reset(self._task, description=name, total=total)

    def advance(self, steps: int) -> None:
        """Count finished steps."""
        self._bar.advance(self._task, steps)


def print_summary(summary: RunSummary, console: Console, prog: str) -> None:
    """Warnings of the command `prog`, counts, thresholds, times, and where to look."""
    for warning in summary.warnings:
        console.print(Text(f"{prog}: warning: {warning}", style="yellow"), soft_wrap=True)
    console.print(Text(f"{summary.source} · {summary.scheduler}", style="italic"), soft_wrap=True)
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("inputs", _share(summary.n_inputs - summary.n_errors, summary.n_inputs, "done"))
    if summary.n_errors:
        table.add_row("errors", Text(f"{summary.n_errors} (their records say why)", style="red"))
    if summary.n_resumed:
        table.add_row("resumed", _share(summary.n_resumed, summary.n_inputs, "done by an earlier session"))
    thresholds = summary.thresholds
    if thresholds.score is not None:
        table.add_row("anomalous", _share(summary.n_anomalous, summary.n_inputs, f"score ≥ {thresholds.score:.6g}"))
    elif summary.settings.stored == StoredMapSettings():
        table.add_row("anomalous", "no score threshold: labels need --train-dir or a config's threshold")
    if thresholds.pixel is not None:
        table.add_row("with defects", _share(summary.n_defective, summary.n_inputs, f"pixels ≥ {thresholds.pixel:.6g}"))
        table.add_row("regions", str(summary.n_regions))
    table.add_row("time", _time(summary))
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
        ("run folder", summary.settings.dataflow.run_dir),
        ("report", summary.settings.dataflow.performance_report),
    ):
        if path is not None:
            table.add_row(label, Text(path))
    console.print(table)
    if summary.waterfall:
        _print_waterfall(summary.waterfall, summary.settings.defects, console)
    for _, path, message in summary.errors:
        console.print(Text(f"  {path!r}: {message}", style="red"), soft_wrap=True)
    if summary.n_errors > len(summary.errors):
        console.print(f"  … and {summary.n_errors - len(summary.errors)} more errors")


def _time(summary: RunSummary) -> str:
    if not summary.n_worked:
        return f"{summary.seconds:.2f} s, no image worked on"
    per_image = 1000 * (summary.seconds - summary.training_seconds) / summary.n_worked
    return f"{summary.seconds:.2f} s, {per_image:.1f} ms an image after {summary.training_seconds:.2f} s of setup"


def _print_waterfall(waterfall: Waterfall, defects: DefectSettings, console: Console) -> None:
    """A caption as wide as the console, and the table: without bars where there is no room for them.

    The table is wider than the console rather than that numbers are cut.
    """
    console.print(Text("from thresholded pixels to regions (dropped, and left)", style="table.title"))
    unlimited = console.options.update(max_width=UNLIMITED)
    table = _waterfall_table(waterfall, defects, with_bars=True)
    if console.measure(table, options=unlimited).maximum > console.width:
        table = _waterfall_table(waterfall, defects, with_bars=False)
        narrowest = console.measure(table, options=unlimited).minimum
        table.width = narrowest if narrowest > console.width else None
    console.print(table, crop=False)


def _waterfall_table(waterfall: Waterfall, defects: DefectSettings, *, with_bars: bool) -> Table:
    """What was thresholded, what each control took away, what is reported: over all images."""
    from pyimgano_dask.defects import REPORTED, THRESHOLDED

    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("control", overflow="fold", min_width=None if with_bars else CONTROL_WIDTH)
    for title in ("components", "left", "pixels", "left"):
        table.add_column(title, justify="right", no_wrap=True)
    if with_bars:
        table.add_column("", width=BAR_WIDTH)
    most = max(step.pixels_left for step in waterfall)
    for step in waterfall:
        is_end = step.control in (THRESHOLDED, REPORTED)
        bar = Bar(most, 0, step.pixels_left, width=BAR_WIDTH, color="green" if step.control == REPORTED else "cyan")
        table.add_row(
            step.control if is_end else f"{step.control} [dim]{setting_in_words(step.control, defects)}[/]",
            "" if is_end else _change(step.components, 0),
            f"{step.components_left:,}",
            "" if is_end else _change(step.pixels, step.pixels_added),
            f"{step.pixels_left:,}",
            *([bar] if with_bars else []),
            style="bold" if is_end else "",
        )
    return table


def _change(dropped: int, added: int) -> str:
    """`−12`, `−12 +3` where pixels came in too, a dot where nothing changed."""
    words = [f"−{dropped:,}" if dropped else "", f"+{added:,}" if added else ""]
    return " ".join(filter(None, words)) or "·"


def setting_in_words(control: str, defects: DefectSettings) -> str:
    """The value of a control, by the name that explanations give it."""
    match control:
        case "roi_xyxy_norm" | "roi_clip":
            return " ".join(f"{edge:.3g}" for edge in defects.roi_xyxy_norm or ())
        case "map_smoothing":
            smoothing = defects.map_smoothing
            size = f" {smoothing.ksize} px" if smoothing.ksize else f" σ {smoothing.sigma:g}"
            return smoothing.method + size
        case "hysteresis":
            low, high = defects.hysteresis.low, defects.hysteresis.high
            return f"{'half' if low is None else f'{low:g}'} / {'threshold' if high is None else f'{high:g}'}"
        case "min_fill_ratio" | "max_aspect_ratio" | "min_solidity":
            return f"{getattr(defects.shape_filters, control):g}"
        case "merge_nearby":
            return f"{defects.merge_nearby.max_gap_px} px"
        case "border_ignore_px" | "open_ksize" | "close_ksize" | "min_area":
            return f"{getattr(defects, control)} px"
        case "fill_holes":
            return ""
        case "max_regions":
            return str(defects.max_regions)
        case _:
            return f"{getattr(defects, control):g}"


def _share(part: int, whole: int, what: str) -> str:
    return f"{part} of {whole} ({what})"
