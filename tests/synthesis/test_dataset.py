from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pyimgano_dask.errors import ConfigError, RunError
from pyimgano_dask.synthesis import InspectionSet, write_inspection_set
from pyimgano_dask.synthesis.dataset import DEFAULT_SIZES_HW, NOISE_SIGMA, take_photo
from pyimgano_dask.synthesis.flaws import BORDER_SHARE, FLAWS
from pyimgano_dask.synthesis.parts import draw_part, scale_part

KINDS = ("scratch", "pit", "stain")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> InspectionSet:
    return write_inspection_set(tmp_path_factory.mktemp("set"))


def digests(root: str | Path) -> dict[str, str]:
    root = Path(root)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read(path: str) -> NDArray[np.uint8]:
    image = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image.astype(np.uint8)


def all_test_images(made: InspectionSet) -> list[str]:
    return [*made.test_good, *(path for kind in KINDS for path in made.test_defect[kind])]


def test_layout_and_counts_are_those_of_mvtec_ad(made: InspectionSet) -> None:
    expected = [f"train/good/{index:03d}.png" for index in range(24)]
    expected += [f"test/good/{index:03d}.png" for index in range(6)]
    for kind in KINDS:
        expected += [f"test/{kind}/{index:03d}.png" for index in range(4)]
        expected += [f"ground_truth/{kind}/{index:03d}_mask.png" for index in range(4)]
    assert set(digests(made.root)) == set(expected)

    paths = [*made.train_good, *all_test_images(made), *(path for kind in KINDS for path in made.masks[kind])]
    assert {os.path.relpath(path, made.root) for path in paths} == set(expected)
    assert len(paths) == len(expected)
    assert tuple(made.test_defect) == tuple(made.masks) == KINDS
    assert {os.path.dirname(path) for path in made.train_good} == {made.train_dir}
    assert all(path.startswith(made.test_dir + os.sep) for path in all_test_images(made))
    for kind in KINDS:
        for image, mask in zip(made.test_defect[kind], made.masks[kind], strict=True):
            assert Path(mask).stem == Path(image).stem + "_mask"


def test_sizes_and_colours_are_mixed(made: InspectionSet) -> None:
    for paths in (made.train_good, all_test_images(made)):
        images = [read(path) for path in paths]
        assert {image.shape[:2] for image in images} == set(DEFAULT_SIZES_HW)
        grey = sum(image.ndim == 2 for image in images)
        assert 0 < grey < len(images) / 2
        tinted = [image for image in images if image.ndim == 3]
        assert all(image[..., 2].mean() > image[..., 0].mean() for image in tinted)


def test_masks_are_0_or_255_and_as_large_as_their_image(made: InspectionSet) -> None:
    for kind in KINDS:
        for image, mask in zip(made.test_defect[kind], made.masks[kind], strict=True):
            levels = read(mask)
            assert levels.shape == read(image).shape[:2]
            assert set(np.unique(levels)) == {0, 255}


def test_second_run_gives_the_same_bytes_here_and_in_another_process(made: InspectionSet, tmp_path: Path) -> None:
    write_inspection_set(tmp_path / "again")
    code = "import sys; from pyimgano_dask.synthesis import *; write_inspection_set(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "other")], check=True, timeout=60)
    assert digests(tmp_path / "again") == digests(made.root)
    assert digests(tmp_path / "other") == digests(made.root)


def test_an_image_does_not_depend_on_the_ones_around_it(made: InspectionSet, tmp_path: Path) -> None:
    fewer = write_inspection_set(tmp_path, n_train=5, n_good=0, n_per_defect=2)
    whole = digests(made.root)
    assert digests(fewer.root).items() <= whole.items()


def test_writing_again_over_the_same_set_changes_nothing(tmp_path: Path) -> None:
    first = write_inspection_set(tmp_path, n_train=2, n_good=1, n_per_defect=1)
    before = digests(tmp_path)
    assert write_inspection_set(tmp_path, n_train=2, n_good=1, n_per_defect=1) == first
    assert digests(tmp_path) == before


def test_other_seeds_give_other_images_everywhere(made: InspectionSet, tmp_path: Path) -> None:
    other = digests(write_inspection_set(tmp_path, seed=1).root)
    first = digests(made.root)
    assert other.keys() == first.keys()
    assert all(other[name] != first[name] for name in first)


