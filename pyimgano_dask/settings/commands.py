"""Which knobs each command takes; every knob is declared once, in the tree of `InferSettings`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pyimgano_dask.settings.catalog import Knob, knobs


@dataclass(frozen=True)
class Command:
    """A command and the knobs it has no use for, by config key; the key of a block stands for all below it."""

    name: str
    without: tuple[str, ...]

    def takes(self, knob: Knob) -> bool:
        """Whether the command has this knob's flag."""
        return knob.flag is not None and not any(f"{knob.key}.".startswith(f"{key}.") for key in self.without)


INFER = Command("pyimgano-infer", without=("stored",))
RESCORE = Command(
    "pyimgano-rescore",
    without=(
        *("model", "training", "adaptation", "preprocessing", "output.save_maps", "output.include_anomaly_map_values"),
        "dataflow.amp",
    ),
)
ESTIMATOR = Command(
    "DaskAnomalyDetector",
    without=(
        *("training", "inputs.input", "stored", "adaptation.save_maps", "defects", "output"),
        *("dataflow.run_dir", "dataflow.resume", "dataflow.keep_parts", "dataflow.max_errors", "dataflow.progress"),
        "dataflow.performance_report",
    ),
)


def without_unused(tree: Mapping[str, Any], command: Command) -> dict[str, Any]:
    """A config without the blocks and values that the command has no use for."""
    kept = dict(tree)
    for key in command.without:
        block, _, name = key.rpartition(".")
        if not block:
            kept.pop(name, None)
        elif isinstance(kept.get(block), Mapping):
            kept[block] = {other: value for other, value in kept[block].items() if other != name}
    return kept


@cache
def knobs_of(command: Command) -> tuple[Knob, ...]:
    """The knobs of a command that have a flag, in the order of the tree."""
    return tuple(knob for knob in knobs() if command.takes(knob))
