"""Networks of timm and torchvision: making their feature extractors, and where the weights of these come from.

Weights go by the names that the extractor has. They are those of the whole network, except in timm, which renames
parts of many networks when it makes an extractor of them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Mapping
from contextlib import redirect_stdout
from typing import Any

import torch

from pyimgano_dask.detectors.base import State
from pyimgano_dask.detectors.deep.arguments import LIBRARIES
from pyimgano_dask.detectors.deep.weights import Shapes, learned_shapes, load_arrays, modules_around
from pyimgano_dask.detectors.exported.runner import in_words
from pyimgano_dask.errors import ConfigError

_MODULES = {"timm": "timm", "torchvision": "torchvision.models"}

# Networks of torchvision can have hundreds of nodes.
_MOST_NAMED = 12


def library_shapes(name: str, layers: tuple[str, ...]) -> Shapes:
    """The shape of every array that the extractor of a library has learned, by name; `name` is LIBRARY:NETWORK.

    Raises ConfigError when the library is missing, or has no such network or layers.
    """
    return learned_shapes(_extractor(name, layers))


def library_network(name: str, layers: tuple[str, ...], weights: State) -> torch.nn.Module:
    """The extractor of a library with these weights, as `library_shapes` names them.

    It takes float (N, 3, S, S) and gives (N, C, h, w) for each layer: a list in timm, by name in torchvision.
    Networks whose values lie in the order (N, h, w, C) are brought to it.
    """
    net = _extractor(name, layers)
    load_arrays(net, weights)
    return net


def pretrained_weights(name: str) -> Mapping[str, torch.Tensor]:
    """The pretrained state dict that an installed library has, or fetches, for a whole network.

    Files that the libraries have kept are read as weights alone. What they say while they fetch goes to standard error,
    and so does what other threads print meanwhile. Raises ConfigError when there is none to be had.
    """
    library, _, model = name.partition(":")
    tried = [library] if library in LIBRARIES else list(LIBRARIES)
    model = model or name
    faults = []
    for candidate in tried:
        try:
            with redirect_stdout(sys.stderr):
                return _weights_of_timm(model) if candidate == "timm" else _weights_of_torchvision(model)
        except ConfigError as error:
            faults.append(f"{candidate}: {error}")
        except Exception as error:  # noqa: BLE001 - a failed download or a damaged file makes them raise anything
            faults.append(f"{candidate}: {in_words(error)}")
    raise ConfigError(
        f"pretrained weights of {name} are not at hand ({'; '.join(faults)}); give a file of them with weights_path in "
        "--model-kwargs, or --no-pretrained"
    )


def _weights_of_timm(model: str) -> Mapping[str, torch.Tensor]:
    weights: Mapping[str, torch.Tensor] = _library("timm").create_model(model, pretrained=True).state_dict()
    return weights


def _weights_of_torchvision(model: str) -> Mapping[str, torch.Tensor]:
    best = _library("torchvision").get_model_weights(model).DEFAULT
    weights: Mapping[str, torch.Tensor] = best.get_state_dict(progress=False, check_hash=True, weights_only=True)
    return weights


def named_as_wanted(found: Mapping[str, Any], wanted: Collection[str]) -> Mapping[str, Any]:
    """The arrays of a whole network of timm under the names that its extractor has for them; others stay.

    timm's extractors put `model.` or `body.` before the whole name, or write its first dot as `_`. Arrays that have
    a wanted name already keep it.
    """
    renamed = {form: value for key, value in found.items() for form in _renamed(key) if form in wanted}
    return {**renamed, **found}


def _renamed(key: str) -> tuple[str, ...]:
    """The names that extractors of timm may have for an array of the whole network."""
    return f"model.{key}", f"body.{key}", key.replace(".", "_", 1)


def whole_and_used(name: str, wanted: Collection[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Names of what the whole network of a library has learned, and those of what its extractor has of it.

    `wanted` are the names that the extractor has, which are among both.
    """
    library, _, model = name.partition(":")
    whole = learned_shapes(_whole(library, model)).keys()
    used = (key for key in whole if any(form in wanted for form in _renamed(key)))
    return frozenset((*whole, *wanted)), frozenset((*used, *wanted))


