"""Time defect extraction against one labelling of the same final mask.

    python tests/benchmarks/bench_extraction.py [--sizes 256 1024] [--counts 0 1000] [--seconds 0.5]

Maps of `size`² pixels hold `count` blocks: squares, corners, discs and rings on a grid, over noise. The yardstick is
one `cv2.connectedComponentsWithStats` of the final mask. Each ratio is the median over runs in pairs, the yardstick
first, so that a drift of the machine's speed cancels out of it. One thread does all of it.

plain: a pixel threshold only. all controls: region of interest, border, gaussian smoothing, hysteresis, opening,
closing, every filter, hole filling, joining and a limit of regions; where the blocks lie too close for opening and
closing (marked *), without these two. merge: joining of all regions of the plain run by itself.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from pyimgano_dask.defects import extract_defects
from pyimgano_dask.defects.merging import merge_nearby
from pyimgano_dask.settings.defects import DefectSettings, Hysteresis, MapSmoothing, MergeNearby, ShapeFilters

SIZES = (256, 512, 1024, 2048, 4096)
COUNTS = (0, 10, 1_000, 16_000, 50_000)
PIXEL_THRESHOLD = 0.5
MAX_GAP_PX = 3
MAX_CELL = 64
# A gap that closing with a 3x3 square does not bridge, and a block that opening with it leaves.
OPEN_GAP, OPEN_SIDE = 3, 3
PLAIN = DefectSettings()
WITHOUT_MORPHOLOGY = DefectSettings(
    roi_xyxy_norm=(0.01, 0.01, 0.99, 0.99),
    border_ignore_px=4,
    map_smoothing=MapSmoothing(method="gaussian", ksize=3, sigma=0.4),
    hysteresis=Hysteresis(enabled=True, low=0.45),
    min_area=2,
    min_score_max=0.55,
    min_score_mean=0.5,
    shape_filters=ShapeFilters(min_fill_ratio=0.2, max_aspect_ratio=6.0, min_solidity=0.3),
    fill_holes=True,
    merge_nearby=MergeNearby(enabled=True, max_gap_px=MAX_GAP_PX),
    max_regions=1000,
)
ALL_CONTROLS = WITHOUT_MORPHOLOGY.model_copy(update={"open_ksize": 3, "close_ksize": 3})


def block_map(size: int, count: int, gap_px: int) -> np.ndarray | None:
    """A float32 map (size, size) with `count` blocks at least `gap_px` apart; None when they do not fit."""
    rng = np.random.default_rng(size * 100_003 + count)
    scores = rng.random((size, size), dtype=np.float32) * np.float32(0.2)
    cell = min(MAX_CELL, size // max(1, math.ceil(math.sqrt(count))))
    if cell <= gap_px:
        return None
    across = size // cell
    cells = np.zeros((across * across, cell, cell), np.float32)
    chosen = rng.permutation(len(cells))[:count]
    cells[chosen] = blocks(cell, cell - gap_px)[rng.integers(0, 4, len(chosen))]
    tiled = cells.reshape(across, across, cell, cell).swapaxes(1, 2).reshape(across * cell, across * cell)
    scores[: across * cell, : across * cell] += np.float32(0.75) * tiled
    return scores


def blocks(cell: int, side: int) -> np.ndarray:
    """A square, a corner, a disc and a ring of `side` pixels in cells of `cell` pixels, float32 (4, cell, cell)."""
    thick = max(3, side // 3)
    square = np.ones((side, side), np.float32)
    corner = square.copy()
    corner[thick:, thick:] = 0
    middle, radius = (side - 1) / 2, side / 2
    y, x = np.ogrid[:side, :side]
    disc = ((y - middle) ** 2 + (x - middle) ** 2 <= radius**2).astype(np.float32) if side > 4 else square
    ring = square.copy()
    ring[thick:-thick, thick:-thick] = 0
    return np.pad(np.stack((square, corner, disc, ring)), ((0, 0), (0, cell - side), (0, cell - side)))


def paired(first: Callable[[], object], second: Callable[[], object], seconds: float) -> tuple[float, float, float]:
    """Median seconds of two calls in turn, and the median of their ratios, over at least five pairs."""
    times: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while len(times) < 6 or time.perf_counter() < end:
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        times.append((middle - start, time.perf_counter() - middle))
    ours, theirs = zip(*times[1:], strict=True)
    return (
        statistics.median(ours),
        statistics.median(theirs),
        statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    )


def against_labelling(scores: np.ndarray, settings: DefectSettings, seconds: float) -> tuple[str, str, str]:
    """Components of the final mask, milliseconds of labelling it, and milliseconds and ratio of the extraction."""
    mask = extract_defects(scores, settings, pixel_threshold=PIXEL_THRESHOLD).mask
    label_s, extract_s, ratio = paired(
        lambda: cv2.connectedComponentsWithStats(mask, connectivity=8),
        lambda: extract_defects(scores, settings, pixel_threshold=PIXEL_THRESHOLD),
        seconds,
    )
    components = cv2.connectedComponents(mask, connectivity=8)[0] - 1
    return f"{components:,}", f"{1000 * label_s:.2f}", f"{1000 * extract_s:.2f} ({ratio:.1f})"


def row(size: int, count: int, seconds: float) -> list[str] | None:
    """The cells of one line of the table; None when the blocks do not fit."""
    dense = block_map(size, count, gap_px=1)
    if dense is None:
        return None
    loose = block_map(size, count, gap_px=OPEN_GAP)
    fits = loose is not None and min(MAX_CELL, size // max(1, math.ceil(math.sqrt(count)))) >= OPEN_GAP + OPEN_SIDE
    reported = extract_defects(dense, PLAIN, pixel_threshold=PIXEL_THRESHOLD).regions
    regions = reported.take(np.argsort(reported.ids))
    _, merge_s, _ = paired(lambda: None, lambda: merge_nearby(regions, MAX_GAP_PX), seconds / 4)
    controlled = (
        against_labelling(loose, ALL_CONTROLS, seconds)
        if fits and loose is not None
        else against_labelling(dense, WITHOUT_MORPHOLOGY, seconds)
    )
    return [
        f"{size}²",
        f"{count:,}",
        *against_labelling(dense, PLAIN, seconds)[1:],
        controlled[0] + ("" if fits else "*"),
        *controlled[1:],
        f"{1000 * merge_s:.2f}",
    ]


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each pair of calls")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    table = Table(
        title=f"Defect extraction in ms, with the ratio to the labelling beside it; {platform.machine()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}, OpenCV {cv2.__version__}",
    )
    headings = ("map", "regions", "cv2", "plain", "regions left", "cv2", "all controls", "merge")
    for heading in headings:
        table.add_column(heading, justify="right")
    for size in arguments.sizes:
        for count in arguments.counts:
            cells = row(size, count, arguments.seconds)
            if cells is not None:
                table.add_row(*cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
