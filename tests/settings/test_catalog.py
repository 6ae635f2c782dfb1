"""The catalogue: each knob once, explained, with one flag; and what it says of values it cannot take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyimgano_dask.cli.flags import explicit_values
from pyimgano_dask.cli.infer import build_parser
from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.catalog import Knob, knobs
from pyimgano_dask.settings.commands import INFER
from pyimgano_dask.settings.resolve import resolve
from tests.settings.samples import bound, load, words, write_config

FLAGGED = [knob for knob in knobs() if knob.flag is not None]
NUMBERS = [knob for knob in FLAGGED if knob.kind in (int, float)]
BOUNDED = [knob for knob in NUMBERS if bound(knob, "ge", "gt", "le", "lt") is not None]
every_flag = pytest.mark.parametrize("knob", FLAGGED, ids=lambda knob: knob.flag)

# Flags of the blocks that this version has.
FLAGS_TEXT = """
--model --device --contamination --seed --pretrained --model-kwargs --checkpoint-path --train-dir
--calibration-quantile --input --include-maps --save-maps --include-anomaly-map-values --batch-size --defects
--defects-image-space --save-masks --mask-format --save-overlays --pixel-threshold --pixel-threshold-strategy
--pixel-normal-quantile --roi-xyxy-norm --defect-border-ignore-px --defect-map-smoothing
--defect-map-smoothing-ksize --defect-map-smoothing-sigma --defect-hysteresis --defect-hysteresis-low
--defect-hysteresis-high --defect-open-ksize --defect-close-ksize --defect-fill-holes --defect-min-area
--defect-min-score-max --defect-min-score-mean --defect-min-fill-ratio --defect-max-aspect-ratio
--defect-min-solidity --defect-merge-nearby --defect-merge-nearby-max-gap-px --defect-max-regions
--defect-max-regions-sort-by --tile-size --tile-stride --tile-score-reduce --tile-score-topk --tile-map-reduce
--save-jsonl --scheduler --workers --run-dir --keep-parts --progress
"""
FLAGS = FLAGS_TEXT.split()


def given(*argv: str) -> dict[Knob, object]:
    arguments = build_parser("pyimgano-infer", ("--infer-config",)).parse_args(["--model", "m", *argv])
    return explicit_values(vars(arguments), INFER)


@pytest.mark.parametrize("knob", knobs(), ids=lambda knob: knob.key)
def test_every_knob_is_explained(knob: Knob) -> None:
    assert len(knob.help) > 15
    assert knob.help.rstrip().endswith((".", ")"))
    assert knob.allowed


def test_names_are_unique() -> None:
    for names in ([knob.key for knob in knobs()], [k.flag for k in FLAGGED], [k.dest for k in FLAGGED]):
        assert len(names) == len(set(names))
    assert len({knob.dest for knob in FLAGGED}) == len(FLAGGED)


@pytest.mark.parametrize("flag", FLAGS)
def test_promised_flags_exist(flag: str) -> None:
    assert flag in {knob.flag for knob in FLAGGED}


@every_flag
def test_the_default_is_allowed_in_a_config_or_means_not_set(knob: Knob, tmp_path: Path) -> None:
    assert knob.default is None or words(knob, knob.default)
    assert (
        resolve({}).settings.model_dump() == load(write_config(tmp_path, {"schema_version": 1})).settings.model_dump()
    )


@pytest.mark.parametrize("knob", NUMBERS, ids=lambda knob: knob.flag)
@pytest.mark.parametrize("text", ["many", "", "1,5", "0x10", "nan", "inf"])
def test_words_in_place_of_a_number_are_refused(knob: Knob, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given(str(knob.flag), text))
    message = str(caught.value)
    assert message.startswith(f"{knob.flag}: ")
    assert text.lower() in message.lower()
    assert knob.allowed in message


@pytest.mark.parametrize("knob", [knob for knob in NUMBERS if knob.kind is int], ids=lambda knob: knob.flag)
def test_a_broken_number_is_refused_where_a_whole_one_is_meant(knob: Knob) -> None:
    with pytest.raises(ConfigError, match=rf"{knob.flag}: '2\.5' is not a whole number"):
        given(str(knob.flag), "2.5")


@pytest.mark.parametrize("knob", BOUNDED, ids=lambda knob: knob.flag)
def test_a_number_beyond_its_bounds_is_refused(knob: Knob) -> None:
    beyond = []
    if (low := bound(knob, "ge", "gt")) is not None:
        beyond.append(low - 1 if bound(knob, "gt") is None else low)
    if (high := bound(knob, "le", "lt")) is not None:
        beyond.append(high + 1 if bound(knob, "lt") is None else high)
    for value in beyond:
        with pytest.raises(ConfigError) as caught:
            resolve(given(f"{knob.flag}={value}"))
        assert str(caught.value).startswith(f"{knob.flag}: {knob.kind(value)} is not allowed; expected {knob.allowed}")


@pytest.mark.parametrize("knob", [knob for knob in FLAGGED if knob.choices], ids=lambda knob: knob.flag)
def test_an_unknown_choice_is_answered_with_the_known_ones(knob: Knob) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given(str(knob.flag), "purple"))
    assert str(caught.value) == f"{knob.flag}: 'purple' is not one of {', '.join(knob.choices or ())}"


@pytest.mark.parametrize("text", ["{", "[1]", "3", "", "{a: 1}", "['a']"])
def test_model_kwargs_take_a_json_object(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        given("--model-kwargs", text)
    assert str(caught.value) == f"--model-kwargs: {text!r} is not a JSON object"


def test_single_quotes_in_place_of_those_of_json_are_told() -> None:
    with pytest.raises(ConfigError) as caught:
        given("--model-kwargs", "{'levels': [0]}")
    assert str(caught.value).endswith("""; JSON has double quotes: --model-kwargs '{"levels": [0]}'""")


def test_a_roi_takes_four_numbers() -> None:
    with pytest.raises(ConfigError, match="--roi-xyxy-norm: '0 0 1 right' is not 4 numbers"):
        given("--roi-xyxy-norm", "0", "0", "1", "right")
    assert (0, 0.5, 1, -0.5) in given("--roi-xyxy-norm", "0", "0.5", "1", "-.5").values()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--defect-open-ksize", "1000000000"),
        ("--defect-close-ksize", "1000000000"),
        ("--defect-map-smoothing-ksize", "1000000000"),
        ("--defect-map-smoothing-sigma", "1e9"),
        ("--batch-size", "1000000000000"),
        ("--max-image-pixels", "100000000000000000000"),
    ],
)
def test_a_number_that_no_machine_can_work_with_is_refused(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=flag):
        resolve(given(flag, value))


def test_an_unknown_scheduler_is_answered_with_what_is_known() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given("--scheduler", "kubernetes"))
    message = str(caught.value)
    assert message.startswith("--scheduler: ")
    assert "'kubernetes'" in message
    assert all(known in message for known in ("auto", "threads", "sync", "processes", "local-cluster", "tcp://"))


def test_a_median_kernel_that_does_not_exist_is_refused_with_the_ones_that_do() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given("--defect-map-smoothing", "median", "--defect-map-smoothing-ksize", "7"))
    assert "7" in str(caught.value)
    assert "3 or 5" in str(caught.value)
    for allowed in (0, 1, 2, 3, 4, 5):
        resolve(given("--defect-map-smoothing", "median", "--defect-map-smoothing-ksize", str(allowed)))


def test_all_bad_flags_are_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given("--workers", "many", "--mask-format", "gif", "--model-kwargs", "{"))
    lines = str(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--model-kwargs", "--mask-format", "--workers"]


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (["--save-masks", "m"], "--save-masks needs --defects"),
        (["--include-anomaly-map-values"], "--include-anomaly-map-values needs --include-maps"),
        (["--calibration-quantile", "0.9"], "--calibration-quantile needs --train-dir"),
        (["--defects-image-space"], "--defects-image-space needs --defects"),
        (
            ["--scheduler", "tls://a:1", "--tls-cert", "c"],
            "--tls-cert without --tls-ca, --tls-key",
        ),
        (
            ["--tls-ca", "a", "--tls-cert", "c", "--tls-key", "k"],
            "--tls-ca, --tls-cert, --tls-key with --scheduler auto",
        ),
        (
            ["--performance-report", "r.html"],
            "--performance-report with --scheduler auto",
        ),
    ],
)
def test_a_flag_without_the_one_it_needs_is_refused(flags: list[str], needed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given(*flags))
    assert needed in str(caught.value)


def test_defects_bring_maps_with_them() -> None:
    assert resolve(given("--defects", "--include-anomaly-map-values")).settings.wants_maps
    assert resolve(given("--save-maps", "m")).settings.wants_maps
    assert not resolve(given()).settings.wants_maps


def test_a_path_of_any_bytes_is_taken_as_it_is() -> None:
    path = b"caf\xe9.png".decode(errors="surrogateescape")
    assert resolve(given("--input", path, "--save-jsonl", path)).settings.inputs.input == (path,)


def test_the_default_tree_is_json() -> None:
    tree = json.loads(resolve({}).settings.model_dump_json())
    assert {knob.path[0] for knob in knobs()} == set(tree)
