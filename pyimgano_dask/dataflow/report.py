"""Dask's own performance report of a run, as a page that needs no network to be read."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.storage.files import make_folder, write_atomic

if TYPE_CHECKING:
    from distributed import Client

PACKAGE = "bokeh"


@contextmanager
def performance_report_at(path: str, client: Client) -> Iterator[None]:
    """Report on what the cluster does within the block; `path` appears whole at its end, also when the block fails.

    Raises ConfigError, before the block, when a library is missing here or on the scheduler, and RunError when the
    block was fine and its report cannot be had; a report of a block that failed never hides its error.
    """
    from distributed import performance_report

    _check_libraries(client)
    failure: BaseException | None = None
    with tempfile.TemporaryDirectory() as folder:
        draft = os.path.join(folder, "report.html")
        try:
            with client.as_current(), performance_report(draft, mode="inline"):
                try:
                    yield
                except BaseException as error:  # noqa: BLE001 - raised below, once its report is there
                    failure = error
            make_folder(os.path.dirname(path))
            write_atomic(path, Path(draft).read_bytes())
        except Exception as error:
            if failure is None:
                raise RunError(f"--performance-report: the report cannot be made or written: {error}") from error
    if failure is not None:
        raise failure


def _check_libraries(client: Client) -> None:
    versions: Any = client.get_versions(packages=[PACKAGE])
    places = {"client": "here", "scheduler": "on the scheduler"}
    missing = [where for place, where in places.items() if versions[place]["packages"][PACKAGE] is None]
    if missing:
        raise ConfigError(
            f"--performance-report needs {PACKAGE}, which is not installed {' or '.join(missing)}; "
            "install pyimgano-dask[report] there, or leave the flag out"
        )
