from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import infer_command
from tests.dataflow.resuming import RUN


@pytest.fixture(scope="session")
def whole(workplace: Callable[[str], Path]) -> Path:
    """Where the run that others cut off was made without a break, by a fresh process."""
    place = workplace("whole")
    done = infer_command(*RUN, "--scheduler", "sync", cwd=place, fresh=True)
    assert done.rc == 3, done.stderr
    return place
