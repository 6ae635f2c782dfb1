"""Time joining the shards of a run against `cat parts/* > file`, on the same files in the same minute.

    python tests/benchmarks/bench_merge.py [--folder DIR] [--runs N] [--sets small large huge]

Three sets of shards: those of a million inputs in batches of 32, and two of fewer and larger ones. Each run writes a
new file by `cat` and by `copy_into` into `open_sink`, one after the other, and checks that both hold the same bytes.
Times are the fastest of N runs; the folder decides which disk is measured.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pyimgano_dask.storage.files import copy_into, list_names, open_sink

SETS = {"small": (31_250, 16 << 10), "large": (2_000, 256 << 10), "huge": (200, 8 << 20)}


def write_shards(parts: Path, n_shards: int, n_bytes: int) -> None:
    """Fill a new folder with shards of lines, each its own."""
    parts.mkdir()
    for index in range(n_shards):
        line = f'{{"index": {index:08d}, "score": 0.5}}\n'.encode()
        (parts / f"part-{index:08d}.jsonl").write_bytes(line * (n_bytes // len(line)))


def merge(parts: Path, target: Path) -> None:
    """Join the shards as a run does that keeps them."""
    with open_sink(str(target)) as sink:
        for name in list_names(str(parts)):
            copy_into(f"{parts}/{name}", sink)


def concatenate(parts: Path, target: Path) -> None:
    """Join the shards as a shell does."""
    subprocess.run(f"cat {parts}/* > {target}", shell=True, check=True)


def seconds(join: Callable[[Path, Path], None], parts: Path, target: Path) -> float:
    """How long it takes to write `target` anew."""
    target.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    join(parts, target)
    return time.perf_counter() - start


def measure(name: str, folder: Path, runs: int) -> str:
    """One row of the table."""
    parts, merged, catted = folder / name, folder / "merged", folder / "catted"
    n_shards, n_bytes = SETS[name]
    write_shards(parts, n_shards, n_bytes)
    concatenate(parts, catted)
    pairs = [(seconds(concatenate, parts, catted), seconds(merge, parts, merged)) for _ in range(runs)]
    assert filecmp.cmp(merged, catted, shallow=False)
    size = merged.stat().st_size
    of_cat, of_merge = (min(times) for times in zip(*pairs, strict=True))
    merged.unlink()
    catted.unlink()
    return (
        f"{n_shards:7,} {size / 2**20:8.0f} {of_cat:8.2f} {of_merge:8.2f} {of_cat / of_merge:20.2f} "
        f"{1e6 * of_merge / n_shards:12.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where the shards are written; the system's temporary folder unless given")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    print(" shards      MiB    cat s  merge s  times as fast as cat   µs a shard")
    for name in arguments.sets:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            print(measure(name, Path(folder), arguments.runs), flush=True)


if __name__ == "__main__":
    main()
