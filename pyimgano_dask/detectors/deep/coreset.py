"""Greedy coresets: few points that leave no other point far from all of them.

The greedy choice of centres (Gonzalez, Clustering to minimize the maximum intercluster distance, 1985; Sener and
Savarese, Active Learning for CNNs: A Core-Set Approach, ICLR 2018) takes the point farthest from all chosen ones, again
and again. Chosen from a part of the points each and then from what was chosen, such centres stay within a constant
factor of the best (Indyk et al., Composable Core-sets for Diversity and Coverage Maximization, PODS 2014), so that
points may come in chunks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

PROJECTED = 128
# Products of two projected points stay below 2 ** 24, so that float32 holds them exactly.
LEVELS = 255


def coreset(points: Floats, count: int, seed: int) -> NDArray[np.int64]:
    """Indices, ascending, of at most `count` of the points, float32 (n, d), at least one; fewer where points repeat.

    Distances are those of a Gaussian random projection to 128 dimensions (Johnson and Lindenstrauss, 1984), rounded to
    whole numbers, in which sums are exact: the choice is the same for any number of threads.
    """
    if count >= len(points):
        return np.arange(len(points))
    rounded = _rounded(_projected(points, seed))
    squares = np.einsum("ij,ij->i", rounded, rounded)
    centre = np.rint(rounded.mean(axis=0, dtype=np.float64)).astype(np.float32)
    chosen = [int(np.argmax(squares - 2 * (rounded @ centre)))]
    nearest = _to_centre(rounded, squares, chosen[0])
    while len(chosen) < count:
        farthest = int(np.argmax(nearest))
        if nearest[farthest] <= 0:
            break
        chosen.append(farthest)
        np.minimum(nearest, _to_centre(rounded, squares, farthest), out=nearest)
    return np.sort(np.array(chosen))


def _projected(points: Floats, seed: int) -> NDArray[np.float64]:
    d = points.shape[1]
    if d <= PROJECTED:
        return points.astype(np.float64)
    directions = np.random.default_rng(seed).standard_normal((d, PROJECTED))
    return points.astype(np.float64) @ directions


def _rounded(points: NDArray[np.float64]) -> Floats:
    largest = float(np.abs(points).max())
    return np.rint(points * (LEVELS / largest if largest > 0 else 1)).astype(np.float32)


def _to_centre(points: Floats, squares: Floats, centre: int) -> Floats:
    """Squared distances of all points to one of them."""
    distances: Floats = squares + squares[centre] - 2 * (points @ points[centre])
    return distances
