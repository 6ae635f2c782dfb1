"""The documentation is true: links resolve, flags exist, examples run and print what is shown, deploy scripts work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import psutil
import pytest
from distributed import Client

from pyimgano_dask.detectors.exported.arguments import ExportedModelArguments
from pyimgano_dask.settings.catalog import knobs
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import resolve
from pyimgano_dask.synthesis import write_inspection_set
from pyimgano_dask.version import __version__
from tests.cluster import make_tls
from tests.conftest import ROOT, infer_command, run_python

TIMEOUT_S = 90
PAGES = sorted(
    str(path.relative_to(ROOT)) for pattern in ("*.md", "docs/*.md", "deploy/*.md") for path in ROOT.glob(pattern)
)
NOT_THERE = "Flags that are not there"
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9](?![\w-])")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def section(text: str, title: str) -> str:
    """What stands below a heading, down to the next one of the same level."""
    found = re.search(rf"^## {re.escape(title)}$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def anchors_of(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose_of(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        linked = (ROOT / page).parent / name if name else ROOT / page
        assert linked.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors_of(str(linked.resolve().relative_to(ROOT))), f"{page} links to {target}"


@cache
def flags_of(*command: str) -> frozenset[str]:
    """Flags in the help of a command, those of both forms of a switch included."""
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    return frozenset(FLAG.findall(done.stdout)) | {"--help"}


@cache
def known_flags() -> frozenset[str]:
    dask = (sys.executable, "-m", "dask")
    return frozenset().union(
        flags_of(sys.executable, "-m", "pyimgano_dask.cli.infer"),
        flags_of(sys.executable, "-m", "pyimgano_dask.cli.rescore"),
        flags_of(sys.executable, "-m", "pyimgano_dask.cli.validate"),
        flags_of(sys.executable, str(ROOT / "jobs/infer.py")),
        flags_of(sys.executable, str(ROOT / "jobs/rescore.py")),
        flags_of(str(ROOT / "deploy/start-cluster.sh")),
        flags_of(*dask, "scheduler"),
        flags_of(*dask, "worker"),
    )


# What is named because it is not there, and what belongs to other commands.
NAMED_AS_MISSING = {
    "docs/COMPATIBILITY.md": {"--continue-on-error"},
}
OF_OTHER_COMMANDS = {"deploy/README.md": {"--now"}}


@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_is_named_exists(page: str) -> None:
    text = re.sub(r"^```console$.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)
    named = set(FLAG.findall(text.replace(section(text, NOT_THERE), "")))
    missing = NAMED_AS_MISSING.get(page, set())
    assert named - known_flags() - OF_OTHER_COMMANDS.get(page, set()) == missing & named
    assert not missing & known_flags(), "these flags are there by now: say so"


def test_flags_listed_as_not_there_are_not_there() -> None:
    listed = set(FLAG.findall(section(text_of("docs/COMPATIBILITY.md"), NOT_THERE)))
    ours = flags_of(sys.executable, "-m", "pyimgano_dask.cli.infer")
    assert listed & ours <= {"--infer-config", "--tags", "--list-models"}, "these flags are there by now: say so"
    assert len(listed - ours) > 20


def test_every_flag_of_the_defects_is_in_the_guide() -> None:
    help_text = infer_command("--help", cwd=ROOT).stdout
    assert set(re.findall(r"--defect-[a-z-]+", help_text)) <= set(FLAG.findall(text_of("docs/GUIDE.md")))


def test_every_control_is_in_the_table_of_controls() -> None:
    table = section(text_of("docs/FALSE_POSITIVE_DEBUGGING.md"), "Every control")
    names = {knob.path[-1] for knob in knobs() if (knob.flag or "").startswith("--defect-")}
    assert {name for name in names if name not in table} == {"enabled"}


def test_the_docs_speak_of_this_version() -> None:
    assert f"## What is in {__version__}," in text_of("README.md")
    first = re.search(r"^## \[(.*?)\] - \d{4}-\d\d-\d\d$", text_of("CHANGELOG.md"), flags=re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


@dataclass(frozen=True)
class Example:
    """A block of a page that can be run, the line it begins at, and the output shown right after it."""

    line: int
    language: str
    code: str
    shown: str | None

    @property
    def starts_a_cluster(self) -> bool:
        return any(words in self.code for words in ("start-cluster.sh", "dask scheduler", "local-cluster"))


def examples_of(page: str) -> list[Example]:
    text = text_of(page)
    found = []
    block = re.compile(r"^```(sh|python)\n(.*?)^```\n(?:```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)
    for match in block.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Example(line, match[1], match[2], match[3]))
    return found


def comparable(text: str) -> str:
    """Checksums replaced by what is equal to what, because other versions of the libraries give other ones; tables
    without the blanks that fill their lines."""
    text = "\n".join(line.rstrip() for line in text.splitlines()).rstrip()
    names: dict[str, str] = {}
    return re.sub(r"\b[0-9a-f]{64}\b", lambda match: names.setdefault(match[0], f"hash-{len(names)}"), text)


def run_example(example: Example, cwd: Path) -> str:
    """Run one block as a user does; returns its standard output. Nothing that it started is left running."""
    command = ["bash", "-euo", "pipefail", "-c"] if example.language == "sh" else [sys.executable, "-c"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "80",
    }
    process = subprocess.Popen(
        [*command, example.code],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    finally:
        stop_group(process.pid)
    assert process.returncode == 0, stderr
    return stdout


def stop_group(pid: int) -> None:
    """Kill what is left of the process group of a block."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` and the main job leave: the inspection set `parts` and a run folder `run`."""
    folder = tmp_path_factory.mktemp("demo")
    write_inspection_set(folder / "parts")
    done = infer_command(
        *("--model", "vision_pixel_mad_map", "--train-dir", "parts/train/good", "--input", "parts/test/good"),
        *("--defects", "--defect-border-ignore-px", 16, "--defect-min-area", 12),
        *("--save-jsonl", "results.jsonl", "--run-dir", "run"),
        cwd=folder,
    )
    assert done.rc == 0, done.stderr
    return folder


