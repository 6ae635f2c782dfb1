"""Precedence: built-in default < infer config < explicit flag, validated once, every fault reported at once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob, Path, describe_faults, knobs_by_dest
from pyimgano_dask.settings.infer_config import InferConfigFile
from pyimgano_dask.settings.run import InferSettings


@dataclass(frozen=True)
class Resolved:
    """Validated settings and where each explicit value came from.

    `explicit` holds the paths given as flags (or Python keywords), `warnings` what the user should know.
    """

    settings: InferSettings
    explicit: frozenset[Path] = frozenset()
    warnings: tuple[str, ...] = ()
    config_path: str | None = None

    def is_explicit(self, key: str) -> bool:
        """Whether the knob with this config key was given as a flag."""
        return tuple(key.split(".")) in self.explicit


def resolve(given: Mapping[Knob, Any], config: InferConfigFile | None = None) -> Resolved:
    """Merge explicit values over a config over the defaults.

    Raises ConfigError naming every faulty flag and JSON path.
    """
    tree: dict[str, Any] = json.loads(json.dumps(config.payload)) if config else {}
    for knob, value in given.items():
        block = tree
        for name in knob.path[:-1]:
            block = block.setdefault(name, {})
        block[knob.path[-1]] = value
    names = {knob.path: knob.flag for knob in given if knob.flag}
    try:
        settings = InferSettings.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        where = f"{config.path}: " if config else ""
        lines = [line if line.startswith("--") else where + line for line in describe_faults(error, names)]
        raise ConfigError("\n".join(lines)) from None
    return Resolved(
        settings=settings,
        explicit=frozenset(knob.path for knob in given),
        warnings=config.warnings if config else (),
        config_path=config.path if config else None,
    )


def _plain(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def given_by_keyword(keywords: Mapping[str, Any]) -> dict[Knob, Any]:
    """Knobs from Python keywords: the flags' names with underscores. Raises ConfigError for an unknown one."""
    known = knobs_by_dest()
    unknown = sorted(set(keywords) - set(known))
    if unknown:
        raise ConfigError(
            f"unknown setting {', '.join(unknown)}; settings are the flags of pyimgano-infer with underscores, "
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
