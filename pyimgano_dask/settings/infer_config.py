"""Reading `infer_config.json` (schema version 1): categories, unknown keys, where checkpoints lie."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block
from pyimgano_dask.settings.run import InferSettings
from pyimgano_dask.urls import is_url

CONFIG_NAME = "infer_config.json"
SCHEMA_VERSION = 1
PER_CATEGORY_KEYS = ("threshold", "threshold_provenance", "checkpoint")


@dataclass(frozen=True)
class InferConfigFile:
    """A config file as parsed: the tree for `InferSettings`, with its path and warnings."""

    path: str
    payload: Mapping[str, Any]
    warnings: tuple[str, ...]


def read_json_object(path: str, what: str) -> dict[str, Any]:
    """The JSON object in a local file or at a URL; raises ConfigError naming `what` it should be."""
    from pyimgano_dask.storage.files import read_file
    from pyimgano_dask.transfers import ONCE

    try:
        data = read_file(path, pauses_s=ONCE)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{what} {path!r} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        payload = json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ConfigError(f"{what} {path!r} is nested too deeply to be one") from None
    except ValueError as error:
        raise ConfigError(f"{what} {path!r} is not valid JSON: {error}") from None
    if not isinstance(payload, dict):
        raise ConfigError(f"{what} {path!r} must hold a JSON object, got {type(payload).__name__}")
    return payload


def read_infer_config(path: str, category: str | None = None, *, with_checkpoint: bool = True) -> InferConfigFile:
    """Read an infer config and pick one category of it.

    `with_checkpoint` also looks up the checkpoint it names. Raises ConfigError when the file is missing or a folder, is
    no JSON object, is of a newer schema, holds several categories and none is named, or refers to a checkpoint that
    is not there.
    """
    if not is_url(path) and os.path.isdir(path):
        inside = os.path.join(path, CONFIG_NAME)
        remedy = f"give {inside!r}" if os.path.isfile(inside) else f"there is no {CONFIG_NAME} in it either"
        raise ConfigError(f"infer config {path!r} is a folder, not a file; {remedy}")
    payload = read_json_object(path, "infer config")
    warnings = []
    version = payload.get("schema_version")
    if version is None:
        warnings.append(f"{path}: schema_version is missing; reading it as version {SCHEMA_VERSION}")
        payload["schema_version"] = SCHEMA_VERSION
    elif isinstance(version, int) and version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path}: schema_version is {version}, this version reads up to {SCHEMA_VERSION}; update pyimgano-dask"
        )
    of_all = payload.get("checkpoint")
    payload = _select_category(payload, category, path)
    if payload.get("checkpoint") is of_all:
        warnings += _two_checkpoints(payload, path)
    warnings += [f"{path}: unknown key {key} is ignored" for key in unknown_keys(payload, InferSettings)]
    checkpoint = _find_checkpoint(payload, path) if with_checkpoint else None
    if checkpoint is not None and isinstance(payload.get("model", {}), dict):
        payload["model"] = {**payload.get("model", {}), "checkpoint_path": checkpoint}
    return InferConfigFile(path, payload, tuple(warnings))


def _select_category(payload: dict[str, Any], category: str | None, path: str) -> dict[str, Any]:
    categories = payload.pop("per_category", None)
    if categories is None:
        if category is not None:
            raise ConfigError(f"--infer-category: {path} has no per_category block, so {category!r} is not in it")
        return payload
    if not isinstance(categories, dict):
        raise ConfigError(f"{path}: per_category: {json.dumps(categories)} is not an object of categories")
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


def unknown_keys(payload: Mapping[str, Any], block: type[Block], prefix: str = "") -> Iterator[str]:
    """Keys, with the path of their blocks, that no field of `block` stands for."""
    for key, value in payload.items():
        field = block.model_fields.get(key)
        if field is None:
            yield prefix + key
        elif isinstance(value, dict) and isinstance(field.annotation, type) and issubclass(field.annotation, Block):
            yield from unknown_keys(value, field.annotation, f"{prefix}{key}.")


def _two_checkpoints(payload: Mapping[str, Any], path: str) -> Iterator[str]:
    """A sentence where a config names one file in one place and another in the other."""
    blocks = payload.get("checkpoint"), payload.get("model")
    one, other = (
        block.get(key) if isinstance(block, dict) else None
        for block, key in zip(blocks, ("path", "checkpoint_path"), strict=True)
    )
    if isinstance(one, str) and isinstance(other, str) and os.path.basename(one) != os.path.basename(other):
        yield f"{path}: checkpoint.path, {one!r}, is read, model.checkpoint_path, {other!r}, is not; name one in both"


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
    if is_url(named) or os.path.isabs(named):
        _check_sha256(named, block, config_path)
        return named
    beside = os.path.dirname(config_path if is_url(config_path) else os.path.abspath(config_path))
    folders = [beside]
    if not is_url(beside) or is_url(os.path.dirname(beside)):
        folders.append(os.path.dirname(beside))
    if isinstance(payload.get("from_run"), str):
        folders.append(payload["from_run"])
    candidates = [_join(folder, named) for folder in folders]
    for candidate in candidates:
        if _is_file(candidate, config_path):
            _check_sha256(candidate, block, config_path)
            return candidate
    raise ConfigError(f"{config_path}: {key}: {named!r} is in none of {', '.join(candidates)}")


def _join(folder: str, name: str) -> str:
    path = os.path.join(folder, name)
    return path if is_url(folder) else os.path.normpath(path)


def _is_file(path: str, config_path: str) -> bool:
    from pyimgano_dask.storage.files import is_file
    from pyimgano_dask.transfers import ONCE

    try:
        return is_file(path, pauses_s=ONCE)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{config_path}: checkpoint {path!r} cannot be read: {error}") from None


def _check_sha256(path: str, block: object, config_path: str) -> None:
    """Refuse a checkpoint that is not the file the config was written for; a missing one is told when it is read."""
    expected = block.get("sha256") if isinstance(block, dict) else None
    from pyimgano_dask.storage.files import open_binary

    if not isinstance(expected, str) or not _is_file(path, config_path):
        return
    with open_binary(path) as file:
        digest = hashlib.sha256()
        while block_bytes := file.read(1 << 20):
            digest.update(block_bytes)
    found = digest.hexdigest()
    if found != expected.lower():
        raise ConfigError(
            f"{config_path}: checkpoint.sha256: {path!r} has {found}, the config names {expected}; "
            "it is another file, or a damaged one"
        )