@pytest.fixture
def checkout(demo: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder that looks like the checkout after `make demo`; clusters started in it are stopped at the end."""
    for name in ("jobs", "deploy"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "demo-output").mkdir()
    (tmp_path / "demo-output/parts").symlink_to(demo / "parts")
    shutil.copytree(demo / "run", tmp_path / "demo-output/run")
    yield tmp_path
    for pids in tmp_path.glob("demo-output/*/pids"):
        deploy("stop-cluster.sh", str(pids.parent), cwd=tmp_path)


def walk(page: str, cwd: Path, *, is_wanted: Callable[[Example], bool]) -> None:
    examples = [example for example in examples_of(page) if is_wanted(example)]
    assert examples
    for example in examples:
        printed = run_example(example, cwd)
        if example.shown is not None:
            where = f"{page}, line {example.line}"
            assert comparable(printed) == comparable(example.shown), where


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "docs/GUIDE.md",
        "docs/FALSE_POSITIVE_DEBUGGING.md",
        "docs/TILING.md",
        "docs/DETECTORS.md",
        "docs/ILLUMINATION.md",
        "docs/SKLEARN.md",
    ],
)
def test_examples_run_and_print_what_is_shown(page: str, checkout: Path) -> None:
    walk(page, checkout, is_wanted=lambda example: not example.starts_a_cluster)
    if page == "README.md":
        check_record_in_the_readme((checkout / "demo-output/results.jsonl").read_text().splitlines()[7])
    if page == "docs/FALSE_POSITIVE_DEBUGGING.md":
        check_counts_of_the_steps(checkout)


def test_examples_of_exported_models_run(checkout: Path) -> None:
    pytest.importorskip("torch", reason="the examples make and run a TorchScript file")
    walk("docs/EXPORTED_MODELS.md", checkout, is_wanted=lambda example: True)


def test_every_argument_of_exported_models_is_in_their_page() -> None:
    table = section(text_of("docs/EXPORTED_MODELS.md"), "What can be declared")
    assert {name for name in ExportedModelArguments.model_fields if f"`{name}`" not in table} == set()


def check_record_in_the_readme(line: str) -> None:
    record = json.loads(line)
    (shown,) = re.findall(r"^```json\n(.*?)^```$", text_of("README.md"), flags=re.MULTILINE | re.DOTALL)
    assert flat(json.loads(shown)) == {path: nearly(leaf) for path, leaf in flat(record).items()}
    assert {name.split(".")[-1] for name in re.findall(r"^\| `([\w.]+)` \|", text_of("README.md"), re.MULTILINE)} == {
        *(set(record) | set(record["defects"]) | {"error", "suppressed"}),
    }


def check_counts_of_the_steps(checkout: Path) -> None:
    rows = re.findall(
        r"^\|.*\| `([\w-]+\.jsonl)` \| ([\d,]+) \| ([\d,]+) \| (\d+) of 12 \|$",
        text_of("docs/FALSE_POSITIVE_DEBUGGING.md"),
        flags=re.MULTILINE,
    )
    assert len(rows) == 7
    for name, *shown in rows:
        with open(checkout / "demo-output/fp" / name, encoding="utf-8") as lines:
            found = [regions_and_false_ones(json.loads(line), checkout) for line in lines]
        n_regions, n_false = (sum(column) for column in zip(*found, strict=True))
        n_lost = sum(regions == false for regions, false in found[6:])
        assert [int(number.replace(",", "")) for number in shown] == [n_regions, n_false, n_lost], name


def regions_and_false_ones(record: dict[str, Any], checkout: Path) -> tuple[int, int]:
    """How many regions a record has, and how many of them touch no flaw of the demo set."""
    image = checkout / record["input"]
    truth_path = image.parents[2] / "ground_truth" / image.parent.name / f"{image.stem}_mask.png"
    truth = cv2.imread(str(truth_path), cv2.IMREAD_GRAYSCALE) if truth_path.exists() else None
    boxes = [region["bbox_xyxy"] for region in record["defects"]["regions"]]
    return len(boxes), sum(truth is None or not truth[y0 : y1 + 1, x0 : x1 + 1].any() for x0, y0, x1, y1 in boxes)


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """The leaves of a JSON value by their paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, item in items for key, leaf in flat(item, f"{path}/{name}").items()}
    return {path: value}


