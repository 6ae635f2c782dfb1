"""What a cluster runs is compared with what its client runs: refused, told, or silent."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from pyimgano_dask.dataflow.clusters import connect
from pyimgano_dask.dataflow.versions import check_versions
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.synthesis import InspectionSet
from pyimgano_dask.version import __version__
from tests.cluster import ROOT, DaskCluster, start_cluster
from tests.conftest import infer_command, rescore_command
from tests.dataflow.doubles import opened

pytestmark = pytest.mark.cluster

FLAGS = ("--model", "vision_pixel_mad_map", "--train-dir", "set/train/good", "--input", "set/test/good")


def of_another_version(folder: Path) -> dict[str, str]:
    """The environment of a process that imports a copy of the package which says that it is 0.0.1."""
    shutil.copytree(ROOT / "pyimgano_dask", folder / "pyimgano_dask", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyimgano_dask/version.py").write_text('__version__ = "0.0.1"\n')
    return {"PYTHONPATH": str(folder)}


def without_the_package(folder: Path) -> dict[str, str]:
    """The environment of a process in which a stub, which cannot be imported, stands before the package."""
    (folder / "pyimgano_dask").mkdir(parents=True)
    (folder / "pyimgano_dask/__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'pyimgano_dask'\")\n"
    )
    return {"PYTHONPATH": str(folder)}


def with_installed(folder: Path, **versions: str) -> dict[str, str]:
    """The environment of a process whose packages say, in their metadata, that they are other versions."""
    for name, version in versions.items():
        metadata = folder / f"{name}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return {"PYTHONPATH": f"{folder}:{ROOT}"}


def warnings_in(stderr: str, prog: str) -> list[str]:
    """What a command warns of, each with one and the same prefix."""
    lines = [line for line in stderr.splitlines() if "warning: " in line]
    assert all(line.startswith(f"{prog}: warning: ") and line.count("warning: ") == 1 for line in lines)
    return [line.partition("warning: ")[2] for line in lines]


def refusal(cluster: DaskCluster) -> str:
    with pytest.raises(ConfigError) as caught, opened(cluster.address):
        pass
    return str(caught.value)


@pytest.fixture
def place(tmp_path: Path, parts: InspectionSet) -> Path:
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "set").symlink_to(parts.root)
    return folder


def test_nothing_is_said_where_all_agree(dask_cluster: DaskCluster) -> None:
    with opened(dask_cluster.address) as scheduler:
        assert scheduler.warnings == ()


def test_a_worker_of_another_version_is_refused_before_any_work(tmp_path: Path, place: Path) -> None:
    with start_cluster(tmp_path / "cluster", 1) as cluster:
        number = cluster.add_worker(env=of_another_version(tmp_path / "old"))
        address = cluster.worker_addresses()[number]
        done = infer_command(*FLAGS, "--scheduler", cluster.address, "--save-jsonl", "r.jsonl", cwd=place)
    assert (done.rc, done.stdout) == (2, "")
    said = f"pyimgano-infer: error: --scheduler: worker {address} has pyimgano_dask 0.0.1, and here it is {__version__}"
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "r.jsonl").exists()


def test_a_worker_or_a_scheduler_without_the_package_is_refused(tmp_path: Path) -> None:
    stub = without_the_package(tmp_path / "stub")
    with start_cluster(tmp_path / "workers", 2, env=stub) as cluster:
        first, second = cluster.worker_addresses().values()
        said = refusal(cluster)
        assert re.search(rf"worker \S+ and worker \S+ cannot import pyimgano_dask \(No module .*{__version__}", said)
        assert first in said
        assert second in said
    with start_cluster(tmp_path / "scheduler", 1, scheduler_env=stub) as cluster:
        assert "the scheduler cannot import pyimgano_dask (No module" in refusal(cluster)


def test_other_packages_are_told_and_the_run_goes_on(tmp_path: Path, place: Path) -> None:
    versions = {"numpy": "1.0", "msgpack": "0.1", "toolz": "0.2"}
    with start_cluster(tmp_path / "cluster", 1) as cluster:
        number = cluster.add_worker(env=with_installed(tmp_path / "metadata", **versions))
        address = cluster.worker_addresses()[number]
        done = infer_command(*FLAGS, "--scheduler", cluster.address, "--save-maps", "maps", cwd=place)
        rescore = ("--maps", "maps", "--defects", "--pixel-threshold", "3")
        rescored = rescore_command(*rescore, "--scheduler", cluster.address, cwd=place)
    assert (done.rc, rescored.rc) == (0, 0), rescored.stderr
    assert done.stdout == infer_command(*FLAGS, "--scheduler", "sync", "--save-maps", "maps", cwd=place).stdout
    told = warnings_in(done.stderr, "pyimgano-infer")
    assert len(told) == 2
    assert told == warnings_in(rescored.stderr, "pyimgano-rescore")
    for line, name in zip(told, ("numpy", "msgpack"), strict=True):
        assert re.match(
            rf"{name} is \S+ here and {versions[name]} on worker {re.escape(address)}: .*constraints\.txt",
            line,
        )
    # Dask would say it its own way, with a table of all packages.
    assert "Mismatched versions" not in done.stderr


def test_a_library_matters_to_the_detectors_that_use_it(tmp_path: Path) -> None:
    installed = {"scipy": "0.1", "timm": "0.2"}
    with (
        start_cluster(tmp_path / "cluster", 1, env=with_installed(tmp_path / "metadata", **installed)) as cluster,
        connect(cluster.address, 1) as client,
    ):
        assert check_versions(client) == ()
        assert check_versions(client, {"torch", "no-such-library"}) == ()
        (warning,) = check_versions(client, {"scipy", "numba"})
    assert re.match(r"scipy is \S+ here and 0\.1 on worker \S+: their bytes may differ", warning)


def test_a_scheduler_matters_for_messages_only(tmp_path: Path) -> None:
    env = with_installed(tmp_path / "metadata", numpy="1.0", dask="0.1")
    with (
        start_cluster(tmp_path / "cluster", 1, scheduler_env=env) as cluster,
        opened(cluster.address) as scheduler,
    ):
        (warning,) = scheduler.warnings
    assert re.match(r"dask is \S+ here and 0\.1 on the scheduler: they may misunderstand each other", warning)


def test_many_workers_are_counted(tmp_path: Path) -> None:
    env = with_installed(tmp_path / "metadata", numpy="1.0")
    with (
        start_cluster(tmp_path / "cluster", 5, env=env) as cluster,
        opened(cluster.address) as scheduler,
    ):
        (warning,) = scheduler.warnings
    assert len(re.findall("worker tcp://", warning)) == 3
    assert "and 2 more: " in warning


def test_workers_that_join_later_are_seen_when_asked_again(tmp_path: Path) -> None:
    with start_cluster(tmp_path / "cluster", 1) as cluster, connect(cluster.address, 1) as client:
        assert check_versions(client) == ()
        cluster.add_worker(env=of_another_version(tmp_path / "old"))
        with pytest.raises(ConfigError, match=r"has pyimgano_dask 0\.0\.1"):
            check_versions(client)


def test_a_worker_that_does_not_answer_is_not_waited_for(tmp_path: Path) -> None:
    with start_cluster(tmp_path / "cluster", 2) as cluster, connect(cluster.address, 1) as client:
        cluster.pause_worker(1)
        (warning,) = check_versions(client, timeout_s=1)
        cluster.resume_worker(1)
    assert "not every worker answered within 1 s" in warning
