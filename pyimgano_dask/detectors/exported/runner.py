"""A model that is loaded and ready, whatever library runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.detectors.exported.inputs import ModelInput
from pyimgano_dask.detectors.exported.outputs import Output

LONGEST_WORDS = 300


class DeviceMissingError(Exception):
    """The library finds no such device in this process."""


class Runner(ABC):
    """One loaded model. Threads share it."""

    @property
    @abstractmethod
    def input(self) -> ModelInput:
        """What the file says of its input."""

    @abstractmethod
    def run(self, batch: NDArray[np.generic]) -> Sequence[Output]:
        """The model's outputs for one input array, in its order. Raises whatever its library raises."""


def in_words(error: Exception) -> str:
    """What a library says of a fault, on one line: of a traceback in a message its last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    text = next((line for line in reversed(lines) if "Error: " in line), lines[0])
    return text if len(text) <= LONGEST_WORDS else f"{text[: LONGEST_WORDS - 1]}…"
