"""A checksum in a config vouches for a checkpoint, and for no file that its detector would read besides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.conftest import run_python

SCRIPT = '''
"""Two detectors whose arguments name a file with code; one has that code in its state, the other reads the file."""

import json
import numpy as np
import pyimgano_dask
from pyimgano_dask.detectors.base import Prediction, TrainingFreeDetector
from pyimgano_dask.detectors.registry import register
from pyimgano_dask.settings.knob import Block, knob

class Code(Block):
    """Arguments."""

    code_path: str | None = knob(None, "A file that runs.")

class Carries(TrainingFreeDetector[Code]):
    """Scores 1."""

    name, summary, tags, reference = "carries", "Carries its code.", ("test",), "None."
    arguments_type = Code
    color, contamination = "gray", None

    @property
    def runs_code(self):
        return self.arguments.code_path is not None

    def predict(self, images, references=()):
        return Prediction(np.ones(len(images)), tuple(np.zeros(image.shape, np.float32) for image in images))

class Reads(Carries):
    """Scores 1."""

    name, carries_code = "reads", False

answers = {}
for kind in (Carries, Reads):
    register(kind)
    given = {"input": "set/test/good", "scheduler": "sync"}
    for path in (None, "code.pt"):
        kwargs = {"code_path": path}
        pyimgano_dask.infer(model=kind.name, model_kwargs=kwargs, run_dir=f"{kind.name}-{path}", **given)
        for trust in (False, True):
            try:
                config = f"{kind.name}-{path}/infer_config.json"
                pyimgano_dask.infer(infer_config=config, trust_model_file=trust, **given)
                answers[f"{kind.name} {path} {trust}"] = "runs"
            except pyimgano_dask.ConfigError as error:
                answers[f"{kind.name} {path} {trust}"] = str(error)
print(json.dumps(answers))
'''


def test_a_checksum_covers_code_in_the_state_alone(workplace: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_python(str(tmp_path / "script.py"), cwd=workplace("trust"))
    assert done.rc == 0, done.stderr
    answers = json.loads(done.stdout)
    refused = answers.pop("reads code.pt False")
    assert "is a detector around a model with code, which can run code of its maker" in refused
    assert "--trust-model-file" in refused
    assert set(answers.values()) == {"runs"}
    assert len(answers) == 7
