"""Running the commands as a user does, and reading what they answer strictly."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.commands import run_module

# Root reads and writes everything; without these capabilities it is denied like anybody.
_SETPRIV = shutil.which("setpriv")
_IS_ROOT = os.geteuid() == 0
CAN_BE_DENIED = not _IS_ROOT or _SETPRIV is not None
_AS_A_USER = [str(_SETPRIV), "--bounding-set=-dac_override,-dac_read_search"] if _IS_ROOT and _SETPRIV else []

ERROR_STAGES = {"read", "preprocess", "infer", "extract", "write"}


@dataclass(frozen=True)
class Answer:
    """Exit code, standard output and standard error of a command."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return parse_records(self.stdout)


def command(
    *arguments: str,
    cwd: Path,
    module: str = "infer",
    env: dict[str, str] | None = None,
    stdout: Any = None,
    may_be_denied: bool = False,
) -> Answer:
    """Run a command in a process of its own; it never shows a traceback unless --debug is among the arguments.

    The process is a fresh one where it gets `stdout` or another `env` than a width, or where root `may_be_denied` what
    a user is.
    """
    name = f"pyimgano_dask.cli.{module}"
    if stdout is not None or may_be_denied or set(env or ()) - {"COLUMNS"}:
        done = subprocess.run(
            [*(_AS_A_USER if may_be_denied else ()), sys.executable, "-m", name, *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
        code, out, err = done.returncode, done.stdout or b"", done.stderr
    else:
        code, out, err = run_module(name, *arguments, cwd=cwd, env=env)
    answer = Answer(code, out, err.decode("utf-8", "backslashreplace"))
    assert ("Traceback" in answer.stderr) <= ("--debug" in arguments), answer.stderr
    return answer


def parse_records(data: bytes) -> list[dict[str, Any]]:
    """Records of a JSONL: strict JSON, keys sorted, `index` 0, 1, …, and each with a score or an error in words."""
    assert data == b"" or data.endswith(b"\n")
    records = [parse_strict(line) for line in data.split(b"\n")[:-1]]
    assert [record["index"] for record in records] == list(range(len(records)))
    for record in records:
        assert isinstance(record["input"], str)
        assert ("error" in record) != ("score" in record)
        if "error" in record:
            assert set(record) == {"index", "input", "error"}
            assert set(record["error"]) == {"stage", "type", "message"}
            assert record["error"]["stage"] in ERROR_STAGES
            assert len(record["error"]["message"]) > 15
    return records


def parse_strict(data: bytes) -> Any:
    """A value as strict JSON, in which the keys of each object are sorted."""
    return json.loads(data.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=_sorted_object)


def _refuse(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def _sorted_object(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    assert keys == sorted(set(keys))
    return dict(pairs)


def everything_in(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Every path in a folder, with size and time of change of what is no folder."""
    return {
        str(path): None if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
