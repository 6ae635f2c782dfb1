"""PatchCore: distance to a memory bank of normal patches (Roth et al., CVPR 2022, arXiv 2106.08265)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Self

import numpy as np

from pyimgano_dask.detectors.base import Image, Prediction, State
from pyimgano_dask.detectors.deep.arguments import BackboneArguments
from pyimgano_dask.detectors.deep.coreset import Floats, grouped, thinned
from pyimgano_dask.detectors.deep.detector import BackboneDetector, at_image_size
from pyimgano_dask.detectors.deep.outputs import known_outputs
from pyimgano_dask.detectors.lazy import Lazy
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.detectors.shared_knobs import smoothing_sigma_knob
from pyimgano_dask.errors import ConfigError, InputError
from pyimgano_dask.settings.knob import knob

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.patches import MemoryBank

# Of each batch so many times the share that the bank keeps in the end is kept at first.
CANDIDATES = 4
LARGEST_BANK = 1 << 16
# Most bytes of patches that are held before they are thinned.
BYTES_AT_ONCE = 1 << 28


class PatchcoreArguments(BackboneArguments):
    """Arguments of `vision_patchcore`."""

    coreset_sampling_ratio: float = knob(
        0.01, f"Share of the patches of normal images that the memory bank keeps, at most {LARGEST_BANK}.", gt=0, le=1
    )
    n_neighbors: int = knob(9, "Patches of the bank that the score is weighed by; 1 takes the distance alone.", ge=1)
    smoothing_sigma: float = smoothing_sigma_knob(4.0)


@register
class Patchcore(BackboneDetector[PatchcoreArguments]):
    """Distance of each patch to the nearest of a coreset of normal patches.

    Each batch of training images gives a coreset of its patches, four times as dense as the bank; the bank is the
    coreset of these. Summaries of more than `LARGEST_BANK` patches are thinned to as many where they meet, so that the
    time goes with the number of images and memory does not. What the bank holds depends on how the images were batched
    (`--batch-size`), and on nothing else.
    """

    name = "vision_patchcore"
    summary = "Patch features against a memory bank of normal patches (PatchCore); parts need not be aligned."
    tags = ("vision", "deep", "patchcore", "memory_bank", "torch", "pixel_map")
    reference = "Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022."
    arguments_type = PatchcoreArguments
    fits_closely = True
    default_layers = ("layer2", "layer3")
    fitted_names = ("memory_bank",)

    def __init__(self, arguments: PatchcoreArguments) -> None:
        super().__init__(arguments)
        self._bank: Lazy[MemoryBank] | None = None

    def accumulate(self, images: Sequence[Image]) -> State:
        from pyimgano_dask.detectors.deep.patches import patch_features

        batches = self.features_to_learn(images)
        of_images = chain.from_iterable(patch_features(features).cpu().numpy() for features in batches)
        return self.merge([self._summary(parts) for parts in grouped(of_images, BYTES_AT_ONCE)])

    def _summary(self, parts: Sequence[Floats]) -> State:
        count = sum(map(len, parts))
        share = min(1.0, CANDIDATES * self.arguments.coreset_sampling_ratio)
        kept = thinned(parts, min(math.ceil(share * count), LARGEST_BANK), self.arguments.random_state)
        seed = np.array(self.arguments.random_state, np.int64)
        return {"count": np.array(count, np.int64), "patches": kept, "random_state": seed}

    @classmethod
    def merge(cls, states: Sequence[State]) -> State:
        channels = sorted({state["patches"].shape[1] for state in states})
        if len(channels) > 1:
            raise ConfigError(
                f"{cls.name}: the backbone gives one image {channels[0]} channels and another one {channels[1]}; it "
                "must give all images as many"
            )
        seed = states[0]["random_state"]
        patches = thinned([state["patches"] for state in states], LARGEST_BANK, int(seed))
        count = sum(int(state["count"]) for state in states)
        return {"count": np.array(count, np.int64), "patches": patches, "random_state": seed}

    def finalize(self, state: State) -> Self:
        count = math.ceil(self.arguments.coreset_sampling_ratio * int(state["count"]))
        bank = thinned([state["patches"]], min(count, LARGEST_BANK), self.arguments.random_state)
        return self.with_fitted({"memory_bank": bank})

    def with_fitted(self, fitted: State) -> Self:
        new = super().with_fitted(fitted)
        new._bank = Lazy(partial(_memory_bank, self.arguments.device, fitted["memory_bank"]))
        return new

    def check_fitted(self, fitted: State) -> None:
        bank = fitted["memory_bank"]
        if bank.ndim != 2 or bank.size == 0 or bank.dtype.kind != "f":
            raise ConfigError(
                f"{self.name}: the state's memory_bank must be fractions (M, C), got {bank.dtype} {bank.shape}"
            )
        outputs = known_outputs(self.arguments, self.layers)
        n_channels = bank.shape[1] if outputs is None else sum(shape[0] for shape in outputs)
        if bank.shape[1] != n_channels:
            raise ConfigError(
                f"{self.name}: the state's memory_bank has patches of {bank.shape[1]} channels, and "
                f"{', '.join(self.layers)} of {self.arguments.backbone} have {n_channels}; fit it anew"
            )

    def predict(self, images: Sequence[Image], references: Sequence[Image] = ()) -> Prediction:
        if self._bank is None:
            raise self.not_fitted()
        from pyimgano_dask.detectors.deep.patches import patch_features

        bank = self._bank.get()
        scores: list[float] = []
        maps: list[Floats] = []
        for features in self.extractor.get().batches(images):
            grid_hw = features[0].shape[2:]
            for patches in patch_features(features):
                if patches.shape[1] != bank.n_channels:
                    raise InputError(
                        "infer",
                        "BackboneError",
                        f"the backbone gives {patches.shape[1]} channels, and the detector was fitted on "
                        f"{bank.n_channels}",
                    )
                score, distances = bank.score(patches, self.arguments.n_neighbors)
                height, width = images[len(maps)].shape[:2]
                size, sigma = self.arguments.image_size, self.arguments.smoothing_sigma
                scores.append(score)
                maps.append(at_image_size(distances.reshape(grid_hw), size, sigma, (height, width))[0])
        return Prediction(np.array(scores, dtype=np.float64), tuple(maps))


def _memory_bank(device: str | None, bank: Floats) -> MemoryBank:
    from pyimgano_dask.detectors.deep.patches import MemoryBank

    return MemoryBank(device, bank)
