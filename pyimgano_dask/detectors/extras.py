"""Libraries that only some detectors need."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pyimgano_dask.errors import ConfigError

# The module that an extra is there for.
EXTRAS: Mapping[str, str] = {"torch": "torch", "onnx": "onnxruntime", "pyimgano": "pyimgano", "sklearn": "sklearn"}
# The distribution that has this module.
DISTRIBUTIONS: Mapping[str, str] = {**EXTRAS, "sklearn": "scikit-learn"}


def require(extra: str, needed_by: str) -> Any:
    """The module of an extra; raises ConfigError that says how to install it.

    Detectors import what they need when they are used, so that listing them loads none of it.
    """
    module = EXTRAS[extra]
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{needed_by} needs {module}, which cannot be loaded here ({error}); "
            f"install it with: pip install 'pyimgano-dask[{extra}]'"
        ) from None


def load(extra: str) -> None:
    """Import the module of an extra where it is installed.

    Done when a detector is made or arrives in a process: what limits native threads at the start of a task reaches
    only libraries that are loaded by then.
    """
    with suppress(ImportError, OSError):
        importlib.import_module(EXTRAS[extra])
