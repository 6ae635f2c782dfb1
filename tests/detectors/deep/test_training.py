"""Detectors that train a network: learning, the same bytes again, and words where training cannot work."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="networks are trained with torch")

from pyimgano_dask.detectors.checkpoint import encode_detector  # noqa: E402
from pyimgano_dask.detectors.deep.training import shuffled_batches, train  # noqa: E402
from pyimgano_dask.errors import ConfigError  # noqa: E402
from tests.detectors.images import SMALL_TRAINING, draw_images, make  # noqa: E402

NORMAL = draw_images(1, "rgb", [(64, 64)] * 10)
HELD_OUT = draw_images(2, "rgb", [(64, 64)] * 4)
LEARNING: dict[str, dict[str, Any]] = {"vision_autoencoder": {"epochs": 25}, "vision_stfpm": {"epochs": 5}}

every_trained = pytest.mark.parametrize("name", SMALL_TRAINING)


@every_trained
def test_training_brings_normal_images_nearer_and_leaves_defects_far(name: str) -> None:
    defective = [image.copy() for image in HELD_OUT]
    for number, image in enumerate(defective):
        image[8 + 6 * number :, 20:36][:14] = 255
    short = make(name, epochs=1).fit(NORMAL)
    long = make(name, **LEARNING[name]).fit(NORMAL)

    assert long.predict(HELD_OUT).scores.mean() < 0.9 * short.predict(HELD_OUT).scores.mean()
    assert long.predict(defective).scores.min() > long.predict(HELD_OUT).scores.max()


@every_trained
def test_the_same_images_and_seed_give_the_same_bytes_and_draw_nothing_from_the_global_generators(name: str) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = encode_detector(make(name).fit(NORMAL))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])

    torch.rand(3)
    assert encode_detector(make(name).fit(NORMAL)) == first
    assert encode_detector(make(name, random_state=1).fit(NORMAL)) != first


@every_trained
def test_a_caller_without_gradients_changes_nothing(name: str) -> None:
    with torch.no_grad():
        without = make(name).fit(NORMAL)
    assert encode_detector(without) == encode_detector(make(name).fit(NORMAL))


@every_trained
def test_training_that_diverges_says_what_to_change(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}: training diverged in epoch \d of \d+: .* lr 1e\+30 is too high"):
        make(name, lr=1e30).fit(NORMAL)


@every_trained
def test_more_images_than_the_limit_are_subsampled_by_the_seed(name: str) -> None:
    chosen = [list(make(name, max_train_images=5, random_state=seed).select_training(50)) for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    assert [len(set(indices)) for indices in chosen] == [5, 5, 5]
    assert list(make(name, max_train_images=5).select_training(5)) == [0, 1, 2, 3, 4]


@every_trained
def test_weights_of_another_shape_are_refused(name: str) -> None:
    state = make(name).fit(NORMAL[:2]).state()
    key = next(key for key in state if key.endswith("weight"))
    assert state[key].dtype == np.float32
    with pytest.raises(ConfigError, match=f"{name}: .* does not fit"):
        make(name).with_state({**state, key: np.moveaxis(state[key], -1, 0)})


@given(n_images=st.integers(1, 60), batch_size=st.integers(1, 70), seed=st.integers(0, 5))
def test_an_epoch_has_every_image_once_in_batches_of_nearly_one_size(n_images: int, batch_size: int, seed: int) -> None:
    batches = list(shuffled_batches(n_images, batch_size, np.random.default_rng(seed)))
    assert sorted(np.concatenate(batches)) == list(range(n_images))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-n_images // batch_size)


def test_the_loss_of_an_epoch_is_the_mean_over_images() -> None:
    weight = torch.zeros(1, requires_grad=True)
    targets = torch.arange(5.0)
    optimizer = torch.optim.SGD([weight], lr=0.1)

    def loss_of(indices: Any) -> Any:
        return (weight - targets[torch.from_numpy(indices)]).square().mean()

    arguments = {"batch_size": 5, "seed": 0, "detector": "a line"}
    losses = train(optimizer, loss_of, 5, epochs=40, **arguments)
    assert losses[0] == pytest.approx(float(targets.square().mean()))
    assert losses[-1] == pytest.approx(float(targets.var(unbiased=False)), rel=1e-3)
    assert float(weight.detach()) == pytest.approx(2, rel=1e-2)


def test_one_step_that_ruins_the_weights_is_told() -> None:
    with pytest.raises(ConfigError, match=r"vision_stfpm: training diverged.*; lr 1e\+30 is too high"):
        make("vision_stfpm", lr=1e30, epochs=1).fit(NORMAL[:1])
