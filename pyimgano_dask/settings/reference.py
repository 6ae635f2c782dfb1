"""Generated documentation of the knobs: a table for people and a JSON schema for editors.

`python -m pyimgano_dask.settings.reference DIR` writes `REFERENCE.md` and `infer_config.schema.json` into DIR.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from pyimgano_dask.settings.catalog import Knob, knobs
from pyimgano_dask.settings.run import InferSettings

REFERENCE_NAME = "REFERENCE.md"
SCHEMA_NAME = "infer_config.schema.json"

HEAD = """# Every knob

Generated from the settings by `make docs`. A knob has one home, in `pyimgano_dask/settings/`: its flag, its config
key (the path in `infer_config.json` and in job files), its type, bounds and default all come from there. An
explicit flag wins over the config, the config over the default, also when the value equals the default. Switches
have a `--no-` form. From Python (`pyimgano_dask.infer`) a knob's keyword is its flag with underscores.
"""


def reference_markdown() -> str:
    """The table of all knobs, one section a block."""
    return "\n".join(_lines())


def schema_json() -> str:
    """JSON schema of infer configs and job files."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **InferSettings.model_json_schema()}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def _lines() -> Iterator[str]:
    yield HEAD
    block = None
    for knob in knobs():
        if knob.path[:-1] and knob.path[0] != block:
            block = knob.path[0]
            yield f"## {block}\n"
            yield "| config key | flag | allowed | default | meaning |"
            yield "|---|---|---|---|---|"
        elif not knob.path[:-1] and block != "":
            block = ""
            yield "## top level\n"
            yield "| config key | flag | allowed | default | meaning |"
            yield "|---|---|---|---|---|"
        yield _row(knob)
    yield ""


def _row(knob: Knob) -> str:
    flag = f"`{knob.flag}`" if knob.flag else "(config only)"
    default = "" if knob.default is None else f"`{json.dumps(knob.default)}`"
    cells = (f"`{knob.key}`", flag, knob.allowed, default, knob.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def write_reference(folder: Path) -> None:
    """Write both files into `folder`."""
    (folder / REFERENCE_NAME).write_text(reference_markdown(), encoding="utf-8")
    (folder / SCHEMA_NAME).write_text(schema_json(), encoding="utf-8")


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]))
