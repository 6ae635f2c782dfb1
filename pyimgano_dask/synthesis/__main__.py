"""`python -m pyimgano_dask.synthesis OUT_DIR`: write the inspection data set and say what it holds."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from pyimgano_dask.errors import PyimganoDaskError
from pyimgano_dask.synthesis.dataset import (
    DEFAULT_SIZES_HW,
    SUFFIXES,
    InspectionSet,
    write_inspection_set,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 for a flag or folder that cannot be used, 1 when writing stops half way."""
    flags = _parser().parse_args(argv)
    try:
        made = write_inspection_set(
            flags.out_dir,
            n_train=flags.train,
            n_good=flags.good,
            n_per_defect=flags.per_defect,
            seed=flags.seed,
            sizes_hw=flags.size or DEFAULT_SIZES_HW,
            color=not flags.grey,
            suffix=flags.suffix,
        )
    except PyimganoDaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(describe(made))
    return 0


def describe(made: InspectionSet) -> str:
    """The folders of the set and how many images and masks each holds, one a line."""
    rows = [("train/good", len(made.train_good), 0), ("test/good", len(made.test_good), 0)]
    rows += [(f"test/{kind}", len(made.test_defect[kind]), len(made.masks[kind])) for kind in made.test_defect]
    rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines = [f"Inspection data set in {made.root}", f"  {'folder':<14}{'images':>8}{'masks':>8}"]
    return "\n".join(lines + [f"  {name:<14}{images:>8}{masks or '-':>8}" for name, images, masks in rows])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pyimgano_dask.synthesis",
        description="Write a small inspection data set in the folder layout of MVTec AD. "
        "The same flags give the same bytes.",
    )
    parser.add_argument("out_dir", metavar="OUT_DIR", help="folder to write; made if missing")
    parser.add_argument("--train", type=int, default=24, metavar="N", help="good images to train on (default 24)")
    parser.add_argument("--good", type=int, default=6, metavar="N", help="good images to test on (default 6)")
    parser.add_argument("--per-defect", type=int, default=4, metavar="N", help="images of each defect kind (default 4)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="0 or more (default 0)")
    parser.add_argument(
        "--size",
        type=_size_hw,
        nargs="+",
        action="extend",
        metavar="HxW",
        help="image sizes, taken in turn (default 256x256 240x320 300x220)",
    )
    parser.add_argument("--suffix", choices=SUFFIXES, default=".png", help="image files (default .png)")
    parser.add_argument("--grey", action="store_true", help="all images grey; else one of four is")
    return parser


def _size_hw(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an image size; write height x width in pixels, such as 240x320"
        )
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    sys.exit(main())