def test_no_two_images_are_the_same(made: InspectionSet) -> None:
    every = digests(made.root)
    assert len(set(every.values())) == len(every)


@pytest.mark.parametrize("kind", list(FLAWS))
@pytest.mark.parametrize("grey", [False, True])
def test_flaw_shows_above_the_noise_in_its_mask_and_nowhere_else(kind: str, grey: bool) -> None:
    canvas = draw_part(0)
    for index, size_hw in enumerate(DEFAULT_SIZES_HW * 4):
        part = scale_part(canvas, size_hw)
        flawed = take_photo(part, np.random.default_rng([7, index]), kind=kind, seam=True, grey=grey)
        clean = take_photo(part, np.random.default_rng([7, index]), seam=True, grey=grey)
        change = np.abs(flawed.image.astype(int) - clean.image.astype(int))
        inside = flawed.mask == 255
        assert not clean.mask.any()
        assert change[inside].min() > 2 * NOISE_SIGMA
        assert change[inside].mean() > 5 * NOISE_SIGMA
        assert not change[~inside].any()


def resized_levels(path: str) -> NDArray[np.float32]:
    levels = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
    assert levels is not None
    return cv2.resize(levels, (256, 256), interpolation=cv2.INTER_AREA).astype(np.float32)


def test_comparing_with_the_training_mean_finds_flaws_and_is_fooled_by_borders(made: InspectionSet) -> None:
    train = np.stack([resized_levels(path) for path in made.train_good])
    mean = train.mean(axis=0)
    ignore_px = int(np.ceil(BORDER_SHARE * 256)) + 1
    inner = np.zeros((256, 256), dtype=bool)
    inner[ignore_px:-ignore_px, ignore_px:-ignore_px] = True

    def peak(path: str, where: NDArray[np.bool_]) -> float:
        difference = cv2.GaussianBlur(np.abs(resized_levels(path) - mean), (0, 0), 2.0)
        return float(difference[where].max())

    everywhere = np.ones_like(inner)
    threshold = 1.1 * max(peak(path, everywhere) for path in made.train_good)
    assert all(peak(path, inner) <= threshold for path in made.test_good)
    assert any(peak(path, everywhere) > threshold for path in made.test_good)
    for kind in KINDS:
        found = [peak(path, inner) > threshold for path in made.test_defect[kind]]
        assert sum(found) >= 3, kind


def test_grey_and_jpeg_sets(tmp_path: Path) -> None:
    made = write_inspection_set(
        tmp_path, n_train=2, n_good=1, n_per_defect=1, sizes_hw=[(96, 128)], color=False, suffix=".jpg"
    )
    assert sorted({Path(name).suffix for name in digests(made.root)}) == [".jpg", ".png"]
    for path in [*made.train_good, *all_test_images(made)]:
        assert path.endswith(".jpg")
        assert Path(path).read_bytes().startswith(b"\xff\xd8\xff")
        assert read(path).shape == (96, 128)
    assert all(path.endswith("_mask.png") for kind in KINDS for path in made.masks[kind])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_train": -1}, "n_train is -1"),
        ({"n_per_defect": -2}, "n_per_defect is -2"),
        ({"seed": -1}, "seed is -1"),
        ({"sizes_hw": []}, "No image size"),
        ({"sizes_hw": [(256, 256), (20, 300)]}, "20x300.*64 to 4096"),
        ({"suffix": ".gif"}, r"'\.gif'.*\.png, \.jpg"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_inspection_set(tmp_path / "out", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="Cannot make the folder"):
        write_inspection_set(tmp_path / "file" / "out")


def test_images_of_another_set_are_not_mixed_with_this_one(tmp_path: Path) -> None:
    write_inspection_set(tmp_path, n_train=3, n_good=0, n_per_defect=0)
    before = digests(tmp_path)
    with pytest.raises(ConfigError, match=r"002\.png.*not part of this one"):
        write_inspection_set(tmp_path, n_train=2, n_good=0, n_per_defect=0, seed=1)
    assert digests(tmp_path) == before


def test_image_that_cannot_be_written_ends_the_run_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "train" / "good" / "001.png").mkdir(parents=True)
    with pytest.raises(RunError, match=r"001\.png"):
        write_inspection_set(tmp_path, n_train=2, n_good=0, n_per_defect=0)
