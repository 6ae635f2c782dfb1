from __future__ import annotations

import json

import pytest

from pyimgano_dask.detectors.registry import describe, detector_types, find_detector_type
from pyimgano_dask.errors import ConfigError


def test_detectors_are_known_by_their_name_in_sorted_order() -> None:
    types = detector_types()
    assert list(types) == sorted(types)
    assert {"vision_pixel_gaussian_map", "vision_pixel_mad_map", "vision_pixel_mean_absdiff_map"} <= set(types)
    for name, detector_type in types.items():
        assert detector_type.name == name
        assert find_detector_type(name) is detector_type


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        find_detector_type("vision_pixle_mad_map")
    assert "'vision_pixle_mad_map'" in str(caught.value)
    assert all(name in str(caught.value) for name in detector_types())


def test_changing_the_answer_does_not_change_the_registry() -> None:
    known = len(detector_types())
    dict(detector_types()).clear()
    assert len(detector_types()) == known


@pytest.mark.parametrize("name", detector_types())
def test_a_description_is_json_and_explains_every_argument(name: str) -> None:
    described = describe(detector_types()[name])
    assert json.loads(json.dumps(described))["name"] == name
    assert described["summary"]
    assert described["reference"]
    assert described["tags"]
    assert described["arguments"]
    assert all(argument["help"] for argument in described["arguments"].values())
