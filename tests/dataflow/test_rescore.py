"""Stored maps in, defects out: the same bytes as the run that stored them, and what to do with maps that are none."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

import pyimgano_dask
from pyimgano_dask.dataflow.inspection import RunSummary
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import hashes_below, infer_command
from tests.dataflow.test_same_bytes import DEFECTS, OTHERS, TRAINING, flags, where

Workplace = Callable[[str], Path]
Record = dict[str, Any]

N_INPUTS, FAILED = 22, [5, 11]
MASKS_AND_OVERLAYS = {"save_masks": "out/masks", "save_overlays": "out/overlays"}
OUTPUTS = {"save_jsonl": "out/records.jsonl", **MASKS_AND_OVERLAYS}


def infer_at(place: Path, **settings: Any) -> RunSummary:
    with chdir(place):
        return pyimgano_dask.infer(**settings)


def rescore_at(place: Path, **settings: Any) -> RunSummary:
    with chdir(place):
        return pyimgano_dask.rescore(**settings)


def made_of_maps(folder: Path) -> dict[str, str]:
    """Hashes of all that a run leaves but its maps."""
    return {name: digest for name, digest in hashes_below(folder).items() if not name.startswith("maps")}


def sound(summary: RunSummary) -> list[Record]:
    return [record for record in summary.records() if "error" not in record]


def regions(summary: RunSummary) -> list[list[Record]]:
    return [record["defects"]["regions"] for record in sound(summary)]


@pytest.fixture(scope="module")
def first(workplace: Workplace) -> Path:
    """Where a run with training images left its run folder, maps and all that is made of them; two inputs failed."""
    place = workplace("first")
    given = {**TRAINING, **DEFECTS, **OUTPUTS, "save_maps": "out/maps", "run_dir": "run", "scheduler": "sync"}
    done = infer_command(*flags(given), cwd=place)
    assert done.rc == 3, done.stderr
    return place


@pytest.fixture(scope="module")
def trained(first: Path) -> dict[str, Any]:
    """Settings that take detector and thresholds from that run."""
    return {"infer_config": str(first / "run/infer_config.json"), "input": "@list.txt", "scheduler": "sync"}


@pytest.fixture(scope="module")
def maps_of_sound_images(
    parts: InspectionSet, trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Where a run none of whose 20 inputs failed left its run folder and its maps."""
    place = tmp_path_factory.mktemp("sound")
    infer_at(place, **{**trained, "input": parts.test_dir}, save_maps="maps", run_dir="run", save_jsonl="records.jsonl")
    return place


