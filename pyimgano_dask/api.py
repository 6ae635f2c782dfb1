"""The same run from Python: what notebooks and other programs call."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING, Any

from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.resolve import given_by_keyword, resolve

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.run import RunSummary


def infer(
    *, infer_config: str | os.PathLike[str] | None = None, infer_category: str | None = None, **settings: Any
) -> RunSummary:
    """Inspect images, as the command `pyimgano-infer` does.

    `infer_config` is the path of a config file, `infer_category` one of its categories; every other keyword is a
    flag with underscores (`train_dir=`, `save_jsonl=`, `defect_min_area=`, …), and wins over the config.
    `records()` of the answer reads the records one by one: from `save_jsonl`, or without it from a temporary file
    that lives as long as the answer.

    Raises ConfigError for settings that cannot work, before anything is read or written, and RunError for a
    run that cannot finish. Inputs that fail do not raise: they have an error record, and `n_errors` counts them.

    Scripts that use the schedulers `processes` or `local-cluster` call this under `if __name__ == "__main__":`,
    because those start new Python processes.
    """
    from pyimgano_dask.dataflow.run import run

    config = read_infer_config(os.fspath(infer_config), infer_category) if infer_config is not None else None
    resolved = resolve(given_by_keyword(settings), config)
    unsaved = tempfile.TemporaryFile()  # noqa: SIM115 - the answer reads from it and closes it with itself
    summary = run(resolved, unsaved)
    summary.unsaved_records = unsaved
    return summary
