"""Knobs of the detector: the `model` block of an infer config, and how the detector is fitted and calibrated."""

from __future__ import annotations

from typing import Any

from pyimgano_dask.settings.knob import Block, knob


class ModelSettings(Block):
    """Which detector, with which arguments."""

    name: str | None = knob(
        None,
        "Registered detector name (see --list-models), or pyimgano:NAME for one of the package pyimgano.",
        flag="--model",
        metavar="NAME",
    )
    device: str | None = knob(
        None, "Device of detectors that can choose one: cpu or cuda.", flag="--device", metavar="DEVICE"
    )
    preset: str | None = knob(
        None, "Preset of the arguments of a pyimgano detector, as its configs name it; others have none."
    )
    reference_dir: str | None = knob(
        None,
        "Defect-free references for detectors that compare with one: a folder that holds an image of the same name for "
        "each input, or one image for all.",
        flag="--reference-dir",
        metavar="DIR",
    )
    contamination: float | None = knob(
        None,
        "Expected share of anomalies among the training images; the score threshold is the quantile 1 - contamination "
        "(default: the detector's own).",
        flag="--contamination",
        gt=0,
        le=0.5,
    )
    seed: int | None = knob(
        None, "Seed of detectors that draw at random (default: the detector's own).", flag="--seed", ge=0
    )
    pretrained: bool | None = knob(
        None, "Start from pretrained weights, for detectors that have them.", flag="--pretrained"
    )
    model_kwargs: dict[str, Any] = knob(
        {},
        "Further detector arguments as a JSON object, e.g. '{\"resize_hw\": [128, 128]}' (see --model-info NAME).",
        flag="--model-kwargs",
        metavar="JSON",
    )
    checkpoint_path: str | None = knob(
        None,
        "Saved state of a fitted detector (.npz), or the model file of a detector that runs one (.onnx, .pt, .pt2).",
        flag="--checkpoint-path",
        metavar="FILE",
    )
    trust_model_file: bool = knob(
        False,
        "Load model files whose format can run code of their maker (TorchScript, torch.export). Not needed for a file "
        "whose checkpoint.sha256 stands in the config.",
        flag="--trust-model-file",
    )


class TrainingSettings(Block):
    """Normal images: what a detector is fitted on and thresholds are calibrated on."""

    train_dir: str | None = knob(
        None,
        "Normal images (anything --input takes): fit the detector and calibrate its thresholds on them.",
        flag="--train-dir",
        metavar="DIR",
    )
    calibration_quantile: float | None = knob(
        None,
        "Quantile of the training scores that becomes the score threshold (default: 1 - contamination, else 0.995). "
        "Needs --train-dir.",
        flag="--calibration-quantile",
        metavar="Q",
        gt=0,
        lt=1,
    )
