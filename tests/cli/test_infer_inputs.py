"""Bad and odd images: each has its record, and the others of the run are done."""

from __future__ import annotations

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.cli.command import CAN_BE_DENIED, Answer, command
from tests.cli.conftest import MODEL, Trained

HEIGHT, WIDTH = 40, 60
MAX_PIXELS = 17_000_000
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


GOOD = encoded(NOISE, "PNG")

# Content of bad files, the kind of their error, and words that its message holds.
BAD_CONTENT: dict[str, tuple[bytes, str, str]] = {
    "cut.png": (half(GOOD), "TruncatedImageError", "cut short"),
    "cut.jpg": (half(encoded(NOISE, "JPEG")), "TruncatedImageError", "cut short"),
    "cut.bmp": (half(encoded(NOISE, "BMP")), "TruncatedImageError", "cut short"),
    "cut.tif": (half(encoded(NOISE, "TIFF")), "TruncatedImageError", "cut short"),
    "cut.webp": (half(encoded(NOISE, "WebP", lossless=True)), "TruncatedImageError", "cut short"),
    "damaged.png": (GOOD[:200] + bytes(20) + GOOD[220:], "CorruptImageError", "damaged"),
    "empty.png": (b"", "EmptyImageError", "empty"),
    "text.png": (b"not an image\n", "UnsupportedImageError", "PNG, JPEG, BMP, TIFF and WebP"),
    "gif.png": (encoded(NOISE, "GIF"), "UnsupportedImageError", "GIF8"),
    "bomb.png": (png_that_declares(60_000, 60_000), "ImageTooLargeError", "--max-image-pixels"),
    "zero.png": (png_that_declares(0, 5), "CorruptImageError", "0 x 5"),
}
# Paths in the list that are no files with content.
BAD_PATHS = {
    "folder.png": ("IsADirectoryError", "directory"),
    "pipe.png": ("OSError", "pipe"),
    "missing.png": ("FileNotFoundError", "No such file"),
    "dangling.png": ("FileNotFoundError", "No such file"),
    "loop.png": ("OSError", "symbolic links"),
    "text.png/below.png": ("OSError", "Not a directory"),
    "x" * 5000 + ".png": ("OSError", "too long"),
    "nul\0.png": ("OSError", "null"),
}
LONG_NAME = "l" * 250 + ".png"
NOT_UTF8 = os.fsdecode(b"caf\xe9.png")
GOOD_NAMES = ["plain.png", " two  spaces .png", "Prüfteil-检测.png", NOT_UTF8, LONG_NAME, "UPPER.PNG", "plain.png"]
ODD_NAMES = ["new\nline.png", "quo'te\".png", os.fsdecode(b"\xff.png"), "-dash.png", "tab\there.png"]


@dataclass(frozen=True)
class Run:
    folder: Path
    answer: Answer
    records: list[dict[str, Any]]

    def of(self, path: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["input"] == path]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Run:
    """One run over every bad and odd input: a list with blank lines and CRLF, then a folder."""
    folder = tmp_path_factory.mktemp("bad")
    for name, (content, _, _) in BAD_CONTENT.items():
        (folder / name).write_bytes(content)
    for name in GOOD_NAMES:
        (folder / name).write_bytes(GOOD)
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nothing.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "locked.png").write_bytes(GOOD)
    (folder / "locked.png").chmod(0)
    (folder / "odd").mkdir()
    for name in ODD_NAMES:
        (folder / "odd" / name).write_bytes(GOOD)
    (folder / "odd" / "notes.txt").write_text("left out")

    good = iter(GOOD_NAMES)
    lines = []
    for name in [*BAD_CONTENT, *BAD_PATHS, "locked.png"]:
        lines += [name, *([extra] if (extra := next(good, None)) else []), ""]
    (folder / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(os.fsencode(line) for line in lines) + b"\r\n")

    arguments = [*trained.source, "--input", "@list.txt", "--input", "odd", "--batch-size", "5", "--workers", "2"]
    arguments += ["--max-image-pixels", str(MAX_PIXELS), "--save-maps", "maps", "--save-jsonl", "out/records.jsonl"]
    answer = command(*arguments, cwd=folder, may_be_denied=True)
    return Run(folder, answer, Answer(0, (folder / "out" / "records.jsonl").read_bytes(), "").records)


