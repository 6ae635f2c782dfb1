"""`pyimgano-rescore`: new thresholds and controls on stored anomaly maps, without inference."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from pyimgano_dask.cli.flags import Parser, add_knobs, attach_negative_values, explicit_values
from pyimgano_dask.cli.shell import EXIT_CODES, config_of, guarded, inspected, print_warnings
from pyimgano_dask.settings.commands import INFER, RESCORE
from pyimgano_dask.settings.rescoring import resolve_rescoring
from pyimgano_dask.version import __version__


def build_parser(prog: str, config_flags: Sequence[str]) -> Parser:
    """The parser; `config_flags` are the spellings of the flag that names a config file."""
    parser = Parser(
        prog=prog,
        ways=(
            f"--from-run DIR [{config_flags[0]} FILE] [flags]",
            "--maps PATH ... [--input PATH ...] [flags]",
        ),
        description="Extract the defects of stored anomaly maps: new thresholds and controls without inference. "
        "With nothing changed, the same defects and masks as the run that stored the maps.",
        epilog=EXIT_CODES,
        foreign=_of_infer,
    )
    parser.add_argument(
        *config_flags,
        dest="infer_config",
        metavar="FILE",
        help="infer_config.json: thresholds and defect settings, over those of --from-run.",
    )
    parser.add_argument("--infer-category", metavar="NAME", help="Category of an --infer-config that holds several.")
    parser.add_argument("--debug", action="store_true", help="Print the traceback of an error.")
    parser.add_argument("--version", action="version", version=f"pyimgano-dask {__version__}")
    add_knobs(parser, RESCORE)
    return parser


def _of_infer() -> dict[str, str]:
    """What to say of the flags of `pyimgano-infer` that this command does not have."""
    from pyimgano_dask.cli import infer

    flags = infer.build_parser(INFER.name, ("--infer-config",)).flags
    return dict.fromkeys(flags, f": it is one of {INFER.name}, and stored maps cannot be changed by it")


def main(
    argv: Sequence[str] | None = None,
    *,
    prog: str = "pyimgano-rescore",
    config_flags: Sequence[str] = ("--infer-config",),
) -> int:
    """Run the command; returns its exit code."""
    words = attach_negative_values(sys.argv[1:] if argv is None else argv, RESCORE)
    arguments = vars(build_parser(prog, config_flags).parse_args(words))
    return guarded(prog, lambda: _work(arguments, prog), debug=arguments["debug"])


def _work(arguments: dict[str, Any], prog: str) -> int:
    config = config_of(arguments, prog, with_checkpoint=False)
    rescoring = resolve_rescoring(explicit_values(arguments, RESCORE), config)
    print_warnings(prog, rescoring.resolved.advice)

    from pyimgano_dask.dataflow.rescore import rescore

    settings = rescoring.resolved.settings
    return inspected(lambda progress: rescore(rescoring, sys.stdout.buffer, progress), settings, prog)


if __name__ == "__main__":
    sys.exit(main())
