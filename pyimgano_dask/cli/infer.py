"""`pyimgano-infer`: inspect images."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from pyimgano_dask.cli.flags import HelpFormatter, add_knobs, explicit_values
from pyimgano_dask.errors import ConfigError, PyimganoDaskError
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import resolve
from pyimgano_dask.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130


def build_parser(prog: str, config_flags: Sequence[str]) -> argparse.ArgumentParser:
    """The parser; `config_flags` are the spellings of the flag that names a config file."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Score images, extract their defects and write records, masks, maps and overlays: "
        "the same bytes on any scheduler.",
        epilog="Exit codes: 0 every input done, 1 the run could not finish, 2 bad flags, config or files, "
        "3 finished but some inputs have an error record.",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_argument_group("source, exactly one").add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help="Registered detector name.")
    source.add_argument(
        *config_flags,
        dest="infer_config",
        metavar="FILE",
        help="infer_config.json: detector, thresholds and defect settings (any block of the settings may be in it).",
    )
    source.add_argument("--list-models", action="store_true", help="Print the detectors and end.")
    source.add_argument("--model-info", metavar="NAME", help="Print one detector's arguments and end.")
    parser.add_argument("--infer-category", metavar="NAME", help="Category of an --infer-config that holds several.")
    parser.add_argument("--tags", metavar="TAG[,TAG]", help="With --list-models: only detectors with all these tags.")
    parser.add_argument("--json", action="store_true", help="With --list-models or --model-info: print JSON.")
    parser.add_argument("--debug", action="store_true", help="Print the traceback of an error.")
    parser.add_argument("--version", action="version", version=f"pyimgano-dask {__version__}")
    add_knobs(parser, taken=("--model",))
    return parser


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "pyimgano-infer",
    config_flags: Sequence[str] = ("--infer-config",),
) -> int:
    """Run the command; returns its exit code."""
    arguments = vars(build_parser(prog, config_flags).parse_args(argv))
    try:
        if arguments["list_models"] or arguments["model_info"] is not None:
            from pyimgano_dask.cli.discovery import discover

            return discover(arguments)
        return _infer(arguments, prog)
    except PyimganoDaskError as error:
        if arguments["debug"]:
            traceback.print_exc()
            return error.exit_code
        for line in str(error).splitlines():
            print(f"{prog}: error: {line}" if not line.startswith(" ") else line, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of standard output has left; nothing more can be said there, not even at exit.
        sys.stderr.write(f"{prog}: error: standard output was closed before all records were written\n")
        _silence_stdout()
        return 1
    except Exception as error:
        if arguments["debug"]:
            raise
        print(
            f"{prog}: error: {type(error).__name__}: {error} (run again with --debug for the details)", file=sys.stderr
        )
        return 1


def _infer(arguments: dict[str, Any], prog: str) -> int:
    config = None
    if arguments["infer_config"] is None and arguments["infer_category"] is not None:
        raise ConfigError("--infer-category chooses among the categories of an --infer-config; give both or neither")
    if arguments["infer_config"] is not None:
        config = read_infer_config(arguments["infer_config"], arguments["infer_category"])
    resolved = resolve(explicit_values(arguments), config)
    for warning in resolved.warnings:
        print(f"{prog}: warning: {warning}", file=sys.stderr)

    from rich.console import Console

    from pyimgano_dask.cli.console import print_summary
    from pyimgano_dask.dataflow.run import run

    console = Console(stderr=True)
    with _progress(console, resolved.settings.dataflow.progress) as progress:
        summary = run(resolved, sys.stdout.buffer, progress)
    print_summary(summary, console)
    return summary.exit_code


def _progress(console: Console, wanted: bool | None) -> Any:
    from pyimgano_dask.cli.console import TerminalProgress

    shown = console.is_terminal if wanted is None else wanted
    return TerminalProgress(console) if shown else nullcontext()


def _silence_stdout() -> None:
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
