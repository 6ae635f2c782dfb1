"""Regions: what is reported about each defect."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, overload

import numpy as np

BoxXyxy = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Region:
    """One defect of a map.

    Boxes are (x1, y1, x2, y2) in pixels, both corners included: a single pixel has x1 == x2 and y1 == y2.

    id: label number, counted from 1 over the whole map before regions are joined, sorted or cut.
    area: pixels. centroid_xy: mean pixel position. score_max, score_mean: over the pixels, 6 decimals.
    bbox_area, fill_ratio, aspect_ratio: area of the box, area by area of the box, longer by shorter side of
    the box; present with any shape filter on, and on joined regions.
    solidity: area of the outer contour by area of its convex hull; present with `min_solidity` on, and None
    with `solidity_is_undefined` when the hull has no area.
    merged_from_ids: on a joined region, the ids of its parts in rising order.
    bbox_xyxy_image: the box in pixels of the image the map belongs to.
    """

    id: int
    bbox_xyxy: BoxXyxy
    area: int
    centroid_xy: tuple[float, float]
    score_max: float
    score_mean: float
    bbox_area: int | None = None
    fill_ratio: float | None = None
    aspect_ratio: float | None = None
    solidity: float | None = None
    solidity_is_undefined: bool = False
    merged_from_ids: tuple[int, ...] | None = None
    bbox_xyxy_image: BoxXyxy | None = None

    def to_record(self) -> dict[str, Any]:
        """The region as it stands in a JSONL record; what was not measured has no key."""
        return _record(*(getattr(self, name) for name in self.__slots__))


def _record(
    number: int,
    bbox_xyxy: BoxXyxy,
    area: int,
    centroid_xy: tuple[float, float],
    score_max: float,
    score_mean: float,
    bbox_area: int | None,
    fill_ratio: float | None,
    aspect_ratio: float | None,
    solidity: float | None,
    solidity_is_undefined: bool,
    merged_from_ids: tuple[int, ...] | None,
    bbox_xyxy_image: BoxXyxy | None,
) -> dict[str, Any]:
    """JSON-ready form of a region, from its fields in the order of `Region`."""
    record: dict[str, Any] = {
        "id": number,
        "bbox_xyxy": list(bbox_xyxy),
        "area": area,
        "centroid_xy": list(centroid_xy),
        "score_max": score_max,
        "score_mean": score_mean,
    }
    if bbox_area is not None:
        record["bbox_area"] = bbox_area
        record["fill_ratio"] = fill_ratio
        record["aspect_ratio"] = aspect_ratio
    if solidity is not None or solidity_is_undefined:
        record["solidity"] = solidity
    if merged_from_ids is not None:
        record["merged_from_ids"] = list(merged_from_ids)
    if bbox_xyxy_image is not None:
        record["bbox_xyxy_image"] = list(bbox_xyxy_image)
    return record


@dataclass(frozen=True, eq=False)
class RegionTable(Sequence[Region]):
    """Regions kept as columns, one row a region; a `Region` is made when it is looked at.

    ids, areas: int64 (N,). boxes_xyxy, boxes_xyxy_image: int64 (N, 4). centroids_xy: float64 (N, 2).
    score_max, score_mean: float64 (N,), 6 decimals. solidity: float64 (N,), 6 decimals, NaN where the hull
    has no area. with_shape: whether every region shows the shape of its box, or joined ones only.
    merged_from_ids: ids of the parts of each joined region, by its own id.
    """

    ids: np.ndarray
    boxes_xyxy: np.ndarray
    areas: np.ndarray
    centroids_xy: np.ndarray
    score_max: np.ndarray
    score_mean: np.ndarray
    solidity: np.ndarray | None
    with_shape: bool
    merged_from_ids: dict[int, tuple[int, ...]]
    boxes_xyxy_image: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> RegionTable:
        """The rows at these positions, in this order."""
        return replace(
            self,
            ids=self.ids[rows],
            boxes_xyxy=self.boxes_xyxy.take(rows, axis=0),
            areas=self.areas[rows],
            centroids_xy=self.centroids_xy.take(rows, axis=0),
            score_max=self.score_max[rows],
            score_mean=self.score_mean[rows],
            solidity=None if self.solidity is None else self.solidity[rows],
            boxes_xyxy_image=None if self.boxes_xyxy_image is None else self.boxes_xyxy_image.take(rows, axis=0),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[Region]:
        return (Region(*row) for row in self._rows())

    def to_records(self) -> list[dict[str, Any]]:
        """Every region as it stands in a JSONL record, without making `Region` objects on the way."""
        return [_record(*row) for row in self._rows()]

    def _rows(self) -> Iterator[Any]:
        """The fields of each region in the order of `Region`."""
        basics = zip(
            self.ids.tolist(),
            _tuples(self.boxes_xyxy),
            self.areas.tolist(),
            _tuples(self.centroids_xy),
            self.score_max.tolist(),
            self.score_mean.tolist(),
            strict=True,
        )
        bbox_areas, fill_ratios, aspect_ratios = box_shapes(self.boxes_xyxy, self.areas)
        shapes = zip(bbox_areas.tolist(), round6(fill_ratios).tolist(), round6(aspect_ratios).tolist(), strict=True)
        solidities: Iterable[Any] = repeat(None) if self.solidity is None else self.solidity.tolist()
        image_boxes: Iterable[BoxXyxy | None] = (
            repeat(None) if self.boxes_xyxy_image is None else _tuples(self.boxes_xyxy_image)
        )
        for basic, shape, solidity, image_box in zip(basics, shapes, solidities, image_boxes, strict=False):
            number, box, area, centroid, score_max, score_mean = basic
            parts = self.merged_from_ids.get(number)
            bbox_area, fill_ratio, aspect_ratio = shape if self.with_shape or parts else (None, None, None)
            traced = parts is None and solidity is not None
            undefined = traced and math.isnan(solidity)
            yield (
                number,
                box,
                area,
                centroid,
                score_max,
                score_mean,
                bbox_area,
                fill_ratio,
                aspect_ratio,
                solidity if traced and not undefined else None,
                undefined,
                parts,
                image_box,
            )

    @overload
    def __getitem__(self, index: int) -> Region: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Region, ...]: ...
    def __getitem__(self, index: int | slice) -> Region | tuple[Region, ...]:
        if isinstance(index, slice):
            return tuple(self.take(np.arange(len(self))[index]))
        row = range(len(self))[index]
        return next(iter(self.take(np.array([row]))))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]


def _tuples(columns: np.ndarray) -> Iterator[Any]:
    return map(tuple, columns.tolist())


def box_shapes(boxes_xyxy: np.ndarray, areas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Area, fill ratio and aspect ratio, (N,) each, of boxes (N, 4) around components of `areas` (N,)."""
    width = boxes_xyxy[:, 2] - boxes_xyxy[:, 0] + 1
    height = boxes_xyxy[:, 3] - boxes_xyxy[:, 1] + 1
    box_areas = width * height
    return box_areas, areas / box_areas, np.maximum(width, height) / np.minimum(width, height)


def round6(values: np.ndarray) -> np.ndarray:
    """Values rounded to the 6 decimals that reports carry."""
    return np.round(values, 6)
