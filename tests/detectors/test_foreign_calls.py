"""Foreign calls: alone, repeatable, and silent without silencing anybody else."""

from __future__ import annotations

import io
import json
import logging
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from pyimgano_dask.detectors.foreign_calls import alone_and_repeatable
from tests.conftest import run_python

SCRIPT = '''
"""`pyimgano-infer` with one more detector, which prints whatever it does."""

import logging, sys, threading
import numpy as np
from pyimgano_dask.cli.infer import main
from pyimgano_dask.detectors.base import Prediction, TrainingFreeDetector
from pyimgano_dask.detectors.foreign_calls import alone_and_repeatable
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.settings.knob import Block

kept = []

@register
class Talks(TrainingFreeDetector[Block]):
    """Scores 1, and talks."""

    name, summary, tags, reference = "talks", "Talks.", ("test",), "None."
    arguments_type = Block
    color, contamination = "gray", None

    def predict(self, images, references=()):
        with alone_and_repeatable(0):
            kept.append(sys.stdout)
            print("talk", flush=True)
            print("talk", file=kept[0])
            print("talk", file=sys.stderr)
            thread = threading.Thread(target=print, args=("talk",))
            thread.start()
            thread.join()
        return Prediction(np.ones(len(images)), tuple(np.zeros(image.shape, np.float32) for image in images))

sys.exit(main())
'''


@contextmanager
def captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def in_a_thread(work: Callable[[], object]) -> Thread:
    thread = Thread(target=work)
    thread.start()
    return thread


def test_prints_of_the_call_and_of_threads_it_starts_are_discarded() -> None:
    with captured() as (out, err), alone_and_repeatable(0):
        print("call")
        print("call", file=sys.stderr)
        in_a_thread(lambda: print("thread of the call")).join()
        with alone_and_repeatable(0):
            print("call in the call")
        print("call again")
    assert (out.getvalue(), err.getvalue()) == ("", "")


def test_prints_of_threads_that_were_there_before_are_not() -> None:
    begun, printed = Event(), Event()

    def bystander() -> None:
        begun.wait()
        print("record")
        print("progress", file=sys.stderr)
        printed.set()

    with captured() as (out, err):
        thread = in_a_thread(bystander)
        with alone_and_repeatable(0):
            print("call")
            begun.set()
            printed.wait()
            print("call")
        thread.join()
        print("afterwards")
    assert (out.getvalue(), err.getvalue()) == ("record\nafterwards\n", "progress\n")


def test_a_thread_of_the_call_is_silent_though_it_has_the_number_of_one_that_was_there() -> None:
    ending, numbers = Event(), set()
    with captured() as (out, _):
        bystanders = [in_a_thread(ending.wait) for _ in range(20)]
        numbers = {thread.ident for thread in bystanders}
        with alone_and_repeatable(0):
            ending.set()
            for thread in bystanders:
                thread.join()
            later = [in_a_thread(lambda: print("thread of the call")) for _ in range(20)]
            for thread in later:
                thread.join()
    assert numbers & {thread.ident for thread in later}, "no number was given again"
    assert out.getvalue() == ""


def test_what_a_call_writes_as_bytes_is_discarded_too() -> None:
    with captured() as (out, _), alone_and_repeatable(0):
        sys.stdout.buffer.write(b"call")
        sys.stdout.reconfigure(line_buffering=True)
    assert out.getvalue() == ""


def test_a_stream_that_a_call_keeps_is_silent_in_later_calls_alone() -> None:
    log = logging.getLogger("foreign")
    with captured() as (out, err):
        with alone_and_repeatable(0):
            handler = logging.StreamHandler(sys.stdout)
            log.addHandler(handler)
        with alone_and_repeatable(0):
            log.warning("in a call")
        log.warning("between calls")
        log.removeHandler(handler)
    assert (out.getvalue(), err.getvalue()) == ("between calls\n", "")


def test_a_call_that_fails_leaves_everything_as_it_was() -> None:
    def fail() -> None:
        with alone_and_repeatable(0):
            random.random()
            np.random.random()
            raise ZeroDivisionError

    with captured() as (out, _):
        before = sys.stdout, sys.stderr, random.getstate(), np.random.get_state()[1].tolist()
        with pytest.raises(ZeroDivisionError):
            fail()
        assert (sys.stdout, sys.stderr, random.getstate(), np.random.get_state()[1].tolist()) == before
        print("afterwards")
    assert out.getvalue() == "afterwards\n"


def test_what_a_call_draws_depends_on_its_seed_alone() -> None:
    def drawn(seed: int) -> tuple[float, float]:
        with alone_and_repeatable(seed):
            return random.random(), float(np.random.random())

    first = drawn(3)
    random.random()
    assert drawn(3) == first
    assert drawn(4) != first


@pytest.mark.parametrize("scheduler", ["threads", "sync"])
def test_records_and_progress_of_a_run_are_whole_while_its_detector_prints(
    scheduler: str, tmp_path: Path, workplace: Callable[[str], Path]
) -> None:
    place = workplace("talks")
    (tmp_path / "script.py").write_text(SCRIPT)
    flags = ("--model", "talks", "--input", *["@list.txt"] * 3, "--batch-size", "1", "--progress")
    done = run_python(str(tmp_path / "script.py"), *flags, "--scheduler", scheduler, "--workers", "4", cwd=place)
    assert done.rc == 3, done.stderr
    assert [json.loads(line)["index"] for line in done.stdout.splitlines()] == list(range(66))
    assert "60 of 66 (done)" in done.stderr
    assert "talk" not in done.stderr.replace("talks", "")