def test_the_run_ends_with_3_and_says_how_many_failed(bad: Run) -> None:
    assert bad.answer.code == 3
    assert bad.answer.stdout == b""
    n_bad = sum("error" in record for record in bad.records)
    assert f"{n_bad} (their records say why)" in bad.answer.stderr
    assert len(bad.records) == len(BAD_CONTENT) + len(BAD_PATHS) + 1 + len(GOOD_NAMES) + len(ODD_NAMES)


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_has_a_record_that_says_why(bad: Run, name: str) -> None:
    _, kind, words = BAD_CONTENT[name]
    (record,) = bad.of(name)
    assert record["error"]["stage"] == "read"
    assert record["error"]["type"] == kind
    assert words in record["error"]["message"]


@pytest.mark.parametrize("name", BAD_PATHS, ids=lambda name: name[:20])
def test_a_bad_path_has_a_record_that_says_why(bad: Run, name: str) -> None:
    kind, words = BAD_PATHS[name]
    (record,) = bad.of(name)
    assert record["error"]["stage"] == "read"
    assert record["error"]["type"] == kind
    assert words in record["error"]["message"]


@pytest.mark.skipif(not CAN_BE_DENIED, reason="root may read everything, and setpriv is not installed")
def test_a_file_without_permission_has_a_record_that_says_so(bad: Run) -> None:
    (record,) = bad.of("locked.png")
    assert record["error"]["type"] == "PermissionError"
    assert "Permission denied" in record["error"]["message"]


def test_the_good_images_of_the_run_are_done(bad: Run) -> None:
    for name in (*GOOD_NAMES, *(f"odd/{name}" for name in ODD_NAMES)):
        for record in bad.of(name):
            assert record["anomaly_map"]["shape"] == [HEIGHT, WIDTH]
            path = bad.folder / record["anomaly_map"]["path"]
            assert path.name.startswith(f"{record['index']:06d}_")
            assert np.load(path).shape == (HEIGHT, WIDTH)
    assert len(list((bad.folder / "maps").iterdir())) == len(GOOD_NAMES) + len(ODD_NAMES)


def test_a_path_given_twice_has_two_records(bad: Run) -> None:
    first, second = bad.of("plain.png")
    assert first["score"] == second["score"]
    assert first["anomaly_map"]["path"] != second["anomaly_map"]["path"]


def test_a_folder_gives_its_images_sorted_and_nothing_else(bad: Run) -> None:
    assert [record["input"] for record in bad.records[-len(ODD_NAMES) :]] == [
        f"odd/{name}" for name in sorted(ODD_NAMES)
    ]


def test_a_name_cannot_break_the_lines_of_the_summary(bad: Run) -> None:
    shown = [line for line in bad.answer.stderr.splitlines() if line.startswith("  '")]
    assert len(shown) == 5
    assert all(": " in line for line in shown)


def test_an_input_of_any_bytes_is_taken(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / NOT_UTF8).write_bytes(GOOD)
    answer = command(*trained.source, "--input", NOT_UTF8, cwd=tmp_path)
    assert answer.code == 0, answer.stderr
    assert answer.records[0]["input"] == NOT_UTF8


@pytest.mark.parametrize("odd", [".", ".."])
def test_a_folder_name_may_be_a_dot(trained: Trained, tmp_path: Path, odd: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / odd.replace("..", "here/..") / "a.png").write_bytes(GOOD)
    answer = command(*trained.source, "--input", odd, cwd=tmp_path if odd == "." else tmp_path / "here")
    assert answer.code == 0
    assert len(answer.records) == 1


