"""`pyimgano-validate-infer-config`: check an infer config without running it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pyimgano_dask.cli.shell import print_warnings
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import resolve
from pyimgano_dask.version import __version__


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0 for a valid config, 2 with every fault named otherwise."""
    parser = argparse.ArgumentParser(
        prog="pyimgano-validate-infer-config", description="Check an infer_config.json.", allow_abbrev=False
    )
    parser.add_argument("infer_config", metavar="FILE", help="The infer config.")
    parser.add_argument("--infer-category", metavar="NAME", help="Category of a config that holds several.")
    parser.add_argument("--json", action="store_true", help="Print the config with every default filled in.")
    parser.add_argument("--version", action="version", version=f"pyimgano-dask {__version__}")
    arguments = parser.parse_args(argv)
    try:
        config = read_infer_config(arguments.infer_config, arguments.infer_category)
        print_warnings(parser.prog, config.warnings)
        resolved = resolve({}, config)
    except ConfigError as error:
        for line in str(error).splitlines():
            print(f"{parser.prog}: error: {line}", file=sys.stderr)
        return error.exit_code
    print_warnings(parser.prog, resolved.advice)
    warnings = len(config.warnings) + len(resolved.advice)
    verdict = f"valid, {warnings} warning{'s' if warnings > 1 else ''}" if warnings else "valid"
    filled = json.dumps(resolved.settings.model_dump(mode="json"), indent=2)
    print(filled if arguments.json else f"{arguments.infer_config}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
