"""`--list-models` and `--model-info`: which detectors there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from pyimgano_dask.detectors.registry import PYIMGANO_TAG, describe, detector_types, find_detector_type, pyimgano_names


def discover(arguments: Mapping[str, Any]) -> int:
    """Print the answer to standard output; returns the exit code."""
    if arguments["model_info"] is not None:
        _print_model(describe(find_detector_type(arguments["model_info"])), as_json=arguments["json"])
        return 0
    wanted = {tag.strip() for tag in (arguments["tags"] or "").split(",") if tag.strip()}
    chosen = [detector.name for detector in detector_types().values() if wanted <= set(detector.tags)]
    if PYIMGANO_TAG in wanted:
        chosen += pyimgano_names(wanted - {PYIMGANO_TAG})
    print(json.dumps(chosen, indent=2) if arguments["json"] else "\n".join(chosen))
    return 0


def _print_model(model: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(model, indent=2, sort_keys=True))
        return
    console = Console()
    console.print(f"[bold]{model['name']}[/bold]\n{model['summary']}", highlight=False)
    console.print(f"tags: {', '.join(model['tags'])}\nsource: {model['reference']}", highlight=False, markup=False)
    table = Table("argument", "default", "meaning", title="--model-kwargs", title_justify="left")
    for name, argument in model["arguments"].items():
        table.add_row(name, json.dumps(argument["default"]), argument["help"])
    console.print(table)
