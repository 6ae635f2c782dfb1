"""What the commands import, imported before they are forked: see `tests.commands`.

The commands' own modules are left out, so that each fork runs them as `python -m` does.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from pyimgano_dask.defects.kernels import only_labels

for name in (
    "cli.console",
    "cli.flags",
    "cli.profile",
    "cli.shell",
    "dataflow.detector_advice",
    "dataflow.local_schedulers",
    "dataflow.rescore",
    "dataflow.run",
):
    import_module(f"pyimgano_dask.{name}")

# The first kernel of a process readies numba. It starts no thread, which a fork would lose.
only_labels(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int32), np.zeros(1, np.bool_))
