"""Gaussian statistics of a filter bank, a detector of textures and of roughly aligned parts that needs no weights.

The statistics are those of PaDiM (T. Defard et al., "PaDiM: a patch distribution modeling framework for anomaly
detection and localization", 2020), the features those of `filter_bank`: the map is the Mahalanobis distance of each
place from a Gaussian fitted on normal images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Color, Detector, Image, Prediction, State
from pyimgano_dask.detectors.differences import topk_mean
from pyimgano_dask.detectors.filter_bank import QUANTUM, FilterBank, Floats, Light, blur
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.detectors.shared_knobs import contamination_knob
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block, knob

VARIANCE_FLOOR = 1e-4  # of a feature: features are logarithms, so this is a deviation of 1 %
LARGEST_LEVEL = 5
LARGEST_GRID = 256


class TextureArguments(Block):
    """Arguments of `vision_texture_padim`."""

    contamination: float = contamination_knob()
    color: Color = knob("gray", "Look at grey values, or also at the colour of RGB.")
    levels: tuple[int, ...] = knob(
        (1, 2, 3, 4), "Scales of the filters: level k looks at the image shrunk to 1 / 2^k; 0 is full size."
    )
    stride: int = knob(8, "Pixels from one place of the statistics to the next.", ge=1, le=64)
    window_px: float = knob(
        16.0, "Standard deviation, in pixels, of the window that energies are averaged over.", ge=1, le=256
    )
    light: Light = knob(
        "log", "Take the logarithm of grey levels, so that contrasts count whatever the light, or not (linear)."
    )
    grid_hw: tuple[int, int] = knob(
        (12, 12), "Gaussians down and across the image, each for its place; 1, 1 is one for all places."
    )
    prior_sites: float = knob(
        16.0, "Weight of the Gaussian common to all cells in that of each cell, in places seen.", gt=0
    )
    shrinkage: float = knob(0.01, "Share of each covariance that is replaced by its diagonal.", ge=0, le=1)
    smoothing_px: float = knob(
        24.0, "Standard deviation, in pixels, of the smoothing of the map; 0 is none.", ge=0, le=4096
    )
    score_border_px: int = knob(0, "Pixels at each border of the map that the score leaves out.", ge=0, le=2**20)
    reduction: Literal["max", "mean", "topk_mean"] = knob("topk_mean", "How the map becomes the score.")
    topk: float = knob(0.01, "Share of the largest map values that topk_mean averages.", gt=0, le=1)

    def model_post_init(self, context: Any, /) -> None:
        """Check what the types cannot say."""
        if min(self.grid_hw) < 1 or max(self.grid_hw) > LARGEST_GRID:
            raise ValueError(f"grid_hw must be two numbers from 1 to {LARGEST_GRID}, got {self.grid_hw}")
        if self.window_px < self.stride / 4:
            raise ValueError(f"window_px must be at least a quarter of stride {self.stride}, got {self.window_px}")
        if not self.levels or len(set(self.levels)) < len(self.levels):
            raise ValueError(f"levels must be one or more different numbers, got {self.levels}")
        if not all(0 <= level <= LARGEST_LEVEL for level in self.levels):
            raise ValueError(f"levels must lie between 0 and {LARGEST_LEVEL}, got {self.levels}")


@dataclass(frozen=True)
class _Cell:
    """A cell of the grid: its number and the sites in it."""

    number: int
    rows: slice
    columns: slice


def cells(sites_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Iterator[_Cell]:
    """The cells that hold at least one site; the sites are shared out evenly, whatever the size of the image."""
    for i, rows in _shares(sites_hw[0], grid_hw[0]):
        for j, columns in _shares(sites_hw[1], grid_hw[1]):
            yield _Cell(i * grid_hw[1] + j, rows, columns)


def _shares(n_sites: int, n_cells: int) -> Iterator[tuple[int, slice]]:
    """Site k of n belongs to the cell of its centre, floor((2 k + 1) · n_cells / (2 n))."""
    owners = (2 * np.arange(n_sites) + 1) * n_cells // (2 * n_sites)
    for cell in np.unique(owners).tolist():
        start, stop = np.searchsorted(owners, [cell, cell + 1]).tolist()
        yield cell, slice(start, stop)


@register
class TexturePadim(Detector[TextureArguments]):
    """sqrt((f − μ)ᵀ Σ⁻¹ (f − μ) / D) with D features f of a filter bank, μ and Σ those of the cell of the grid.

    A fitted instance has `mean` (cells, D) and `whitening` (cells, D, D), float32, lower triangles L⁻¹ of
    Σ = L Lᵀ. Fitting adds integers, so any grouping of the images gives the same bits.
    """

    name = "vision_texture_padim"
    summary = "Distance of each place from the normal texture there, by filters that need no weights."
    tags = ("vision", "classical", "texture", "gaussian", "numpy", "pixel_map")
    reference = "PaDiM (Defard et al., 2020) on energies of Gaussian derivatives."
    arguments_type = TextureArguments
    fits_closely = True
    free_arguments = frozenset({"contamination", "smoothing_px", "score_border_px", "reduction", "topk"})
    state_names: ClassVar[tuple[str, ...]] = ("mean", "whitening")

    def __init__(self, arguments: TextureArguments) -> None:
        super().__init__(arguments)
        self._state: State | None = None
        self._bank = FilterBank(
            arguments.levels, arguments.stride, arguments.window_px, arguments.light, arguments.color == "rgb"
        )

    @property
    def color(self) -> Color:
        return self.arguments.color

    @property
    def contamination(self) -> float:
        return self.arguments.contamination

    @property
    def is_fitted(self) -> bool:
        return self._state is not None

    @property
    def is_position_bound(self) -> bool:  # type: ignore[override]
        """Whether there is more than one Gaussian."""
        return self.arguments.grid_hw != (1, 1)

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        n_cells, n_features = self.arguments.grid_hw[0] * self.arguments.grid_hw[1], self._bank.n_features
        return {"mean": (n_cells, n_features), "whitening": (n_cells, n_features, n_features)}

    def select_training(self, n_images: int) -> Sequence[int]:
        return range(n_images)

    def accumulate(self, images: Sequence[Image]) -> State:
        n_cells, n_features = self._shapes["mean"]
        count = np.zeros(n_cells, dtype=np.int64)
        total = np.zeros((n_cells, n_features), dtype=np.int64)
        products = np.zeros((n_cells, n_features, n_features), dtype=np.int64)
        for image in images:
            features = self._bank.features(image)
            for cell in cells(self._bank.sites_hw(*image.shape[:2]), self.arguments.grid_hw):
                sites = features[:, cell.rows, cell.columns].reshape(n_features, -1).astype(np.float64)
                count[cell.number] += sites.shape[1]
                total[cell.number] += sites.sum(axis=1).astype(np.int64)
                products[cell.number] += (sites @ sites.T).astype(np.int64)
        return {"count": count, "total": total, "products": products}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        return {key: np.sum([state[key] for state in states], axis=0) for key in states[0]}

    def finalize(self, state: State) -> Self:
        mean, covariance = self._gaussians(state)
        whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        return self.with_state({"mean": mean, "whitening": whitening})

    def _gaussians(self, state: State) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean (cells, D) and covariance (cells, D, D) of each cell.

        Each cell has `prior_sites` places more than it has seen, of the covariance within cells over all images;
        its mean has one place more, of the mean of all cells.
        """
        count = state["count"].astype(np.float64)
        total, products = state["total"] / QUANTUM, state["products"] / QUANTUM**2
        common_mean = total.sum(axis=0) / count.sum()
        mean = total / np.maximum(count, 1)[:, None]
        scatter = products - count[:, None, None] * mean[:, :, None] * mean[:, None, :]
        prior = scatter.sum(axis=0) / count.sum()
        weight = self.arguments.prior_sites
        covariance = (scatter + weight * prior) / (count + weight)[:, None, None]
        diagonal = np.eye(len(prior)) * np.diagonal(covariance, axis1=1, axis2=2)[:, None, :]
        share = self.arguments.shrinkage
        covariance = (1 - share) * covariance + share * diagonal + VARIANCE_FLOOR * np.eye(len(prior))
        return (total + common_mean) / (count + 1)[:, None], covariance

    def state(self) -> State:
        if self._state is None:
            raise RuntimeError(f"{self.name} is not fitted: call fit or with_state first")
        return self._state

    def with_state(self, state: State) -> Self:
        for key, shape in self._shapes.items():
            if key not in state or state[key].shape != shape:
                found = state[key].shape if key in state else "no such array"
                raise ConfigError(f"{self.name}: the state's {key} must have shape {shape}, got {found}")
            if state[key].dtype.kind not in "fiu" or not np.isfinite(state[key]).all():
                raise ConfigError(f"{self.name}: the state's {key} must hold finite numbers only")
        copy = type(self)(self.arguments)
        copy._state = {key: np.ascontiguousarray(state[key], dtype=np.float32) for key in self.state_names}
        return copy

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        scores = np.empty(len(images), dtype=np.float64)
        maps: list[Floats] = []
        for index, image in enumerate(images):
            distances = self._distances(image)
            scores[index] = self._score(distances)
            enlarged = cv2.resize(distances, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
            maps.append(np.asarray(enlarged, dtype=np.float32))
        return Prediction(scores, tuple(maps))

    def _distances(self, image: Image) -> Floats:
        """The map on the lattice of sites, float32 (h, w)."""
        state = self.state()
        features = self._bank.features(image)
        n_features, height, width = features.shape
        distances = np.empty((height, width), dtype=np.float32)
        for cell in cells((height, width), self.arguments.grid_hw):
            sites = features[:, cell.rows, cell.columns]
            offsets = sites.reshape(n_features, -1) * np.float32(1 / QUANTUM)
            offsets -= state["mean"][cell.number][:, None]
            white = np.einsum("ed,dn->en", state["whitening"][cell.number], offsets)
            squares = np.einsum("en,en->n", white, white) / np.float32(n_features)
            distances[cell.rows, cell.columns] = np.sqrt(squares).reshape(sites.shape[1:])
        sigma = self.arguments.smoothing_px / self.arguments.stride
        return blur(distances, sigma) if sigma > 0 else distances

    def _score(self, distances: Floats) -> float:
        """The score of a map on the sites; a border that would leave none of them is as wide as leaves some."""
        border = round(self.arguments.score_border_px / self.arguments.stride)
        top, left = (min(border, (size - 1) // 2) for size in distances.shape)
        inner = distances[top : distances.shape[0] - top, left : distances.shape[1] - left]
        if self.arguments.reduction == "max":
            return float(inner.max())
        return topk_mean(inner, self.arguments.topk if self.arguments.reduction == "topk_mean" else 1.0)