def nearly(value: Any) -> Any:
    """The value, a float up to the last digits, in which other processors may differ."""
    return pytest.approx(value, rel=1e-5) if isinstance(value, float) else value


@pytest.mark.cluster
@pytest.mark.parametrize("page", ["README.md", "docs/CLUSTER.md"])
def test_examples_on_a_cluster_run(page: str, checkout: Path) -> None:
    walk(page, checkout, is_wanted=lambda example: example.starts_a_cluster)
    (results,) = [
        path
        for path in checkout.rglob("demo-output/**/*.jsonl")
        if path.parent.name in ("demo-output", "job", "by-hand")
    ]
    assert len(results.read_text().splitlines()) == 18


def test_a_scheduler_file_that_is_not_there_is_told(demo: Path) -> None:
    done = infer_command(
        *("--infer-config", "run/infer_config.json", "--input", "parts/test/good", "--scheduler", "none.json"), cwd=demo
    )
    assert (done.rc, done.stdout) == (2, "")
    assert "there is no scheduler file 'none.json'" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "jobs/configs").glob("*.json")), ids=lambda path: path.name)
def test_job_configs_are_valid(path: Path) -> None:
    assert resolve({}, read_infer_config(str(path))).warnings == ()


def test_the_template_of_the_preset_writes_out_exactly_its_values() -> None:
    template = read_infer_config(str(ROOT / "jobs/configs/industrial-fp40.json"))
    (preset_knob,) = (knob for knob in knobs() if knob.key == "defects.preset")
    of_preset = resolve({preset_knob: "industrial-fp40"}).settings.defects
    own = {"preset", "explain"}
    assert resolve({}, template).settings.defects.model_dump(exclude=own) == of_preset.model_dump(exclude=own)
    left_out = own | {"image_space", "pixel_threshold"}
    written = flat({key: value for key, value in template.payload["defects"].items() if key != "explain"})
    assert set(written) == set(flat(of_preset.model_dump(mode="json", exclude=left_out)))


def test_the_job_config_shows_every_block() -> None:
    assert set(json.loads(text_of("jobs/configs/job.json"))) == {
        *("schema_version", "model", "training", "inputs", "defects", "output", "dataflow")
    }


