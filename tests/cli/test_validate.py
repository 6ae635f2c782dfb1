"""`pyimgano-validate-infer-config`: 0 for a valid config, 2 with every fault named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyimgano_dask.cli.validate import main
from pyimgano_dask.version import __version__
from tests.cli.command import command
from tests.settings.samples import FULL_CONFIG, write_config


def test_a_valid_config(tmp_path: Path) -> None:
    write_config(tmp_path, FULL_CONFIG)
    answer = command("infer_config.json", cwd=tmp_path, module="validate")
    assert (answer.code, answer.stdout, answer.stderr) == (0, b"infer_config.json: valid\n", "")


def test_every_fault_is_named(tmp_path: Path) -> None:
    config = {"schema_version": 1, "threshold": "x", "defects": {"min_area": -1, "mask_format": "gif"}}
    write_config(tmp_path, config, "c.json")
    answer = command("c.json", cwd=tmp_path, module="validate")
    assert answer.code == 2
    assert answer.stdout == b""
    prefix = "pyimgano-validate-infer-config: error: c.json: "
    assert sorted(answer.stderr.splitlines()) == sorted(
        [
            f'{prefix}defects.mask_format: "gif" is not allowed; expected one of png, npy, npz, zarr',
            f"{prefix}defects.min_area: -1 is not allowed; expected a whole number ≥ 0",
            f'{prefix}threshold: "x" is not allowed; expected a finite number or null',
        ]
    )


def test_warnings_do_not_fail_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write_config(tmp_path, {"colour": 1})]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("warning: ") == 2
    assert printed.out.endswith(": valid, 2 warnings\n")
    assert "colour" in printed.err


def test_the_filled_in_config_is_itself_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([write_config(tmp_path, {"schema_version": 1, "threshold": 0.5}), "--json"]) == 0
    filled = json.loads(capsys.readouterr().out)
    assert filled["threshold"] == 0.5
    assert filled["defects"]["mask_format"] == "png"
    assert main([write_config(tmp_path, filled, "again.json"), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == filled
    assert printed.err == ""


def test_a_category_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    categories = {"a": {"threshold": 1.0}, "b": {"threshold": 2.0}}
    path = write_config(tmp_path, {"schema_version": 1, "per_category": categories})
    assert main([path]) == 2
    assert "--infer-category" in capsys.readouterr().err
    assert main([path, "--infer-category", "b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threshold"] == 2.0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema_version": 3}', '{"a":' * 100_000])
def test_what_is_no_config_is_refused_in_words(
    tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "c.json"
    path.write_text(content)
    assert main([str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pyimgano-validate-infer-config: error: ")
    assert str(path) in line


def test_the_version_is_that_of_this_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pyimgano-dask {__version__}\n"
