"""`pyimgano-infer`: inspect images."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pyimgano_dask.cli.flags import Parser, add_knobs, attach_negative_values, explicit_values
from pyimgano_dask.cli.shell import EXIT_CODES, config_of, guarded, inspected, print_warnings
from pyimgano_dask.settings.commands import INFER
from pyimgano_dask.settings.resolve import resolve
from pyimgano_dask.version import __version__


def build_parser(prog: str, config_flags: Sequence[str]) -> Parser:
    """The parser; `config_flags` are the spellings of the flag that names a config file."""
    parser = Parser(
        prog=prog,
        ways=(
            "--model NAME [--train-dir DIR] --input PATH ... [flags]",
            f"{config_flags[0]} FILE [--input PATH ...] [flags]",
            "--list-models [--tags TAG[,TAG]] [--json]",
            "--model-info NAME [--json]",
        ),
        description="Score images, extract their defects and write records, masks, maps and overlays: "
        "the same bytes on any scheduler.",
        epilog=EXIT_CODES,
    )
    source = parser.add_argument_group("source, exactly one").add_mutually_exclusive_group(required=True)
    source.add_argument("--model", metavar="NAME", help="Registered detector name.")
    source.add_argument(
        *config_flags,
        dest="infer_config",
        metavar="FILE",
        help="infer_config.json: detector, thresholds and defect settings (any block of the settings may be in it).",
    )
    source.add_argument(
        "--list-models", action="store_true", help="Print the detectors and end; on a terminal with what each does."
    )
    source.add_argument("--model-info", metavar="NAME", help="Print one detector's arguments and end.")
    parser.add_argument("--infer-category", metavar="NAME", help="Category of an --infer-config that holds several.")
    parser.add_argument(
        "--tags",
        metavar="TAG[,TAG]",
        help="With --list-models: only detectors with all these tags; "
        "the tag pyimgano lists those of the package pyimgano.",
    )
    parser.add_argument("--json", action="store_true", help="With --list-models or --model-info: print JSON.")
    parser.add_argument("--debug", action="store_true", help="Print the traceback of an error.")
    parser.add_argument("--version", action="version", version=f"pyimgano-dask {__version__}")
    add_knobs(parser, INFER, taken=("--model",))
    return parser


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "pyimgano-infer",
    config_flags: Sequence[str] = ("--infer-config",),
) -> int:
    """Run the command; returns its exit code."""
    words = attach_negative_values(sys.argv[1:] if argv is None else argv, INFER)
    arguments = vars(build_parser(prog, config_flags).parse_args(words))
    return guarded(prog, lambda: _work(arguments, prog), debug=arguments["debug"])


def _work(arguments: dict[str, Any], prog: str) -> int:
    if arguments["list_models"] or arguments["model_info"] is not None:
        from pyimgano_dask.cli.discovery import discover

        return discover(arguments)
    config = config_of(arguments, prog)
    resolved = resolve(explicit_values(arguments, INFER), config)
    print_warnings(prog, resolved.advice)

    from pyimgano_dask.dataflow.detector_advice import detector_advice
    from pyimgano_dask.dataflow.run import run

    print_warnings(prog, detector_advice(resolved))
    return inspected(lambda progress: run(resolved, sys.stdout.buffer, progress), resolved.settings, prog)


if __name__ == "__main__":
    sys.exit(main())