def deploy(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a deploy script with this interpreter."""
    return subprocess.run(
        [str(ROOT / "deploy" / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.cluster
def test_deploy_scripts_start_and_stop_a_cluster_on_loopback(checkout: Path) -> None:
    folder = checkout / "demo-output" / "a cluster"
    started = deploy("start-cluster.sh", "--workers", "2", "--port", "0", str(folder), cwd=checkout)
    assert started.returncode == 0, started.stderr
    with Client(scheduler_file=str(folder / "scheduler.json"), timeout=20, set_as_default=False) as client:
        assert list(client.nthreads().values()) == [1, 1]
        assert f"2 workers at {client.scheduler.address}" in started.stdout

    leaders = [psutil.Process(int(pid)) for pid in (folder / "pids").read_text().split()]
    everyone = [process for leader in leaders for process in (leader, *leader.children(recursive=True))]
    listening = {
        connection.laddr.ip
        for process in everyone
        for connection in process.net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}

    again = deploy("start-cluster.sh", "--workers", "1", str(folder), cwd=checkout)
    assert again.returncode == 2
    assert "stop it with deploy/stop-cluster.sh" in again.stderr

    stopped = deploy("stop-cluster.sh", str(folder), cwd=checkout)
    assert stopped.returncode == 0, stopped.stderr
    _, alive = psutil.wait_procs(everyone, timeout=10)
    assert alive == []
    assert {path.name for path in folder.iterdir()} == {"check.log", "scheduler.log", "workers.log"}
    twice = deploy("stop-cluster.sh", str(folder), cwd=checkout)
    assert twice.returncode == 2
    assert "no cluster was started in" in twice.stderr


@pytest.mark.cluster
def test_the_start_script_passes_certificates_on(checkout: Path) -> None:
    files = make_tls(checkout / "tls")
    folder = checkout / "demo-output" / "encrypted"
    started = deploy("start-cluster.sh", "--workers", "1", "--port", "0", *files.flags(), str(folder), cwd=checkout)
    assert started.returncode == 0, started.stderr
    address = json.loads((folder / "scheduler.json").read_text())["address"]
    assert address.startswith("tls://127.0.0.1:")
    assert f"1 workers at {address}" in started.stdout
    assert " ".join(files.flags()) in started.stdout
    with Client(address, security=files.security(), timeout=20, set_as_default=False) as client:
        (worker,) = client.nthreads()
    assert worker.startswith("tls://")


@pytest.mark.cluster
def test_a_port_that_is_taken_is_told_and_nothing_stays(checkout: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        failed = deploy("start-cluster.sh", "--workers", "1", "--port", port, "cluster", cwd=checkout)
    assert failed.returncode == 1
    assert "Address already in use" in failed.stderr
    assert not (checkout / "cluster/pids").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "none"], "--workers: none is not a whole number from 1 on"),
        (["--workers"], "--workers needs a value"),
        (["--port", "x"], "--port: x is not a port number"),
        (["--nodes", "3"], "unknown flag --nodes"),
        (["a", "b"], "two folders are given, a and b"),
        (["--tls-ca", "ca.pem"], "TLS takes all of --tls-ca, --tls-cert and --tls-key"),
        (["--tls-ca", "a", "--tls-cert", "b", "--tls-key", "c"], "there is no file a that this user can read"),
    ],
)
def test_wrong_flags_of_the_start_script_are_told(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = deploy("start-cluster.sh", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["scheduler", "worker"])
def test_services_give_dask_flags_and_variables_that_exist(verb: str) -> None:
    name = "pyimgano-scheduler.service" if verb == "scheduler" else "pyimgano-workers.service"
    unit = ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((ROOT / "deploy/systemd" / name).read_text().replace("\\\n", ""))
    command = unit["Service"]["ExecStart"]
    assert f"/dask {verb} " in command
    assert set(FLAG.findall(command)) <= flags_of(sys.executable, "-m", "dask", verb)
    text = (ROOT / "deploy/systemd/cluster.env").read_text()
    environment = dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))
    assert set(re.findall(r"\$\{?(\w+)", command)) <= {*environment, "STATE_DIRECTORY"}
    (shown,) = re.findall("^# +TLS=(.*)$", text, flags=re.MULTILINE)
    assert set(FLAG.findall(shown)) <= flags_of(sys.executable, "-m", "dask", verb)
    assert environment["HOST"] == "127.0.0.1"


def test_the_python_of_the_readme_needs_no_more_than_the_package() -> None:
    (example,) = [example for example in examples_of("README.md") if example.language == "python"]
    assert re.findall(r"^(?:import|from) (\w+)", example.code, flags=re.MULTILINE) == ["pyimgano_dask"]
    done = run_python("-c", "import pyimgano_dask; print(sorted(pyimgano_dask.__all__))", cwd=ROOT)
    for name in re.findall(r"`pyimgano_dask\.(\w+)`", text_of("README.md")):
        assert repr(name) in done.stdout
