"""Commands that are told to end while their workers start: one line, no traceback, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from pyimgano_dask.synthesis import InspectionSet
from tests.cli.conftest import MODEL
from tests.commands import ROOT
from tests.waiting import wait_until

TIMEOUT_S = 60


class Command:
    """A fresh process, which leads a session of its own and takes interruptions as one in a terminal does."""

    def __init__(self, *arguments: str, cwd: Path) -> None:
        self._stderr = cwd / "stderr"
        with self._stderr.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                # Whoever runs the tests in the background has interruptions ignored, also by what they start.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
            )

    def tell(self, number: signal.Signals) -> None:
        """Send a signal to the command alone."""
        self._process.send_signal(number)

    def tell_all(self, number: signal.Signals) -> None:
        """Send a signal to the command and all that it has started, as a terminal does."""
        os.killpg(self._process.pid, number)

    def wait(self) -> int:
        """Its exit code, once it has ended; the negative number of the signal that ended it."""
        return self._process.wait(TIMEOUT_S)

    def stderr(self) -> str:
        """What it and its workers have said so far."""
        return self._stderr.read_text()

    def has_worker(self) -> bool:
        """Whether a worker process has been started."""
        return bool(self._workers())

    def has_worker_that_imports(self) -> bool:
        """Whether a worker process is past the start of its interpreter."""
        return any("_multiarray_umath" in _text(f"/proc/{worker.pid}/maps") for worker in self._workers())

    def group(self) -> list[psutil.Process]:
        """Every process of the command that has not ended, whoever its parent is."""
        return [process for process in psutil.process_iter() if self._is_alive_in_group(process)]

    def _workers(self) -> list[psutil.Process]:
        assert self._process.poll() is None, self.stderr()
        return [process for process in self.group() if "spawn_main" in _text(f"/proc/{process.pid}/cmdline")]

    def _is_alive_in_group(self, process: psutil.Process) -> bool:
        try:
            return os.getpgid(process.pid) == self._process.pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


@contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[Command]:
    """The command on its way; with all that it has started it is gone after the block."""
    command = Command(*arguments, cwd=cwd)
    try:
        yield command
    finally:
        with suppress(ProcessLookupError):
            command.tell_all(signal.SIGKILL)
        command.wait()


@pytest.mark.parametrize(
    ("number", "tell", "moment"),
    [
        pytest.param(signal.SIGINT, Command.tell_all, Command.has_worker, id="SIGINT-group-first"),
        pytest.param(signal.SIGINT, Command.tell_all, Command.has_worker_that_imports, id="SIGINT-group-importing"),
        pytest.param(signal.SIGINT, Command.tell, Command.has_worker_that_imports, id="SIGINT-command-importing"),
        pytest.param(signal.SIGTERM, Command.tell_all, Command.has_worker_that_imports, id="SIGTERM-group-importing"),
        pytest.param(signal.SIGTERM, Command.tell, Command.has_worker_that_imports, id="SIGTERM-command-importing"),
    ],
)
@pytest.mark.parametrize("scheduler", ["processes", pytest.param("local-cluster", marks=pytest.mark.cluster)])
def test_a_run_whose_workers_start_ends_with_one_line_and_leaves_nothing(
    scheduler: str,
    number: signal.Signals,
    tell: Callable[[Command, signal.Signals], None],
    moment: Callable[[Command], bool],
    parts: InspectionSet,
    tmp_path: Path,
) -> None:
    detector = ("--model", MODEL, "--train-dir", parts.train_dir)
    run = ("-m", "pyimgano_dask.cli.infer", *detector, "--input", parts.test_dir, "--save-jsonl", "records.jsonl")
    with started(*run, "--scheduler", scheduler, "--workers", "2", cwd=tmp_path) as command:
        wait_until(lambda: moment(command), "a worker starts")
        tell(command, number)
        code = command.wait()
        wait_until(lambda: not command.group(), "all processes have ended")
    said = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}[number]
    line = f"pyimgano-infer: {said[1]}: without --run-dir there is nothing to resume\n"
    assert (code, command.stderr()) == (said[0], line)
    assert [path.name for path in tmp_path.iterdir()] == ["stderr"]


def test_once_a_command_has_said_that_it_was_interrupted_another_interruption_ends_it_silently(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import signal, sys, threading\n"
        "from pyimgano_dask.cli.shell import guarded\n"
        "threading.Thread(target=threading.Event().wait).start()\n"
        "sys.exit(guarded('script', lambda: signal.raise_signal(signal.SIGINT), debug=False))\n"
    )
    with started("script.py", cwd=tmp_path) as command:
        wait_until(lambda: command.stderr().endswith("\n"), "the script has said that it was interrupted")
        command.tell(signal.SIGINT)
        assert command.wait() == -signal.SIGINT
    assert command.stderr() == "script: interrupted\n"
