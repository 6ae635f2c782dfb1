"""Runs whose inputs and artifacts lie on a real object store: the bytes of the disk, and words when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zarr

import pyimgano_dask
from pyimgano_dask import ConfigError, RunError
from pyimgano_dask.dataflow.inspection import RunSummary
from tests.cluster import start_cluster
from tests.conftest import Ended, hashes_below, infer_command, rescore_command
from tests.object_store import Bucket, CutLine, closed_port, cut_line, reached_by

MODEL = "vision_pixel_mean_absdiff_map"
DEFECTS = ("--defects", "--batch-size", "4", "--include-maps")
COULD_NOT_CONNECT = "Could not connect to the endpoint URL"
Make = Callable[[str], Path]
Cut = Callable[[str, str, int], CutLine]


@pytest.fixture(scope="module")
def place(workplace: Make) -> Path:
    """A folder with the inspection set and the run folder of a fitted detector."""
    at = workplace("object-stores")
    train = ("--model", MODEL, "--train-dir", "set/train/good", "--run-dir", "fit", "--save-jsonl", "fit.jsonl")
    ended = infer_command(*train, *DEFECTS, "--input", "set/test", cwd=at)
    assert ended.rc == 0, ended.stderr
    return at


@pytest.fixture
def at(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, in which this process works."""
    monkeypatch.chdir(place)
    return place


def fitted(at: Path, *flags: object, fresh: bool = False) -> Ended:
    """Inspect with the fitted detector; records go to standard output."""
    return infer_command(
        "--infer-config", "fit/infer_config.json", *DEFECTS, "--no-progress", *flags, cwd=at, fresh=fresh
    )


def inspect(**flags: Any) -> RunSummary:
    """The same in this process."""
    source = {} if "model" in flags or "infer_config" in flags else {"infer_config": "fit/infer_config.json"}
    common: dict[str, Any] = {"defects": True, "batch_size": 4, "scheduler": "sync", **source}
    return pyimgano_dask.infer(**{**common, **flags})


def records(ended: Ended) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ended.stdout.splitlines()]


def without(items: Iterable[Mapping[str, Any]], *roots: str) -> str:
    """Records as text in which the places of files are left out."""
    text = "\n".join(json.dumps(item, sort_keys=True) for item in items)
    for root in roots:
        text = text.replace(root, "")
    return text


@pytest.fixture(scope="module")
def on_disk(place: Path) -> Ended:
    """The run that all others must equal."""
    artifacts = ("--save-maps", "maps", "--save-masks", "masks", "--save-overlays", "overlays")
    return fitted(place, "--input", "set/test", *artifacts, fresh=True)


@pytest.fixture
def inputs(bucket: Bucket, place: Path) -> str:
    """The images to inspect, as a folder of the store."""
    return bucket.put_folder((place / "set" / "test").resolve(), "set/test")


@pytest.fixture
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the store tries each request twice instead of five times."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")