def _whole(library: str, model: str) -> Any:
    """A whole network as its library makes it, its weights yet to be set."""
    module = _library(library)
    return module.create_model(model, pretrained=False) if library == "timm" else module.get_model(model, weights=None)


def _extractor(name: str, layers: tuple[str, ...]) -> torch.nn.Module:
    """An extractor, its weights yet to be set."""
    library, _, model = name.partition(":")
    module = _library(library)
    try:
        return _of_timm(module, model, layers) if library == "timm" else _of_torchvision(module, model, layers)
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        said = _wrong_layers(library, model, layers) or in_words(error)
        raise ConfigError(f"backbone {name!r} with layers {list(layers)}: {said}") from None


def _wrong_layers(library: str, model: str, layers: tuple[str, ...]) -> str | None:
    """Which of the layers a network has not, and which there are; none where that is not the fault, or not known."""
    try:
        net = _whole(library, model)
        names = [str(number) for number in range(len(net.feature_info))] if library == "timm" else _nodes(net)
    except Exception:  # noqa: BLE001 - the fault that made the extractor fail is told instead
        return None
    wrong = [layer for layer in layers if layer not in names]
    if not wrong:
        return None
    there = names if library == "timm" else _beside(wrong[0], names)
    if len(there) > _MOST_NAMED:
        there = [*there[: _MOST_NAMED - 2], "…", there[-1]]
    return f"it has no {', '.join(wrong)}; there are {', '.join(there)}"


def _nodes(net: Any) -> list[str]:
    """The names of the nodes of a network of torchvision and of the modules around them, each once, in their order.

    The first node is the input, which is left out.
    """
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    _, (_, *nodes) = extraction.get_graph_node_names(net)
    return list(dict.fromkeys(name for node in nodes for name in (*modules_around(node), node)))


def _beside(layer: str, names: Collection[str]) -> list[str]:
    """Those of the names that lie in the innermost module that there is around the layer."""
    around = next((part for part in reversed(modules_around(layer)) if part in names), "")
    return [name for name in names if name.rpartition(".")[0] == around]


def _of_timm(timm: Any, model: str, layers: tuple[str, ...]) -> torch.nn.Module:
    indices = {"out_indices": sorted(int(layer) for layer in layers)} if layers else {}
    net: torch.nn.Module = timm.create_model(model, pretrained=False, features_only=True, **indices)
    if getattr(net, "output_fmt", "NCHW") == "NHWC":
        net.register_forward_hook(lambda module, inputs, outputs: [value.permute(0, 3, 1, 2) for value in outputs])
    return net


def _of_torchvision(models: Any, model: str, layers: tuple[str, ...]) -> torch.nn.Module:
    if model.lower() not in models.list_models(module=models):
        raise ConfigError(
            f"backbone 'torchvision:{model}' is no classification network of torchvision; "
            "torchvision.models.list_models(module=torchvision.models) lists those"
        )
    whole = models.get_model(model, weights=None)
    extraction = importlib.import_module("torchvision.models.feature_extraction")
    net: torch.nn.Module = extraction.create_feature_extractor(whole, list(layers))
    if isinstance(whole, models.SwinTransformer):
        net.register_forward_hook(_swin_channels_first)
    return net


def _swin_channels_first(module: torch.nn.Module, inputs: Any, outputs: Mapping[str, torch.Tensor]) -> Any:
    """Outputs of torchvision's Swin: between its first convolution and its last norm they are (N, h, w, C)."""
    return {
        layer: value.permute(0, 3, 1, 2)
        if layer.partition(".")[0] in ("features", "norm") and not f"{layer}.".startswith("features.0.0.")
        else value
        for layer, value in outputs.items()
    }


def _library(name: str) -> Any:
    try:
        return importlib.import_module(_MODULES[name])
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"backbone {name}:NAME needs {name}, which cannot be loaded here ({error}); install it"
        ) from None
