"""What a run tells while a network is trained: a phase of its own, epoch by epoch, and the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from pyimgano_dask.dataflow.reading import Reader
from pyimgano_dask.dataflow.training import TrainingImages, fit_detector
from pyimgano_dask.detectors.checkpoint import encode_detector
from pyimgano_dask.detectors.epochs import epochs_told_to, tell_epoch
from pyimgano_dask.detectors.registry import find_detector_type
from pyimgano_dask.detectors.tiling import tiled
from pyimgano_dask.images.listing import InputList
from pyimgano_dask.settings.tiling import TilingSettings
from pyimgano_dask.synthesis import InspectionSet
from tests.conftest import infer_command
from tests.dataflow.doubles import opened

Told = list[tuple[str, int | None] | int]
NETWORKS = {
    "vision_autoencoder": {"image_size": 32, "base_channels": 4, "latent_dim": 6, "epochs": 3},
    "vision_stfpm": {"image_size": 64, "layers": ["layer1"], "epochs": 2},
}


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: Told = []

    def phase(self, name: str, total: int | None = None) -> None:
        self.told.append((name, total))

    def advance(self, steps: int) -> None:
        self.told.append(steps)


def fit(parts: InspectionSet, model: str, listener: Listener | None, tiles: TilingSettings) -> bytes:
    detector = tiled(find_detector_type(model).create(**NETWORKS.get(model, {})), tiles)
    images = TrainingImages(InputList((parts.train_dir,), base_dir="/"), Reader("/", detector.color, 2**28), 4)
    with opened("sync") as scheduler:
        return encode_detector(fit_detector(scheduler, detector, images, listener)[0])


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("tiles", [TilingSettings(), TilingSettings(tile_size=64)], ids=["whole", "in tiles"])
def test_training_is_a_phase_told_by_epochs_which_changes_no_byte(
    model: str, tiles: TilingSettings, parts: InspectionSet
) -> None:
    pytest.importorskip("torch", reason="networks are trained with torch")
    listener = Listener()
    fitted = fit(parts, model, listener, tiles)
    n_epochs = NETWORKS[model]["epochs"]
    assert listener.told == [("training", None), ("training", n_epochs), *[1] * n_epochs]
    if tiles.tile_size is None:
        assert fit(parts, model, None, tiles) == fitted


def test_fitting_without_a_network_is_no_training(parts: InspectionSet) -> None:
    listener = Listener()
    fit(parts, "vision_pixel_mean_absdiff_map", listener, TilingSettings())
    assert listener.told == []


def test_epochs_are_told_to_the_innermost_listener_while_it_listens() -> None:
    outer: list[tuple[int, int]] = []
    inner: list[tuple[int, int]] = []
    tell_epoch(1, 9)
    with epochs_told_to(lambda *done: outer.append(done)):
        with epochs_told_to(lambda *done: inner.append(done)):
            tell_epoch(2, 9)
        tell_epoch(3, 9)
    tell_epoch(4, 9)
    assert (outer, inner) == ([(3, 9)], [(2, 9)])


def test_a_pipe_gets_no_bar(workplace: Callable[[str], Path]) -> None:
    pytest.importorskip("torch", reason="networks are trained with torch")
    place = workplace("bar")
    with chdir(place):
        done = infer_command(
            *("--model", "vision_autoencoder", "--model-kwargs", '{"image_size": 32, "base_channels": 4, "epochs": 2}'),
            *("--train-dir", "set/train/good", "--input", "set/test/good", "--progress"),
            cwd=place,
        )
    assert done.rc == 0, done.stderr
    assert "8 of 8 (done)" in done.stderr
    assert not {"\r", "\x1b"} & set(done.stderr)
