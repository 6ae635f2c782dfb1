"""The same run from Python: what notebooks and other programs call."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from pyimgano_dask.settings.commands import INFER, RESCORE
from pyimgano_dask.settings.infer_config import read_infer_config
from pyimgano_dask.settings.rescoring import resolve_rescoring
from pyimgano_dask.settings.resolve import given_by_keyword, resolve

if TYPE_CHECKING:
    from pyimgano_dask.dataflow.inspection import RunSummary


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
    from pyimgano_dask.dataflow.detector_advice import detector_advice
    from pyimgano_dask.dataflow.run import run

    config = read_infer_config(os.fspath(infer_config), infer_category) if infer_config is not None else None
    resolved = resolve(given_by_keyword(settings, INFER), config)
    _warn(*resolved.warnings, *resolved.advice, *detector_advice(resolved))
    return _with_records(lambda unsaved: run(resolved, unsaved))


def rescore(
    *, infer_config: str | os.PathLike[str] | None = None, infer_category: str | None = None, **settings: Any
) -> RunSummary:
    """Extract the defects of stored anomaly maps, as the command `pyimgano-rescore` does.

    Give `from_run=` (the run folder of an earlier `infer`) or `maps=`; every other keyword is a flag with underscores,
    and wins over the config, which wins over the settings of the run. The answer and the errors are those of `infer`.
    """
    from pyimgano_dask.dataflow.rescore import rescore

    config = None
    if infer_config is not None:
        config = read_infer_config(os.fspath(infer_config), infer_category, with_checkpoint=False)
    rescoring = resolve_rescoring(given_by_keyword(settings, RESCORE), config)
    _warn(*rescoring.resolved.warnings, *rescoring.resolved.advice)
    return _with_records(lambda unsaved: rescore(rescoring, unsaved))


def _warn(*sentences: str) -> None:
    for warning in sentences:
        warnings.warn(warning, stacklevel=3)


def _with_records(start: Callable[[BinaryIO], RunSummary]) -> RunSummary:
    """The summary of a run whose records can be read back."""
    unsaved = tempfile.TemporaryFile()  # noqa: SIM115 - the answer reads from it and closes it with itself
    summary = start(unsaved)
    summary.unsaved_records = unsaved
    return summary
