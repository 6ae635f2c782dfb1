"""Reading `infer_config.json` (schema version 1): categories, unknown keys, where checkpoints lie."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block
from pyimgano_dask.settings.run import InferSettings

SCHEMA_VERSION = 1
# Written by exporters for people and auditors to read; nothing here acts on them.
INFORMATIVE_KEYS = frozenset(
    {"category", "from_run", "environment", "checkpoint", "pyimgano_version", "split_fingerprint"}
)
PER_CATEGORY_KEYS = ("threshold", "threshold_provenance", "checkpoint")


@dataclass(frozen=True)
class InferConfigFile:
    """A config file as parsed: the tree for `InferSettings`, with its path and warnings."""

    path: str
    payload: Mapping[str, Any]
    warnings: tuple[str, ...]


def read_infer_config(path: str, category: str | None = None) -> InferConfigFile:
    """Read an infer config and pick one category of it.

    Raises ConfigError when the file is missing, is not a JSON object, is of a newer schema, holds several
    categories and none is named, or refers to a checkpoint that is not there.
    """
    try:
        with open(path, encoding="utf-8") as file:
            payload = json.load(file)
    except OSError as error:
        raise ConfigError(f"infer config {path!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"infer config {path!r} is not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ConfigError(f"infer config {path!r} must hold a JSON object, got {type(payload).__name__}")

    warnings = []
    version = payload.get("schema_version")
    if version is None:
        warnings.append(f"{path}: schema_version is missing; reading it as version {SCHEMA_VERSION}")
        payload["schema_version"] = SCHEMA_VERSION
    elif isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version}, this version reads up to {SCHEMA_VERSION}; update pyimgano-dask"
        )
    payload = _select_category(payload, category, path)
    warnings += [f"{path}: unknown key {key} is ignored" for key in _unknown_keys(payload, InferSettings)]
    checkpoint = _find_checkpoint(payload, path)
    if checkpoint is not None and isinstance(payload.get("model", {}), dict):
        payload["model"] = {**payload.get("model", {}), "checkpoint_path": checkpoint}
    return InferConfigFile(path, payload, tuple(warnings))


def _select_category(payload: dict[str, Any], category: str | None, path: str) -> dict[str, Any]:
    categories = payload.pop("per_category", None)
    if not isinstance(categories, dict):
        return payload
    known = ", ".join(sorted(categories)) or "none"
    chosen = category
    if chosen is None:
        recorded = payload.get("category")
        if isinstance(recorded, str) and recorded.lower() != "all":
            chosen = recorded
        elif len(categories) == 1:
            chosen = next(iter(categories))
        else:
            raise ConfigError(f"{path} holds several categories; choose one with --infer-category: {known}")
    if not isinstance(categories.get(chosen), dict):
        raise ConfigError(f"--infer-category: {chosen!r} is not in {path}; it holds {known}")
    overrides = {key: value for key, value in categories[chosen].items() if key in PER_CATEGORY_KEYS}
    return {**payload, **overrides, "category": chosen}


def _unknown_keys(payload: Mapping[str, Any], block: type[Block], prefix: str = "") -> Iterator[str]:
    for key, value in payload.items():
        field = block.model_fields.get(key)
        if field is None:
            if prefix or key not in INFORMATIVE_KEYS:
                yield prefix + key
        elif isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Block):
            yield from _unknown_keys(value, field.annotation, f"{prefix}{key}.")


def _find_checkpoint(payload: Mapping[str, Any], config_path: str) -> str | None:
    """Absolute path of the checkpoint a config names: beside the config, in its parent folder, then in `from_run`."""
    block = payload.get("checkpoint")
    model = payload.get("model")
    named = block.get("path") if isinstance(block, dict) else None
    key = "checkpoint.path"
    if named is None and isinstance(model, dict):
        named, key = model.get("checkpoint_path"), "model.checkpoint_path"
    if named is None:
        return None
    if not isinstance(named, str) or not named:
        raise ConfigError(f"{config_path}: {key}: {json.dumps(named)} is not allowed; expected the path of a file")
    if "://" in named or os.path.isabs(named):
        return named
    beside = os.path.dirname(os.path.abspath(config_path))
    folders = [beside, os.path.dirname(beside)]
    if isinstance(payload.get("from_run"), str):
        folders.append(payload["from_run"])
    candidates = [os.path.normpath(os.path.join(folder, named)) for folder in folders]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise ConfigError(f"{config_path}: {key}: {named!r} is in none of {', '.join(candidates)}")
