"""Gaussians of features at each place, on torch tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from pyimgano_dask.detectors.deep.backbones import chosen_device
from pyimgano_dask.detectors.deep.sums import places_at_once
from pyimgano_dask.errors import ConfigError, InputError

Floats = NDArray[np.float32]

# Images whose distances are computed together. A batch is filled up to it, so that an answer does not depend on how
# many images stand in a batch.
DISTANCE_BATCH = 16


def whitening(count: int, mean: NDArray[np.float64], products: NDArray[np.float64], eps: float) -> Floats:
    """Lower triangles of the inverses of the covariances' Cholesky factors, float32 (P, d (d + 1) / 2).

    `mean` (P, d) is that of `count` samples a place, `products` (P, d (d + 1) / 2) the lower triangles of the sums of
    their outer products. The covariance has n - 1 in its denominator, and `eps` added to its diagonal.
    """
    n_places, d = mean.shape
    rows, columns = np.tril_indices(d)
    answer = np.empty((n_places, len(rows)), np.float32)
    step = places_at_once(d)
    for start in range(0, n_places, step):
        places = slice(start, start + step)
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
    if not np.isfinite(answer).all():
        raise ConfigError(f"the features of the normal images differ too little for covariance_eps {eps:g}; raise it")
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
        d = mean.shape[1]
        # The upper right quarter of a lower triangle is zero, and left out: each half has its rows and columns.
        halves = [(0, d // 2), (d // 2, d)] if d > 1 else [(0, d)]
        self._parts = [torch.from_numpy(_affine(mean, below, *half)).to(self._device) for half in halves]

    def distances(self, batches: Iterable[Sequence[torch.Tensor]]) -> Iterator[Floats]:
        """Mahalanobis distances of each image, float32 (h, w); `batches` hold features as `embed` takes them."""
        n_places, d = self._shape
        embedded = torch.zeros(DISTANCE_BATCH, n_places, 1 + d, device=self._device)
        embedded[:, :, 0] = 1
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
                embed([layer[image] for layer in features], self._channels, embedded[filled, :, 1:])
                filled += 1
                if filled == DISTANCE_BATCH:
                    yield from self._lengths(embedded)
                    filled = 0
        if filled:
            yield from self._lengths(embedded)[:filled]

    def _lengths(self, embedded: torch.Tensor) -> Floats:
        by_place = embedded.transpose(0, 1)
        with torch.inference_mode(), torch.autocast(self._device.type, enabled=False):
            squares = torch.zeros(by_place.shape[:2], device=self._device)
            for part in self._parts:
                white = torch.bmm(by_place[:, :, : part.shape[1]], part)
                squares += torch.linalg.vector_norm(white, dim=2).square_()
            joined: Floats = squares.sqrt_().T.cpu().numpy()
        return joined.reshape(-1, *self._grid_hw)


def _affine(mean: Floats, below: Floats, first: int, last: int) -> Floats:
    """Rows `first` … `last` - 1 of W (x - mean) as a matrix on (1, x), float32 (P, 1 + last, last - first)."""
    n_places, d = mean.shape
    rows, columns = np.tril_indices(d)
    is_here = (first <= rows) & (rows < last)
    matrices = np.zeros((n_places, 1 + last, last - first), np.float32)
    step = places_at_once(d)
    for start in range(0, n_places, step):
        places = slice(start, start + step)
        matrices[places, 1 + columns[is_here], rows[is_here] - first] = below[places][:, is_here]
        matrices[places, :1] = -np.matmul(mean[places, None, :last], matrices[places, 1:])
    return matrices


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
        _enlarge(chosen, grid[:, :, column : column + len(own)])
        column += len(own)
    if column < len(channels):
        raise InputError(
            "infer", "BackboneError", f"the backbone has {first} channels, and channel {channels[-1]} is wanted"
        )


def _enlarge(values: torch.Tensor, out: torch.Tensor) -> None:
    """Bring (h, w, c) to the grid of `out`, (H, W, c), by nearest neighbour: row i is row i h / H, rounded down."""
    (h, w), (height, width) = values.shape[:2], out.shape[:2]
    if height % h == 0 and width % w == 0:
        blocks = out.view(h, height // h, w, width // w, -1)
        blocks.copy_(values[:, None, :, None].expand_as(blocks))
        return
    for axis, length in enumerate((height, width)):
        nearest = torch.arange(length, device=values.device) * values.shape[axis] // length
        values = values.index_select(axis, nearest)
    out.copy_(values)


def embed_all(features: Sequence[torch.Tensor], channels: NDArray[np.int64]) -> Floats:
    """The same for a batch: `features` are (n, C, h, w) by layer, the answer is float32 (n, h * w, d)."""
    count, _, height, width = features[0].shape
    out = torch.empty(count, height * width, len(channels), device=features[0].device)
    for image in range(count):
        embed([layer[image] for layer in features], channels, out[image])
    embedded: Floats = out.cpu().numpy()
    return embedded
