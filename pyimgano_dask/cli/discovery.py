"""`--list-models` and `--model-info`: which detectors there are."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

from pyimgano_dask.cli.shell import silence_stdout
from pyimgano_dask.cli.width import output_columns
from pyimgano_dask.detectors.registry import PYIMGANO_TAG, describe, detector_types, find_detector_type, pyimgano_names
from pyimgano_dask.errors import ConfigError

INDENT = 8


def discover(arguments: Mapping[str, Any]) -> int:
    """Print the answer to standard output; returns the exit code."""
    if arguments["model_info"] is not None:
        model = describe(find_detector_type(arguments["model_info"]))
        if arguments["json"]:
            _print_lines([json.dumps(model, indent=2, sort_keys=True)])
        else:
            _print_lines(model_in_words(model, output_columns()))
        return 0
    wanted = {tag.strip() for tag in (arguments["tags"] or "").split(",") if tag.strip()}
    chosen = _chosen(wanted)
    if not chosen:
        print(f"no detector has all of these tags: {', '.join(sorted(wanted))}", file=sys.stderr)
    if arguments["json"]:
        _print_lines([json.dumps(chosen, indent=2)])
    elif sys.stdout.isatty():
        _print_lines(models_in_words(chosen, output_columns()))
    else:
        _print_lines(chosen)
    return 0


def _chosen(wanted: Set[str]) -> list[str]:
    """Names of the detectors that have all these tags; raises ConfigError for a tag that none has."""
    tags_of = {detector.name: {*detector.tags} for detector in detector_types().values()}
    chosen = [name for name, tags in tags_of.items() if wanted <= tags]
    known = {PYIMGANO_TAG}.union(*tags_of.values())
    unknown = wanted - known
    if PYIMGANO_TAG in wanted:
        chosen += pyimgano_names(wanted - {PYIMGANO_TAG})
        unknown = {tag for tag in unknown if not pyimgano_names({tag})}
    if unknown:
        raise ConfigError(
            f"--tags: no detector has the tag {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}; "
            f"with {PYIMGANO_TAG} also those of the package pyimgano"
        )
    return chosen


def models_in_words(names: Iterable[str], columns: int) -> Iterator[str]:
    """A paragraph for each detector, of lines of at most `columns`: its name, and what it does where that is known.

    What detectors of the package pyimgano do is told by `--model-info` alone, which loads them.
    """
    known = detector_types()
    for name in names:
        yield name
        if name in known:
            yield _wrapped(known[name].summary, columns, "  ", "  ")


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


def _print_lines(lines: Iterable[str]) -> None:
    """Print words that a terminal of another encoding may lack signs of, to a reader that may have seen enough."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        for line in lines:
            print(line)
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()


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
