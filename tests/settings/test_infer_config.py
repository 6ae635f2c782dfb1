"""Reading infer configs: what is wrong is said with its JSON path, all of it at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import knobs
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import given_by_keyword, resolve
from tests.settings.samples import FULL_CONFIG, load, value_of, write_config


def faults(path: str, category: str | None = None) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve({}, read_infer_config(path, category))
    return str(caught.value).splitlines()


def test_a_config_with_every_key_loads_without_a_warning(tmp_path: Path) -> None:
    resolved = load(write_config(tmp_path, FULL_CONFIG))
    assert resolved.warnings == ()
    of_the_category = {
        "per_category",
        "category",
        "threshold",
        "threshold_provenance",
        "checkpoint.path",
        "checkpoint.sha256",
        "model.checkpoint_path",
    }
    for knob in knobs():
        block: Any = FULL_CONFIG
        for name in knob.path[:-1]:
            block = block.get(name, {})
        if knob.path[-1] in block and knob.key not in of_the_category:
            value = value_of(resolved.settings, knob)
            assert (list(value) if isinstance(value, tuple) else value) == block[knob.path[-1]], knob.key
    assert resolved.settings.threshold == 0.5, "that of the category"
    assert resolved.settings.model.checkpoint_path == "/data/bolt.npz", "that of the category"


def test_all_faults_are_told_at_once_with_their_paths(tmp_path: Path) -> None:
    path = write_config(
        tmp_path,
        {
            "schema_version": 1,
            "model": {"name": 3, "contamination": 0.9},
            "threshold": "high",
            "defects": {
                "enabled": "yes",
                "pixel_normal_quantile": 1,
                "roi_xyxy_norm": [0, 0, "right", 1],
                "mask_format": "gif",
                "map_smoothing": {"method": "median", "ksize": 9},
                "shape_filters": {"min_solidity": 2},
                "hysteresis": [],
                "min_area": 1.5,
            },
            "dataflow": {"scheduler": "slurm"},
        },
    )
    lines = faults(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    told = {line.removeprefix(f"{path}: ").partition(":")[0]: line for line in lines}
    assert set(told) == {
        "model.name",
        "model.contamination",
        "threshold",
        "defects.enabled",
        "defects.pixel_normal_quantile",
        "defects.roi_xyxy_norm.2",
        "defects.mask_format",
        "defects.map_smoothing",
        "defects.shape_filters.min_solidity",
        "defects.hysteresis",
        "defects.min_area",
        "dataflow.scheduler",
    }
    assert "0.9" in told["model.contamination"]
    assert "> 0 and ≤ 0.5" in told["model.contamination"]
    assert '"high"' in told["threshold"]
    assert "a finite number or null" in told["threshold"]
    assert '"gif"' in told["defects.mask_format"]
    assert "png, npy, npz, zarr" in told["defects.mask_format"]
    assert "9" in told["defects.map_smoothing"]
    assert "3 or 5" in told["defects.map_smoothing"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(f'{{"schema_version": 1, "threshold": {number}}}')
    (line,) = faults(str(path))
    assert "threshold" in line
    assert "a finite number" in line


def test_unknown_keys_are_warnings_with_their_paths(tmp_path: Path) -> None:
    path = write_config(
        tmp_path,
        {"schema_version": 1, "colour": 1, "defects": {"min_aera": 3, "hysteresis": {"lo": 1}}, "model": {"x": {}}},
    )
    assert load(path).warnings == (
        f"{path}: unknown key colour is ignored",
        f"{path}: unknown key defects.min_aera is ignored",
        f"{path}: unknown key defects.hysteresis.lo is ignored",
        f"{path}: unknown key model.x is ignored",
    )


def test_a_file_without_schema_version_loads_with_a_warning(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"threshold": 0.5})
    resolved = load(path)
    assert resolved.settings.threshold == 0.5
    (warning,) = resolved.warnings
    assert path in warning
    assert "schema_version" in warning


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (line,) = faults(write_config(tmp_path, {"schema_version": 2, "threshold": "x"}))
    assert "schema_version is 2" in line
    assert "up to 1" in line


@pytest.mark.parametrize("version", [0, "1", 1.5, True, []])
def test_a_schema_version_that_never_was_is_refused(tmp_path: Path, version: object) -> None:
    (line,) = faults(write_config(tmp_path, {"schema_version": version}))
    assert "schema_version" in line


def test_files_that_cannot_be_a_config_are_refused_in_words(tmp_path: Path) -> None:
    for content, reason in (
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe", "JSON"),
        (b"[]", "object"),
    ):
        path = tmp_path / "c.json"
        path.write_bytes(content)
        (line,) = faults(str(path))
        assert repr(str(path)) in line
        assert reason in line
    assert "No such file" in faults(str(tmp_path / "none.json"))[0]
    assert "is a folder" in faults(str(tmp_path))[0]


def test_a_file_nested_without_end_is_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"environment": ' + "[" * 100_000 + "]" * 100_000 + "}")
    (line,) = faults(str(path))
    assert repr(str(path)) in line
    assert len(line) < 1000


def test_deep_notes_in_an_informative_key_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"schema_version": 1, "environment": {"notes": ' + "[" * 300 + "]" * 300 + "}}")
    assert load(str(path)).warnings == ()


def test_text_of_any_characters_is_taken_or_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(r'{"schema_version": 1, "output": {"save_jsonl": "caf\udce9.jsonl"}}')
    assert load(str(path)).settings.output.save_jsonl == "caf\udce9.jsonl"


CATEGORIES: dict[str, Any] = {
    "schema_version": 1,
    "threshold": 9.0,
    "defects": {"min_area": 7},
    "per_category": {
        "bolt": {"threshold": 1.0, "threshold_provenance": {"of": "bolt"}},
        "nut": {"threshold": 2.0},
    },
}


class TestCategories:
    def test_the_named_one_is_taken_over_the_rest(self, tmp_path: Path) -> None:
        path = write_config(tmp_path, CATEGORIES)
        bolt, nut = load(path, category="bolt").settings, load(path, category="nut").settings
        assert (bolt.threshold, nut.threshold) == (1.0, 2.0)
        assert (bolt.threshold_provenance, nut.threshold_provenance) == ({"of": "bolt"}, None)
        assert bolt.defects.min_area == nut.defects.min_area == 7

    def test_several_without_a_choice_are_listed(self, tmp_path: Path) -> None:
        for recorded in ({}, {"category": "all"}):
            path = write_config(tmp_path, {**CATEGORIES, **recorded})
            (line,) = faults(path)
            assert path in line
            assert "--infer-category" in line
            assert "bolt, nut" in line

    def test_an_unknown_one_is_answered_with_the_known_ones(self, tmp_path: Path) -> None:
        (line,) = faults(write_config(tmp_path, CATEGORIES), "screw")
        assert "--infer-category" in line
        assert "'screw'" in line
        assert "bolt, nut" in line

    def test_a_single_one_needs_no_choice(self, tmp_path: Path) -> None:
        config = {**CATEGORIES, "per_category": {"bolt": {"threshold": 1.0}}}
        assert load(write_config(tmp_path, config)).settings.threshold == 1.0

    def test_the_recorded_one_is_the_default_choice(self, tmp_path: Path) -> None:
        path = write_config(tmp_path, {**CATEGORIES, "category": "nut"})
        assert load(path).settings.threshold == 2.0
        assert load(path, category="bolt").settings.threshold == 1.0

    def test_its_checkpoint_is_taken(self, tmp_path: Path) -> None:
        (tmp_path / "nut.npz").touch()
        config = {**CATEGORIES, "per_category": {"nut": {"checkpoint": {"path": "nut.npz"}}}}
        assert load(write_config(tmp_path, config)).settings.model.checkpoint_path == str(tmp_path / "nut.npz")

    @pytest.mark.parametrize("wrong", [["bolt"], "bolt", 3])
    def test_a_list_of_another_type_is_refused(self, tmp_path: Path, wrong: object) -> None:
        assert "per_category" in faults(write_config(tmp_path, {"schema_version": 1, "per_category": wrong}))[0]

    def test_a_faulty_entry_is_told(self, tmp_path: Path) -> None:
        config = {**CATEGORIES, "per_category": {"bolt": {"threshold": "high"}}}
        assert "threshold" in faults(write_config(tmp_path, config))[0]

    def test_a_choice_where_there_is_none_is_refused(self, tmp_path: Path) -> None:
        (line,) = faults(write_config(tmp_path, {"schema_version": 1, "threshold": 1.0}), "bolt")
        assert "--infer-category" in line
        assert "'bolt'" in line


class TestCheckpoint:
    @pytest.mark.parametrize("key", ["checkpoint", "model"])
    def test_it_is_looked_up_beside_then_in_the_parent_then_in_the_run(self, tmp_path: Path, key: str) -> None:
        parent, beside, run = tmp_path / "bundle", tmp_path / "bundle" / "configs", tmp_path / "run"
        named = {"checkpoint": {"path": "state/d.npz"}, "model": {"checkpoint_path": "state/d.npz"}}
        path = write_config(beside, {"schema_version": 1, key: named[key], "from_run": str(run)})
        for folder in (run, parent, beside):
            (folder / "state").mkdir(parents=True)
            (folder / "state" / "d.npz").touch()
            assert load(path).settings.model.checkpoint_path == str(folder / "state" / "d.npz")

    def test_the_working_folder_has_no_part_in_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "configs").mkdir()
        (tmp_path / "configs" / "d.npz").touch()
        write_config(tmp_path / "configs", {"schema_version": 1, "model": {"checkpoint_path": "d.npz"}})
        monkeypatch.chdir(tmp_path)
        found = load(os.path.join("configs", "infer_config.json")).settings.model.checkpoint_path
        assert found == str(tmp_path / "configs" / "d.npz")

    def test_an_absolute_path_or_url_is_taken_as_it_is(self, tmp_path: Path) -> None:
        for named in ("/models/d.npz", "s3://models/d.npz"):
            path = write_config(tmp_path, {"schema_version": 1, "checkpoint": {"path": named}})
            assert load(path).settings.model.checkpoint_path == named

    @pytest.mark.parametrize("key", ["checkpoint", "model"])
    def test_a_missing_one_is_told_with_all_places(self, tmp_path: Path, key: str) -> None:
        named = {"checkpoint": {"path": "d.npz"}, "model": {"checkpoint_path": "d.npz"}}
        config = {"schema_version": 1, key: named[key], "from_run": str(tmp_path / "run")}
        (line,) = faults(write_config(tmp_path / "a" / "b", config))
        assert {"checkpoint": "checkpoint.path", "model": "model.checkpoint_path"}[key] in line
        for folder in ("a/b", "a", "run"):
            assert str(tmp_path / folder / "d.npz") in line

    def test_two_that_differ_are_told(self, tmp_path: Path) -> None:
        config = {
            "schema_version": 1,
            "model": {"checkpoint_path": "/models/a.npz"},
            "checkpoint": {"path": "/old/b.npz"},
        }
        (told,) = read_infer_config(write_config(tmp_path, config)).warnings
        assert "checkpoint.path, '/old/b.npz', is read, model.checkpoint_path, '/models/a.npz', is not" in told
        moved = {**config, "checkpoint": {"path": "/old/a.npz"}}
        assert read_infer_config(write_config(tmp_path, moved)).warnings == ()
        of_category = {**config, "per_category": {"nut": {"checkpoint": {"path": "/old/nut.npz"}}}}
        assert read_infer_config(write_config(tmp_path, of_category)).warnings == ()

    @pytest.mark.parametrize("wrong", [3, "", [], {}])
    def test_a_path_of_another_type_is_refused(self, tmp_path: Path, wrong: object) -> None:
        (line,) = faults(write_config(tmp_path, {"schema_version": 1, "checkpoint": {"path": wrong}}))
        assert "checkpoint.path" in line

    def test_a_flag_is_relative_to_the_working_folder(self, tmp_path: Path) -> None:
        (tmp_path / "d.npz").touch()
        path = write_config(tmp_path, {"schema_version": 1, "checkpoint": {"path": "d.npz"}})
        assert load(path, "--checkpoint-path", "own.npz").settings.model.checkpoint_path == "own.npz"


KEYS = sorted({name for knob in knobs() for name in knob.path} | set(FULL_CONFIG) | {"path", "sha256", "x"})
TEXT = st.text(max_size=6) | st.sampled_from(["png", "threads", "all", "bolt", "\ud800", "a\x00b"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS) | TEXT, inner, max_size=4),
    max_leaves=12,
)


@st.composite
def nearly_valid(draw: st.DrawFn) -> Any:
    """The full config with one of its values, at any depth, replaced by arbitrary JSON."""
    config = json.loads(json.dumps(FULL_CONFIG))
    block = config
    key = draw(st.sampled_from(sorted(block)))
    while isinstance(block[key], dict) and block[key] and draw(st.booleans()):
        block = block[key]
        key = draw(st.sampled_from(sorted(block)))
    block[key] = draw(JSON)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("configs")


def check(path: str, category: str | None) -> None:
    flags = given_by_keyword({"defects": True, "defect_hysteresis": True, "save_maps": "m"})
    for explicit in ({}, flags):
        try:
            resolve(explicit, read_infer_config(path, category))
        except ConfigError as error:
            assert str(error)  # noqa: PT017 - a valid config may come up


@given(config=JSON, category=st.none() | TEXT)
def test_arbitrary_json_raises_config_errors_only(folder: Path, config: Any, category: str | None) -> None:
    check(write_config(folder, config), category)


@given(config=nearly_valid())
def test_one_arbitrary_value_raises_config_errors_only(folder: Path, config: Any) -> None:
    check(write_config(folder, config), None)


@given(content=st.binary(max_size=60))
def test_arbitrary_bytes_raise_config_errors_only(folder: Path, content: bytes) -> None:
    path = folder / "bytes.json"
    path.write_bytes(content)
    check(str(path), None)


def test_a_folder_in_place_of_a_config_is_told_with_the_file_in_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r" is a folder, not a file; there is no infer_config\.json in it either$"):
        read_infer_config(str(tmp_path))
    path = write_config(tmp_path, {"schema_version": 1})
    with pytest.raises(ConfigError) as caught:
        read_infer_config(str(tmp_path))
    assert str(caught.value) == f"infer config {str(tmp_path)!r} is a folder, not a file; give {path!r}"


@pytest.mark.parametrize("tiling", [None, {}, {"tile_size": None, "stride": 99}])
def test_a_config_may_say_that_there_are_no_tiles(tmp_path: Path, tiling: object) -> None:
    path = write_config(tmp_path, {"schema_version": 1, "adaptation": {"tiling": tiling}})
    assert load(path).settings.adaptation.tiling.tile_size is None


def test_tiles_with_gaps_are_refused(tmp_path: Path) -> None:
    path = write_config(tmp_path, {"schema_version": 1, "adaptation": {"tiling": {"tile_size": 64, "stride": 65}}})
    (line,) = faults(path)
    assert line.startswith(f"{path}: adaptation.tiling: the stride 65 is larger than the tile size 64")
