"""The write stage: which files an inspected input leaves behind, and what its record says of them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.sources import Scored
from pyimgano_dask.defects import Defects, boxes_to_image
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import artifact_name, resolve, write_atomic
from pyimgano_dask.storage.maps import encode_npy
from pyimgano_dask.storage.masks import encode_mask
from pyimgano_dask.storage.overlays import encode_overlay, render_overlay

Entry = dict[str, dict[str, Any]]

# What the heatmap of a map without its image is drawn on.
NO_IMAGE_LEVEL = 96


def is_zarr(path: str) -> bool:
    """Whether maps saved at `path` go into one zarr store."""
    return path.rstrip("/").endswith(".zarr")


class ArtifactWriter:
    """Writes the artifacts of one chunk, whose first input has position `start` in a list of `n_inputs`.

    Files are written as inputs come; rows of zarr stores together in `finish`, because a chunk is a shard.
    """

    def __init__(
        self,
        settings: InferSettings,
        base_dir: str,
        start: int,
        n_inputs: int,
        overlay_scale: tuple[float, float] | None,
    ) -> None:
        self._output = settings.output
        self._mask_format = settings.defects.mask_format
        self._base_dir = base_dir
        self._start = start
        self._n_inputs = n_inputs
        self._batch_size = settings.dataflow.chunk_size
        self._overlay_scale = overlay_scale
        self._map_rows: dict[int, NDArray[np.float32]] = {}
        self._mask_rows: dict[int, NDArray[np.uint8]] = {}

    def write(self, item: Scored, defects: Defects | None) -> Entry:
        """Write what one input leaves as files; returns what its record says of them."""
        entry: Entry = {}
        output = self._output
        if output.save_maps is not None:
            if is_zarr(output.save_maps):
                self._map_rows[item.index] = item.anomaly_map
            else:
                entry["map"] = {"path": self._put(output.save_maps, item, ".npy", *encode_npy(item.anomaly_map))}
        if output.save_masks is not None and defects is not None:
            if self._mask_format == "zarr":
                self._mask_rows[item.index] = defects.mask
            else:
                encoded = encode_mask(defects.mask, self._mask_format)
                entry["mask"] = {"path": self._put(output.save_masks, item, f".{self._mask_format}", encoded)}
        if output.save_overlays is not None:
            encoded = encode_overlay(draw(item, defects, self._overlay_scale), output.overlay_format)
            self._put(output.save_overlays, item, f".{output.overlay_format}", encoded)
        return entry

    def finish(self) -> dict[int, Entry]:
        """Write the rows of zarr stores; returns what the records of those inputs say of them."""
        entries: dict[int, Entry] = {}
        self._finish_store(entries, "map", self._output.save_maps, self._map_rows, "float32")
        self._finish_store(entries, "mask", self._output.save_masks, self._mask_rows, "uint8")
        return entries

    def _finish_store(
        self,
        entries: dict[int, Entry],
        key: str,
        folder: str | None,
        rows: Mapping[int, NDArray[Any]],
        dtype: Literal["uint8", "float32"],
    ) -> None:
        if folder is None or not rows:
            return
        from pyimgano_dask.storage.zarr_store import write_rows

        arrays = write_rows(
            resolve(folder, self._base_dir),
            rows,
            start=self._start,
            n_inputs=self._n_inputs,
            batch_size=self._batch_size,
            dtype=dtype,
        )
        for index, array in arrays.items():
            entries.setdefault(index, {})[key] = {"path": folder, "array": array, "row": index}

    def _put(self, folder: str, item: Scored, suffix: str, *parts: Any) -> str:
        """Write one file; returns its path as the user spells the folder."""
        path = posixpath.join(folder, artifact_name(item.index, item.name, suffix))
        write_atomic(resolve(path, self._base_dir), *parts)
        return path


def draw(item: Scored, defects: Defects | None, scale: tuple[float, float] | None) -> NDArray[np.uint8]:
    """The overlay of one input, uint8 RGB of its image's size, or of its map's where there is no image."""
    image = item.display
    if image is None:
        image = np.full((*item.anomaly_map.shape, 3), NO_IMAGE_LEVEL, np.uint8)
    if defects is None:
        return render_overlay(image, item.anomaly_map, None, scale=scale)
    map_hw, image_hw = defects.mask.shape, (image.shape[0], image.shape[1])
    dropped = None if defects.explanation is None else defects.explanation.dropped_boxes_xyxy
    return render_overlay(
        image,
        item.anomaly_map,
        defects.mask,
        scale=scale,
        boxes_xyxy=boxes_to_image(defects.regions.boxes_xyxy, map_hw, image_hw),
        scores=defects.regions.score_max,
        dropped_boxes_xyxy=None if dropped is None else boxes_to_image(dropped, map_hw, image_hw),
    )
