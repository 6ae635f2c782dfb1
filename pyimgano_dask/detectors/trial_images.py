"""Images that models and backbones are tried on before a run begins."""

from __future__ import annotations

import numpy as np

from pyimgano_dask.detectors.base import Image


def smooth_squares(size: int) -> Image:
    """Three images that differ everywhere: waves of the three colours, uint8 (3, size, size, 3).

    Their contrast differs, too: the values of the second lie within those of the first, and those of the third within
    those of the second.
    """
    y, x = np.mgrid[:size, :size] / size
    waves = [(1.0, 0.5), (0.5, 1.5), (1.5, 1.0)]
    one = np.stack([np.sin(2 * np.pi * (across * x + down * y)) for across, down in waves], axis=-1)
    three = np.stack([127.5 + 120 * one, 115 - 90 * one[::-1], 125 + 40 * one[:, ::-1]])
    return np.asarray(np.rint(three), dtype=np.uint8)
