"""Gaussians of features at each place, on torch tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pyimgano_dask.detectors.deep.backbones import chosen_device
from pyimgano_dask.errors import ConfigError, InputError

Floats = NDArray[np.float32]

# Images whose distances are computed together. A batch is filled up to it, so that an answer does not depend on how
# many images stand in a batch.
DISTANCE_BATCH = 16
PLACES_AT_ONCE = 512


def whitening(count: int, mean: NDArray[np.float64], products: NDArray[np.float64], eps: float) -> Floats:
    """Lower triangles of the inverses of the covariances' Cholesky factors, float32 (P, d (d + 1) / 2).

    `mean` (P, d) is that of `count` samples a place, `products` (P, d (d + 1) / 2) the lower triangles of the sums of
    their outer products. The covariance has n - 1 in its denominator, and `eps` added to its diagonal.
    """
    n_places, d = mean.shape
    rows, columns = np.tril_indices(d)
    answer = np.empty((n_places, len(rows)), np.float32)
    for start in range(0, n_places, PLACES_AT_ONCE):
        places = slice(start, start + PLACES_AT_ONCE)
        spread = products[places] - count * mean[places][:, rows] * mean[places][:, columns]
        covariance = np.zeros((len(spread), d, d))
        covariance[:, rows, columns] = covariance[:, columns, rows] = spread / max(count - 1, 1)
        covariance[:, np.arange(d), np.arange(d)] += eps
        factor, faults = torch.linalg.cholesky_ex(torch.from_numpy(covariance))
        if faults.any():
            raise ConfigError(
                "the features of the normal images have no covariance that can be inverted; are the weights of the "
                "backbone sound? A larger covariance_eps helps where they are"
            )
        inverse = torch.linalg.solve_triangular(factor, torch.eye(d, dtype=factor.dtype), upper=False)
        answer[places] = inverse.numpy()[:, rows, columns]
    return answer


class Gaussians:
    """Gaussians of the chosen channels at all places, on the device."""

    def __init__(
        self, device: str | None, channels: NDArray[np.int64], mean: Floats, below: Floats, grid_hw: NDArray[np.int64]
    ) -> None:
        """`mean` is (P, d), `below` the lower triangles of the whitening matrices, (P, d (d + 1) / 2)."""
        self._device = chosen_device(device)
        self._channels = channels
        self._shape = mean.shape
        self._grid_hw = int(grid_hw[0]), int(grid_hw[1])
        n_places, d = mean.shape
        rows, columns = np.tril_indices(d)
        matrices = np.zeros((n_places, d, d), np.float32)
        matrices[:, rows, columns] = below
        # The upper right quarter of a lower triangle is zero, and left out: each part has its rows and columns.
        parts = [(slice(0, d // 2), slice(0, d // 2)), (slice(d // 2, d), slice(0, d))] if d > 1 else [(slice(1),) * 2]
        self._parts = []
        for down, across in parts:
            whitening = torch.from_numpy(matrices[:, down, across].copy()).to(self._device).transpose(1, 2)
            offset = -torch.matmul(torch.tensor(mean[:, None, across], device=self._device), whitening)
            self._parts.append((across, whitening, offset))

    def distances(self, batches: Iterable[Sequence[torch.Tensor]]) -> Iterator[Floats]:
        """Mahalanobis distances of each image, float32 (h, w); `batches` hold features as `embed` takes them."""
        n_places, d = self._shape
        embedded = torch.zeros(n_places, DISTANCE_BATCH, d, device=self._device)
        filled = 0
        for features in batches:
            for image in range(len(features[0])):
                if tuple(features[0].shape[2:]) != self._grid_hw:
                    raise InputError(
                        "infer",
                        "BackboneError",
                        f"the backbone gives a grid of {tuple(features[0].shape[2:])} places, and the detector was "
                        f"fitted on {self._grid_hw}",
                    )
                embed([layer[image] for layer in features], self._channels, embedded[:, filled])
                filled += 1
                if filled == DISTANCE_BATCH:
                    yield from self._lengths(embedded)
                    filled = 0
        if filled:
            yield from self._lengths(embedded)[:filled]

    def _lengths(self, embedded: torch.Tensor) -> Floats:
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            lengths = [
                torch.linalg.vector_norm(torch.baddbmm(offset, embedded[:, :, across], whitening), dim=2)
                for across, whitening, offset in self._parts
            ]
            joined: Floats = torch.linalg.vector_norm(torch.stack(lengths), dim=0).T.cpu().numpy()
        return joined.reshape(-1, *self._grid_hw)


def embed(features: Sequence[torch.Tensor], channels: NDArray[np.int64], out: torch.Tensor) -> None:
    """Put some channels of all layers, on the grid of the first one, into `out`, float32 (h * w, d).

    `features` are (C, h, w) by layer, `channels` ascending indices into the layers' channels one after the other. A
    coarser layer is brought to the grid by nearest neighbour.
    """
    height, width = features[0].shape[1:]
    grid = out.view(height, width, -1)
    first = column = 0
    for layer in features:
        own = channels[(channels >= first) & (channels < first + layer.shape[0])] - first
        first += layer.shape[0]
        chosen = layer.permute(1, 2, 0).index_select(2, torch.from_numpy(own).to(layer.device))
        for axis, length in enumerate((height, width)):
            if chosen.shape[axis] != length:
                nearest = torch.arange(length, device=layer.device) * chosen.shape[axis] // length
                chosen = chosen.index_select(axis, nearest)
        grid[:, :, column : column + len(own)] = chosen
        column += len(own)
    if column < len(channels):
        raise InputError(
            "infer", "BackboneError", f"the backbone has {first} channels, and channel {channels[-1]} is wanted"
        )


def embed_all(features: Sequence[torch.Tensor], channels: NDArray[np.int64]) -> Floats:
    """The same for a batch: `features` are (n, C, h, w) by layer, the answer is float32 (n, h * w, d)."""
    count, _, height, width = features[0].shape
    out = torch.empty(count, height * width, len(channels), device=features[0].device)
    for image in range(count):
        embed([layer[image] for layer in features], channels, out[image])
    embedded: Floats = out.cpu().numpy()
    return embedded