class TestSameBytes:
    """Every re-scoring here works in another folder, and names its outputs as the run did: all bytes are the same."""

    def test_the_run_is_worth_comparing(self, first: Path) -> None:
        records = [json.loads(line) for line in (first / "out/records.jsonl").read_text().splitlines()]
        assert [record["index"] for record in records if "error" in record] == FAILED
        assert {record.get("label") for record in records} == {None, 0, 1}
        assert sum(len(record.get("defects", {}).get("regions", ())) for record in records) > 10
        assert len(made_of_maps(first / "out")) == 1 + 20 + 20

    @pytest.mark.parametrize("kind", ["sync", *OTHERS])
    def test_on_every_scheduler(
        self, kind: str, first: Path, workplace: Workplace, request: pytest.FixtureRequest
    ) -> None:
        place = workplace("again")
        summary = rescore_at(place, from_run=first / "run", batch_size=2, **OUTPUTS, **where(kind, request))
        assert (summary.n_inputs, summary.n_errors) == (N_INPUTS, len(FAILED))
        assert hashes_below(place / "out") == made_of_maps(first / "out")

    @pytest.mark.parametrize("batch_size", [1, 5, 0])
    def test_at_any_batch_size(self, batch_size: int, first: Path, tmp_path: Path) -> None:
        rescore_at(tmp_path, from_run=first / "run", batch_size=batch_size, **OUTPUTS)
        assert hashes_below(tmp_path / "out") == made_of_maps(first / "out")

    @pytest.mark.parametrize("maps", ["out/maps", "out/maps.zarr"])
    @pytest.mark.parametrize("mask_format", ["png", "npy", "npz", "zarr"])
    def test_of_maps_and_masks_in_every_format(
        self, maps: str, mask_format: str, trained: dict[str, Any], workplace: Workplace, tmp_path: Path
    ) -> None:
        place = workplace("format")
        masks = "out/masks.zarr" if mask_format == "zarr" else "out/masks"
        output = {"save_jsonl": "out/records.jsonl", "save_masks": masks, "batch_size": 3}
        infer_at(place, **trained, **output, mask_format=mask_format, save_maps=maps, run_dir="run")
        rescore_at(tmp_path, from_run=place / "run", **output)
        assert hashes_below(tmp_path / "out") == made_of_maps(place / "out")
        assert any(Path(masks).name in name for name in hashes_below(tmp_path / "out"))

    @pytest.mark.parametrize(
        "controls",
        [
            {"defects_image_space": False},
            {"explain_defects": "counts"},
            {"explain_defects": "full", "defects_preset": "industrial-fp40", "defect_min_score_max": 5.0},
            {"defect_map_smoothing": "gaussian", "defect_map_smoothing_sigma": 1.5, "defect_fill_holes": True},
            {"defect_hysteresis": True, "defect_hysteresis_low": 4.0, "defect_max_regions": 2},
            {"pixel_threshold": 5.0},
        ],
        ids=lambda controls: ", ".join(controls),
    )
    @pytest.mark.parametrize("maps", ["out/maps", "out/maps.zarr"])
    def test_with_the_controls_of_the_run(
        self, controls: dict[str, Any], maps: str, trained: dict[str, Any], workplace: Workplace, tmp_path: Path
    ) -> None:
        place = workplace("controls")
        infer_at(place, **trained, **controls, **OUTPUTS, save_maps=maps, run_dir="run")
        rescore_at(tmp_path, from_run=place / "run", **OUTPUTS)
        assert hashes_below(tmp_path / "out") == made_of_maps(place / "out")

    @pytest.mark.parametrize("scale", ["image", "run", "0,30", "-1.5,4e1"])
    @pytest.mark.parametrize("overlay_format", ["png", "jpg"])
    def test_of_overlays_on_every_scale(
        self, scale: str, overlay_format: str, trained: dict[str, Any], workplace: Workplace, tmp_path: Path
    ) -> None:
        place = workplace("scale")
        output = {**OUTPUTS, "overlay_scale": scale, "overlay_format": overlay_format, "explain_defects": "full"}
        infer_at(place, **trained, **output, save_maps="out/maps", run_dir="run")
        rescore_at(tmp_path, from_run=place / "run", **output)
        assert hashes_below(tmp_path / "out") == made_of_maps(place / "out")

    def test_whether_maps_are_kept_or_put_aside_for_the_scale_of_the_run(
        self, trained: dict[str, Any], workplace: Workplace
    ) -> None:
        kept, aside = workplace("kept"), workplace("aside")
        infer_at(kept, **trained, **OUTPUTS, overlay_scale="run", save_maps="out/maps", run_dir="run")
        infer_at(aside, **trained, **OUTPUTS, overlay_scale="run", batch_size=2)
        hashes = hashes_below(aside / "out")
        assert hashes.keys() == made_of_maps(kept / "out").keys()
        del hashes["records.jsonl"]
        assert hashes.items() < made_of_maps(kept / "out").items()

    def test_from_kept_shards_of_a_run_to_standard_output(
        self, first: Path, workplace: Workplace, tmp_path: Path
    ) -> None:
        place = workplace("stdout")
        source = ("--infer-config", first / "run/infer_config.json", "--input", "@list.txt", "--batch-size", 3)
        done = infer_command(*source, "--save-maps", "maps", "--run-dir", "run", "--keep-parts", cwd=place)
        assert done.rc == 3, done.stderr
        rescore_at(tmp_path, from_run=place / "run", save_jsonl="records.jsonl")
        assert (tmp_path / "records.jsonl").read_text() == done.stdout

    def test_from_a_run_folder_that_was_moved(self, first: Path, tmp_path: Path) -> None:
        shutil.copytree(first / "run", tmp_path / "moved")
        rescore_at(tmp_path, from_run="moved", **OUTPUTS)
        assert hashes_below(tmp_path / "out") == made_of_maps(first / "out")

    def test_of_a_re_scoring_of_a_re_scoring(self, first: Path, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "b").mkdir()
        rescore_at(tmp_path / "a", from_run=first / "run", run_dir="run", **OUTPUTS)
        rescore_at(tmp_path / "b", from_run="../a/run", **OUTPUTS)
        assert hashes_below(tmp_path / "b/out") == made_of_maps(first / "out")

    def test_only_the_place_of_the_mask_differs_where_masks_go_elsewhere(self, first: Path, tmp_path: Path) -> None:
        summary = rescore_at(tmp_path, from_run=first / "run", save_masks="other")
        before = [json.loads(line) for line in (first / "out/records.jsonl").read_text().splitlines()]
        for ours, theirs in zip(summary.records(), before, strict=True):
            if "defects" in theirs:
                path = theirs["defects"]["mask"].pop("path")
                assert ours["defects"]["mask"].pop("path") == path.replace("out/masks", "other")
            assert ours == theirs
        assert hashes_below(tmp_path / "other") == hashes_below(first / "out/masks")

    def test_images_may_be_gone_where_nothing_is_drawn_on_them(
        self, parts: InspectionSet, trained: dict[str, Any], tmp_path: Path
    ) -> None:
        shutil.copytree(parts.test_dir, tmp_path / "images")
        given = {"input": "images", "defects_image_space": False, "save_maps": "maps", "run_dir": "run"}
        infer_at(tmp_path, **{**trained, **given}, save_jsonl="a.jsonl")
        shutil.rmtree(tmp_path / "images")
        rescore_at(tmp_path, from_run="run", save_jsonl="b.jsonl")
        assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
        drawn = rescore_at(tmp_path, from_run="run", save_overlays="overlays")
        assert {record["error"]["stage"] for record in drawn.records()} == {"read"}


