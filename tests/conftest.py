"""What the tests of the dataflow share: a small inspection set, the command as a process, a real Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyimgano_dask.synthesis import InspectionSet, write_inspection_set
from tests.cluster import ROOT as ROOT
from tests.cluster import DaskCluster, start_cluster
from tests.commands import Ended as Ended
from tests.commands import infer_command as infer_command
from tests.commands import rescore_command as rescore_command
from tests.commands import run_python as run_python
from tests.waiting import wait_until as wait_until

if TYPE_CHECKING:
    from tests.object_store import Bucket, ObjectStore

N_TRAIN = 12
# With `--dist loadfile` a file goes to one worker; one of these, begun last, would keep it while the others are done.
LONGEST_FIRST = (
    "test_docs.py",
    "test_resume.py",
    "test_object_stores.py",
    "test_losses.py",
    "test_schedulers.py",
    "test_same_bytes.py",
    "test_versions.py",
    "test_unfinished_runs.py",
    "test_rescore.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, the others in their order."""
    turns = {name: turn for turn, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: turns.get(item.path.name, len(turns)))


def hashes_below(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> InspectionSet:
    """12 normal images to train on and 20 to inspect, of three sizes, some of them grey."""
    return write_inspection_set(
        tmp_path_factory.mktemp("set"),
        n_train=N_TRAIN,
        n_good=8,
        n_per_defect=4,
        sizes_hw=((64, 80), (96, 72), (200, 240)),
    )


@pytest.fixture(scope="session")
def input_list(parts: InspectionSet) -> Sequence[str]:
    """22 inputs, as paths below the set's root: small and big images mixed, a torn file and a missing one."""
    root = Path(parts.root)
    torn = root / "torn" / "torn.png"
    torn.parent.mkdir()
    torn.write_bytes(Path(parts.test_good[0]).read_bytes()[:300])
    images = sorted(path for kind in ("good", "scratch", "pit", "stain") for path in (root / "test" / kind).iterdir())
    inputs = [str(path.relative_to(root)) for path in images]
    inputs.insert(5, "torn/torn.png")
    inputs.insert(11, "test/good/missing.png")
    return inputs


@pytest.fixture(scope="session")
def workplace(
    tmp_path_factory: pytest.TempPathFactory, parts: InspectionSet, input_list: Sequence[str]
) -> Callable[[str], Path]:
    """Makes working folders in which `set/` is the inspection set and `list.txt` names the inputs, all relative."""

    def make(name: str) -> Path:
        place = tmp_path_factory.mktemp(name)
        (place / "set").symlink_to(parts.root)
        (place / "list.txt").write_text("".join(f"set/{path}\n" for path in input_list))
        return place

    return make


@pytest.fixture(scope="session")
def dask_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and two single-threaded workers for the whole session, in a folder that no test works in."""
    with start_cluster(tmp_path_factory.mktemp("cluster"), n_workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """An S3 server for the whole session; tests take a `bucket` of their own in it."""
    from tests.object_store import start_object_store

    with start_object_store(tmp_path_factory.mktemp("object-store")) as store:
        yield store


@pytest.fixture
def bucket(object_store: ObjectStore) -> Iterator[Bucket]:
    """An empty bucket, which this process and all that it starts reach by `s3://` URLs."""
    with object_store.new_bucket() as bucket:
        yield bucket
