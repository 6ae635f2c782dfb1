"""How images become the input of a model: the resize against torch's, and the layout read off a shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyimgano_dask.detectors.exported.arguments import ExportedModelArguments
from pyimgano_dask.detectors.exported.inputs import InputPlan, ModelInput, resize_bilinear
from pyimgano_dask.errors import ConfigError

sides = st.integers(1, 40)


@settings(deadline=None)
@given(sides, sides, sides, sides, st.booleans(), st.integers(0, 2**32))
def test_the_resize_is_that_of_torch(
    height: int, width: int, new_height: int, new_width: int, is_grey: bool, seed: int
) -> None:
    torch = pytest.importorskip("torch", reason="compared with torch's interpolation")
    shape = (height, width) if is_grey else (height, width, 3)
    image = np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)
    planes = torch.from_numpy(np.atleast_3d(image).transpose(2, 0, 1)[None].astype(np.float32))
    expected = torch.nn.functional.interpolate(planes, (new_height, new_width), mode="bilinear", antialias=False)
    resized = resize_bilinear(image, (new_height, new_width))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(np.atleast_3d(resized), expected[0].numpy().transpose(1, 2, 0), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "layout", "color", "batch", "size_hw"),
    [
        ((2, 3, 16, 20), "NCHW", "rgb", 2, (16, 20)),
        ((None, 3, None, None), "NCHW", "rgb", 1, (256, 256)),
        ((None, 1, 16, None), "NCHW", "gray", 1, (16, 256)),
        ((4, 16, 20, 3), "NHWC", "rgb", 4, (16, 20)),
        ((1, 16, 20, 1), "NHWC", "gray", 1, (16, 20)),
        ((1, 3, 20, 3), "NCHW", "rgb", 1, (20, 3)),
        ((None, None, None, None), "NCHW", "rgb", 1, (256, 256)),
        ((None, None, None, 3), "NCHW", "rgb", 1, (256, 3)),
    ],
)
def test_what_a_shape_says(
    shape: tuple[int | None, ...], layout: str, color: str, batch: int, size_hw: tuple[int, int]
) -> None:
    plan = InputPlan.of(ExportedModelArguments(), ModelInput(shape))
    assert (plan.layout, plan.color, plan.batch_size, (plan.height, plan.width)) == (layout, color, batch, size_hw)


def test_the_last_image_fills_the_batch() -> None:
    plan = InputPlan.of(ExportedModelArguments(), ModelInput((4, 3, 2, 2)))
    images = [np.full((2, 2, 3), level, np.uint8) for level in (51, 102)]
    array = plan.array(images)
    assert array.shape == (4, 3, 2, 2)
    np.testing.assert_allclose(array[:, 0, 0, 0], [0.2, 0.4, 0.4, 0.4])


def test_normalisation_does_not_suit_an_input_of_bytes() -> None:
    for declared in ({"mean": (1.0,)}, {"std": (2.0,)}, {"value_range": "unit"}):
        with pytest.raises(ConfigError, match="takes pixels as they are"):
            InputPlan.of(ExportedModelArguments(**declared), ModelInput((1, 3, 2, 2), "uint8"))


@pytest.mark.parametrize(
    ("shape", "declared", "is_fine"),
    [
        ((1, 3, 2**14, 2**14), {}, True),
        ((1, 3, 2**14 + 1, 1), {}, False),
        ((1, 1, 1, 2**14 + 1), {}, False),
        ((4, 1, 2**14, 2**14), {}, True),
        ((5, 1, 2**14, 2**14), {}, False),
        ((2**30, 3, 1, 1), {}, False),
        ((None, 3, None, None), {"batch_size": 6000}, False),
        ((None, 3, None, None), {"batch_size": 5000}, True),
        ((None, 3, None, None), {"input_hw": (2**14, 2**14), "batch_size": 2}, False),
    ],
)
def test_the_largest_inputs(shape: tuple[int | None, ...], declared: dict[str, Any], is_fine: bool) -> None:
    arguments = ExportedModelArguments(**declared)
    if is_fine:
        InputPlan.of(arguments, ModelInput(shape))
        return
    with pytest.raises(ConfigError, match=r"its input is \d+ image\(s\) of .* at most 16384 pixels and a batch 4 GiB"):
        InputPlan.of(arguments, ModelInput(shape))


def test_as_many_numbers_as_channels() -> None:
    with pytest.raises(ConfigError, match="std has 3 numbers, but the model takes 1 channels"):
        InputPlan.of(ExportedModelArguments(std=(1.0, 2.0, 3.0)), ModelInput((1, 1, 2, 2)))
