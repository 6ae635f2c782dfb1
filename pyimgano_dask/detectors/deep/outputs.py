"""What is known of the outputs of a backbone before it runs."""

from __future__ import annotations

from collections.abc import Sequence

from pyimgano_dask.detectors.deep.arguments import RESNETS, BackboneArguments
from pyimgano_dask.detectors.extras import require

Shape = tuple[int, int, int]


def known_outputs(arguments: BackboneArguments, layers: tuple[str, ...]) -> Sequence[Shape] | None:
    """(C, h, w) of each of the layers at the arguments' image_size; None for networks of others."""
    if arguments.architecture not in RESNETS:
        return None
    require("torch", "a backbone")
    from pyimgano_dask.detectors.deep.resnet import output_shapes

    return output_shapes(arguments.architecture, layers, arguments.image_size)
