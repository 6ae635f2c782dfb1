"""The generated table of detectors: in step with the registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from pyimgano_dask.detectors.index import INDEX_NAME, SPEED_NAME, index_markdown, write_index
from pyimgano_dask.detectors.registry import detector_types

DOCS = Path(__file__).parents[2] / "docs"


def test_the_docs_are_what_the_registry_generates(tmp_path: Path) -> None:
    shutil.copy(DOCS / SPEED_NAME, tmp_path)
    write_index(tmp_path)
    assert (DOCS / INDEX_NAME).read_text() == (tmp_path / INDEX_NAME).read_text(), "run `make docs`"


def test_every_detector_has_one_row_and_a_speed() -> None:
    speed = json.loads((DOCS / SPEED_NAME).read_text())
    lines = index_markdown(speed).splitlines()
    for name, detector_type in detector_types().items():
        (row,) = [line for line in lines if line.startswith(f"| `{name}` |")]
        cells = [cell.strip() for cell in row.replace("\\|", "\0").strip("|").split("|")]
        assert len(cells) == 8
        assert cells[1] == detector_type.summary
        assert float(cells[7]) == round(speed["ms"][name], 1)
