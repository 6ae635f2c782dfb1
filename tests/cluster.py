"""A bench of real `dask scheduler` and `dask worker` processes on loopback: joined, stopped, killed and paused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client
from distributed.security import Security
from distributed.versions import VersionMismatchWarning

from tests.commands import ROOT, Fork, fork_module
from tests.waiting import WAIT_TIMEOUT_S, stop_group, wait_until

Process = subprocess.Popen[bytes] | Fork
# Run in a mount namespace of its own: an empty folder of the same path takes the place of $0.
_HIDE = 'mount -t tmpfs none "$0" && exec "$@"'


@dataclass(frozen=True)
class TlsFiles:
    """A certificate with its key, and the authority that signed it, as PEM files."""

    ca: Path
    cert: Path
    key: Path

    def flags(self, ca_flag: str = "--tls-ca") -> list[str]:
        return [ca_flag, str(self.ca), "--tls-cert", str(self.cert), "--tls-key", str(self.key)]

    def security(self) -> Security:
        """What a client needs to be let in."""
        return Security(
            require_encryption=True,
            tls_ca_file=str(self.ca),
            tls_client_cert=str(self.cert),
            tls_client_key=str(self.key),
        )


def make_tls(folder: Path) -> TlsFiles:
    """A new authority, and a certificate for loopback that it signed."""
    import trustme

    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    files = TlsFiles(folder / "ca.pem", folder / "cert.pem", folder / "key.pem")
    authority.cert_pem.write_to_path(str(files.ca))
    issued.private_key_pem.write_to_path(str(files.key))
    for pem in issued.cert_chain_pems:
        pem.write_to_path(str(files.cert), append=True)
    return files


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker process is started.

    `resources` is what `dask worker --resources` takes, such as `GPU=1`. `env` comes on top of this process's
    environment. `hidden` is a folder that the worker finds empty, as if this machine's disk were not its own. A worker
    with one of the two is a fresh process, others are forks.
    """

    nthreads: int = 1
    nanny: bool = False
    resources: str | None = None
    memory_limit: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    hidden: Path | None = None

    def flags(self) -> list[str]:
        flags = ["--nworkers", "1", "--nthreads", str(self.nthreads), "--nanny" if self.nanny else "--no-nanny"]
        for flag, value in (("--resources", self.resources), ("--memory-limit", self.memory_limit)):
            if value is not None:
                flags += [flag, value]
        return flags


