"""Precedence: built-in default < infer config < explicit flag, validated once, every fault reported at once."""

from __future__ import annotations

import difflib
import numbers
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.advice import advice
from pyimgano_dask.settings.catalog import Knob, Path, describe_faults, knobs
from pyimgano_dask.settings.commands import INFER, Command, knobs_of
from pyimgano_dask.settings.infer_config import InferConfigFile
from pyimgano_dask.settings.preprocessing import ILLUMINATION_PRESETS
from pyimgano_dask.settings.presets import DEFECT_PRESETS
from pyimgano_dask.settings.run import InferSettings

PRESETS: Mapping[Path, tuple[Path, Mapping[Any, Mapping[str, Any]]]] = {
    ("defects", "preset"): (("defects",), DEFECT_PRESETS),
    ("preprocessing", "preset"): (("preprocessing", "illumination_contrast"), ILLUMINATION_PRESETS),
}
"""Knobs that name a preset: the block it is for, and the values of that block by name."""
MAY_BE_NULL: tuple[Path, ...] = (("adaptation", "tiling"), ("preprocessing", "illumination_contrast"))
"""Blocks for which a config may say null, which is the same as leaving them out."""


@dataclass(frozen=True)
class Resolved:
    """Validated settings and where each explicit value came from.

    `explicit` holds the paths given as flags (or Python keywords), `warnings` what is odd about the config file,
    `advice` which settings do nothing. `configured` are the settings of the config file alone, None without one and
    where they are valid only with the flags.
    """

    settings: InferSettings
    explicit: frozenset[Path] = frozenset()
    warnings: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    config_path: str | None = None
    configured: InferSettings | None = None

    def is_explicit(self, key: str) -> bool:
        """Whether the knob with this config key was given as a flag."""
        return tuple(key.split(".")) in self.explicit


def resolve(given: Mapping[Knob, Any], config: InferConfigFile | None = None) -> Resolved:
    """Merge explicit values over a config over the defaults.

    A preset lies below what is given beside it: one in the config below the config's own values, an explicit one
    over them and below the other explicit values. Raises ConfigError naming every faulty flag and JSON path.
    """
    tree: Mapping[str, Any] = config.payload if config else {}
    tree = configured = _with_tuples(with_presets(_without_null_blocks(tree)))
    for knob, value in given.items():
        tree = merged(tree, _values_of_preset(knob.path, value))
    for knob, value in given.items():
        tree = _with_value(tree, knob.path, value)
    tree = _with_tuples(tree)
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
        configured=_valid(configured) if config else None,
    )


def _valid(tree: Mapping[str, Any]) -> InferSettings | None:
    try:
        return InferSettings.model_validate(tree)
    except ValidationError:
        return None


def _with_tuples(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with tuples in the place of the lists that knobs of several values were given."""
    for knob in knobs():
        value = _value_at(tree, knob.path)
        if isinstance(value, list) and (knob.width is not None or knob.is_repeatable):
            tree = _with_value(tree, knob.path, tuple(value))
    return tree


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Two trees as one: where both have a value that of `over` counts, and blocks are merged."""
    both = {**base, **over}
    for key in base.keys() & over.keys():
        if isinstance(base[key], Mapping) and isinstance(over[key], Mapping):
            both[key] = merged(base[key], over[key])
    return both


def with_presets(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The tree with the values of the presets it names laid below its own."""
    for path in PRESETS:
        tree = merged(_values_of_preset(path, _value_at(tree, path)), tree)
    return tree


def _values_of_preset(path: Path, name: Any) -> Mapping[str, Any]:
    """The tree of a preset's values; none for another knob, or for a name that validation will refuse."""
    block, presets = PRESETS.get(path, ((), {}))
    values = next((values for known, values in presets.items() if known == name), None)
    return {} if values is None else _with_value({}, block, values)


def _without_null_blocks(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    for *blocks, name in MAY_BE_NULL:
        outer = _value_at(tree, tuple(blocks))
        if isinstance(outer, Mapping) and name in outer and outer[name] is None:
            tree = _with_value(tree, tuple(blocks), {key: value for key, value in outer.items() if key != name})
    return tree


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


def meant_by(unknown: Iterable[str], known: Iterable[str]) -> str:
    """`did you mean clahe? ` for names that look like known ones, else nothing."""
    words = tuple(known)
    near = [match for name in unknown for match in difflib.get_close_matches(name, words, n=1)]
    return f"did you mean {', '.join(near)}? " if near else ""


def given_by_keyword(keywords: Mapping[str, Any], command: Command = INFER) -> dict[Knob, Any]:
    """Knobs from Python keywords: the command's flags with underscores. Raises ConfigError for an unknown one."""
    known = {knob.dest: knob for knob in knobs_of(command)}
    unknown = sorted(set(keywords) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}; {meant_by(unknown, known)}settings are the flags of {command.name} "
            f"with underscores, such as {', '.join(sorted(known)[:4])}"
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
