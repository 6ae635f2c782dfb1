"""Why pixels and components were dropped: a ledger that looks on while defects are extracted.

The ledger starts from the pixels that reach the lowest level in use (the low one of a hysteresis) and follows them
through every control that is on. A component counts as dropped by the control after which none of its pixels is left.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Any

import cv2
import numpy as np

from pyimgano_dask.defects.components import Components, measure_components
from pyimgano_dask.defects.filters import verdicts
from pyimgano_dask.defects.image_space import boxes_to_image
from pyimgano_dask.defects.masking import at_least, hysteresis_levels
from pyimgano_dask.defects.regions import RegionTable
from pyimgano_dask.defects.roi import Part
from pyimgano_dask.settings.defects import DefectSettings

THRESHOLDED = "thresholded"
REPORTED = "reported"
ROI_CLIP = "roi_clip"
CONTROLS = (
    *("roi_xyxy_norm", "border_ignore_px", "map_smoothing", "hysteresis", "open_ksize", "close_ksize"),
    *("min_area", "min_score_max", "min_score_mean", "min_fill_ratio", "max_aspect_ratio", "min_solidity"),
    *("fill_holes", ROI_CLIP, "merge_nearby", "max_regions"),
)
"""Every control, in the order in which they act."""


@dataclass(frozen=True)
class Step:
    """What one control did: components and pixels it removed, pixels it added, and what is left after it.

    `control` is its config key in the `defects` block. `roi_clip` is the clipping to the ROI after filling; before any
    control stands `thresholded`, after all `reported`. `merge_nearby` and `max_regions` act on regions: from there on
    components are regions, and pixels are their areas.
    """

    control: str
    components: int
    pixels: int
    pixels_added: int
    components_left: int
    pixels_left: int

    def to_record(self) -> dict[str, int]:
        """The counts as they stand in a JSONL record."""
        return {
            "components": self.components,
            "pixels": self.pixels,
            "pixels_added": self.pixels_added,
            "components_left": self.components_left,
            "pixels_left": self.pixels_left,
        }


Waterfall = tuple[Step, ...]


def add_waterfalls(one: Waterfall, other: Waterfall) -> Waterfall:
    """Sum of two waterfalls of the same settings; an empty one counts nothing."""
    if not one or not other:
        return one or other
    return tuple(
        Step(
            mine.control,
            mine.components + theirs.components,
            mine.pixels + theirs.pixels,
            mine.pixels_added + theirs.pixels_added,
            mine.components_left + theirs.components_left,
            mine.pixels_left + theirs.pixels_left,
        )
        for mine, theirs in zip(one, other, strict=True)
    )


def waterfall_of_record(suppressed: Mapping[str, Any]) -> Waterfall:
    """The waterfall in `defects.suppressed` of a JSONL record, controls in the order in which they act."""
    first, last = suppressed[THRESHOLDED], suppressed[REPORTED]
    controls = suppressed["controls"]
    return (
        Step(THRESHOLDED, 0, 0, 0, first["components"], first["pixels"]),
        *(Step(control, **controls[control]) for control in sorted(controls, key=CONTROLS.index)),
        Step(REPORTED, 0, 0, 0, last["components"], last["pixels"]),
    )


@dataclass(frozen=True, eq=False)
class Dropped:
    """Components that one control dropped, in raster order.

    limit: the control's setting. values: float64 (N,), what was measured against it, None where the control looks at
    places only, and NaN where it cannot be measured (the solidity of a line). boxes_xyxy: int64 (N, 4), inclusive.
    areas: int64 (N,), pixels.
    """

    control: str
    limit: Any
    values: np.ndarray | None
    boxes_xyxy: np.ndarray
    areas: np.ndarray
    boxes_xyxy_image: np.ndarray | None = None

    def to_records(self) -> Iterator[dict[str, Any]]:
        """Each component as it stands in a JSONL record."""
        values = repeat(None) if self.values is None else (_rounded(value) for value in self.values.tolist())
        image_boxes = None if self.boxes_xyxy_image is None else self.boxes_xyxy_image.tolist()
        for row, (value, box, area) in enumerate(
            zip(values, self.boxes_xyxy.tolist(), self.areas.tolist(), strict=False)
        ):
            record = {"control": self.control, "value": value, "limit": self.limit, "bbox_xyxy": box, "area": area}
            if image_boxes is not None:
                record["bbox_xyxy_image"] = image_boxes[row]
            yield record


@dataclass(frozen=True)
class Explanation:
    """The ledger of one map: the waterfall, and what was dropped by which control."""

    level: float
    waterfall: Waterfall
    dropped: tuple[Dropped, ...]
    lists_dropped: bool

    @property
    def dropped_boxes_xyxy(self) -> np.ndarray:
        """Boxes of all dropped components, int64 (N, 4)."""
        return np.concatenate([np.empty((0, 4), np.int64), *(group.boxes_xyxy for group in self.dropped)])

    def scaled_to_image(self, map_hw: tuple[int, int], image_hw: tuple[int, int]) -> Explanation:
        """The same, with boxes in the pixels of an image of `image_hw`."""
        scaled = (
            replace(group, boxes_xyxy_image=boxes_to_image(group.boxes_xyxy, map_hw, image_hw))
            for group in self.dropped
        )
        return replace(self, dropped=tuple(scaled))

    def to_record(self) -> dict[str, Any]:
        """`defects.suppressed` of a JSONL record."""
        first, *controls, last = self.waterfall
        record: dict[str, Any] = {
            THRESHOLDED: {"level": self.level, "components": first.components_left, "pixels": first.pixels_left},
            "controls": {step.control: step.to_record() for step in controls},
            REPORTED: {"components": last.components_left, "pixels": last.pixels_left},
        }
        if self.lists_dropped:
            record["dropped"] = list(chain.from_iterable(group.to_records() for group in self.dropped))
        return record


class Ledger:
    """Looks on and notes nothing: what extraction tells when no explanation is asked for."""

    def scores(self, control: str, scores: np.ndarray, part: Part, *, on: bool) -> None:
        """A control has changed the map to `scores`, float32 (H, W), which count as 0 outside `part`."""

    def mask(self, control: str, mask: np.ndarray, *, on: bool) -> None:
        """A control has changed the mask to `mask`, 0 and 1, (H, W)."""

    def filtered(self, components: Components, mask: np.ndarray) -> None:
        """The filters have judged `components`; `mask` is what they leave."""

    def regions(self, control: str, table: RegionTable, *, on: bool) -> None:
        """A control has changed the regions to `table`."""

    def cut(self, table: RegionTable, order: np.ndarray, *, on: bool) -> None:
        """The regions will be reported in this order, up to the limit; `order` holds rows of `table`, int64 (N,)."""

    def close(self) -> Explanation | None:
        """What was noted."""
        return None


class WritingLedger(Ledger):
    """Notes every step of one map, from the raw scores on."""

    def __init__(self, raw: np.ndarray, pixel_threshold: float, settings: DefectSettings) -> None:
        self._settings = settings
        self._level, self._high = pixel_threshold, pixel_threshold
        if settings.hysteresis.enabled:
            self._level, self._high = hysteresis_levels(settings.hysteresis, pixel_threshold)
        self._scores = raw
        self._part: Part | None = None
        self._mask = at_least(raw, self._level)
        self._steps = [Step(THRESHOLDED, 0, 0, 0, _count(self._mask), int(self._mask.sum()))]
        self._dropped: list[Dropped] = []

    def scores(self, control: str, scores: np.ndarray, part: Part, *, on: bool) -> None:
        self._scores, self._part = scores, part
        if on:
            self.mask(control, at_least(scores, self._level, part), on=True)

    def mask(self, control: str, mask: np.ndarray, *, on: bool) -> None:
        if not on:
            return
        before, self._mask = self._mask, mask
        components = measure_components(before, self._scores, self._part)
        alive = np.zeros(len(components) + 1, np.bool_)
        alive[components.labels[(mask & before).view(np.bool_)]] = True
        gone = components.take(np.flatnonzero(~alive[1:]))
        measured = gone.score_max if control in ("map_smoothing", "hysteresis") else None
        self._drop(control, self._limit(control), measured, gone.boxes_xyxy, gone.areas)
        self._step(control, len(gone), _pixels(before & ~mask), _pixels(mask & ~before), _count(mask), _pixels(mask))

    def filtered(self, components: Components, mask: np.ndarray) -> None:
        count, pixels = len(components), int(components.areas.sum())
        for verdict in verdicts(components, self._settings):
            areas = components.areas[verdict.failed]
            boxes = components.boxes_xyxy[verdict.failed]
            self._drop(verdict.control, verdict.limit, verdict.values, boxes, areas)
            count, pixels = count - len(areas), pixels - int(areas.sum())
            self._step(verdict.control, len(areas), int(areas.sum()), 0, count, pixels)
        self._mask = mask

    def regions(self, control: str, table: RegionTable, *, on: bool) -> None:
        last = self._steps[-1]
        if on:
            self._step(control, last.components_left - len(table), 0, 0, len(table), last.pixels_left)

    def cut(self, table: RegionTable, order: np.ndarray, *, on: bool) -> None:
        limit = self._settings.max_regions
        if not on or limit is None:
            return
        rows = order[limit:]
        ranks = np.arange(limit, limit + len(rows), dtype=np.float64) + 1
        self._drop("max_regions", limit, ranks, table.boxes_xyxy[rows], table.areas[rows])
        removed, left = int(table.areas[rows].sum()), self._steps[-1].pixels_left
        self._step("max_regions", len(rows), removed, 0, len(order) - len(rows), left - removed)

    def close(self) -> Explanation:
        last = self._steps[-1]
        self._step(REPORTED, 0, 0, 0, last.components_left, last.pixels_left)
        return Explanation(self._level, tuple(self._steps), tuple(self._dropped), self._settings.explain == "full")

    def _limit(self, control: str) -> Any:
        if control == "map_smoothing":
            return self._level
        if control == "hysteresis":
            return self._high
        roi = self._settings.roi_xyxy_norm
        if control == ROI_CLIP or control == "roi_xyxy_norm":
            return None if roi is None else list(roi)
        return getattr(self._settings, control)

    def _drop(
        self, control: str, limit: Any, values: np.ndarray | None, boxes_xyxy: np.ndarray, areas: np.ndarray
    ) -> None:
        if len(areas):
            self._dropped.append(Dropped(control, limit, values, boxes_xyxy, areas))

    def _step(self, control: str, components: int, pixels: int, added: int, left: int, pixels_left: int) -> None:
        self._steps.append(Step(control, components, pixels, added, left, pixels_left))


def open_ledger(raw: np.ndarray, pixel_threshold: float, settings: DefectSettings) -> Ledger:
    """The ledger that the settings ask for."""
    return Ledger() if settings.explain == "none" else WritingLedger(raw, pixel_threshold, settings)


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def _pixels(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _count(mask: np.ndarray) -> int:
    return cv2.connectedComponents(mask, connectivity=8)[0] - 1