class TestMapsAlone:
    @pytest.mark.parametrize("spec", ["maps", "maps/*.npy", "@maps.txt"])
    @pytest.mark.parametrize("with_images", [False, True], ids=["maps alone", "with images"])
    def test_files_give_the_defects_of_the_run(
        self,
        spec: str,
        with_images: bool,
        maps_of_sound_images: Path,
        parts: InspectionSet,
        trained: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        (tmp_path / "maps").symlink_to(maps_of_sound_images / "maps")
        names = sorted(path.name for path in (tmp_path / "maps").iterdir())
        (tmp_path / "maps.txt").write_text("".join(f"maps/{name}\n" for name in names))
        images = {"input": parts.test_dir} if with_images else {"defects_image_space": False}
        source = {"infer_config": trained["infer_config"], **images}
        expected = rescore_at(
            tmp_path,
            from_run=maps_of_sound_images / "run",
            save_masks="a",
            defects_image_space=with_images,
            pixel_threshold=5.0,
        )
        summary = rescore_at(tmp_path, maps=spec, **source, save_masks="b", pixel_threshold=5.0)
        assert summary.exit_code == 0
        for ours, theirs, name in zip(summary.records(), expected.records(), names, strict=True):
            assert "score" not in ours
            assert "label" not in ours
            assert ours["input"] == (theirs["input"] if with_images else f"maps/{name}")
            assert ours["anomaly_map"] == {**theirs["anomaly_map"], "path": f"maps/{name}"}
            assert Path(ours["defects"]["mask"].pop("path")).name == Path(theirs["defects"]["mask"].pop("path")).name
            assert ours["defects"] == theirs["defects"]
        assert hashes_below(tmp_path / "a") == hashes_below(tmp_path / "b")

    def test_a_store_gives_the_defects_of_the_run_and_an_error_where_an_input_had_failed(
        self, trained: dict[str, Any], workplace: Workplace
    ) -> None:
        place = workplace("store")
        infer_at(place, **trained, save_maps="maps.zarr", save_jsonl="records.jsonl")
        expected = [json.loads(line) for line in (place / "records.jsonl").read_text().splitlines()]
        summary = rescore_at(place, maps="maps.zarr", infer_config=trained["infer_config"], defects_image_space=False)
        assert summary.exit_code == 3
        for ours, theirs in zip(summary.records(), expected, strict=True):
            if "error" in theirs:
                assert (ours["error"]["stage"], ours["error"]["type"]) == ("read", "MissingMapError")
                assert "--from-run" in ours["error"]["message"]
                continue
            assert ours["input"] == f"maps.zarr#{ours['index']}"
            assert ours["anomaly_map"] == theirs["anomaly_map"]
            for region in theirs["defects"]["regions"]:
                region.pop("bbox_xyxy_image", None)
            assert ours["defects"] == theirs["defects"]

    def test_overlays_with_images_are_those_of_the_run(
        self, maps_of_sound_images: Path, parts: InspectionSet, tmp_path: Path
    ) -> None:
        place = maps_of_sound_images
        rescore_at(tmp_path, from_run=place / "run", save_overlays="a", overlay_scale="run", pixel_threshold=5.0)
        config = place / "run/infer_config.json"
        given = {"infer_config": config, "pixel_threshold": 5.0, "input": parts.test_dir}
        rescore_at(tmp_path, maps=place / "maps", **given, save_overlays="b", overlay_scale="run")
        assert hashes_below(tmp_path / "a") == hashes_below(tmp_path / "b")

    def test_overlays_without_images_are_drawn_on_grey_in_the_maps_size(self, tmp_path: Path) -> None:
        save_maps(tmp_path, flat=np.zeros((40, 50), np.float32), bright=bright_square())
        rescore_at(tmp_path, maps="maps", pixel_threshold=1, save_overlays="overlays", overlay_scale="0,1")
        overlays = {path.name: rgb(path) for path in (tmp_path / "overlays").iterdir()}
        assert overlays.keys() == {"000000_bright.png", "000001_flat.png"}
        assert overlays["000001_flat.png"].shape == (40, 50, 3)
        assert len(np.unique(overlays["000001_flat.png"].reshape(-1, 3), axis=0)) == 1
        assert overlays["000000_bright.png"].shape == (48, 64, 3)
        assert len(np.unique(overlays["000000_bright.png"].reshape(-1, 3), axis=0)) > 1

    @pytest.mark.parametrize(
        ("name", "artifact"),
        [
            ("000000_plate.npy", "000000_plate.png"),
            ("000041_plate.npy", "000000_plate.png"),
            ("1000000_plate.npy", "000000_plate.png"),
            ("000000_000007_plate.npy", "000000_000007_plate.png"),
            ("plate.npy", "000000_plate.png"),
            ("007_plate.npy", "000000_007_plate.png"),
            ("plate_000007_a.npy", "000000_plate_000007_a.png"),
        ],
    )
    def test_an_index_in_the_name_of_a_map_is_not_doubled(self, name: str, artifact: str, tmp_path: Path) -> None:
        save_maps(tmp_path, **{name.removesuffix(".npy"): bright_square()})
        rescore_at(tmp_path, maps="maps", pixel_threshold=1, save_masks="masks")
        assert [path.name for path in (tmp_path / "masks").iterdir()] == [artifact]

    def test_artifacts_bear_the_names_of_images_where_those_are_known(
        self, parts: InspectionSet, tmp_path: Path
    ) -> None:
        save_maps(tmp_path, **{"000000_a": bright_square()})
        shutil.copy(parts.test_good[0], tmp_path / "000123_part.png")
        given = {"pixel_threshold": 1, "save_masks": "masks", "input": "000123_part.png"}
        rescore_at(tmp_path, maps="maps", **given)
        assert [path.name for path in (tmp_path / "masks").iterdir()] == ["000000_000123_part.png"]

    def test_a_threshold_is_inclusive_and_of_the_stored_values(self, tmp_path: Path) -> None:
        save_maps(tmp_path, a=bright_square(3.25))
        for threshold, area in ((3.25, 100), (3.2500002, 0)):
            (found,) = regions(rescore_at(tmp_path, maps="maps", pixel_threshold=threshold))
            assert sum(region["area"] for region in found) == area


def rgb(path: Path) -> NDArray[Any]:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def bright_square(value: float = 2.0) -> NDArray[np.float32]:
    """A map (48, 64) that is zero but for 10x10 pixels."""
    anomaly_map = np.zeros((48, 64), np.float32)
    anomaly_map[20:30, 30:40] = value
    return anomaly_map


def save_maps(place: Path, **maps: NDArray[Any] | bytes) -> None:
    (place / "maps").mkdir(exist_ok=True)
    for name, content in maps.items():
        (place / "maps" / f"{name}.npy").write_bytes(content if isinstance(content, bytes) else npy_bytes(content))


def npy_bytes(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def claiming(shape: tuple[int, ...]) -> bytes:
    """An .npy file whose header promises this shape, with 8 bytes of data."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + bytes(8)


def not_finite(value: float) -> NDArray[np.float32]:
    anomaly_map = bright_square()
    anomaly_map[0, 0] = value
    return anomaly_map


WHOLE = npy_bytes(bright_square())
NO_MAPS: dict[str, tuple[NDArray[Any] | bytes, str]] = {
    "garbage": (b"\x89PNG and so on", "read"),
    "empty file": (b"", "read"),
    "header only": (WHOLE[:128], "read"),
    "header cut": (WHOLE[:50], "read"),
    "truncated": (WHOLE[:-1], "read"),
    "trailing bytes": (WHOLE + b"\0", "read"),
    "pickled objects": (npy_bytes(np.array([{}, []], dtype=object)), "read"),
    "enormous": (claiming((2**31, 2**31)), "read"),
    "enormous product": (claiming((2**63, 2**63)), "read"),
    "negative": (claiming((-1, 4)), "read"),
    "more than there is": (claiming((1000, 1000)), "read"),
    "float64": (bright_square().astype(np.float64), "extract"),
    "big-endian": (bright_square().astype(">f4"), "extract"),
    "uint8": (bright_square().astype(np.uint8), "extract"),
    "structured": (np.zeros((4, 4), [("a", "<f4")]), "extract"),
    "text": (np.array([["a", "b"]]), "extract"),
    "3-D": (np.full((3, 48, 64), 99, np.float32), "extract"),
    "1-D": (np.ones(7, np.float32), "extract"),
    "0-d": (np.array(1, np.float32), "extract"),
    "no rows": (np.zeros((0, 5), np.float32), "extract"),
    "no columns": (np.zeros((5, 0), np.float32), "extract"),
    "nan": (not_finite(np.nan), "extract"),
    "inf": (not_finite(np.inf), "extract"),
    "-inf": (not_finite(-np.inf), "extract"),
}


class TestMapsThatAreNone:
    @pytest.mark.parametrize("kind", NO_MAPS)
    def test_a_bad_file_is_an_error_record_and_its_neighbours_are_unharmed(self, kind: str, tmp_path: Path) -> None:
        content, stage = NO_MAPS[kind]
        output = {"pixel_threshold": 1, **MASKS_AND_OVERLAYS, "overlay_scale": "run"}
        (tmp_path / "alone").mkdir()
        save_maps(tmp_path / "alone", a=bright_square(), c=bright_square(5))
        save_maps(tmp_path, a=bright_square(), b=content, c=bright_square(5))
        rescore_at(tmp_path / "alone", maps="maps", **output)
        summary = rescore_at(tmp_path, maps="maps", **output)
        assert (summary.exit_code, summary.n_errors) == (3, 1)
        before, bad, after = summary.records()
        assert (bad["index"], bad["input"], set(bad)) == (1, "maps/b.npy", {"index", "input", "error"})
        assert (bad["error"]["stage"], bool(bad["error"]["type"])) == (stage, True)
        assert len(bad["error"]["message"]) > 15
        assert [len(record["defects"]["regions"]) for record in (before, after)] == [1, 1]
        ours, theirs = (sorted(hashes_below(folder / "out").values()) for folder in (tmp_path, tmp_path / "alone"))
        assert ours == theirs

    def test_a_fortran_array_is_a_map_like_any_other(self, tmp_path: Path) -> None:
        save_maps(tmp_path, a=bright_square(), b=np.asfortranarray(bright_square()))
        ours, theirs = regions(rescore_at(tmp_path, maps="maps", pixel_threshold=1))
        assert ours == theirs

    def test_a_map_beyond_the_limit_of_pixels_is_refused(self, tmp_path: Path) -> None:
        save_maps(tmp_path, a=bright_square(), b=np.ones((4, 4), np.float32))
        summary = rescore_at(tmp_path, maps="maps", pixel_threshold=1, max_image_pixels=16)
        refused, kept = summary.records()
        assert (refused["error"]["stage"], refused["error"]["type"]) == ("read", "MapTooLargeError")
        assert "--max-image-pixels 16" in refused["error"]["message"]
        assert len(kept["defects"]["regions"]) == 1

    def test_a_map_of_a_list_that_is_not_there_is_an_error_record(self, tmp_path: Path) -> None:
        save_maps(tmp_path, a=bright_square())
        (tmp_path / "list.txt").write_text("maps/none.npy\nmaps/a.npy\n")
        missing, kept = rescore_at(tmp_path, maps="@list.txt", pixel_threshold=1).records()
        assert (missing["error"]["stage"], missing["error"]["type"]) == ("read", "FileNotFoundError")
        assert len(kept["defects"]["regions"]) == 1

    def test_a_map_of_the_run_that_is_gone_or_another_is_an_error_record(self, first: Path, tmp_path: Path) -> None:
        place = tmp_path / "first"
        shutil.copytree(first, place, symlinks=True)
        manifest = json.loads((place / "run/run.json").read_text())
        (place / "run/run.json").write_text(json.dumps({**manifest, "base_dir": str(place)}))
        gone, cut, *others = sorted((place / "out/maps").iterdir())
        gone.unlink()
        cut.write_bytes(cut.read_bytes()[:-4])
        summary = rescore_at(place, from_run="run", save_masks="masks")
        assert [record["index"] for record in summary.records() if "error" in record] == [0, 1, *FAILED]
        assert len(list((place / "masks").iterdir())) == len(others)
        assert hashes_below(place / "masks").items() < hashes_below(first / "out/masks").items()


def a_store(place: Path, n_rows: int = 3, dtype: str = "float32", shape: tuple[int, ...] = (48, 64)) -> zarr.Group:
    """`maps.zarr` of an array `48x64` whose rows all have a bright square in them."""
    group = zarr.open_group(str(place / "maps.zarr"), mode="w", zarr_format=3)
    array = group.create_array("48x64", shape=(n_rows, *shape), chunks=(1, *shape), dtype=dtype)
    array[:] = np.broadcast_to(bright_square(), (n_rows, 48, 64)) if shape == (48, 64) else 1
    return group


class TestStoresThatAreNone:
    def test_a_row_in_two_arrays_or_in_none_is_an_error_record(self, tmp_path: Path) -> None:
        group = a_store(tmp_path)
        group["48x64"][1] = 0  # type: ignore[index]
        other = group.create_array("2x2", shape=(3, 2, 2), chunks=(1, 2, 2), dtype="float32")
        other[2] = 1
        kept, none, two = rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1).records()
        assert len(kept["defects"]["regions"]) == 1
        assert [record["error"]["stage"] for record in (none, two)] == ["read", "read"]
        assert "zero in each" in none["error"]["message"]
        assert "2 arrays" in two["error"]["message"]

    def test_a_damaged_chunk_is_an_error_record(self, tmp_path: Path) -> None:
        from pyimgano_dask.storage.zarr_store import create_store, write_rows

        store = tmp_path / "maps.zarr"
        create_store(str(store))
        rows = {index: np.random.default_rng(index).random((48, 64), np.float32) for index in range(3)}
        for index, row in rows.items():
            write_rows(str(store), {index: row}, start=index, n_inputs=3, batch_size=1, dtype="float32")
        shard = store / "48x64/c/1/0/0"
        damaged = bytearray(shard.read_bytes())
        damaged[len(damaged) // 2] ^= 255
        shard.write_bytes(damaged)
        before, bad, after = rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=0.5).records()
        assert bad["error"]["stage"] == "read"
        assert all(record["defects"]["regions"] for record in (before, after))

    def test_foreign_arrays_are_left_alone(self, tmp_path: Path) -> None:
        group = a_store(tmp_path)
        group.create_array("notes", shape=(9,), dtype="int8")
        group.create_group("more").create_array("48x64", shape=(5, 48, 64), dtype="float32")
        summary = rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1)
        assert [len(found) for found in regions(summary)] == [1, 1, 1]

    @pytest.mark.parametrize("dtype", ["float64", "uint8"])
    def test_values_of_another_type_are_error_records(self, dtype: str, tmp_path: Path) -> None:
        a_store(tmp_path, dtype=dtype)
        records = list(rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1).records())
        assert [record["error"]["stage"] for record in records] == ["extract"] * 3

    @pytest.mark.parametrize("shape", [(), (5,), (2, 2, 2)], ids=str)
    def test_rows_that_are_no_maps_are_error_records(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        a_store(tmp_path, shape=shape)
        records = list(rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1).records())
        assert [record["error"]["stage"] for record in records] == ["extract"] * 3

    @pytest.mark.parametrize(
        "kind", ["missing", "a file", "an empty folder", "no arrays", "an array", "damaged", "0-d"]
    )
    def test_what_is_no_store_of_maps_is_told_before_anything_is_written(self, kind: str, tmp_path: Path) -> None:
        store = tmp_path / "maps.zarr"
        match kind:
            case "a file":
                store.write_text("a file")
            case "an empty folder":
                store.mkdir()
            case "no arrays":
                zarr.open_group(str(store), mode="w", zarr_format=3)
            case "an array":
                zarr.create_array(str(store), shape=(3, 4), dtype="float32")
            case "damaged":
                a_store(tmp_path)
                (store / "zarr.json").write_text('{"zarr_format": 3,')
            case "0-d":
                zarr.open_group(str(store), mode="w", zarr_format=3).create_array("4x4", shape=(), dtype="float32")
        before = hashes_below(tmp_path)
        with pytest.raises(pyimgano_dask.ConfigError, match=r"--maps: .*maps\.zarr"):
            rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1, save_masks="masks", save_jsonl="records.jsonl")
        assert hashes_below(tmp_path) == before

    def test_arrays_of_different_length_are_told(self, tmp_path: Path) -> None:
        a_store(tmp_path).create_array("2x2", shape=(7, 2, 2), dtype="float32")
        with pytest.raises(pyimgano_dask.ConfigError, match="3, 7 rows"):
            rescore_at(tmp_path, maps="maps.zarr", pixel_threshold=1)


class TestSettings:
    def test_labels_and_errors_are_carried_through(self, first: Path, tmp_path: Path) -> None:
        before = [json.loads(line) for line in (first / "out/records.jsonl").read_text().splitlines()]
        summary = rescore_at(tmp_path, from_run=first / "run", pixel_threshold=3)
        assert summary.exit_code == 3
        for ours, theirs in zip(summary.records(), before, strict=True):
            for key in ("index", "input", "score", "label", "error", "anomaly_map"):
                assert ours.get(key) == theirs.get(key)
        assert summary.n_anomalous == sum(record.get("label", 0) for record in before)

    def test_a_score_threshold_of_a_config_gives_other_labels(self, first: Path, tmp_path: Path) -> None:
        scores = sorted(record["score"] for record in sound(rescore_at(tmp_path, from_run=first / "run")))
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"schema_version": 1, "threshold": scores[-3]}))
        summary = rescore_at(tmp_path, from_run=first / "run", infer_config=config)
        assert summary.n_anomalous == 3
        for record in sound(summary):
            assert record["label"] == int(record["score"] >= scores[-3])

    def test_new_controls_change_regions_and_masks(self, first: Path, tmp_path: Path) -> None:
        same = rescore_at(tmp_path, from_run=first / "run", save_masks="same")
        larger = rescore_at(tmp_path, from_run=first / "run", save_masks="larger", defect_min_area=40)
        assert min(region["area"] for found in regions(same) for region in found) < 40
        assert min(region["area"] for found in regions(larger) for region in found) >= 40
        assert hashes_below(tmp_path / "same") != hashes_below(tmp_path / "larger")

    @pytest.mark.parametrize("provenance", ["the run", "infer_config", "explicit", "explicit over the config"])
    def test_the_pixel_threshold_says_where_it_came_from(self, provenance: str, first: Path, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"defects": {"pixel_threshold": 7.5}, "pixel_threshold_provenance": {"a": 1}}))
        run = json.loads((first / "run/run.json").read_text())["settings"]
        given: dict[str, Any] = {}
        value, said = run["defects"]["pixel_threshold"], run["pixel_threshold_provenance"]
        if provenance.endswith("config"):
            given["infer_config"], value = config, 7.5
        if provenance.startswith("explicit"):
            given["pixel_threshold"] = value = run["defects"]["pixel_threshold"]
        records = sound(rescore_at(tmp_path, from_run=first / "run", **given))
        assert {record["defects"]["pixel_threshold"] for record in records} == {value}
        found = records[0]["defects"]["pixel_threshold_provenance"]
        if provenance == "the run":
            assert found == said
            assert found["source"] == "train_dir"
        else:
            assert (found["method"], found["source"]) == ("fixed", provenance.split()[0])

    def test_maps_of_a_run_without_defects_need_a_threshold(
        self, trained: dict[str, Any], parts: InspectionSet, tmp_path: Path
    ) -> None:
        given = {**trained, "input": parts.test_dir, "defects": False, "defects_image_space": False}
        infer_at(tmp_path, **given, save_maps="maps", run_dir="run", save_jsonl="records.jsonl")
        with pytest.raises(pyimgano_dask.ConfigError, match="--pixel-threshold"):
            rescore_at(tmp_path, from_run="run")
        summary = rescore_at(tmp_path, from_run="run", pixel_threshold=6)
        assert summary.exit_code == 0
        assert summary.n_regions > 0

    def test_a_preset_in_a_config_wins_over_the_run(self, first: Path, tmp_path: Path) -> None:
        config = tmp_path / "config.json"
        config.write_text(json.dumps({"schema_version": 1, "defects": {"preset": "industrial-fp40"}}))
        by_config = rescore_at(tmp_path, from_run=first / "run", infer_config=config)
        by_flag = rescore_at(tmp_path, from_run=first / "run", defects_preset="industrial-fp40")
        assert regions(by_config) == regions(by_flag)
        assert regions(by_config) != regions(rescore_at(tmp_path, from_run=first / "run"))
