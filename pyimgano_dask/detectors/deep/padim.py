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
from pyimgano_dask.detectors.deep.outputs import Shape, known_outputs
from pyimgano_dask.detectors.deep.sums import LARGEST_SUMS, Sums, sums_bytes
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.model_files import ModelFiles
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.detectors.shared_knobs import smoothing_sigma_knob
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import knob

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.gaussians import Gaussians


class PadimArguments(BackboneArguments):
    """Arguments of `vision_padim`."""

    d_reduced: int = knob(
        100, "Channels kept of those of all layers, drawn at random; all when there are not as many.", ge=1
    )
    covariance_eps: float = knob(0.01, "Added to the diagonal of each covariance (the paper's epsilon).", gt=0)
    smoothing_sigma: float = smoothing_sigma_knob(4.0)


@register
class Padim(BackboneDetector[PadimArguments]):
    """Mahalanobis distance of each place's features from those of the normal images at the same place.

    Fitting sums features and their products at each place in float64. Grouping changes the last bits of these sums
    only, which hardly ever reach the float32 numbers of the state. Few images travel as features, many as sums,
    whichever takes less memory, so no state is larger than `sums_bytes`, and that is at most `LARGEST_SUMS`.
    """

    name = "vision_padim"
    summary = "Patch features against a Gaussian at each place (PaDiM); for parts that are aligned."
    tags = ("vision", "deep", "patch", "distribution", "torch", "pixel_map")
    reference = (
        "Defard et al., PaDiM: a Patch Distribution Modeling Framework for Anomaly Detection and Localization, 2020."
    )
    arguments_type = PadimArguments
    is_position_bound = True
    fits_closely = True
    default_layers = ("layer1", "layer2", "layer3")
    fitted_names = ("channels", "mean", "whitening", "grid_hw")

    def __init__(self, arguments: PadimArguments) -> None:
        super().__init__(arguments)
        self._gaussians: Lazy[Gaussians] | None = None

    def opened(self, files: ModelFiles) -> Self:
        self._check_known_size()
        return super().opened(files)

    def accumulate(self, images: Sequence[Image]) -> State:
        from pyimgano_dask.detectors.deep.gaussians import embed_all

        self._check_known_size()
        batches = self.features_to_learn(images)
        first = next(batches)
        shapes = [(layer.shape[1], layer.shape[2], layer.shape[3]) for layer in first]
        self._check_size(shapes)
        channels, grid_hw = self._draw_channels([shape[0] for shape in shapes]), np.array(shapes[0][1:], np.int64)
        n_places, d = int(grid_hw.prod()), len(channels)
        sums, filled = None, 0
        rows = np.empty((min(len(images), d), n_places, d), np.float32)
        for features in chain([first], batches):
            if (found := tuple(features[0].shape[2:])) != tuple(grid_hw):
                raise self._changing_grid([tuple(grid_hw.tolist()), found])
            for embedded in embed_all(features, channels):
                if filled == len(rows):
                    sums = sums or Sums.none(n_places, d)
                    sums.add_rows(rows)
                    filled = 0
                rows[filled] = embedded
                filled += 1
        shared = {"channels": channels, "grid_hw": grid_hw}
        if sums is None:
            return {**shared, "rows": rows}
        sums.add_rows(rows[:filled])
        return {**shared, **sums.state()}

    @classmethod
    def _changing_grid(cls, grids: Sequence[tuple[int, ...]]) -> ConfigError:
        return ConfigError(
            f"{cls.name}: the backbone gives one image a grid of {grids[0]} places and another one {grids[1]}; it must "
            "give all images of one size the same grid"
        )

    def _check_known_size(self) -> None:
        outputs = known_outputs(self.arguments, self.layers)
        if outputs is not None:
            self._check_size(outputs)

    def _check_size(self, outputs: Sequence[Shape]) -> None:
        """Raise ConfigError unless the sums over outputs of these shapes can be held."""
        d = min(self.arguments.d_reduced, sum(shape[0] for shape in outputs))
        _, height, width = outputs[0]
        size = sums_bytes(height * width, d)
        if size > LARGEST_SUMS:
            raise ConfigError(
                f"{self.name}: fitting would sum up {size / 2**30:.1f} GiB, and {LARGEST_SUMS / 2**30:g} GiB are "
                f"allowed: {d} channels at {height} x {width} places take 4 * {height * width} * {d} * ({d} + 3) = "
                f"{size} bytes; lower image_size ({self.arguments.image_size}) or d_reduced "
                f"({self.arguments.d_reduced}), or name layers of which the first is coarser"
            )

    def _draw_channels(self, counts: Sequence[int]) -> NDArray[np.int64]:
        total = sum(counts)
        if self.arguments.d_reduced >= total:
            return np.arange(total)
        rng = np.random.default_rng(self.arguments.random_state)
        return np.sort(rng.choice(total, self.arguments.d_reduced, replace=False))

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        shared = {key: states[0][key] for key in ("channels", "grid_hw")}
        grids = sorted({tuple(state["grid_hw"].tolist()) for state in states})
        if len(grids) > 1:
            raise cls._changing_grid(grids)
        if all("rows" in state for state in states):
            rows = [state["rows"] for state in states]
            if sum(map(len, rows)) <= rows[0].shape[2]:
                return {**shared, "rows": np.concatenate(rows)}
        return {**shared, **Sums.of(states).state()}

    def finalize(self, state: State) -> Self:
        from pyimgano_dask.detectors.deep.gaussians import whitening

        summed = Sums.of([state])
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
        self._check_backbone(int(channels[-1]), (int(grid_hw[0]), int(grid_hw[1])))

    def _check_backbone(self, last_channel: int, grid_hw: tuple[int, int]) -> None:
        """Raise ConfigError where the backbone is known not to have these channels and places."""
        outputs = known_outputs(self.arguments, self.layers)
        if outputs is None:
            return
        backbone, n_channels, grid = self.arguments.backbone, sum(shape[0] for shape in outputs), outputs[0][1:]
        if last_channel >= n_channels:
            raise ConfigError(
                f"{self.name}: the state names channel {last_channel}, and {', '.join(self.layers)} of {backbone} "
                f"have {n_channels} (0 to {n_channels - 1}); fit it anew"
            )
        if grid_hw != grid:
            raise ConfigError(
                f"{self.name}: the state is fitted on a grid of {grid_hw} places, and {self.layers[0]} of {backbone} "
                f"has {grid} at image_size {self.arguments.image_size}; fit it anew"
            )

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
