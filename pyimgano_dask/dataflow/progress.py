"""Where a run tells how far it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Whoever wants to know how far a run is."""

    def phase(self, name: str, total: int | None = None) -> None:
        """A new phase begins, of `total` steps (inputs, or epochs of training) where that is known."""

    def advance(self, steps: int) -> None:
        """So many more steps are done."""


class SilentProgress:
    """Tells nobody."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Ignored."""

    def advance(self, steps: int) -> None:
        """Ignored."""
