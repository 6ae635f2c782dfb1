"""Precedence of a re-scoring: built-in default < stored run < config < explicit flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob
from pyimgano_dask.settings.commands import RESCORE, knobs_of
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.rescoring import Rescoring, resolve_rescoring
from pyimgano_dask.settings.resolve import given_by_keyword
from pyimgano_dask.settings.run_manifest import MANIFEST_NAME, RunManifest
from tests.settings.samples import nested, two_values, value_of, write_config

DEFECT_KNOBS = [
    knob
    for knob in knobs_of(RESCORE)
    if knob.path[0] == "defects" and knob.key not in ("defects.enabled", "defects.preset")
]
every_defect_knob = pytest.mark.parametrize("knob", DEFECT_KNOBS, ids=lambda knob: knob.flag)


def a_run(folder: Path, **settings: Any) -> str:
    """A run folder whose manifest holds these blocks."""
    manifest = RunManifest(base_dir="/line4", n_inputs=3, settings=settings)
    (folder / MANIFEST_NAME).write_bytes(manifest.encode())
    return str(folder)


def resolved(config: str | None = None, **keywords: Any) -> Rescoring:
    file = read_infer_config(config, with_checkpoint=False) if config else None
    return resolve_rescoring(given_by_keyword(keywords, RESCORE), file)


def used(knob: Knob, rescoring: Rescoring) -> Any:
    value = value_of(rescoring.resolved.settings, knob)
    return list(value) if isinstance(value, tuple) else value


@every_defect_knob
def test_the_run_wins_over_the_default_the_config_over_the_run_the_flag_over_both(knob: Knob, tmp_path: Path) -> None:
    in_run, in_config = two_values(knob)
    run = a_run(tmp_path, **nested(knob, in_run))
    config = write_config(tmp_path, {"schema_version": 1, **nested(knob, in_config)})
    assert used(knob, resolved(from_run=run)) == in_run
    assert used(knob, resolved(config, from_run=run)) == in_config
    by_flag = resolved(config, from_run=run, **{knob.dest: in_run})
    assert used(knob, by_flag) == in_run
    assert by_flag.resolved.is_explicit(knob.key)
    if knob.default is not None:
        default = list(knob.default) if isinstance(knob.default, tuple) else knob.default
        assert used(knob, resolved(config, from_run=run, **{knob.dest: default})) == default


def test_a_config_leaves_what_it_does_not_name(tmp_path: Path) -> None:
    run = a_run(tmp_path, defects={"min_area": 3, "hysteresis": {"enabled": True, "low": 1.0}}, threshold=0.5)
    config = write_config(tmp_path, {"schema_version": 1, "defects": {"hysteresis": {"low": 2.0}}})
    settings = resolved(config, from_run=run).resolved.settings
    assert (settings.defects.min_area, settings.threshold) == (3, 0.5)
    assert (settings.defects.hysteresis.enabled, settings.defects.hysteresis.low) == (True, 2.0)


def test_defects_are_on_whatever_the_run_and_the_config_say(tmp_path: Path) -> None:
    run = a_run(tmp_path, defects={"enabled": False})
    config = write_config(tmp_path, {"schema_version": 1, "defects": {"enabled": False}})
    assert resolved(config, from_run=run).resolved.settings.defects.enabled
    with pytest.raises(ConfigError, match="--no-defects"):
        resolved(from_run=run, defects=False)


@pytest.mark.parametrize("in_run", [False, True], ids=["config alone", "over a run"])
def test_a_preset_of_a_config_lies_below_the_configs_own_values_and_above_the_run(in_run: bool, tmp_path: Path) -> None:
    run = a_run(tmp_path, defects={"min_area": 3, "border_ignore_px": 7, "fill_holes": True})
    source = {"from_run": run} if in_run else {"maps": "maps"}
    defects = {"preset": "industrial-fp40", "border_ignore_px": 5}
    config = write_config(tmp_path, {"schema_version": 1, "defects": defects})
    settings = resolved(config, **source).resolved.settings.defects
    assert (settings.min_area, settings.border_ignore_px, settings.fill_holes) == (16, 5, in_run)


def test_an_explicit_preset_lies_above_run_and_config_and_below_other_flags(tmp_path: Path) -> None:
    run = a_run(tmp_path, defects={"min_area": 3, "max_regions": 7, "fill_holes": True})
    config = write_config(tmp_path, {"schema_version": 1, "defects": {"min_area": 4, "border_ignore_px": 5}})
    settings = resolved(config, from_run=run, defects_preset="industrial-fp40", defect_max_regions=1).resolved.settings
    defects = settings.defects
    assert (defects.min_area, defects.border_ignore_px, defects.max_regions, defects.fill_holes) == (16, 2, 1, True)


def test_the_provenance_of_the_run_goes_with_its_threshold(tmp_path: Path) -> None:
    provenance = {"method": "quantile", "source": "train_dir"}
    run = a_run(tmp_path, defects={"pixel_threshold": 5.0}, pixel_threshold_provenance=provenance)
    assert resolved(from_run=run).resolved.settings.pixel_threshold_provenance == provenance
    other = {"schema_version": 1, "defects": {"pixel_threshold": 5.0}, "pixel_threshold_provenance": {"note": "a"}}
    rescoring = resolved(write_config(tmp_path, other), from_run=run)
    assert rescoring.resolved.settings.pixel_threshold_provenance is None


def test_a_config_may_name_the_run(tmp_path: Path) -> None:
    run = a_run(tmp_path, threshold=0.5)
    rescoring = resolved(write_config(tmp_path, {"schema_version": 1, "stored": {"from_run": run}}))
    assert rescoring.run is not None
    assert (rescoring.run.n_inputs, rescoring.resolved.settings.threshold) == (3, 0.5)


@pytest.mark.parametrize("block", [5, "off", None, [1], True])
def test_a_defects_block_that_is_no_object_is_a_fault(block: object, tmp_path: Path) -> None:
    config = write_config(tmp_path, {"schema_version": 1, "defects": block})
    with pytest.raises(ConfigError, match="defects"):
        resolved(config, maps="maps")


@pytest.mark.parametrize("given", [{}, {"maps": "a", "from_run": "R"}], ids=["neither", "both"])
def test_the_maps_are_named_once(given: dict[str, str], tmp_path: Path) -> None:
    given = {key: a_run(tmp_path) if key == "from_run" else value for key, value in given.items()}
    with pytest.raises(ConfigError, match=r"--from-run DIR .*--maps"):
        resolved(**given)


def test_keywords_of_detectors_are_unknown() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting model, save_maps;.*pyimgano-rescore"):
        resolved(maps="a", model="vision_pixel_mad_map", save_maps="b")


def test_a_threshold_of_null_in_a_config_stands_for_none(tmp_path: Path) -> None:
    provenance = {"method": "fixed"}
    run = a_run(tmp_path, defects={"pixel_threshold": 2.5}, pixel_threshold_provenance=provenance)
    config = {"schema_version": 1, "defects": {"pixel_threshold": None}, "pixel_threshold_provenance": None}
    settings = resolved(write_config(tmp_path, config), from_run=run).resolved.settings
    assert (settings.defects.pixel_threshold, settings.pixel_threshold_provenance) == (2.5, provenance)


def test_a_manifest_sets_only_what_defects_depend_on(tmp_path: Path) -> None:
    run = a_run(tmp_path, output={"save_jsonl": "elsewhere.jsonl"}, dataflow={"workers": 7}, threshold=0.5)
    settings = resolved(from_run=run).resolved.settings
    assert (settings.output.save_jsonl, settings.dataflow.workers, settings.threshold) == (None, None, 0.5)
