"""What compilation itself promises; the loops are tested where they are used."""

import subprocess
import sys

from pyimgano_dask.defects.kernels import compiled


def test_a_function_that_no_cache_can_keep_is_compiled_all_the_same() -> None:
    namespace: dict[str, object] = {}
    exec("def double(value): return 2 * value", namespace)

    assert compiled(namespace["double"])(21) == 42  # type: ignore[type-var]


def test_printing_help_compiles_nothing() -> None:
    loaded = "import sys, pyimgano_dask.cli.infer, pyimgano_dask.cli.rescore; print('numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout == "False\n"
