from __future__ import annotations

from pyimgano_dask.settings.catalog import knobs
from pyimgano_dask.settings.commands import INFER, RESCORE, knobs_of

DETECTORS_ONLY = {
    "--model",
    "--device",
    "--reference-dir",
    "--contamination",
    "--seed",
    "--pretrained",
    "--model-kwargs",
    "--checkpoint-path",
    "--train-dir",
    "--calibration-quantile",
    "--include-maps",
    "--save-maps",
    "--include-anomaly-map-values",
    "--amp",
    "--tile-size",
    "--tile-stride",
    "--trust-model-file",
    "--tile-score-reduce",
    "--tile-score-topk",
    "--tile-map-reduce",
    *(knob.flag for knob in knobs() if knob.path[0] == "preprocessing"),
}


def test_every_flag_belongs_to_a_command() -> None:
    flags = {knob.flag for knob in knobs() if knob.flag is not None}
    assert {knob.flag for command in (INFER, RESCORE) for knob in knobs_of(command)} == flags


def test_infer_has_every_flag_but_those_of_stored_maps() -> None:
    infer, rescore = ({knob.flag for knob in knobs_of(command)} for command in (INFER, RESCORE))
    assert rescore - infer == {"--from-run", "--maps"}
    assert infer - rescore == DETECTORS_ONLY


def test_every_control_of_defects_is_one_of_rescore() -> None:
    rescore = {knob.key for knob in knobs_of(RESCORE)}
    assert {knob.key for knob in knobs() if knob.path[0] == "defects" and knob.flag} <= rescore


def test_names_of_keywords_are_unique() -> None:
    for command in (INFER, RESCORE):
        names = [knob.dest for knob in knobs_of(command)]
        assert len(names) == len(set(names))
