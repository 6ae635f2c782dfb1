"""A student network that learns the features of a teacher on normal images, and the distances between the two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from pyimgano_dask.detectors.base import Image, State
from pyimgano_dask.detectors.deep.backbones import FeatureExtractor
from pyimgano_dask.detectors.deep.resnet import ResNet, initialise
from pyimgano_dask.detectors.deep.training import check_trained, shuffled_batches, train, training_device
from pyimgano_dask.detectors.deep.weights import as_arrays, without_weights

if TYPE_CHECKING:
    from pyimgano_dask.detectors.deep.stfpm import StfpmArguments

MOMENTUM = 0.9


def distances(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> list[Tensor]:
    """½ ‖t − s‖² at each place of each layer, of the features brought to length 1: (n, C, h, w) each to (n, h, w)."""
    return [
        (normalize(one, dim=1) - normalize(other, dim=1)).square().sum(dim=1) / 2
        for one, other in zip(teacher, student, strict=True)
    ]


def train_student(
    arguments: StfpmArguments, layers: tuple[str, ...], teacher_weights: State, images: NDArray[np.uint8], name: str
) -> State:
    """Weights of a student trained on uint8 (n, S, S, 3), by name.

    The statistics of its batch normalisations are averaged over the images once the weights stand, because the running
    ones trail behind the weights when there are few steps.
    """
    device = training_device(arguments.device, name)
    teacher = FeatureExtractor(arguments, layers, teacher_weights)
    draw = np.random.default_rng((arguments.random_state, 1))
    student = without_weights(lambda: ResNet(arguments.architecture, layers))
    initialise(student, int(draw.integers(2**63)))
    # torch's annotations know of no call with memory_format alone.
    student = student.train().to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss_of(indices: NDArray[np.int64]) -> Tensor:
        batch = teacher.normalised(list(images[indices]))
        with torch.no_grad():
            wanted = teacher.net(batch)
        return torch.stack([layer.mean() for layer in distances(wanted, student(batch))]).sum()

    train(
        torch.optim.SGD(student.parameters(), lr=arguments.lr, momentum=MOMENTUM, weight_decay=arguments.weight_decay),
        loss_of,
        len(images),
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        seed=int(draw.integers(2**63)),
        detector=name,
    )
    _settle_statistics(student, teacher, images, arguments.batch_size, draw)
    return check_trained(as_arrays(student.state_dict()), arguments.lr, name)


def _settle_statistics(
    student: torch.nn.Module,
    teacher: FeatureExtractor,
    images: NDArray[np.uint8],
    batch_size: int,
    rng: np.random.Generator,
) -> None:
    """Replace the running statistics by their mean over one epoch of batches."""
    for module in student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for indices in shuffled_batches(len(images), batch_size, rng):
            student(teacher.normalised(list(images[indices])))


class StudentAndTeacher:
    """Both networks in this process, in evaluation mode."""

    def __init__(self, teacher: FeatureExtractor, student: FeatureExtractor) -> None:
        self._teacher = teacher
        self._student = student

    def distances(self, images: Sequence[Image]) -> Iterator[list[NDArray[np.float32]]]:
        """For each image its distances, float32 (h, w) for each layer."""
        for wanted, found in zip(self._teacher.batches(images), self._student.batches(images), strict=True):
            layers = [layer.cpu().numpy() for layer in distances(wanted, found)]
            yield from ([layer[number] for layer in layers] for number in range(len(layers[0])))
