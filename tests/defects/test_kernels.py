"""What compilation itself promises; the loops are tested where they are used."""

import os
import subprocess
import sys
from pathlib import Path

from pyimgano_dask.defects.kernels import compiled


def test_a_function_that_no_cache_can_keep_is_compiled_all_the_same() -> None:
    namespace: dict[str, object] = {}
    exec("def double(value): return 2 * value", namespace)

    assert compiled(namespace["double"])(21) == 42  # type: ignore[type-var]


def test_printing_help_compiles_nothing() -> None:
    loaded = "import sys, pyimgano_dask.cli.infer, pyimgano_dask.cli.rescore; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "False\n"


def test_a_damaged_cache_costs_a_compilation_and_no_result(tmp_path: Path) -> None:
    program = (
        "import numpy as np; from pyimgano_dask.defects.kernels import smallest_linked;"
        "print(smallest_linked(np.array([[0, 0, 1, 1], [3, 0, 4, 1]]), np.array([0, 1]), 2).tolist())"
    )

    def run() -> str:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run() == "[0, 0]\n"
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    for damage in (b"", b"not what numba wrote"):
        for path in kept:
            path.write_bytes(damage)
        assert run() == "[0, 0]\n"
