"""Sums of features and of their products at each place of a grid, and what they take.

With P places and d channels these are float64 (P, d) and, as lower triangles, float64 (P, d (d + 1) / 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import State

Doubles = NDArray[np.float64]

# Most bytes of one copy: above what the paper's largest network needs (wide ResNet-50-2, 550 channels, 224 pixels).
LARGEST_SUMS = 4 << 30
# Numbers of the square matrices that are computed with at a time.
NUMBERS_AT_ONCE = 1 << 22


def sums_bytes(n_places: int, d: int) -> int:
    """What the sums of `d` channels at so many places take: 8 (d + d (d + 1) / 2) bytes a place."""
    return 4 * n_places * d * (d + 3)


def places_at_once(d: int) -> int:
    """How many places have their d x d matrices in memory at a time, at least one."""
    return max(1, NUMBERS_AT_ONCE // d**2)


class Sums:
    """Sums over `count` images at each place."""

    def __init__(self, count: int, total: Doubles, products: Doubles) -> None:
        self.count = count
        self.total = total
        self.products = products

    @classmethod
    def none(cls, n_places: int, d: int) -> Self:
        """Those over no image."""
        return cls(0, np.zeros((n_places, d)), np.zeros((n_places, d * (d + 1) // 2)))

    @classmethod
    def of(cls, states: Sequence[State]) -> Self:
        """The sums of several summaries, which hold sums or, as `rows`, the features of images."""
        if len(states) == 1 and "rows" not in states[0]:
            return cls(int(states[0]["count"]), states[0]["total"], states[0]["products"])
        n_places, d = states[0]["rows"].shape[1:] if "rows" in states[0] else states[0]["total"].shape
        sums = cls.none(n_places, d)
        for state in states:
            if "rows" in state:
                sums.add_rows(state["rows"])
            else:
                sums.count += int(state["count"])
                sums.total += state["total"]
                sums.products += state["products"]
        return sums

    def add_rows(self, rows: NDArray[np.float32]) -> None:
        """Add the features of some images, (n, P, d)."""
        count, n_places, d = rows.shape
        below = np.tril_indices(d)
        self.count += count
        self.total += rows.sum(axis=0, dtype=np.float64)
        step = places_at_once(max(count, d))
        for start in range(0, n_places, step):
            places = slice(start, start + step)
            block = rows[:, places].transpose(1, 2, 0).astype(np.float64)
            self.products[places] += np.matmul(block, block.transpose(0, 2, 1))[:, below[0], below[1]]

    def state(self) -> State:
        """The sums as a summary."""
        return {"count": np.array(self.count, np.int64), "total": self.total, "products": self.products}
