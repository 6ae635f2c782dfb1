"""The generated reference: in step with the settings, and a schema that a config of every key fits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyimgano_dask.settings.catalog import knobs
from pyimgano_dask.settings.reference import (
    REFERENCE_NAME,
    SCHEMA_NAME,
    reference_markdown,
    schema_json,
    write_reference,
)
from tests.settings.samples import FULL_CONFIG

DOCS = Path(__file__).parents[2] / "docs"
SCHEMA: dict[str, Any] = json.loads(schema_json())


@pytest.mark.parametrize("name", [REFERENCE_NAME, SCHEMA_NAME])
def test_the_docs_are_what_the_settings_generate(name: str, tmp_path: Path) -> None:
    write_reference(tmp_path)
    assert (DOCS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text(encoding="utf-8"), (
        f"docs/{name} is out of date: run `make docs`"
    )


def test_every_knob_has_one_row_with_its_flag_bounds_and_meaning() -> None:
    lines = reference_markdown().splitlines()
    for knob in knobs():
        (row,) = [line for line in lines if line.startswith(f"| `{knob.key}` |")]
        cells = [cell.strip() for cell in row.replace("\\|", "\0").strip("|").split("|")]
        assert len(cells) == 5
        assert cells[1] == (f"`{knob.flag}`" if knob.flag else "(config only)")
        assert cells[2] == knob.allowed.replace("|", "\0")
        assert cells[4] == knob.help.replace("|", "\0").strip()


def references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def follow(schema: dict[str, Any]) -> dict[str, Any]:
    return SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """The part of JSON schema that the generated one uses."""
    schema = follow(schema)
    if "anyOf" in schema:
        return any(fits(value, option) for option in schema["anyOf"])
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
        "null": type(None),
    }
    named = schema.get("type")
    if named is not None:
        if not isinstance(value, types[named]):
            return False
        if isinstance(value, bool) and named != "boolean":
            return False
    limits = {
        "minimum": lambda limit: value >= limit,
        "exclusiveMinimum": lambda limit: value > limit,
        "maximum": lambda limit: value <= limit,
        "exclusiveMaximum": lambda limit: value < limit,
        "enum": lambda allowed: value in allowed,
        "const": lambda allowed: value == allowed,
        "minItems": lambda n: len(value) >= n,
        "maxItems": lambda n: len(value) <= n,
        "prefixItems": lambda items: all(fits(v, s) for v, s in zip(value, items, strict=False)),
        "properties": lambda blocks: all(fits(value[key], blocks[key]) for key in value.keys() & blocks.keys()),
    }
    return all(check(schema[key]) for key, check in limits.items() if key in schema)


def test_the_schema_names_its_dialect_and_resolves_its_references() -> None:
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert SCHEMA["type"] == "object"
    found = set(references(SCHEMA))
    assert found
    assert all(reference.removeprefix("#/$defs/") in SCHEMA["$defs"] for reference in found)


def test_the_schema_describes_every_knob_with_its_default() -> None:
    for knob in knobs():
        schema = SCHEMA
        for name in knob.path:
            schema = follow(schema)["properties"][name]
        assert schema["description"] == knob.help, knob.key
        assert schema["default"] == json.loads(json.dumps(knob.default)), knob.key


def test_a_config_of_every_key_fits_the_schema() -> None:
    assert fits(FULL_CONFIG, SCHEMA)
    assert fits({}, SCHEMA)


@pytest.mark.parametrize(
    "config",
    [
        {"schema_version": 2},
        {"threshold": "high"},
        {"model": {"contamination": 0.9}},
        {"defects": {"mask_format": "gif"}},
        {"defects": {"min_area": -1}},
        {"defects": {"min_area": True}},
        {"defects": {"roi_xyxy_norm": [0, 0, 1]}},
        {"defects": {"hysteresis": {"enabled": 1}}},
        {"inputs": {"input": "part.png"}},
    ],
    ids=json.dumps,
)
def test_a_faulty_config_does_not_fit_the_schema(config: Any) -> None:
    assert not fits(config, SCHEMA)
