"""`--list-models` and `--model-info`: which detectors there are."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pyimgano_dask.cli.width import output_columns
from pyimgano_dask.detectors.registry import PYIMGANO_TAG, describe, detector_types, find_detector_type, pyimgano_names

INDENT = 8


def discover(arguments: Mapping[str, Any]) -> int:
    """Print the answer to standard output; returns the exit code."""
    if arguments["model_info"] is not None:
        model = describe(find_detector_type(arguments["model_info"]))
        if arguments["json"]:
            print(json.dumps(model, indent=2, sort_keys=True))
        else:
            _print_text(model_in_words(model, output_columns()))
        return 0
    wanted = {tag.strip() for tag in (arguments["tags"] or "").split(",") if tag.strip()}
    chosen = [detector.name for detector in detector_types().values() if wanted <= set(detector.tags)]
    if PYIMGANO_TAG in wanted:
        chosen += pyimgano_names(wanted - {PYIMGANO_TAG})
    print(json.dumps(chosen, indent=2) if arguments["json"] else "\n".join(chosen))
    return 0


def model_in_words(model: Mapping[str, Any], columns: int) -> Iterator[str]:
    """Lines, of at most `columns` where words are not longer, on what `describe` says of a detector."""
    yield model["name"]
    yield _wrapped(model["summary"], columns, "  ", "  ")
    yield ""
    facts = {
        "needs": "; ".join(_needs_in_words(model["needs"])),
        "gives": "scores and anomaly maps" if model["gives_maps"] else "scores, no anomaly maps",
        "tags": ", ".join(model["tags"]),
        "source": model["reference"],
    }
    for title, text in facts.items():
        yield _wrapped(text, columns, f"{title:{INDENT}}", " " * INDENT)
    yield "\narguments (--model-kwargs, a JSON object) and their defaults:"
    for name, argument in model["arguments"].items():
        allowed = f"  ({argument['allowed']})" if argument["allowed"] else ""
        yield f"  {name} = {json.dumps(argument['default'])}{allowed}"
        yield _wrapped(argument["help"], columns, " " * INDENT, " " * INDENT)


def _print_text(lines: Iterable[str]) -> None:
    """Print words that a terminal of another encoding may lack signs of."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    print("\n".join(lines))


def _needs_in_words(needs: Mapping[str, str | None]) -> Iterator[str]:
    if needs["extra"] is not None:
        yield f"the extra [{needs['extra']}]"
    if needs["model_file"] is not None:
        yield f"a model file ({needs['model_file']}, --checkpoint-path)"
    if needs["reference_images"] is not None:
        yield "reference images (--reference-dir)"
    required = needs["training_images"] == "required"
    yield "training images (--train-dir)" if required else "training images (--train-dir) for thresholds only"
    if needs["weights_file"] is not None:
        yield "weights of the backbone, optional (weights_path or pretrained): without, those of a ResNet are random"


def _wrapped(text: str, columns: int, first: str, others: str) -> str:
    return textwrap.fill(
        text, columns, initial_indent=first, subsequent_indent=others, break_on_hyphens=False, break_long_words=False
    )
