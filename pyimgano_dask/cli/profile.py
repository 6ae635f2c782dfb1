"""`--profile`: where the time and the memory of a run went, for a person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.bar import Bar
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.inspection import RunSummary
    from pyimgano_dask.dataflow.profile import Worker

BAR_WIDTH = 24
MEBIBYTE = 1 << 20


def print_profile(summary: RunSummary, console: Console) -> None:
    """Seconds by stage, then wall time, workers and memory."""
    profile = summary.profile
    n_images = max(1, summary.n_worked)
    table = Table(
        title="where the time went (read to write: summed over the workers)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        show_footer=True,
    )
    total = sum(profile.seconds.values())
    table.add_column("stage", footer="total")
    for title, footer in (
        ("seconds", f"{total:,.3f}"),
        ("ms an image", f"{1000 * total / n_images:,.3f}"),
        ("share", ""),
    ):
        table.add_column(title, footer, justify="right", no_wrap=True)
    table.add_column("", width=BAR_WIDTH)
    for stage, spent in profile.seconds.items():
        row = [stage.replace("_", " ")]
        if spent:
            row += [f"{spent:,.3f}", f"{1000 * spent / n_images:,.3f}", f"{100 * profile.share(stage):.1f} %"]
            table.add_row(*row, Bar(1.0, 0, profile.share(stage), width=BAR_WIDTH, color="cyan"))
        else:
            table.add_row(*row, "·", "·", "·", "", style="dim")
    console.print(table)
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="bold")
    facts.add_column(overflow="fold")
    facts.add_row("wall time", f"{summary.seconds:,.2f} s, {summary.n_worked / summary.seconds:,.1f} images a second")
    facts.add_row("workers", _workers(summary))
    facts.add_row("peak memory", _memory(summary))
    console.print(facts)


def _workers(summary: RunSummary) -> str:
    n_processes, per_task = len(summary.profile.workers), summary.settings.dataflow.threads_per_task
    native = f", {per_task} native threads a task" if per_task > 1 else ""
    return f"{summary.profile.n_workers} at a time, in {n_processes} process{'es' * (n_processes != 1)}{native}"


def _memory(summary: RunSummary) -> str:
    client, largest = summary.profile.client, summary.profile.largest_worker
    if largest is None or largest.name == client.name:
        return _mebibytes(client)
    return f"client {_mebibytes(client)}, largest worker {_mebibytes(largest)} ({largest.name})"


def _mebibytes(worker: Worker) -> str:
    return f"{worker.peak_memory_bytes / MEBIBYTE:,.0f} MiB"
