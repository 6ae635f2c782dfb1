"""A whole inspection data set on disk, in the folder layout of MVTec AD (Bergmann et al., CVPR 2019)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.synthesis.flaws import FLAWS, border_seam, vignette
from pyimgano_dask.synthesis.parts import FloatImage, Part, brushed_noise, draw_part, scale_part

DEFAULT_SIZES_HW = ((256, 256), (240, 320), (300, 220))
SUFFIXES = (".png", ".jpg")
SIDE_RANGE_PX = (64, 4096)
NOISE_SIGMA = 2.0
"""Standard deviation of the sensor noise, in grey levels."""

_GROUPS = ("train", "good", *FLAWS)
_GREY_EVERY = 4
_TINT_RGB = (1.014, 1.0, 0.984)


@dataclass(frozen=True)
class InspectionSet:
    """The files of one data set. Paths start with `root` and are in the order of their names.

    `masks[kind][i]` belongs to `test_defect[kind][i]`.
    """

    root: str
    train_good: tuple[str, ...]
    test_good: tuple[str, ...]
    test_defect: Mapping[str, tuple[str, ...]]
    masks: Mapping[str, tuple[str, ...]]

    @property
    def train_dir(self) -> str:
        """The folder of defect-free images to train and calibrate on."""
        return os.path.join(self.root, "train", "good")

    @property
    def test_dir(self) -> str:
        """The folder of the images to inspect, one folder a kind."""
        return os.path.join(self.root, "test")


@dataclass(frozen=True)
class Photo:
    """`image` is uint8, (H, W, 3) RGB or (H, W) grey; `mask` is uint8 (H, W), 255 on the flaw, else 0."""

    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


@dataclass(frozen=True)
class _Shot:
    """One image to take and where it goes."""

    group: str
    index: int
    size_hw: tuple[int, int]
    grey: bool
    image_path: str
    mask_path: str | None


def write_inspection_set(
    root: str | os.PathLike[str],
    *,
    n_train: int = 24,
    n_good: int = 6,
    n_per_defect: int = 4,
    seed: int = 0,
    sizes_hw: Sequence[tuple[int, int]] = DEFAULT_SIZES_HW,
    color: bool = True,
    suffix: str = ".png",
) -> InspectionSet:
    """Write `train/good`, `test/good`, `test/<kind>` and `ground_truth/<kind>/<stem>_mask.png` under `root`.

    The kinds are scratch, pit and stain. Sizes are (height, width) in pixels, taken in turn. With `color`
    three images of four are RGB and every fourth is grey; without it all are grey. The same arguments give
    the same bytes on the same library versions.

    Masks are PNG, uint8 0 or 255, and tell exactly which pixels the flaw changed before the image was
    encoded: a `.png` image keeps that, a `.jpg` image smears it a little.

    Every image has noise, a small brightness change and a mild vignette. Half of the test images, good and
    defect alike, also have a strong seam in the outer 5 % of the image: no defect, but a false alarm unless
    borders are left out.

    Raises ConfigError for a count, size, seed or suffix that cannot be used, and for a folder that cannot be
    written or holds images of another set; RunError when writing stops half way.
    """
    root = os.fspath(root)
    _check(n_train, n_good, n_per_defect, seed, sizes_hw, suffix)
    counts = dict.fromkeys(_GROUPS, n_per_defect) | {"train": n_train, "good": n_good}
    shots = {
        group: [
            _plan_shot(root, group, index, counts[group], sizes_hw, color, suffix) for index in range(counts[group])
        ]
        for group in _GROUPS
    }
    _prepare_folders(root, [shot for group in _GROUPS for shot in shots[group]])

    drawn = draw_part(seed)
    parts = {size_hw: scale_part(drawn, size_hw) for size_hw in sizes_hw}
    for group in _GROUPS:
        for shot in shots[group]:
            _write_shot(shot, parts[shot.size_hw], seed)
    return InspectionSet(
        root=root,
        train_good=tuple(shot.image_path for shot in shots["train"]),
        test_good=tuple(shot.image_path for shot in shots["good"]),
        test_defect={kind: tuple(shot.image_path for shot in shots[kind]) for kind in FLAWS},
        masks={kind: tuple(shot.mask_path for shot in shots[kind] if shot.mask_path) for kind in FLAWS},
    )


def take_photo(
    part: Part, rng: np.random.Generator, *, kind: str | None = None, seam: bool = False, grey: bool = False
) -> Photo:
    """One photo of the part, with a flaw of that kind or none (`None`).

    The flaw is drawn from `rng` after everything else, so the same seed without a kind gives the same photo
    without the flaw.
    """
    size_hw = (part.surface.shape[0], part.surface.shape[1])
    scene: FloatImage = part.surface + 2.0 * part.metal * brushed_noise(rng, size_hw, along_px=10, across_px=0.7)
    border = vignette(size_hw, rng) + (border_seam(size_hw, rng) if seam else 0)
    brightness = rng.uniform(0.97, 1.03)
    noise = NOISE_SIGMA * rng.standard_normal(size_hw if grey else (*size_hw, 3), dtype=np.float32)
    mask = np.zeros(size_hw, dtype=np.bool_)
    if kind is not None:
        flaw = FLAWS[kind](part.face, rng)
        scene, mask = scene + flaw.step, flaw.mask
    light = scene * np.float32(brightness) + border
    levels = noise + (light if grey else light[:, :, None] * np.array(_TINT_RGB, dtype=np.float32))
    image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return Photo(image=image, mask=np.where(mask, 255, 0).astype(np.uint8))


def _check(
    n_train: int, n_good: int, n_per_defect: int, seed: int, sizes_hw: Sequence[tuple[int, int]], suffix: str
) -> None:
    for name, value in (
        ("n_train", n_train),
        ("n_good", n_good),
        ("n_per_defect", n_per_defect),
        ("seed", seed),
    ):
        if value < 0:
            raise ConfigError(f"{name} is {value}, but it must be 0 or more.")
    if not sizes_hw:
        raise ConfigError("No image size is given; give at least one height and width, such as 256x256.")
    low, high = SIDE_RANGE_PX
    for height, width in sizes_hw:
        if not (low <= height <= high and low <= width <= high):
            raise ConfigError(
                f"Image size {height}x{width} (height x width) is out of range; both must be {low} to {high} pixels."
            )
    if suffix not in SUFFIXES:
        raise ConfigError(f"File suffix {suffix!r} is not known; use one of {', '.join(SUFFIXES)}.")


def _plan_shot(
    root: str,
    group: str,
    index: int,
    count: int,
    sizes_hw: Sequence[tuple[int, int]],
    color: bool,
    suffix: str,
) -> _Shot:
    stem = f"{index:0{max(3, len(str(count - 1)))}d}"
    folder = os.path.join(root, "train", "good") if group == "train" else os.path.join(root, "test", group)
    return _Shot(
        group=group,
        index=index,
        size_hw=sizes_hw[index % len(sizes_hw)],
        grey=not color or index % _GREY_EVERY == _GREY_EVERY - 1,
        image_path=os.path.join(folder, stem + suffix),
        mask_path=os.path.join(root, "ground_truth", group, f"{stem}_mask.png") if group in FLAWS else None,
    )


def _prepare_folders(root: str, shots: Sequence[_Shot]) -> None:
    """Make the folders, and see before anything is written that they hold no file of another set."""
    files = {path for shot in shots for path in (shot.image_path, shot.mask_path) if path is not None}
    for top in ("train", "test", "ground_truth"):
        for folder, _, names in os.walk(os.path.join(root, top)):
            for name in sorted(names):
                if os.path.join(folder, name) not in files:
                    raise ConfigError(
                        f"{root!r} already holds another data set: {os.path.join(folder, name)!r} "
                        "is not part of this one. Remove that folder, or name a new one."
                    )
    for folder in sorted({root} | {os.path.dirname(path) for path in files}):
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"Cannot make the folder {folder!r}: {error.strerror}. Name a folder that can be written."
            ) from error
        if not os.access(folder, os.W_OK | os.X_OK):
            raise ConfigError(f"Cannot write into the folder {folder!r}. Name a folder that can be written.")


def _write_shot(shot: _Shot, part: Part, seed: int) -> None:
    rng = np.random.default_rng([seed, _GROUPS.index(shot.group), shot.index])
    kind = shot.group if shot.group in FLAWS else None
    seam = shot.group != "train" and shot.index % 2 == 0
    photo = take_photo(part, rng, kind=kind, seam=seam, grey=shot.grey)
    _write_image(shot.image_path, photo.image)
    if shot.mask_path is not None:
        _write_image(shot.mask_path, photo.mask)


def _write_image(path: str, image: NDArray[np.uint8]) -> None:
    _, data = cv2.imencode(os.path.splitext(path)[1], image if image.ndim == 2 else image[:, :, ::-1])
    try:
        with open(path, "wb") as file:
            file.write(data.tobytes())
    except OSError as error:
        raise RunError(f"Cannot write {path!r}: {error.strerror}. Free some space or name another folder.") from error