@cache
def _namespace_command() -> tuple[str, ...]:
    """The command that hides a folder from what it runs; fails the test where this machine has no such command."""
    as_root = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    command = ("unshare", *as_root, "--mount", "sh", "-c", _HIDE)
    try:
        tried = subprocess.run([*command, "/mnt", "true"], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        pytest.fail("a worker without the client's disk needs `unshare` of util-linux")
    if tried.returncode:
        pytest.fail(f"a worker without the client's disk needs the right to mount in a namespace: {tried.stderr}")
    return command


class DaskCluster:
    """A scheduler and its workers, all of them processes of their own, working in `folder`.

    Workers have numbers, from 0 in the order in which they were added, and names `worker-0`, `worker-1`, …
    """

    def __init__(self, folder: Path, options: WorkerOptions, tls: TlsFiles | None) -> None:
        self.folder = folder
        self.scheduler_file = folder / "scheduler.json"
        self.address = ""
        self.processes: list[Process] = []
        self._options = options
        self._tls = tls

    @property
    def workers(self) -> Sequence[Process]:
        """The process of every worker, its nanny's where it has one, by number; also of those that ended."""
        return self.processes[1:]

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of its own, which is not the default one."""
        security = self._tls.security() if self._tls else None
        with warnings.catch_warnings():
            # Tests of the versions have clusters that do not agree.
            warnings.simplefilter("ignore", VersionMismatchWarning)
            client = Client(self.address, timeout=WAIT_TIMEOUT_S, set_as_default=False, security=security)
        with client:
            yield client

    def worker_addresses(self) -> dict[int, str]:
        """Addresses of the workers that the scheduler knows, by number."""
        with self.client() as client:
            return _addresses(client)

    def add_worker(self, *, wait: bool = True, **changes: Any) -> int:
        """Start one more worker, with the options of the block but for `changes`; returns its number.

        With `wait`, it is known to the scheduler then.
        """
        options = replace(self._options, **changes)
        number = len(self.workers)
        place = ("--local-directory", str(self.folder / f"worker-{number}"), "--death-timeout", "60")
        name = ("--name", f"worker-{number}")
        hiding = () if options.hidden is None else (*_namespace_command(), str(options.hidden))
        self._start("worker", self.address, *options.flags(), *name, *place, env=options.env, before=hiding)
        if wait:
            self.wait_for_workers([number])
        return number

    def wait_for_workers(self, numbers: Sequence[int]) -> None:
        """Return once the scheduler knows these workers; fail the test when one of them has ended."""

        def are_there() -> bool:
            for number in numbers:
                assert self.workers[number].poll() is None, self.logs()
            return set(numbers) <= set(_addresses(client))

        with self.client() as client:
            wait_until(are_there, f"workers {numbers} have joined")

    def kill_worker(self, number: int) -> None:
        """End a worker, and its nanny, as a power cut would."""
        self._kill(self.workers[number])

    def kill_worker_below_nanny(self, number: int) -> None:
        """End a worker as the system does when memory runs out; its nanny starts another one."""
        address = self.worker_addresses()[number]
        with self.client() as client:
            (pid,) = client.run(os.getpid, workers=[address]).values()
        assert pid != self.workers[number].pid, "the worker has no nanny"
        os.kill(pid, signal.SIGKILL)

    def retire_worker(self, number: int) -> None:
        """Let a worker end its tasks, give its data to others and go, as an operator does who needs the machine."""
        address = self.worker_addresses()[number]
        with self.client() as client:
            client.retire_workers(workers=[address])

    def kill_any_worker(self, chance: random.Random) -> bool:
        """End the worker below one of the nannies, as the system does when memory runs out; False where none is."""
        nanny = psutil.Process(chance.choice(self.workers).pid)
        try:
            worker = max(nanny.children(), key=lambda child: child.memory_info().rss)
            worker.kill()
        except (ValueError, psutil.NoSuchProcess):
            return False
        return True

    def stop_worker(self, number: int) -> None:
        """Ask a worker to end (SIGTERM), as a service manager does; it gives its data to nobody. Returns at once."""
        self.workers[number].terminate()

    def pause_worker(self, number: int) -> None:
        """Let a worker say and do nothing more until it is resumed, as behind a cut network."""
        stop_group(self.workers[number].pid)

    def resume_worker(self, number: int) -> None:
        """Let a paused worker go on."""
        os.killpg(self.workers[number].pid, signal.SIGCONT)

    def kill_scheduler(self) -> None:
        """End the scheduler as a power cut would."""
        self._kill(self.processes[0])

    def logs(self) -> str:
        """What all processes wrote, the scheduler first."""
        return "\n".join((self.folder / f"log-{number}.txt").read_text() for number in range(len(self.processes)))

    def _start_scheduler(self, env: Mapping[str, str]) -> None:
        file = ("--scheduler-file", str(self.scheduler_file))
        self._start("scheduler", "--port", "0", *file, "--idle-timeout", "30 minutes", env=env)
        scheduler = self.processes[0]
        # Written in one go, but not in one step: until its last brace is there the file says nothing.
        wait_until(
            lambda: scheduler.poll() is not None or _text_of(self.scheduler_file).rstrip().endswith("}"),
            "the scheduler has written its file",
        )
        assert scheduler.poll() is None, self.logs()
        self.address = json.loads(self.scheduler_file.read_text())["address"]

    def _start(self, *arguments: str, env: Mapping[str, str], before: Sequence[str] = ()) -> None:
        """Start one of dask's commands: as a fork, or as a fresh process where it has to find another machine."""
        tls = ["--protocol", "tls", *self._tls.flags("--tls-ca-file")] if self._tls else []
        flags = ("--host", "127.0.0.1", "--no-dashboard", "--dashboard-address", "127.0.0.1:0", *tls)
        log = self.folder / f"log-{len(self.processes)}.txt"
        found = {"PYTHONPATH": str(ROOT), **env}
        if env or before:
            with log.open("wb") as file:
                process: Process = subprocess.Popen(
                    [*before, sys.executable, "-m", "dask", *arguments, *flags],
                    cwd=self.folder,
                    env={**os.environ, **found},
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                )
        else:
            process = fork_module("dask", *arguments, *flags, cwd=self.folder, stdout=log, stderr=log, env=found)
        self.processes.append(process)

    def _kill(self, process: Process) -> None:
        # Killed, not asked: a worker that is asked to end waits for its scheduler. Each process leads a group of
        # its own, so that whatever it started goes with it.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _kill_all(self) -> None:
        for process in self.processes:
            self._kill(process)


def _text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _addresses(client: Client) -> dict[int, str]:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {int(str(worker["id"]).removeprefix("worker-")): address for address, worker in workers.items()}


@contextmanager
def start_cluster(
    folder: Path,
    n_workers: int,
    *,
    tls: TlsFiles | None = None,
    scheduler_env: Mapping[str, str] | None = None,
    **options: Any,
) -> Iterator[DaskCluster]:
    """A scheduler and `n_workers` workers that it knows, working in `folder`; all of them end with the block.

    `options` are the fields of WorkerOptions; `add_worker` adds workers with others.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cluster = DaskCluster(folder, WorkerOptions(**options), tls)
    try:
        cluster._start_scheduler(scheduler_env or {})
        numbers = [cluster.add_worker(wait=False) for _ in range(n_workers)]
        cluster.wait_for_workers(numbers)
        yield cluster
    finally:
        cluster._kill_all()
