"""What every command does alike: run its work, say what went wrong in words, give the exit code."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from pyimgano_dask.errors import ConfigError, PyimganoDaskError, Terminated
from pyimgano_dask.settings.infer_config import InferConfigFile, read_infer_config

if TYPE_CHECKING:
    from rich.console import Console

    from pyimgano_dask.dataflow.inspection import RunSummary
    from pyimgano_dask.settings.run import InferSettings

INTERRUPTED = 130
TERMINATED = 143
EXIT_CODES = (
    "Exit codes: 0 every input done, 1 the run could not finish, 2 bad flags, config or files, "
    "3 finished but some inputs have an error record, 130 interrupted, 143 terminated."
)


def guarded(prog: str, work: Callable[[], int], *, debug: bool) -> int:
    """The exit code of `work`; its errors go to standard error in words, with `debug` as a traceback.

    A request to terminate ends it as an interruption does, so that nothing temporary is left behind. Either is followed
    by the end of the process, which another one then brings about at once.
    """
    try:
        with _termination_as_exit():
            return work()
    except PyimganoDaskError as error:
        if debug:
            traceback.print_exc()
            return error.exit_code
        for line in str(error).splitlines():
            print(f"{prog}: error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as interruption:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_terminated = isinstance(interruption, Terminated)
        how = "terminated" if is_terminated else "interrupted"
        print(": ".join([prog, how, *map(str, interruption.args)]), file=sys.stderr)
        return TERMINATED if is_terminated else INTERRUPTED
    except BrokenPipeError:
        sys.stderr.write(f"{prog}: error: standard output was closed before all records were written\n")
        silence_stdout()
        return 1
    except MemoryError as error:
        if debug:
            raise
        said = f": {error}" if str(error) else ""
        remedy = "run again with fewer --workers, a smaller --batch-size or more memory"
        print(f"{prog}: error: out of memory{said}; {remedy}", file=sys.stderr)
        return 1
    except Exception as error:
        if debug:
            raise
        print(
            f"{prog}: error: {type(error).__name__}: {error} (run again with --debug for the details)", file=sys.stderr
        )
        return 1


def silence_stdout() -> None:
    """Once the reader of standard output has left, nothing more can be said there, not even at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """Turn SIGTERM into an interruption while the block runs; only the main thread can, others change nothing."""

    def leave(number: int, frame: object) -> NoReturn:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_warnings(prog: str, warnings: Iterable[str]) -> None:
    """Say them on standard error."""
    for warning in warnings:
        print(f"{prog}: warning: {warning}", file=sys.stderr)


def config_of(arguments: Mapping[str, Any], prog: str, *, with_checkpoint: bool = True) -> InferConfigFile | None:
    """The config file that the flags name, None without one; what is odd about it is said at once."""
    path, category = arguments["infer_config"], arguments["infer_category"]
    if path is not None:
        config = read_infer_config(path, category, with_checkpoint=with_checkpoint)
        print_warnings(prog, config.warnings)
        return config
    if category is not None:
        raise ConfigError("--infer-category chooses among the categories of an --infer-config; give both or neither")
    return None


def inspected(start: Callable[[Any], RunSummary], settings: InferSettings, prog: str) -> int:
    """Call `start` with a progress bar, print the summary and where asked the profile; returns the exit code.

    An interruption says so where nothing of the run is kept.
    """
    from pyimgano_dask.cli.console import print_summary
    from pyimgano_dask.cli.profile import print_profile
    from pyimgano_dask.cli.width import error_console

    console = error_console()
    progress = settings.dataflow.progress
    with _bar(console, console.is_terminal if progress is None else progress) as bar:
        try:
            summary = start(bar)
        except KeyboardInterrupt as interruption:
            if settings.dataflow.run_dir is None:
                raise type(interruption)("without --run-dir there is nothing to resume") from None
            raise
    print_summary(summary, console, prog)
    if settings.output.profile:
        print_profile(summary, console)
    return summary.exit_code


def _bar(console: Console, wanted: bool) -> Any:
    from pyimgano_dask.cli.console import TerminalProgress

    return TerminalProgress(console) if wanted else nullcontext()
