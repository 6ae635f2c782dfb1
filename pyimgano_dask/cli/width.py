"""How long lines are: as the terminal is wide, and in a pipe or a file as long as need be, so that no path is cut."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

UNLIMITED = 1000
READABLE = 110
"""Longest line of running text in a terminal that is wider."""


def output_columns(without_terminal: int = UNLIMITED) -> int:
    """Columns of text on standard output: `COLUMNS` where it is set, else those of the terminal.

    At most `READABLE`, or `without_terminal` where neither tells.
    """
    columns = shutil.get_terminal_size((0, 0)).columns
    return min(columns, READABLE) if columns else without_terminal


def error_console() -> Console:
    """What is said to a person on standard error; tables are as wide as they need to be where that is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = UNLIMITED
    return console
