"""The write stage: which files an inspected input leaves behind, and what its record says of them."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.dataflow.reading import Loaded
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.storage.files import artifact_name, resolve, write_atomic
from pyimgano_dask.storage.maps import encode_npy
from pyimgano_dask.storage.masks import encode_mask
from pyimgano_dask.storage.overlays import encode_png, render_overlay

Entry = dict[str, dict[str, Any]]


def is_zarr(path: str) -> bool:
    """Whether maps saved at `path` go into one zarr store."""
    return path.rstrip("/").endswith(".zarr")


class ArtifactWriter:
    """Writes the artifacts of one chunk, whose first input has position `start` in a list of `n_inputs`.

    Files are written as inputs come; rows of zarr stores together in `finish`, because a chunk is a shard.
    """

    def __init__(self, settings: InferSettings, base_dir: str, start: int, n_inputs: int) -> None:
        self._output = settings.output
        self._mask_format = settings.defects.mask_format
        self._base_dir = base_dir
        self._start = start
        self._n_inputs = n_inputs
        self._batch_size = settings.dataflow.chunk_size
        self._map_rows: dict[int, NDArray[np.float32]] = {}
        self._mask_rows: dict[int, NDArray[np.uint8]] = {}

    def write(self, item: Loaded, anomaly_map: NDArray[np.float32], mask: NDArray[np.uint8] | None) -> Entry:
        """Write what one input leaves as files; returns what its record says of them."""
        entry: Entry = {}
        output = self._output
        if output.save_maps is not None:
            if is_zarr(output.save_maps):
                self._map_rows[item.index] = anomaly_map
            else:
                entry["map"] = {"path": self._put(output.save_maps, item, ".npy", *encode_npy(anomaly_map))}
        if output.save_masks is not None and mask is not None:
            if self._mask_format == "zarr":
                self._mask_rows[item.index] = mask
            else:
                encoded = encode_mask(mask, self._mask_format)
                entry["mask"] = {"path": self._put(output.save_masks, item, f".{self._mask_format}", encoded)}
        if output.save_overlays is not None:
            assert item.display is not None
            overlay = render_overlay(item.display, anomaly_map, mask)
            self._put(output.save_overlays, item, ".png", encode_png(overlay))
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

    def _put(self, folder: str, item: Loaded, suffix: str, *parts: Any) -> str:
        """Write one file; returns its path as the user spells the folder."""
        path = posixpath.join(folder, artifact_name(item.index, item.path, suffix))
        write_atomic(resolve(path, self._base_dir), *parts)
        return path