class TestInputs:
    @pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/*/*.png", "@list"])
    def test_however_they_are_named(self, bucket: Bucket, at: Path, inputs: str, spelling: str) -> None:
        here = list(inspect(input="set/test").records())
        listed = "".join(f"{bucket.url(record['input'])}\n" for record in here)
        spelling = spelling.replace("@list", "@" + bucket.put("list.txt", listed.encode()))
        there = inspect(input=spelling.format(inputs)).records()
        assert without(there, bucket.url("")) == without(here)

    def test_training_images(self, bucket: Bucket, at: Path) -> None:
        folder = bucket.put_folder((at / "set" / "train" / "good").resolve(), "good")
        runs = [inspect(model=MODEL, train_dir=good, input="set/test") for good in (folder, "set/train/good")]
        assert without(runs[0].records()) == without(runs[1].records())
        assert runs[0].thresholds == runs[1].thresholds

    def test_config_and_checkpoint(self, bucket: Bucket, at: Path) -> None:
        config = bucket.put_folder(at / "fit", "fit") + "/infer_config.json"
        here = without(inspect(input="set/test").records())
        assert without(inspect(infer_config=config, input="set/test").records()) == here
        checkpoint = bucket.url("fit", "detector.npz")
        runs = [
            inspect(model=MODEL, checkpoint_path=where, pixel_threshold=20, input="set/test")
            for where in (checkpoint, "fit/detector.npz")
        ]
        assert without(runs[0].records()) == without(runs[1].records())

    def test_references(self, bucket: Bucket, at: Path) -> None:
        folder = bucket.put_folder((at / "set" / "train" / "good").resolve(), "golden")
        runs = [
            inspect(model="vision_reference_diff_map", reference_dir=where, pixel_threshold=0.5, input="set/test/good")
            for where in (folder, "set/train/good")
        ]
        assert runs[0].n_errors == 0
        assert without(runs[0].records()) == without(runs[1].records())


class TestArtifacts:
    def test_files_are_those_of_the_disk(self, bucket: Bucket, place: Path, inputs: str, on_disk: Ended) -> None:
        flags = [flag for name in ("maps", "masks", "overlays") for flag in (f"--save-{name}", bucket.url(name))]
        ended = fitted(place, "--input", inputs, *flags, "--scheduler", "processes", "--workers", 2)
        assert ended.rc == 0, ended.stderr
        assert without(records(ended), bucket.url("")) == without(records(on_disk))
        for name in ("maps", "masks", "overlays"):
            assert bucket.hashes(name) == hashes_below(place / name)

    def test_zarr_stores_are_those_of_the_disk(self, bucket: Bucket, place: Path, inputs: str) -> None:
        def run(root: str, inputs: str, *flags: object, fresh: bool = False) -> Ended:
            stores = ("--save-maps", f"{root}maps.zarr", "--save-masks", f"{root}masks.zarr", "--mask-format", "zarr")
            return fitted(place, "--input", inputs, *stores, *flags, fresh=fresh)

        there = run(bucket.url(""), inputs, "--scheduler", "threads", fresh=True)
        here = run("", "set/test")
        assert (there.rc, here.rc) == (0, 0), there.stderr
        assert "nclosed" not in there.stderr
        assert without(records(there), bucket.url("")) == without(records(here))
        for name in ("maps.zarr", "masks.zarr"):
            assert bucket.hashes(name) == hashes_below(place / name)
        record = records(there)[0]["anomaly_map"]
        row = zarr.open_array(record["path"], path=record["array"], mode="r")[record["row"]]
        assert row.shape == tuple(record["shape"])

    @pytest.mark.cluster
    def test_workers_of_a_cluster_write_them(
        self, bucket: Bucket, place: Path, inputs: str, on_disk: Ended, tmp_path: Path
    ) -> None:
        with start_cluster(tmp_path, n_workers=2) as cluster:
            flags = ("--save-maps", bucket.url("maps"), "--scheduler", cluster.address)
            ended = fitted(place, "--input", inputs, *flags)
        assert ended.rc == 0, ended.stderr
        assert bucket.hashes("maps") == hashes_below(place / "maps")


@pytest.mark.cluster
def test_workers_without_the_disk_of_the_client_leave_the_same_bytes(
    bucket: Bucket, place: Path, inputs: str, tmp_path: Path
) -> None:
    """The detector travels with the job, everything else goes through the store."""
    here = (*("--save-masks", "apart/masks", "--save-overlays", "apart/overlays", "--save-maps", "apart/maps.zarr"),)
    assert fitted(place, "--input", inputs, *here, "--save-jsonl", "apart/records.jsonl").rc == 0
    there = (
        *("--save-masks", bucket.url("apart/masks"), "--save-overlays", bucket.url("apart/overlays")),
        *("--save-maps", bucket.url("apart/maps.zarr"), "--save-jsonl", bucket.url("apart/records.jsonl")),
        *("--run-dir", bucket.url("apart-run")),
    )
    with start_cluster(tmp_path / "cluster", 2, hidden=place.resolve()) as cluster:
        ended = fitted(place, "--input", inputs, *there, "--scheduler", cluster.address)
    assert ended.rc == 0, ended.stderr
    ours, theirs = bucket.hashes("apart"), hashes_below(place / "apart")
    assert ours.keys() == theirs.keys()
    assert {path for path in ours if ours[path] != theirs[path]} == {"records.jsonl"}
    lines = bucket.get("apart/records.jsonl").decode().replace(bucket.url("apart"), "apart")
    assert lines == (place / "apart/records.jsonl").read_text()


class TestRecordsAndRunFolders:
    def test_they_are_those_of_the_disk(self, bucket: Bucket, at: Path) -> None:
        def run(root: str) -> None:
            files = {"save_jsonl": f"{root}records/all.jsonl", "profile_json": f"{root}p.json"}
            folders = {"save_maps": f"{root}run/maps", "run_dir": f"{root}run"}
            done = inspect(input="set/test", keep_parts=True, **files, **folders)
            assert len(list(done.records())) == 20

        run("all/")
        run(bucket.url("all/"))
        there = {name: bucket.get(f"all/{name}") for name in bucket.names("all/")}
        here = {str(path.relative_to(at / "all")): path for path in (at / "all").rglob("*") if path.is_file()}
        assert set(there) == set(here)
        own = {"p.json", "run/run.json", "run/plan.json"}
        for name in set(there) - own:
            found = there[name].replace(bucket.url("all/").encode(), b"")
            assert found == here[name].read_bytes().replace(b"all/", b""), name
        rescored = [pyimgano_dask.rescore(from_run=run_dir) for run_dir in (bucket.url("all/run"), "all/run")]
        assert without(rescored[0].records(), bucket.url("all/")) == without(rescored[1].records(), "all/")

    def test_a_run_without_a_folder_leaves_nothing_else(self, bucket: Bucket, at: Path) -> None:
        inspect(input="set/test", save_jsonl=bucket.url("all.jsonl"), scheduler="threads")
        assert bucket.names() == ["all.jsonl"]
        assert bucket.get("all.jsonl").count(b"\n") == 20

    def test_a_run_that_ends_in_the_middle_is_resumed(self, bucket: Bucket, at: Path, few_tries: None) -> None:
        flags: dict[str, Any] = {"input": "set/test", "save_maps": bucket.url("maps"), "run_dir": bucket.url("run")}
        with (
            cut_line(bucket.store, "PUT", r"/run/parts/part-00000003", -1) as line,
            reached_by(line.env),
            pytest.raises(RunError, match=r"results cannot be written.*\n.*--resume"),
        ):
            inspect(**flags)
        assert bucket.names("run/parts/") == [f"part-0000000{index}.jsonl" for index in range(3)]
        with pytest.raises(ConfigError, match="unfinished run, 3 chunks"):
            inspect(**flags)
        resumed = inspect(resume=True, **flags)
        assert resumed.n_resumed == 12
        at_once = inspect(input="set/test", save_maps="maps")
        assert without(resumed.records(), bucket.url("")) == without(at_once.records())
        assert "parts" not in "".join(bucket.names("run/"))


class TestRescoring:
    def test_maps_at_a_url(self, bucket: Bucket, at: Path, on_disk: Ended) -> None:
        inspect(input="set/test", save_maps="stored.zarr")
        folder = bucket.put_folder(at / "maps", "maps")
        store = bucket.put_folder(at / "stored.zarr", "stored.zarr")
        for there, here in ((folder, "maps"), (f"{folder}/*.npy", "maps/*.npy"), (store, "stored.zarr")):
            runs = [pyimgano_dask.rescore(maps=maps, pixel_threshold=0.1, scheduler="sync") for maps in (there, here)]
            assert runs[0].n_regions > 0
            assert without(runs[0].records(), bucket.url("")) == without(runs[1].records())

    def test_a_run_folder_at_a_url(self, bucket: Bucket, place: Path) -> None:
        flags = ("--input", "set/test", "--save-maps", bucket.url("maps"), "--keep-parts", "--run-dir", "kept")
        ended = fitted(place, *flags)
        folder = bucket.put_folder(place / "kept", "kept")
        again = rescore_command("--no-progress", "--from-run", folder, cwd=place)
        assert (ended.rc, again.rc) == (0, 0), again.stderr
        assert again.stdout == ended.stdout

    def test_shards_that_are_gone(self, bucket: Bucket, at: Path) -> None:
        fitted(at, "--input", "set/test", "--save-maps", "maps-of-it", "--run-dir", "unkept")
        folder = bucket.put_folder(at / "unkept", "unkept")
        with pytest.raises(ConfigError, match="--keep-parts"):
            pyimgano_dask.rescore(from_run=folder)


class TestCutLines:
    @pytest.fixture
    def cut(self, bucket: Bucket, few_tries: None) -> Iterator[Cut]:
        """Lets `s3://` lead over a line that is cut."""
        with ExitStack() as stack:

            def cut(method: str, path: str, n: int) -> CutLine:
                line = stack.enter_context(cut_line(bucket.store, method, path, n))
                stack.enter_context(reached_by(line.env))
                return line

            yield cut

    def test_an_input_is_read_again(self, at: Path, inputs: str, on_disk: Ended, cut: Cut) -> None:
        line = cut("GET", r"/set/test/scratch/000\.png", 2)
        run = inspect(input=inputs, save_maps="over-the-line")
        assert (run.exit_code, line.cuts.done) == (0, 2)
        assert hashes_below(at / "over-the-line") == hashes_below(at / "maps")

    def test_an_artifact_is_written_again(self, bucket: Bucket, at: Path, on_disk: Ended, cut: Cut) -> None:
        line = cut("PUT", r"/maps/000003_", 3)
        run = inspect(input="set/test", save_maps=bucket.url("maps"))
        assert (run.exit_code, line.cuts.done) == (0, 3)
        assert bucket.hashes("maps") == hashes_below(at / "maps")

    @pytest.mark.parametrize(
        ("method", "path", "stage"), [("GET", r"/set/test/pit/001\.png", "read"), ("PUT", r"/maps/000005_", "write")]
    )
    def test_one_that_never_heals_costs_one_input(
        self, bucket: Bucket, at: Path, inputs: str, on_disk: Ended, cut: Cut, method: str, path: str, stage: str
    ) -> None:
        cut(method, path, -1)
        ended = fitted(at, "--input", inputs, "--save-maps", bucket.url("maps"))
        assert ended.rc == 3, ended.stderr
        failed = [record for record in records(ended) if "error" in record]
        assert [record["error"]["stage"] for record in failed] == [stage]
        assert len(failed[0]["error"]["message"]) > 40
        whole = [record["score"] for record in records(ended) if "error" not in record]
        assert whole == [record["score"] for record in records(on_disk) if record["index"] != failed[0]["index"]]

    def test_a_zarr_store_that_cannot_be_written_ends_the_run(self, bucket: Bucket, at: Path, cut: Cut) -> None:
        cut("PUT", r"/maps\.zarr/.*/c/", -1)
        ended = fitted(at, "--input", "set/test", "--save-maps", bucket.url("maps.zarr"))
        assert ended.rc == 1
        assert "results cannot be written" in ended.stderr
        assert "Traceback" not in ended.stderr


