"""Greedy coresets: few points that leave no other point far from all of them.

The greedy choice of centres (Gonzalez, Clustering to minimize the maximum intercluster distance, 1985; Sener and
Savarese, Active Learning for CNNs: A Core-Set Approach, ICLR 2018) takes the point farthest from all chosen ones, again
and again. Chosen from a part of the points each and then from what was chosen, such centres stay within a constant
factor of the best (Indyk et al., Composable Core-sets for Diversity and Coverage Maximization, PODS 2014), so that
points may come in chunks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

PROJECTED = 128
# Products of two projected points stay below 2 ** 24, so that float32 holds them exactly. A squared distance, made of
# three of them, may be twice as large, and is rounded once, whichever way it is computed.
LEVELS = 255
PROJECTED_AT_ONCE = 8192
# The farthest points are looked at alone, one in so many, as long as there are more of them than SMALL.
SHARE = 4
SMALL = 1024
# Points and centres whose distances are computed together.
BLOCK = 256


def coreset(points: Floats, count: int, seed: int) -> Indices:
    """Indices, ascending, of at most `count` of the points, float32 (n, d), at least one; fewer where points repeat.

    Distances are those of a Gaussian random projection to 128 dimensions (Johnson and Lindenstrauss, 1984), rounded to
    whole numbers, in which sums are exact: the choice is the same for any number of threads. The time goes with
    n · `count` at worst.
    """
    return _chosen([points], count, seed)


def thinned(parts: Sequence[Floats], count: int, seed: int) -> Floats:
    """The coreset of the points of several arrays, one after the other, which are not joined for it."""
    chosen = _chosen(parts, count, seed)
    starts = np.cumsum([0, *map(len, parts)])
    bounds = np.searchsorted(chosen, starts)
    return np.concatenate(
        [
            part[chosen[low:high] - start]
            for part, start, low, high in zip(parts, starts, bounds, bounds[1:], strict=False)
        ]
    )


def grouped(arrays: Iterable[Floats], most_bytes: int) -> Iterator[list[Floats]]:
    """The points of all arrays, (n, d) each, in lists of arrays that hold at most so many bytes together.

    Arrays stay whole where they fit; larger ones are cut into parts as equal as can be. One point is never too large.
    """
    held: list[Floats] = []
    for points in arrays:
        most = max(1, most_bytes // points[0].nbytes)
        for part in np.array_split(points, math.ceil(len(points) / most)):
            if held and sum(map(len, held)) + len(part) > most:
                yield held
                held = []
            held.append(part)
    if held:
        yield held


def _chosen(parts: Sequence[Floats], count: int, seed: int) -> Indices:
    n_points = sum(map(len, parts))
    if count >= n_points:
        return np.arange(n_points)
    rounded = _rounded(_projected(parts, seed))
    squares = np.einsum("ij,ij->i", rounded, rounded)
    centre = np.rint(rounded.mean(axis=0, dtype=np.float64)).astype(np.float32)
    greedy = _Greedy(rounded, squares, count)
    greedy.start(int(np.argmax(squares - 2 * (rounded @ centre))))
    return np.sort(np.array(greedy.chosen))


class _Greedy:
    """The greedy choice, made among few points as long as they hold the farthest of all.

    Distances to the chosen centres only ever shrink. Of some points, those whose distances are the largest go on alone
    while the farthest of them is farther than any of the others was: no other can come next, whatever its distance is
    by then. The others meet all centres chosen meanwhile at once, as a product of matrices; those that the end finds
    waiting meet them never. Every choice is that of the plain algorithm, ties (the first point) included.
    """

    def __init__(self, points: Floats, squares: Floats, count: int) -> None:
        self.chosen: list[int] = []
        self._points = points
        self._squares = squares
        self._count = count

    def start(self, first: int) -> None:
        """Choose `first`, and then all others."""
        self.chosen.append(first)
        nearest = self._to_centre(self._points, self._squares, first)
        self._choose(np.arange(len(self._points)), nearest, 0)

    def _choose(self, indices: Indices, nearest: Floats, floor: float) -> None:
        """Choose among these points, ascending, while the farthest is farther than `floor`; updates `nearest`.

        `nearest` holds their squared distances to the nearest of all chosen centres.
        """
        if len(indices) <= SMALL:
            self._choose_plainly(indices, nearest, floor)
            return
        while len(self.chosen) < self._count and nearest.max() > floor:
            rank = len(indices) - len(indices) // SHARE
            is_far = nearest >= np.partition(nearest, rank)[rank]
            far, near = np.flatnonzero(is_far), np.flatnonzero(~is_far)
            if 2 * len(far) > len(indices):  # ties
                self._choose_plainly(indices, nearest, floor)
                return
            known, far_nearest = len(self.chosen), nearest[far]
            self._choose(indices[far], far_nearest, max(floor, float(nearest[near].max())))
            nearest[far] = far_nearest
            if len(self.chosen) < self._count:
                self._meet(indices, nearest, near, self.chosen[known:])

    def _choose_plainly(self, indices: Indices, nearest: Floats, floor: float) -> None:
        points, squares = self._points[indices], self._squares[indices]
        while len(self.chosen) < self._count:
            farthest = int(np.argmax(nearest))
            if nearest[farthest] <= floor:
                return
            centre = int(indices[farthest])
            self.chosen.append(centre)
            np.minimum(nearest, self._to_centre(points, squares, centre), out=nearest)

    def _to_centre(self, points: Floats, squares: Floats, centre: int) -> Floats:
        """Squared distances of some points to one of all."""
        distances: Floats = squares + self._squares[centre] - 2 * (points @ self._points[centre])
        return distances

    def _meet(self, indices: Indices, nearest: Floats, near: Indices, centres: list[int]) -> None:
        """Compare those of the points that are `near` with new centres."""
        doubled = -2 * self._points[centres].T
        centre_squares = self._squares[centres]
        for start in range(0, len(near), BLOCK):
            places = near[start : start + BLOCK]
            points = self._points[indices[places]]
            squares = self._squares[indices[places]][:, None]
            for first in range(0, len(centres), BLOCK):
                some = slice(first, first + BLOCK)
                distances = squares + centre_squares[some]
                distances += points @ doubled[:, some]
                nearest[places] = np.minimum(nearest[places], distances.min(axis=1))


def _projected(parts: Sequence[Floats], seed: int) -> NDArray[np.float64]:
    d = parts[0].shape[1]
    if d <= PROJECTED:
        return np.concatenate(parts, dtype=np.float64)
    directions = np.random.default_rng(seed).standard_normal((d, PROJECTED))
    projected = np.empty((sum(map(len, parts)), PROJECTED))
    done = 0
    for part in parts:
        for start in range(0, len(part), PROJECTED_AT_ONCE):
            rows = part[start : start + PROJECTED_AT_ONCE]
            np.matmul(rows.astype(np.float64), directions, out=projected[done : done + len(rows)])
            done += len(rows)
    return projected


def _rounded(points: NDArray[np.float64]) -> Floats:
    largest = float(np.abs(points).max())
    return np.rint(points * (LEVELS / largest if largest > 0 else 1)).astype(np.float32)
