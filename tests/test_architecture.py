"""The doors between the rooms of the package (docs/ARCHITECTURE.md), read off every import statement."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import pytest

import pyimgano_dask

PACKAGE = "pyimgano_dask"
PACKAGE_FOLDER = Path(pyimgano_dask.__file__).parent

PURE_ROOMS = ("images", "defects", "detectors", "thresholds", "storage")
SHUT_TO_SETTINGS = (
    *("images", "defects", "detectors", "thresholds", "dataflow", "cli", "synthesis"),
    *(f"storage.{module}" for module in ("jsonl", "maps", "masks", "overlays", "zarr_store")),
)
HEAVY = ("numpy", "cv2", "dask", "distributed", "zarr", "torch")


@dataclass(frozen=True)
class Edge:
    """Module `importer` has a statement that imports `imported`, both with their full names."""

    importer: str
    imported: str

    @property
    def room(self) -> str:
        """First name below the package: a folder, or a module that stands on its own."""
        return self.importer.removeprefix(f"{PACKAGE}.").split(".")[0]

    def reaches(self, name: str) -> bool:
        """Whether the imported module is `name` or lies in it."""
        return self.imported == name or self.imported.startswith(f"{name}.")


def edges(folder: Path) -> Iterator[Edge]:
    """Every import below `folder`, the folder of the package: at the top, in functions, for type checkers, by name."""
    for path in sorted(folder.rglob("*.py")):
        parts = (PACKAGE, *path.relative_to(folder).with_suffix("").parts)
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        package = ".".join(parts[:-1])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in imports_of(node, package):
                yield Edge(module, name)


def imports_of(node: ast.AST, package: str) -> Iterator[str]:
    """Full names a statement of a module in `package` imports; for `from a import b` both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        base = resolve_name("." * node.level + (node.module or ""), package)
        yield base
        for alias in node.names:
            yield f"{base}.{alias.name}"
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        name = node.args[0].value
        if called in ("import_module", "__import__") and isinstance(name, str):
            yield resolve_name(name, package)


def opened_doors(folder: Path) -> list[str]:
    """What the architecture forbids and some import does anyway, one line each."""
    return sorted(
        {f"{edge.importer} imports {edge.imported}: {rule}" for edge in edges(folder) for rule in broken(edge)}
    )


def broken(edge: Edge) -> Iterator[str]:
    """The rules this import breaks."""
    if edge.room != "dataflow" and (edge.reaches("dask") or edge.reaches("distributed")):
        yield "only dataflow knows Dask"
    if edge.room in PURE_ROOMS:
        for shut in ("dataflow", "cli"):
            if edge.reaches(f"{PACKAGE}.{shut}"):
                yield f"{edge.room} never imports {shut}"
    if edge.room == "dataflow" and edge.reaches(f"{PACKAGE}.cli"):
        yield "dataflow never imports cli"
    if edge.room == "settings" and any(edge.reaches(f"{PACKAGE}.{room}") for room in SHUT_TO_SETTINGS):
        yield "settings know no room but storage.files"
    is_entry_point = edge.room == "cli" or edge.importer.endswith(".__main__")
    if not is_entry_point and any(edge.reaches(parser) for parser in ("argparse", "click", "optparse")):
        yield "command lines are read in cli and in __main__ modules"


def test_every_door_is_shut() -> None:
    assert opened_doors(PACKAGE_FOLDER) == []


def test_the_whole_package_is_read() -> None:
    found = set(edges(PACKAGE_FOLDER))
    rooms = {edge.room for edge in found}
    assert {*PURE_ROOMS, "settings", "dataflow", "cli", "synthesis"} <= rooms
    assert any(edge.room == "dataflow" and edge.reaches("dask") for edge in found)
    assert any(edge.room == "dataflow" and edge.reaches("distributed") for edge in found)
    assert any(edge.room == "cli" and edge.reaches("argparse") for edge in found)
    assert any(edge.room == "cli" and edge.reaches(f"{PACKAGE}.dataflow") for edge in found)


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("images/io.py", "import dask", "pyimgano_dask.images.io imports dask: only dataflow knows Dask"),
        ("cli/x.py", "import dask.bag as db", "pyimgano_dask.cli.x imports dask.bag: only dataflow knows Dask"),
        ("api.py", "def f():\n    from distributed import Client", "only dataflow knows Dask"),
        ("storage/x.py", "import importlib\nimportlib.import_module('dask')", "only dataflow knows Dask"),
        ("defects/x.py", "from pyimgano_dask.dataflow import run", "defects never imports dataflow"),
        ("defects/x.py", "from pyimgano_dask import dataflow", "defects never imports dataflow"),
        ("detectors/deep/x.py", "from ...dataflow.plan import Chunk", "detectors never imports dataflow"),
        ("images/__init__.py", "from ..cli import flags", "images never imports cli"),
        (
            "thresholds/x.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyimgano_dask.cli.infer",
            "thresholds never imports cli",
        ),
        ("storage/x.py", "class A:\n    def f(self):\n        import pyimgano_dask.dataflow", "storage never imports"),
        ("dataflow/x.py", "from pyimgano_dask.cli.console import TerminalProgress", "dataflow never imports cli"),
        ("settings/x.py", "from pyimgano_dask.defects import roi", "settings know no room but storage.files"),
        ("settings/x.py", "from pyimgano_dask.storage import masks", "settings know no room but storage.files"),
        ("settings/x.py", "import argparse", "in cli and in __main__ modules"),
        ("synthesis/x.py", "from click import command", "in cli and in __main__ modules"),
    ],
)
def test_an_opened_door_is_seen(tmp_path: Path, path: str, source: str, complaint: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert any(complaint in line for line in opened_doors(tmp_path))


def test_open_doors_may_be_used(tmp_path: Path) -> None:
    for path, source in {
        "dataflow/x.py": "import dask.bag\nfrom distributed import Client\nfrom pyimgano_dask.images import listing",
        "cli/x.py": "import argparse\nfrom pyimgano_dask.dataflow.run import run",
        "synthesis/__main__.py": "import argparse",
        "defects/x.py": "import daskerade\nfrom pyimgano_dask.settings import defects\nfrom .dataflow_free import x",
        "errors.py": "from __future__ import annotations",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(source)
    assert opened_doors(tmp_path) == []


@pytest.mark.parametrize("module", ["pyimgano_dask", "pyimgano_dask.cli.infer", "pyimgano_dask.cli.validate"])
def test_a_command_that_only_prints_its_help_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