def refuses(words: str, **flags: Any) -> None:
    """Before any work."""
    with pytest.raises(ConfigError) as refusal:
        inspect(**flags)
    assert words in str(refusal.value)


class TestRefused:
    def test_by_the_command(self, bucket: Bucket, at: Path) -> None:
        ended = fitted(at, "--input", f"s3://{bucket.name}-gone/folder")
        assert (ended.rc, ended.stdout) == (2, "")
        assert "--input: input 's3://" in ended.stderr
        assert "no such file or folder" in ended.stderr
        assert "Traceback" not in ended.stderr

    @pytest.mark.parametrize("flag", ["save_maps", "save_masks", "save_overlays", "run_dir", "save_jsonl"])
    def test_a_missing_bucket(self, bucket: Bucket, at: Path, flag: str) -> None:
        gone = {flag: f"s3://{bucket.name}-gone/folder/it"}
        refuses("The specified bucket does not exist", input="set/test", **gone)

    def test_nothing_listens(self, bucket: Bucket, at: Path) -> None:
        with reached_by({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port()}", "AWS_MAX_ATTEMPTS": "2"}):
            refuses(COULD_NOT_CONNECT, input=bucket.url("set"))
            refuses(COULD_NOT_CONNECT, infer_config=bucket.url("c.json"), input="set/test")
            refuses(COULD_NOT_CONNECT, model=MODEL, checkpoint_path=bucket.url("d.npz"), input="set/test")
            artifacts = {f"save_{name}": bucket.url(name) for name in ("maps", "masks", "overlays")}
            with pytest.raises(ConfigError) as refusal:
                inspect(input="set/test", run_dir=bucket.url("run"), **artifacts)
            assert str(refusal.value).count(COULD_NOT_CONNECT) == 1, "a store that does not answer is asked once"
            for maps in ("maps.zarr", "maps"):
                with pytest.raises(ConfigError, match=COULD_NOT_CONNECT):
                    pyimgano_dask.rescore(maps=bucket.url(maps), pixel_threshold=1)

    def test_a_scheme_without_its_package(self, at: Path) -> None:
        refuses("gcsfs", input="gs://line4/images")
        refuses("gcsfs", input="set/test", save_maps="gs://line4/maps")
        refuses("nowhere", input="set/test", save_maps="nowhere://line4/maps")

    def test_outputs_among_the_inputs(self, bucket: Bucket, at: Path, inputs: str) -> None:
        inside = f"{inputs}/pit/overlays"
        for folder in (inside, inside.replace("s3://", "s3a://"), f"{inputs}/"):
            refuses("lies inside the --input folder", input=inputs, save_overlays=folder)
        refuses("lies in what --input reads", input=inputs, save_jsonl=f"{inputs}/pit/000.png")
        refuses("is a folder", input=inputs, save_jsonl=bucket.url("set"))
        run_dir, run_file = bucket.url("run"), bucket.url("run", "run.json")
        refuses("the run itself writes", input=inputs, run_dir=run_dir, save_jsonl=run_file)
        same = {"save_masks": bucket.url("a"), "save_overlays": bucket.url("a") + "/"}
        refuses("are the same folder", input=inputs, **same)
        assert [name for name in bucket.names() if not name.startswith("set/test/")] == []

    def test_overlays_at_a_url_of_inputs_on_the_disk(self, bucket: Bucket, at: Path) -> None:
        assert inspect(input="set/test/good", save_overlays=bucket.url("overlays")).exit_code == 0
        assert len(bucket.names("overlays/")) == 8

    def test_a_store_that_is_read(self, bucket: Bucket, at: Path, on_disk: Ended) -> None:
        inspect(input="set/test", save_maps=bucket.url("maps.zarr"))
        with pytest.raises(ConfigError, match="is what --maps reads"):
            pyimgano_dask.rescore(
                maps=bucket.url("maps.zarr"), pixel_threshold=1, save_overlays=bucket.url("maps.zarr", "overlays")
            )
