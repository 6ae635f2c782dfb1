"""From words to values: flags without a value, negative values, repeated and wide flags."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pyimgano_dask.cli import infer, rescore
from pyimgano_dask.cli.flags import attach_negative_values, explicit_values
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.commands import INFER, RESCORE, Command
from pyimgano_dask.settings.resolve import resolve

COMMANDS = {"infer": (INFER, infer, ["--model", "m"]), "rescore": (RESCORE, rescore, ["--maps", "m"])}
on_both = pytest.mark.parametrize("name", COMMANDS)


def values(name: str, *words: str) -> dict[str, Any]:
    """Values by config key, beside the one that names the source."""
    command, module, source = COMMANDS[name]
    parser = module.build_parser("prog", ("--infer-config",))
    arguments = vars(parser.parse_args(attach_negative_values([*source, *words], command)))
    given = {knob.key: value for knob, value in explicit_values(arguments, command).items()}
    return {key: value for key, value in given.items() if key not in ("model.name", "stored.maps")}


@on_both
@pytest.mark.parametrize("text", ["-1", "-1e-3", "-.5", "-0.25", "-1E5", "-0"])
@pytest.mark.parametrize("flag", ["--pixel-threshold", "--defect-min-score-max", "--defect-hysteresis-low"])
def test_negative_numbers(name: str, text: str, flag: str) -> None:
    for words in ((flag, text), (f"{flag}={text}",), (flag, text, "--progress"), ("--input", "a", flag, text)):
        assert float(text) in values(name, *words).values()


@on_both
@pytest.mark.parametrize("text", ["-1,2", "-1e-3,2", "-.5,.5", "-3,-2", "0,30", "run", "image"])
def test_overlay_scales(name: str, text: str) -> None:
    for words in (("--overlay-scale", text), (f"--overlay-scale={text}",)):
        assert values(name, *words) == {"output.overlay_scale": text}


@on_both
def test_negative_numbers_among_several(name: str) -> None:
    roi = values(name, "--roi-xyxy-norm", "-0.1", "0", "-1", "1")["defects.roi_xyxy_norm"]
    assert roi == (-0.1, 0, -1, 1)


@on_both
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--explain-defects"], {"defects.explain": "counts"}),
        (["--explain-defects", "--defects"], {"defects.explain": "counts", "defects.enabled": True}),
        (["--defects", "--explain-defects"], {"defects.explain": "counts", "defects.enabled": True}),
        (["--explain-defects", "full"], {"defects.explain": "full"}),
        (["--explain-defects=full", "--defects"], {"defects.explain": "full", "defects.enabled": True}),
        (["--explain-defects", "none"], {"defects.explain": "none"}),
        (["--explain-defects", "full", "--explain-defects"], {"defects.explain": "counts"}),
        (["--explain-defects", "--input", "full"], {"defects.explain": "counts", "inputs.input": ["full"]}),
    ],
    ids=str,
)
def test_explanations_with_and_without_a_value(name: str, words: Sequence[str], expected: dict[str, Any]) -> None:
    assert values(name, *words) == expected


@on_both
@pytest.mark.parametrize("text", ["image", "run", "0,30", "-1,2", "1e-3,1E3", " 0 , 1 "])
def test_scales_that_can_be_read(name: str, text: str) -> None:
    given = _given(name, f"--overlay-scale={text}")
    scale = resolve(given).settings.output.fixed_overlay_scale
    assert scale == (None if text in ("image", "run") else tuple(map(float, text.split(","))))


@on_both
@pytest.mark.parametrize(
    "text", ["2,1", "1,1", "a,b", "1", "", ",", ",1", "1,", "nan,2", "1,nan", "1,inf", "-inf,1", "1,2,3", "0;1", "RUN"]
)
def test_scales_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--overlay-scale: .*image, run, or two finite numbers MIN,MAX"):
        resolve(_given(name, f"--overlay-scale={text}"))


@on_both
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
@pytest.mark.parametrize("flag", ["--pixel-threshold", "--defect-hysteresis-high", "--defect-min-score-mean"])
def test_thresholds_that_are_no_numbers(name: str, flag: str, text: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{flag}: "):
        resolve(_given(name, f"{flag}={text}"))


@on_both
def test_only_what_is_given_is_explicit(name: str) -> None:
    assert values(name) == {}
    assert values(name, "--no-defects", "--batch-size", "0") == {
        "defects.enabled": False,
        "dataflow.batch_size": 0,
    }


@on_both
def test_all_values_that_cannot_be_read_are_told_at_once(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        values(name, "--defect-min-area", "many", "--batch-size", "1.5", "--overlay-format", "gif")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "--defect-min-area",
        "--overlay-format",
        "--batch-size",
    ]


@pytest.mark.parametrize("command", [INFER, RESCORE], ids=lambda command: command.name)
def test_words_that_follow_no_flag_with_one_value_stay_apart(command: Command) -> None:
    words = ["--defects", "-1", "--input", "-1.png", "--pixel-threshold=1", "-2", "--pixel-threshold", "--defects"]
    assert attach_negative_values(words, command) == words


def _given(name: str, *words: str) -> Any:
    command, module, source = COMMANDS[name]
    parser = module.build_parser("prog", ("--infer-config",))
    return explicit_values(vars(parser.parse_args(attach_negative_values([*source, *words], command))), command)
