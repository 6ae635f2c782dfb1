"""Versions of the packages whose work ends up in files."""

from __future__ import annotations

from importlib.metadata import version

import cv2

from pyimgano_dask.version import __version__


def package_versions() -> dict[str, str]:
    """Version by package: with other ones the same run may write other bytes."""
    return {
        "pyimgano-dask": __version__,
        "opencv": cv2.__version__,
        **{name: version(name) for name in ("numpy", "numba", "pillow", "zarr")},
    }
