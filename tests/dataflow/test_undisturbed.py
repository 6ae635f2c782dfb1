from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyimgano_dask.dataflow.undisturbed import undisturbed

ENDING = (signal.SIGINT, signal.SIGTERM)
SHOW_BLOCKED = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))"


@contextmanager
def handlers_that_raise() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise InterruptedError with the number, whoever has them ignored."""

    def leave(number: int, frame: object) -> None:
        raise InterruptedError(number)

    before = {number: signal.signal(number, leave) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_is_heard_once_the_block_is_over(number: signal.Signals) -> None:
    steps = []

    def work() -> None:
        with undisturbed():
            os.kill(os.getpid(), number)
            steps.append("end")
        steps.append("after")

    with handlers_that_raise(), pytest.raises(InterruptedError) as heard:
        work()
    assert (steps, heard.value.args) == (["end"], (number,))


def test_a_signal_is_heard_although_the_block_fails() -> None:
    def work() -> None:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            raise LookupError

    with handlers_that_raise(), pytest.raises(InterruptedError) as heard:
        work()
    assert isinstance(heard.value.__context__, LookupError)


def test_handlers_and_mask_are_as_before_after_the_block() -> None:
    def state() -> object:
        return [signal.getsignal(number) for number in ENDING], signal.pthread_sigmask(signal.SIG_BLOCK, ())

    before = state()
    with undisturbed():
        assert state() != before
    assert state() == before


def test_processes_started_in_the_block_or_by_its_threads_are_never_interrupted_but_can_be_terminated() -> None:
    blocked = []

    def start() -> None:
        done = subprocess.run([sys.executable, "-c", SHOW_BLOCKED], capture_output=True, text=True, check=True)
        blocked.append(done.stdout)

    with undisturbed():
        start()
        thread = threading.Thread(target=start)
        thread.start()
    thread.join()
    assert blocked == [f"{int(signal.SIGINT)}\n"] * 2


def test_another_thread_starts_processes_as_well() -> None:
    blocked = []

    def start() -> None:
        with undisturbed():
            blocked.append(subprocess.check_output([sys.executable, "-c", SHOW_BLOCKED], text=True))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    assert blocked == [f"{int(signal.SIGINT)}\n"]
