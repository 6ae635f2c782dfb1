"""Patch features and their distances to a memory bank, on torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import avg_pool2d, interpolate

from pyimgano_dask.detectors.deep.backbones import chosen_device

Floats = NDArray[np.float32]

NEIGHBOURHOOD = 3
BANK_ROWS_AT_ONCE = 8192


def patch_features(features: Sequence[torch.Tensor]) -> torch.Tensor:
    """Locally aware patch features: float32 (n, h * w, C) of layers (n, C, h, w), on the grid of the first one.

    Each layer is averaged over 3 x 3 neighbours, coarser ones are enlarged (bilinear), channels are joined.
    """
    grid_hw = features[0].shape[2:]
    layers = []
    for layer in features:
        pooled = avg_pool2d(layer, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)
        if pooled.shape[2:] != grid_hw:
            pooled = interpolate(pooled, size=grid_hw, mode="bilinear", align_corners=False)
        layers.append(pooled.permute(0, 2, 3, 1))
    return torch.cat(layers, dim=3).flatten(1, 2)


class MemoryBank:
    """Patches of normal images, (M, C), on the device."""

    def __init__(self, device: str | None, bank: Floats) -> None:
        self._bank = torch.tensor(bank, device=chosen_device(device))
        self._squares = self._bank.square().sum(dim=1)

    @property
    def n_channels(self) -> int:
        """C."""
        return int(self._bank.shape[1])

    def score(self, patches: torch.Tensor, n_neighbors: int) -> tuple[float, Floats]:
        """The score of an image, and the distance of each of its patches, (P, C), to the bank: float32 (P,).

        The score is the largest distance d times 1 - exp(d) / sum of exp(d_i), where d_i are the distances of the
        same patch to the `n_neighbors` patches of the bank nearest to its own nearest one (equations 6 and 7 of the
        paper).
        """
        with torch.inference_mode(), torch.autocast(self._bank.device.type, enabled=False):
            nearest = self._nearest(patches)
            distances = torch.linalg.vector_norm(self._bank[nearest].sub_(patches), dim=1)
            worst = int(distances.argmax())
            score = float(distances[worst])
            around = self._around(int(nearest[worst]), n_neighbors)
            if len(around) > 1:
                others = torch.linalg.vector_norm(self._bank[around] - patches[worst], dim=1)
                score *= 1 - float(torch.exp(distances[worst] - torch.logsumexp(others, dim=0)))
            grid: Floats = distances.cpu().numpy()
        return score, grid

    def _nearest(self, patches: torch.Tensor) -> torch.Tensor:
        """Row of the bank nearest to each patch."""
        best, rows = self._nearest_in(0, patches)
        for start in range(BANK_ROWS_AT_ONCE, len(self._bank), BANK_ROWS_AT_ONCE):
            smallest, where = self._nearest_in(start, patches)
            closer = smallest < best
            best = torch.where(closer, smallest, best)
            rows = torch.where(closer, where, rows)
        return rows

    def _nearest_in(self, start: int, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distance, less the patch's own square, and row of the nearest in the block from row `start`."""
        block = slice(start, start + BANK_ROWS_AT_ONCE)
        smallest, where = torch.addmm(self._squares[block], patches, self._bank[block].T, alpha=-2).min(dim=1)
        return smallest, where + start

    def _around(self, row: int, count: int) -> torch.Tensor:
        """Rows of the bank nearest to one of them, itself among them."""
        apart = torch.linalg.vector_norm(self._bank - self._bank[row], dim=1)
        rows: torch.Tensor = apart.topk(min(count, len(apart)), largest=False).indices
        return rows
