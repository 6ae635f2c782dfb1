"""`run.json`: what a finished run leaves in its folder, so that its stored maps can be scored anew."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError

from pyimgano_dask.errors import ConfigError
from pyimgano_dask.settings.infer_config import read_json_object
from pyimgano_dask.settings.knob import Block, knob
from pyimgano_dask.urls import join

MANIFEST_NAME = "run.json"
DETECTOR_NAME = "detector.npz"
PLAN_NAME = "plan.json"
STORED_BLOCKS = ("defects", "threshold", "threshold_provenance", "pixel_threshold_provenance")
"""Top-level keys of an infer config that defects depend on: what a manifest keeps, and all that is taken from one."""


class RunManifest(Block):
    """A finished run: where its records lie, and the settings its defects were made with."""

    format: int = knob(1, "Version of this file.", ge=1, le=1)
    version: str = knob("", "Version of the package that wrote it.")
    base_dir: str = knob(..., "Folder that relative paths in the records start at.")
    n_inputs: int = knob(..., "Records of the run.", ge=0)
    records: str | None = knob(None, "The JSONL, None when it went to standard output.")
    stamp: str | None = knob(None, "Size of that JSONL, and when it was written; None where that is not known.")
    settings: dict[str, Any] = knob({}, "Blocks of an infer config that defects depend on.")

    def encode(self) -> bytes:
        """Content of the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def read_run_manifest(run_dir: str) -> RunManifest:
    """The manifest in a run folder; raises ConfigError when there is none or it is damaged."""
    path = join(run_dir, MANIFEST_NAME)
    try:
        payload = read_json_object(path, "run manifest")
    except ConfigError as error:
        raise ConfigError(
            f"--from-run: {error}; name the --run-dir of a finished pyimgano-infer or pyimgano-rescore"
        ) from None
    try:
        return RunManifest.model_validate(payload)
    except ValidationError as error:
        faults = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors(include_url=False))
        raise ConfigError(f"--from-run: run manifest {path!r} is damaged or of another version: {faults}") from None
