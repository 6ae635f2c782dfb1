"""Commands as processes of their own: fresh ones, or ones forked from a process that has imported the package.

Most of the time of a short run is the start of the interpreter. A fork has its own memory, files, folder, environment
and exit code, and it runs the same `__main__`. It shares the seed of `hash()` with the other forks: where bytes are
compared, at least one of the runs has to be fresh.
"""

from __future__ import annotations

import atexit
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parent.parent
COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    rc: int
    stdout: str
    stderr: str


def run_python(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Ended:
    """Run this Python, a fresh one, with `arguments` in the folder `cwd`, to its end."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=COMMAND_TIMEOUT_S,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Fork:
    """A forked command on its way, which leads a process group of its own."""

    def __init__(self, process: ForkServerProcess, stdout: Path, stderr: Path) -> None:
        self.pid = process.pid
        self._process = process
        self._outputs = stdout, stderr

    def poll(self) -> int | None:
        """Its exit code, None while it runs; the negative number of the signal that ended it."""
        return self._process.exitcode

    def wait(self, timeout_s: float = COMMAND_TIMEOUT_S) -> int:
        """Its exit code, once it has ended."""
        self._process.join(timeout_s)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout_s)
        return self._process.exitcode

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    @property
    def stdout(self) -> bytes:
        """What it has written so far."""
        return self._outputs[0].read_bytes()

    @property
    def stderr(self) -> bytes:
        """What it has written so far."""
        return self._outputs[1].read_bytes()


def fork_module(
    module: str,
    *arguments: str,
    cwd: Path,
    stdout: Path,
    stderr: Path,
    env: Mapping[str, str] | None = None,
) -> Fork:
    """Start `python -m module` as a fork in the folder `cwd`; both outputs are appended to files, which may be one.

    `env` has no variables that are read when Python starts or a module is imported.
    """
    begun, begins = get_context("forkserver").Pipe(duplex=False)
    given = (module, arguments, str(cwd), {**os.environ, **(env or {})}, (stdout, stderr), begins)
    process = _context().Process(target=_be_the_module, args=given)
    process.start()
    begins.close()
    begun.recv()
    begun.close()
    return Fork(process, stdout, stderr)


@contextmanager
def started_module(module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[Fork]:
    """`python -m module` in the folder `cwd`, as a fork; with all that it has started it is gone after the block."""
    with TemporaryDirectory() as folder:
        outputs = Path(folder, "stdout"), Path(folder, "stderr")
        fork = fork_module(module, *arguments, cwd=cwd, stdout=outputs[0], stderr=outputs[1], env=env)
        try:
            yield fork
        finally:
            with suppress(ProcessLookupError):
                os.killpg(fork.pid, signal.SIGKILL)
            fork.wait()


def run_module(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> tuple[int, bytes, bytes]:
    """Run `python -m module` as a fork in the folder `cwd`, to its end; its exit code and both its outputs.

    `env` has no variables that are read when Python starts or a module is imported.
    """
    with started_module(module, *arguments, cwd=cwd, env=env) as fork:
        return fork.wait(), fork.stdout, fork.stderr


def infer_command(*flags: object, cwd: Path, env: Mapping[str, str] | None = None, fresh: bool = False) -> Ended:
    """Run `pyimgano-infer` as a process of its own; with `env` it is a fresh one."""
    return _command("infer", *flags, cwd=cwd, env=env, fresh=fresh)


def rescore_command(*flags: object, cwd: Path) -> Ended:
    """Run `pyimgano-rescore` as a process of its own."""
    return _command("rescore", *flags, cwd=cwd)


def _command(name: str, *flags: object, cwd: Path, env: Mapping[str, str] | None = None, fresh: bool = False) -> Ended:
    module, arguments = f"pyimgano_dask.cli.{name}", list(map(str, flags))
    if fresh or env:
        return run_python("-m", module, *arguments, cwd=cwd, env=env)
    rc, stdout, stderr = run_module(module, *arguments, cwd=cwd)
    return Ended(rc, stdout.decode(), stderr.decode())


@cache
def _context() -> ForkServerContext:
    """The process that is forked: started once, where `tests` can be imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with chdir(ROOT):
        forkserver.ensure_running()
    return context


def _be_the_module(
    module: str,
    arguments: Sequence[str],
    cwd: str,
    environ: Mapping[str, str],
    outputs: Sequence[Path],
    begins: Connection,
) -> None:
    """Become the command, in a process that was forked for it."""
    os.setsid()
    begins.send(None)
    begins.close()
    for number, path in enumerate(outputs, start=1):
        with path.open("ab") as file:
            os.dup2(file.fileno(), number)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        # A forked process of multiprocessing leaves these out.
        atexit._run_exitfuncs()
