"""The generated tables of detectors: in step with the registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pyimgano_dask.detectors.index import INDEX_NAME, SPEED_NAME, index_markdown, write_index
from pyimgano_dask.detectors.registry import detector_types

DOCS = Path(__file__).parents[2] / "docs"


def test_the_docs_are_what_the_registry_generates(tmp_path: Path) -> None:
    shutil.copy(DOCS / SPEED_NAME, tmp_path)
    write_index(tmp_path)
    assert (DOCS / INDEX_NAME).read_text() == (tmp_path / INDEX_NAME).read_text(), "run `make docs`"


def rows_of(name: str, titled: str) -> list[dict[str, str]]:
    """The rows of a detector, by the titles of the columns, in the table below a heading."""
    text = (
        index_markdown(json.loads((DOCS / SPEED_NAME).read_text())).partition(f"## {titled}\n")[2].partition("\n## ")[0]
    )
    lines = [line.replace("\\|", "\0").strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    titles, _, *rows = [[cell.strip() for cell in cells] for cells in lines]
    return [dict(zip(titles, row, strict=True)) for row in rows if row[0] == f"`{name}`"]


def test_every_detector_has_one_row_in_each_table_and_a_speed() -> None:
    speed = json.loads((DOCS / SPEED_NAME).read_text())
    for name, detector_type in detector_types().items():
        (does,) = rows_of(name, "What each does")
        assert does["what it does"] == detector_type.summary
        assert float(does["ms an image"]) == round(speed["ms"][name], 1)
        assert len(rows_of(name, "What each needs")) == 1


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("vision_padim", ("`[torch]`", "required", "optional", "none", "none")),
        ("vision_autoencoder", ("`[torch]`", "required", "none", "none", "none")),
        ("vision_onnx", ("`[onnx]`", "for thresholds", "none", "`.onnx`, required", "none")),
        ("vision_reference_diff_map", ("none", "for thresholds", "none", "none", "required")),
        ("vision_texture_padim", ("none", "required", "none", "none", "none")),
    ],
)
def test_what_each_needs(name: str, cells: tuple[str, ...]) -> None:
    (row,) = rows_of(name, "What each needs")
    assert tuple(row.values())[1:] == cells
