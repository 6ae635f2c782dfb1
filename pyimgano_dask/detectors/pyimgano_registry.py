"""The detectors of the package pyimgano as ours, by names such as `pyimgano:vision_ecod`.

A type is made for each name that is asked for. Nothing here imports pyimgano before that.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar

from pydantic import ConfigDict, SerializerFunctionWrapHandler, create_model, model_serializer

from pyimgano_dask.detectors.base import Detector
from pyimgano_dask.detectors.extras import require
from pyimgano_dask.detectors.pyimgano_libraries import words_of_parts
from pyimgano_dask.detectors.registry import PYIMGANO_PREFIX as PREFIX
from pyimgano_dask.detectors.registry import PYIMGANO_TAG as TAG
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.knob import Block, knob

SEED_NAMES = ("random_state", "random_seed", "seed")

# What pyimgano's own commands hand over where nothing is said: no downloads, no GPU; and a seed, so that fits repeat.
DEFAULTS: Mapping[str, Any] = {"device": "cpu", "pretrained": False, **dict.fromkeys(SEED_NAMES, 0)}


class PyimganoArguments(Block):
    """Arguments of a constructor of pyimgano, and how many images it is fitted on. Only what is given is dumped."""

    is_open: ClassVar[bool] = False
    """Whether the constructor takes arguments it does not name (`**kwargs`)."""

    max_train_images: int = knob(
        256,
        "Training images to fit on; more are subsampled. All are held in memory at once, and in the saved state.",
        ge=1,
    )

    @model_serializer(mode="wrap")
    def _given_only(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class _OpenArguments(PyimganoArguments):
    """Arguments of a constructor that passes on those it does not name."""

    model_config = ConfigDict(extra="allow")
    is_open: ClassVar[bool] = True


def pyimgano_type(name: str) -> type[Detector[Any]]:
    """The detector `pyimgano:NAME`; raises ConfigError when pyimgano is missing, or has no such detector of images."""
    require("pyimgano", name)
    registry = _registry()
    model = name.removeprefix(PREFIX)
    if model not in registry.list_models():
        near = difflib.get_close_matches(model, registry.list_models(), n=4, cutoff=0.5)
        hint = f"; near ones are {', '.join(PREFIX + other for other in near)}" if near else ""
        raise ConfigError(
            f"unknown detector {name!r}: pyimgano {version('pyimgano')} has none of this name{hint} "
            "(--list-models --tags pyimgano shows them)"
        )
    return _made_type(model)


def pyimgano_names(tags: Collection[str] = ()) -> list[str]:
    """Names of the detectors of images that have all these tags, without loading any; raises ConfigError."""
    require("pyimgano", f"--tags {TAG}")
    registry = _registry()
    return [PREFIX + model for model in registry.list_models(tags=tags) if not _takes_features(registry, model)]


def _registry() -> Any:
    """pyimgano's registry, filled: its package `models` does that when it is imported."""
    importlib.import_module("pyimgano.models")
    return importlib.import_module("pyimgano.models.registry")


def _takes_features(registry: Any, model: str) -> bool:
    entry = registry.MODEL_REGISTRY.info(model)
    return entry.metadata.get("input") == "features" or "core" in entry.tags


@cache
def _made_type(model: str) -> type[Detector[Any]]:
    """The type of one detector, the same one whenever it is asked for."""
    from pyimgano_dask.detectors.pyimgano_detector import PyimganoDetector

    registry = _registry()
    name = PREFIX + model
    if _takes_features(registry, model):
        raise ConfigError(
            f"{name} takes tables of features, not images; take a detector that pyimgano lists for images "
            f"(--list-models --tags {TAG})"
        )
    try:
        constructor = registry.materialize_model_constructor(model)
        if registry.MODEL_REGISTRY.info(model).metadata.get("_lazy_placeholder"):
            constructor()  # its module lacks a library, which this says
    except Exception as error:  # its module may run anything, and lack any library
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} cannot be loaded here: {reason}; see what pyimgano needs for it") from error
    entry = registry.MODEL_REGISTRY.info(model)
    if entry.metadata.get("requires_checkpoint") and not {"onnx", "torchscript"} & set(entry.tags):
        raise ConfigError(
            f"{name} runs checkpoints of other programs, which can run code of their maker when they are loaded; "
            "such detectors are not run here, export its model to ONNX"
        )
    parameters = inspect.signature(constructor).parameters.values()
    if any(parameter.name == "reference_dir" for parameter in parameters):
        raise ConfigError(
            f"{name} looks for a reference beside each image by the name of its file, and is not run here; take "
            "vision_reference_diff_map with --reference-dir"
        )
    if _needs_labels(constructor):
        raise ConfigError(
            f"{name} is fitted on labelled images, defective ones among them, and is not run here; take a detector "
            "that learns from normal images"
        )
    namespace = {
        "__doc__": f"`{model}` of the package pyimgano.",
        "name": name,
        "summary": entry.metadata.get("description") or f"{model} of the package pyimgano.",
        "tags": (TAG, *entry.tags),
        "reference": _reference(entry.metadata),
        "arguments_type": _arguments_type(model, parameters),
        "constructor": staticmethod(constructor),
        "parameter_names": frozenset(parameter.name for parameter in parameters),
        "gives_maps": hasattr(constructor, "predict_anomaly_map") or hasattr(constructor, "get_anomaly_map"),
        "words": frozenset({model, *entry.tags}),
        "words_of_parts": words_of_parts(),
    }
    return type("".join(word.title() for word in model.split("_")), (PyimganoDetector,), namespace)


def _needs_labels(constructor: Any) -> bool:
    """Whether `fit` cannot be called without labels. What a function makes is not known before it is called."""
    fit = getattr(constructor, "fit", None)
    if fit is None:
        return False
    parameters = list(inspect.signature(fit).parameters.values())[2:]
    return any(parameter.default is parameter.empty and parameter.name == "y" for parameter in parameters)


def _reference(metadata: Mapping[str, Any]) -> str:
    words = [str(metadata[key]) for key in ("paper", "year") if metadata.get(key)]
    return ", ".join([*words, f"in pyimgano {version('pyimgano')}"])


def _arguments_type(model: str, parameters: Collection[inspect.Parameter]) -> type[PyimganoArguments]:
    """The arguments a constructor names, with its own defaults or those of `DEFAULTS`."""
    is_open = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    fields = dict(_fields(parameters))
    if is_open:
        fields = {"contamination": (Any, knob(None, "Passed on by its constructor.")), **fields}
    base = _OpenArguments if is_open else PyimganoArguments
    made: type[PyimganoArguments] = create_model(f"Arguments of {model}", __base__=base, **fields)
    return made


def _fields(parameters: Collection[inspect.Parameter]) -> Iterator[tuple[str, Any]]:
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        is_required = parameter.default is parameter.empty
        default = None if is_required or not is_json(parameter.default) else parameter.default
        if default is None or parameter.name in ("device", "pretrained"):
            default = DEFAULTS.get(parameter.name, default)
        help = f"Of its constructor{_annotation(parameter)}{', required' if is_required else ''}."
        if parameter.name == "max_train_images":
            yield parameter.name, (int, knob(default, help, ge=1))
        else:
            yield parameter.name, (Any, knob(default, help))


def _annotation(parameter: inspect.Parameter) -> str:
    """`: TYPE` where the constructor says one, as it is written there."""
    kind = parameter.annotation
    if kind is parameter.empty:
        return ""
    return f": {kind if isinstance(kind, str) else inspect.formatannotation(kind)}"


def is_json(value: Any) -> bool:
    """Whether a value can be written as JSON."""
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
