"""From the outputs of an exported model to scores and maps: which output is which, and what it may look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.exported.arguments import ExportedModelArguments, OutputName
from pyimgano_dask.errors import ConfigError

MAP_NAMES = ("anomaly_map", "anomaly_maps", "anomaly_heatmap", "heatmap", "heat_map", "score_map", "pixel_scores")
SCORE_NAMES = ("pred_score", "pred_scores", "anomaly_score", "anomaly_scores", "image_score", "score", "scores")
# Decisions of the model's own threshold; labels and masks of a run come from the run's thresholds.
DECISION_NAMES = ("pred_label", "pred_labels", "label", "labels", "pred_mask", "pred_masks", "mask", "masks")


@dataclass(frozen=True)
class Output:
    """One output for a batch of B images; `name` is None where the format has no names.

    `kind` says in words what it is where it is no tensor; its values are empty then.
    """

    name: str | None
    values: NDArray[np.generic]
    kind: str | None = None

    @classmethod
    def of_another_kind(cls, name: str | None, kind: str) -> Self:
        """One that is no tensor. It keeps its position among the others, and fits nowhere."""
        return cls(name, np.empty(0), kind)

    @property
    def is_float(self) -> bool:
        """Whether its values are fractions, and not decisions."""
        return self.values.dtype.kind == "f"

    def looks_like_a_map(self, batch_size: int) -> bool:
        """(B, 1, H, W), (B, H, W, 1) or (B, H, W)."""
        shape = self.values.shape
        one_channel = len(shape) == 3 or (len(shape) == 4 and 1 in (shape[1], shape[3]))
        return self.is_float and one_channel and shape[0] == batch_size < self.values.size

    def looks_like_scores(self, batch_size: int) -> bool:
        """One number an image: (B,), (B, 1) or the like."""
        return self.is_float and self.values.size == batch_size

    def __str__(self) -> str:
        if self.kind is not None:
            return f"{self.name}, {self.kind}" if self.name else self.kind
        return f"{self.name or 'unnamed'} {self.values.dtype}{list(self.values.shape)}"


@dataclass(frozen=True)
class Answer:
    """Scores float64 (B,) and maps float32 (B, h, w) of a batch, None where the model has no such output."""

    scores: NDArray[np.float64] | None
    maps: NDArray[np.float32] | None

    def is_like(self, other: Answer, tolerance: float, at: slice = slice(None)) -> bool:
        """Whether both say the same of the images at these places but for so large a share of each value.

        Values that are not finite are alike.
        """
        pairs = ((self.scores, other.scores), (self.maps, other.maps))
        return all(
            one is None
            or two is None
            or np.allclose(one[at], two[at], rtol=tolerance, atol=tolerance / 100, equal_nan=True)
            for one, two in pairs
        )


def pick(outputs: Sequence[Output], arguments: ExportedModelArguments, batch_size: int) -> Answer:
    """Scores and maps among the outputs: as declared, else by name, else by shape and type.

    Raises ConfigError when there is no map and `map_from_score` is off, when two outputs fit alike, or when a
    declared output is not there or looks otherwise.
    """
    maps = _find(
        outputs, "map_output", arguments.map_output, MAP_NAMES, [o.looks_like_a_map(batch_size) for o in outputs]
    )
    scores = _find(
        outputs, "score_output", arguments.score_output, SCORE_NAMES, [o.looks_like_scores(batch_size) for o in outputs]
    )
    if maps is None and not arguments.map_from_score:
        raise ConfigError(
            f"none of its outputs is an anomaly map, a float array ({batch_size}, 1, height, width): it has "
            f"{_listed(outputs)}; name it with map_output, or take the score at every pixel with map_from_score"
        )
    if maps is None and scores is None:
        raise ConfigError(f"none of its outputs is a score or an anomaly map: it has {_listed(outputs)}")
    return Answer(
        None if scores is None else scores.values.astype(np.float64).reshape(batch_size),
        None if maps is None else _two_axes(maps.values),
    )


def in_kind(value: object) -> str:
    """What a value of Python is, in words, by its type."""
    if value is None:
        return "nothing (None)"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _two_axes(values: NDArray[np.generic]) -> NDArray[np.float32]:
    """(B, h, w) of any form that a map may have."""
    if values.ndim == 4:
        values = values[:, 0] if values.shape[1] == 1 else values[..., 0]
    return values.astype(np.float32, copy=False)


def _find(
    outputs: Sequence[Output], argument: str, declared: OutputName, names: Sequence[str], fits: Sequence[bool]
) -> Output | None:
    """The output that is declared, else the one of a known name, else the only one left that fits."""
    if declared is not None:
        number = _declared(outputs, argument, declared)
        if not fits[number]:
            raise ConfigError(f"{argument} {declared!r} is {outputs[number]}, which it cannot be")
        return outputs[number]
    fitting = [output for output, is_fit in zip(outputs, fits, strict=True) if is_fit]
    named = [output for output in fitting if (output.name or "").lower() in names]
    left = named or [output for output in fitting if (output.name or "").lower() not in DECISION_NAMES]
    if len(left) > 1:
        raise ConfigError(f"several of its outputs may be what {argument} means: {_listed(left)}; declare {argument}")
    return left[0] if left else None


def _declared(outputs: Sequence[Output], argument: str, declared: int | str) -> int:
    if isinstance(declared, int):
        found = [declared] if declared < len(outputs) else []
    else:
        found = [number for number, output in enumerate(outputs) if output.name == declared]
    if not found:
        raise ConfigError(f"{argument}: there is no output {declared!r}; the model has {_listed(outputs)}")
    return found[0]


def _listed(outputs: Sequence[Output]) -> str:
    return "; ".join(f"{number}: {output}" for number, output in enumerate(outputs)) or "no outputs"