GREY = NOISE.convert("L")
ROTATED = Image.Exif()
ROTATED[0x0112] = 6
KINDS: dict[str, tuple[bytes, tuple[int, int]]] = {
    "grey.png": (encoded(GREY, "PNG"), (HEIGHT, WIDTH)),
    "bilevel.png": (encoded(NOISE.convert("1"), "PNG"), (HEIGHT, WIDTH)),
    "grey-alpha.png": (encoded(GREY.convert("LA"), "PNG"), (HEIGHT, WIDTH)),
    "rgba.png": (encoded(NOISE.convert("RGBA"), "PNG"), (HEIGHT, WIDTH)),
    "palette.png": (encoded(NOISE.quantize(16), "PNG"), (HEIGHT, WIDTH)),
    "palette.bmp": (encoded(NOISE.quantize(16), "BMP"), (HEIGHT, WIDTH)),
    "deep.png": (encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "PNG"), (HEIGHT, WIDTH)),
    "deep.tif": (encoded(Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257), "TIFF"), (HEIGHT, WIDTH)),
    "cmyk.jpg": (encoded(NOISE.convert("CMYK"), "JPEG"), (HEIGHT, WIDTH)),
    "cmyk.tiff": (encoded(NOISE.convert("CMYK"), "TIFF"), (HEIGHT, WIDTH)),
    "rotated.jpeg": (encoded(NOISE, "JPEG", exif=ROTATED), (WIDTH, HEIGHT)),
    "progressive.jpg": (encoded(NOISE, "JPEG", progressive=True), (HEIGHT, WIDTH)),
    "lossy.webp": (encoded(NOISE, "WebP"), (HEIGHT, WIDTH)),
    "jpeg-inside.png": (encoded(NOISE, "JPEG"), (HEIGHT, WIDTH)),
    "one-pixel.png": (encoded(NOISE.resize((1, 1)), "PNG"), (1, 1)),
    "one-row.png": (encoded(NOISE.resize((200, 1)), "PNG"), (1, 200)),
    "beyond-a-group.png": (encoded(Image.new("L", (4100, 4100), 90), "PNG"), (4100, 4100)),
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, trained: Trained) -> Run:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "images").mkdir()
    for name, (content, _) in KINDS.items():
        (folder / "images" / name).write_bytes(content)
    arguments = [*trained.source, "--input", "images", "--include-maps", "--save-overlays", "overlays"]
    answer = command(*arguments, "--max-image-pixels", str(MAX_PIXELS), cwd=folder)
    return Run(folder, answer, answer.records)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_has_a_map_of_its_size(kinds: Run, name: str) -> None:
    (record,) = kinds.of(f"images/{name}")
    shape = KINDS[name][1]
    assert record.get("error") is None
    assert record["anomaly_map"] == {"dtype": "float32", "shape": list(shape)}
    (overlay,) = (kinds.folder / "overlays").glob(f"{record['index']:06d}_*.png")
    with Image.open(overlay) as picture:
        assert (picture.height, picture.width) == shape


def test_every_kind_of_image_is_done(kinds: Run) -> None:
    assert kinds.answer.code == 0
    assert len(kinds.records) == len(KINDS)


def test_the_same_pixels_in_another_file_score_the_same(kinds: Run) -> None:
    scores = {record["input"]: record["score"] for record in kinds.records}
    assert scores["images/grey.png"] == scores["images/deep.png"] == scores["images/deep.tif"]


class TestTrainingImages:
    def test_some_bad_ones_are_left_out_with_a_warning(self, trained: Trained, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        for name, content in {"a.png": GOOD, "b.png": half(GOOD), "c.png": b"", "d\n.png": b"x", "e.png": GOOD}.items():
            (tmp_path / "train" / name).write_bytes(content)
        (tmp_path / "part.png").write_bytes(GOOD)
        answer = command("--model", MODEL, "--train-dir", "train", "--input", "part.png", cwd=tmp_path)
        assert answer.code == 0
        assert "warning: 3 training images were left out" in answer.stderr
        assert "train/b.png" in answer.stderr
        assert "cut short" in answer.stderr
        assert answer.records[0]["score"] == 0

    def test_only_bad_ones_end_the_run_with_2(self, tmp_path: Path) -> None:
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "a.png").write_bytes(half(GOOD))
        (tmp_path / "part.png").write_bytes(GOOD)
        arguments = ["--train-dir", "train", "--input", "part.png", "--save-jsonl", "new/out.jsonl", "--run-dir", "run"]
        answer = command("--model", MODEL, *arguments, cwd=tmp_path)
        assert answer.code == 2
        assert "--train-dir: none of its images can be used" in answer.stderr
        assert "cut short" in answer.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"train", "part.png"}
