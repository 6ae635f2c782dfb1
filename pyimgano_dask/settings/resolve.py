"""Precedence: built-in default < infer config < explicit flag, validated once, every fault reported at once."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.advice import advice
from pyimgano_dask.settings.catalog import Knob, Path, describe_faults, knobs
from pyimgano_dask.settings.commands import INFER, Command, knobs_of
from pyimgano_dask.settings.infer_config import InferConfigFile
from pyimgano_dask.settings.presets import DEFECT_PRESETS
from pyimgano_dask.settings.run import InferSettings

PRESET: Path = ("defects", "preset")


@dataclass(frozen=True)
class Resolved:
    """Validated settings and where each explicit value came from.

    `explicit` holds the paths given as flags (or Python keywords), `warnings` what is odd about the config file,
    `advice` which settings do nothing.
    """

    settings: InferSettings
    explicit: frozenset[Path] = frozenset()
    warnings: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    config_path: str | None = None

    def is_explicit(self, key: str) -> bool:
        """Whether the knob with this config key was given as a flag."""
        return tuple(key.split(".")) in self.explicit


def resolve(given: Mapping[Knob, Any], config: InferConfigFile | None = None) -> Resolved:
    """Merge explicit values over a config over the defaults.

    A preset lies below what is given beside it: one in the config below the config's own values, an explicit one
    over them and below the other explicit values. Raises ConfigError naming every faulty flag and JSON path.
    """
    tree: Mapping[str, Any] = config.payload if config else {}
    tree = with_preset(tree)
    if preset := _preset(next((given[knob] for knob in given if knob.path == PRESET), None)):
        tree = merged(tree, {"defects": preset})
    for knob, value in given.items():
        tree = _with_value(tree, knob.path, value)
    for knob in knobs():
        value = _value_at(tree, knob.path)
        if isinstance(value, list) and (knob.width is not None or knob.is_repeatable):
            tree = _with_value(tree, knob.path, tuple(value))
    names = {knob.path: knob.flag for knob in given if knob.flag}
    try:
        settings = InferSettings.model_validate(tree)
    except ValidationError as error:
        where = f"{config.path}: " if config else ""
        lines = [line if line.startswith("--") else where + line for line in describe_faults(error, names)]
        raise ConfigError("\n".join(lines)) from None
    explicit = frozenset(knob.path for knob in given)
    return Resolved(
        settings=settings,
        explicit=explicit,
        warnings=config.warnings if config else (),
        advice=tuple(advice(settings, explicit)),
        config_path=config.path if config else None,
    )


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one: where both have a value that of `over` counts, and blocks are merged."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merged(base[key], over[key])
    return both


def with_preset(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with the values of the preset it names laid below its own."""
    preset = _preset(_value_at(tree, PRESET))
    return merged({"defects": preset}, tree) if preset else tree


def _preset(name: Any) -> Mapping[str, Any]:
    """Values of a preset; none for a name that validation will refuse."""
    return next((values for known, values in DEFECT_PRESETS.items() if known == name), {})


def _with_value(tree: Mapping[str, Any], path: Path, value: Any) -> Mapping[str, Any]:
    """A copy of `tree` with `value` at `path`; where a block on the way is no object it stays, for the fault it is."""
    name, *rest = path
    if not rest:
        return {**tree, name: value}
    block = tree.get(name, {})
    return {**tree, name: _with_value(block, tuple(rest), value)} if isinstance(block, Mapping) else tree


def _value_at(tree: Any, path: Path) -> Any:
    for name in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(name)
    return tree


def _plain(value: Any) -> Any:
    """A path as text, a number of another library (numpy) as Python's own."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, int) else value


def given_by_keyword(keywords: Mapping[str, Any], command: Command = INFER) -> dict[Knob, Any]:
    """Knobs from Python keywords: the command's flags with underscores. Raises ConfigError for an unknown one."""
    known = {knob.dest: knob for knob in knobs_of(command)}
    unknown = sorted(set(keywords) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}; settings are the flags of {command.name} with underscores, "
            f"such as {', '.join(sorted(known)[:4])}"
        )
    given = {}
    for name, value in keywords.items():
        knob = known[name]
        if isinstance(value, str | os.PathLike) and knob.is_repeatable:
            value = [value]
        if isinstance(value, list | tuple):
            given[knob] = [_plain(item) for item in value]
        else:
            given[knob] = _plain(value)
    return given
