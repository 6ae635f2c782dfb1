"""Time rendering and encoding of overlays on one core, and count their bytes.

    python tests/benchmarks/bench_overlays.py [--runs N]

Synthetic images only: a drawing (flat areas with sharp edges, as on a circuit board) and a noisy photograph (a smooth
background with Gaussian noise of sigma 6), each with a map of the difference of two noisy views of it and with 0, 10
and 200 regions. Times are the fastest of N runs, in milliseconds.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.storage.overlays import encode_overlay, render_overlay

SIDES = (256, 640, 1024)
REGION_COUNTS = (0, 10, 200)


def photograph(side: int, noise: np.random.Generator) -> NDArray[np.uint8]:
    """A smooth background under noise: uint8 (side, side, 3)."""
    y, x = np.mgrid[:side, :side] / side
    background = 90 + 60 * x + 40 * np.sin(3 * y)
    rgb = background[..., np.newaxis] * (1, 0.95, 0.9) + noise.normal(0, 6, (side, side, 3))
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def drawing(side: int, noise: np.random.Generator) -> NDArray[np.uint8]:
    """White discs and lines on black whose edges tremble: uint8 (side, side, 3)."""
    layout = np.random.default_rng(0)
    canvas = np.zeros((side, side, 3), np.uint8)
    for _ in range(12):
        start, end = layout.integers(0, side, (2, 2)) + noise.integers(0, 2, (2, 2))
        cv2.line(canvas, start.tolist(), end.tolist(), (255, 255, 255), side // 20)
        cv2.circle(canvas, end.tolist(), side // 15, (255, 255, 255), -1)
        cv2.circle(canvas, end.tolist(), side // 40, (0, 0, 0), -1)
    return canvas


def difference_map(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The largest difference of a pixel's channels, with one strong defect: float32 (side, side)."""
    anomaly_map = cv2.absdiff(before, after).max(axis=2).astype(np.float32)
    third, size = len(anomaly_map) // 3, len(anomaly_map) // 16
    anomaly_map[third : third + size, third : third + size] += 60
    return anomaly_map


def regions(
    side: int, n_regions: int, layout: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]:
    """A mask of rectangles, their inclusive boxes and falling scores."""
    corners = layout.integers(0, side - 2, (n_regions, 2))
    ends = np.minimum(corners + layout.integers(2, side // 30, (n_regions, 2)), side - 1)
    boxes_xyxy = np.hstack([corners, ends]).astype(np.int64)
    mask = np.zeros((side, side), np.uint8)
    for x0, y0, x1, y1 in boxes_xyxy.tolist():
        mask[y0 : y1 + 1, x0 : x1 + 1] = 255
    return mask, boxes_xyxy, np.sort(layout.random(n_regions))[::-1].copy()


def fastest_ms(call: Callable[[], object], runs: int) -> float:
    """Milliseconds of the fastest of `runs` calls."""

    def one() -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    return 1e3 * min(one() for _ in range(runs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    cv2.setNumThreads(1)
    print(f"{'image':10} {'side':>5} {'regions':>7} {'render':>7} {'png':>7} {'kB':>7} {'jpg':>7} {'kB':>7}")
    for kind in (drawing, photograph):
        for side in SIDES:
            noise = np.random.default_rng(1)
            image = kind(side, noise)
            anomaly_map = difference_map(image, kind(side, noise))
            for n_regions in REGION_COUNTS:
                mask, boxes_xyxy, scores = regions(side, n_regions, np.random.default_rng(2))
                render = functools.partial(
                    render_overlay, image, anomaly_map, mask, boxes_xyxy=boxes_xyxy, scores=scores
                )
                overlay = render()
                columns = [f"{fastest_ms(render, runs):7.2f}"]
                for fmt in ("png", "jpg"):
                    encode = functools.partial(encode_overlay, overlay, fmt)
                    columns += [f"{fastest_ms(encode, runs):7.2f}", f"{len(encode()) / 1e3:7.0f}"]
                print(f"{kind.__name__:10} {side:5} {n_regions:7} {' '.join(columns)}")


if __name__ == "__main__":
    main()
