"""Arrays of networks in a state: whatever form of fractions they come in, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="networks need torch")

from pyimgano_dask.detectors.base import Detector, State  # noqa: E402
from pyimgano_dask.detectors.registry import find_detector_type  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import draw_images  # noqa: E402

ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "vision_padim": {"image_size": 32, "layers": ["layer1"], "d_reduced": 8},
    "vision_patchcore": {"image_size": 32, "layers": ["layer1"]},
    "vision_stfpm": {"image_size": 64, "layers": ["layer1"], "epochs": 1},
    "vision_autoencoder": {"image_size": 32, "base_channels": 2, "latent_dim": 4, "epochs": 1},
}
NAMES = tuple(ARGUMENTS)
FORMS: Mapping[str, Callable[[Any], Any]] = {
    "foreign order of bytes": lambda values: values.astype(values.dtype.newbyteorder()),
    "float64": lambda values: values.astype(np.float64),
    "foreign float64": lambda values: values.astype(">f8"),
    "columns first": np.asfortranarray,
    "every other number": lambda values: np.repeat(values, 2, axis=-1)[..., ::2] if values.ndim else values,
    "backwards": lambda values: np.flip(np.flip(values).copy()),
    "read only": lambda values: np.frombuffer(values.tobytes(), values.dtype).reshape(values.shape),
}


@cache
def fitted(name: str) -> Detector[Any]:
    return find_detector_type(name).create(**ARGUMENTS[name]).fit(draw_images(1, "rgb"))


def changed(state: State, change: Callable[[Any], Any]) -> State:
    """The state with the arrays of its networks changed."""
    names = [key for key in state if key.startswith(("backbone/", "student/"))] or list(state)
    return {**state, **{key: change(state[key]) for key in names}}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_any_form_of_the_same_fractions_gives_the_same_bytes(name: str, form: str) -> None:
    detector = fitted(name)
    again = detector.with_state(changed(detector.state(), FORMS[form]))
    for key, values in again.state().items():
        assert values.dtype == detector.state()[key].dtype
        assert values.tobytes() == detector.state()[key].tobytes()
    images = draw_images(2, "rgb")
    np.testing.assert_array_equal(again.predict(images).scores, detector.predict(images).scores)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_taken_as_it_is(name: str) -> None:
    detector = fitted(name)
    half = changed(detector.state(), lambda values: values.astype(np.float16))
    for key, values in detector.with_state(half).state().items():
        assert values.dtype != np.float16
        np.testing.assert_array_equal(values, half[key])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.astype(np.int32), "must be a dense array of floating-point numbers"),
        (lambda values: values.astype(np.complex64), "must be a dense array of floating-point numbers"),
        (lambda values: values.astype(str), "must be a dense array of floating-point numbers"),
        (lambda values: np.where(values == values.max(), 1e300, values.astype(np.float64)), "finite numbers only"),
    ],
    ids=["whole numbers", "complex", "text", "beyond float32"],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_fraction_of_float32_is_refused(name: str, change: Callable[[Any], Any], said: str) -> None:
    detector = fitted(name)
    with pytest.raises(ConfigError, match=said):
        detector.with_state(changed(detector.state(), change))
