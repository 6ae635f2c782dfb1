"""PaDiM: a Gaussian of patch features at each place (Defard et al., PaDiM, ICPR 2021 workshops, arXiv 2011.08785)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.base import Image, Prediction, State
from pyimgano_dask.detectors.deep.arguments import BackboneArguments
from pyimgano_dask.detectors.deep.detector import BackboneDetector, at_image_size
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import knob

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.gaussians import Gaussians

PLACES_AT_ONCE = 256


class PadimArguments(BackboneArguments):
    """Arguments of `vision_padim`."""

    d_reduced: int = knob(
        100, "Channels kept of those of all layers, drawn at random; all when there are not as many.", ge=1
    )
    covariance_eps: float = knob(0.01, "Added to the diagonal of each covariance (the paper's epsilon).", gt=0)
    smoothing_sigma: float = knob(
        4.0, "Gaussian smoothing of the map, in pixels of image_size; 0 is none.", ge=0, le=512
    )


@register
class Padim(BackboneDetector[PadimArguments]):
    """Mahalanobis distance of each place's features from those of the normal images at the same place.

    Fitting sums features and their products at each place in float64. Grouping changes the last bits of these sums
    only, which hardly ever reach the float32 numbers of the state. Few images travel as features, many as sums,
    whichever takes less memory, so the state does not grow with the number of images.
    """

    name = "vision_padim"
    summary = "Patch features against a Gaussian at each place (PaDiM); for parts that are aligned."
    tags = ("vision", "deep", "patch", "distribution", "torch", "pixel_map")
    reference = (
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, 2020."
    )
    arguments_type = PadimArguments
    is_position_bound = True
    default_layers = ("layer1", "layer2", "layer3")
    fitted_names = ("channels", "mean", "whitening", "grid_hw")

    def __init__(self, arguments: PadimArguments) -> None:
        super().__init__(arguments)
        self._gaussians: Lazy[Gaussians] | None = None

    def accumulate(self, images: Sequence[Image]) -> State:
        from pyimgano_dask.detectors.deep.gaussians import embed_all

        batches = self.extractor.get().batches(images)
        first = next(batches)
        channels = self._draw_channels([layer.shape[1] for layer in first])
        rows = [embed_all(features, channels) for features in chain([first], batches)]
        grid_hw = np.array(first[0].shape[2:], np.int64)
        return {"channels": channels, "grid_hw": grid_hw, "rows": np.concatenate(rows)}

    def _draw_channels(self, counts: Sequence[int]) -> NDArray[np.int64]:
        total = sum(counts)
        if self.arguments.d_reduced >= total:
            return np.arange(total)
        rng = np.random.default_rng(self.arguments.random_state)
        return np.sort(rng.choice(total, self.arguments.d_reduced, replace=False))

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        shared = {key: states[0][key] for key in ("channels", "grid_hw")}
        if all("rows" in state for state in states):
            rows = [state["rows"] for state in states]
            if sum(map(len, rows)) <= rows[0].shape[2]:
                return {**shared, "rows": np.concatenate(rows)}
        return {**shared, **_Sums.of(states).state()}

    def finalize(self, state: State) -> Self:
        from pyimgano_dask.detectors.deep.gaussians import whitening

        summed = _Sums.of([state])
        mean = summed.total / summed.count
        fitted = {
            "channels": state["channels"],
            "grid_hw": state["grid_hw"],
            "mean": mean.astype(np.float32),
            "whitening": whitening(summed.count, mean, summed.products, self.arguments.covariance_eps),
        }
        return self.with_fitted(fitted)

    def with_fitted(self, fitted: State) -> Self:
        new = super().with_fitted(fitted)
        new._gaussians = Lazy(partial(_gaussians, self.arguments.device, fitted))
        return new

    def check_fitted(self, fitted: State) -> None:
        n_places, d = fitted["mean"].shape if fitted["mean"].ndim == 2 else (0, 0)
        whole, fractions = ("channels", "grid_hw"), ("mean", "whitening")
        if any(fitted[key].dtype.kind != "i" for key in whole) or any(
            fitted[key].dtype.kind != "f" for key in fractions
        ):
            raise ConfigError(
                f"{self.name}: the state's {' and '.join(whole)} must be whole numbers, {' and '.join(fractions)} "
                "fractions"
            )
        expected = {"channels": (d,), "grid_hw": (2,), "whitening": (n_places, d * (d + 1) // 2)}
        odd = [key for key, shape in expected.items() if fitted[key].shape != shape]
        channels, grid_hw = fitted["channels"], fitted["grid_hw"]
        is_out_of_order = d == 0 or odd or channels[0] < 0 or bool((np.diff(channels) <= 0).any())
        if is_out_of_order or grid_hw.min() < 1 or int(np.prod(grid_hw)) != n_places:
            shapes = {key: value.shape for key, value in fitted.items()}
            raise ConfigError(f"{self.name}: the arrays of the state do not fit each other: {shapes}")

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if self._gaussians is None:
            raise self.not_fitted()
        grids = self._gaussians.get().distances(self.extractor.get().batches(images))
        scores, maps = np.empty(len(images)), []
        for number, (grid, image) in enumerate(zip(grids, images, strict=True)):
            sigma, size = self.arguments.smoothing_sigma, self.arguments.image_size
            anomaly_map, scores[number] = at_image_size(grid, size, sigma, (image.shape[0], image.shape[1]))
            maps.append(anomaly_map)
        return Prediction(scores, tuple(maps))


def _gaussians(device: str | None, fitted: State) -> Gaussians:
    from pyimgano_dask.detectors.deep.gaussians import Gaussians

    return Gaussians(device, *(fitted[key] for key in Padim.fitted_names))


class _Sums:
    """Sums over images at each place: of features, float64 (P, d), and of the lower triangle of their products."""

    def __init__(self, n_places: int, d: int) -> None:
        self.count = 0
        self.total = np.zeros((n_places, d))
        self.products = np.zeros((n_places, d * (d + 1) // 2))

    @classmethod
    def of(cls, states: Sequence[State]) -> Self:
        """The sums of several summaries."""
        n_places, d = states[0]["rows"].shape[1:] if "rows" in states[0] else states[0]["total"].shape
        sums = cls(n_places, d)
        for state in states:
            if "rows" in state:
                sums._add_rows(state["rows"])
            else:
                sums.count += int(state["count"])
                sums.total += state["total"]
                sums.products += state["products"]
        return sums

    def _add_rows(self, rows: NDArray[np.float32]) -> None:
        """Add the features of some images, (n, P, d)."""
        below = np.tril_indices(rows.shape[2])
        self.count += len(rows)
        self.total += rows.sum(axis=0, dtype=np.float64)
        for start in range(0, rows.shape[1], PLACES_AT_ONCE):
            places = slice(start, start + PLACES_AT_ONCE)
            block = rows[:, places].transpose(1, 2, 0).astype(np.float64)
            self.products[places] += np.matmul(block, block.transpose(0, 2, 1))[:, below[0], below[1]]

    def state(self) -> State:
        """The sums as a summary."""
        return {"count": np.array(self.count, np.int64), "total": self.total, "products": self.products}
