"""What the commands import, imported before they are forked: see `tests.commands`.

The commands' own modules are left out, so that each fork runs them as `python -m` does.
"""

from __future__ import annotations

from importlib import import_module

import numpy as np

from pyimgano_dask.defects.kernels import only_labels

for name in (
    "distributed.cli.dask_scheduler",
    "distributed.cli.dask_worker",
    "pyimgano_dask.cli.console",
    "pyimgano_dask.cli.flags",
    "pyimgano_dask.cli.profile",
    "pyimgano_dask.cli.shell",
    "pyimgano_dask.dataflow.cluster_scheduler",
    "pyimgano_dask.dataflow.clusters",
    "pyimgano_dask.dataflow.detector_advice",
    "pyimgano_dask.dataflow.local_schedulers",
    "pyimgano_dask.dataflow.rescore",
    "pyimgano_dask.dataflow.run",
    "pyimgano_dask.detectors.pixel_statistics",
    "pyimgano_dask.detectors.reference_difference",
    "pyimgano_dask.storage.zarr_store",
    "s3fs",
):
    import_module(name)

# The first kernel of a process readies numba. It starts no thread, which a fork would lose.
only_labels(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.int32), np.zeros(1, np.bool_))
