"""Pixels of every format and mode, and the refusal of everything that is damaged, cut or too large."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pyimgano_dask.errors import InputError
from pyimgano_dask.images.decoding import (
    decode_gray_and_rgb,
    decode_image,
    max_file_bytes,
    recoloured,
)
from tests.images.samples import (
    ALPHA,
    COLOR16,
    DEEP,
    EVERY_FILE,
    GREY,
    GREY16,
    HEIGHT,
    IMAGES,
    LOSSLESS,
    LOSSY,
    RGB,
    RGB_IMAGE,
    WIDTH,
    encode,
    smooth_noise,
)

LIMIT = 10_000
END_OF_JPEG = b"\xff\xd9"
DAMAGE = {"EmptyImageError", "UnsupportedImageError", "TruncatedImageError", "CorruptImageError"}


def decode(data: bytes, color: str = "rgb", max_pixels: int = LIMIT) -> np.ndarray:
    return decode_image(data, color, max_pixels=max_pixels)


def fault_of(data: bytes, max_pixels: int = LIMIT) -> str:
    """Kind of the error that decoding raises; the same for both colours."""
    kinds = set()
    for color in ("rgb", "gray"):
        with pytest.raises(InputError) as caught:
            decode(data, color, max_pixels)
        assert caught.value.stage == "read"
        assert caught.value.message
        kinds.add(caught.value.kind)
    assert len(kinds) == 1
    return kinds.pop()


def pixels_or_kind(data: bytes) -> np.ndarray | str:
    try:
        return decode(data)
    except InputError as error:
        return error.kind


def png_chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes, depth: int = 8, color_type: int = 0) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b"")


def grey_png_pixels(grey: np.ndarray) -> bytes:
    return png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in grey)))


class TestPixels:
    @pytest.mark.parametrize("name", LOSSLESS)
    def test_lossless_files_give_back_what_went_in(self, name: str) -> None:
        mode, data = LOSSLESS[name]
        rgb = decode(data)
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous
        np.testing.assert_array_equal(rgb, np.asarray(IMAGES[mode].convert("RGB")))

    @pytest.mark.parametrize("name", EVERY_FILE)
    def test_pixels_are_those_of_opencv(self, name: str) -> None:
        raw = np.frombuffer(EVERY_FILE[name], np.uint8)
        bgr, grey = cv2.imdecode(raw, cv2.IMREAD_COLOR), cv2.imdecode(raw, cv2.IMREAD_GRAYSCALE)
        np.testing.assert_array_equal(decode(EVERY_FILE[name]), bgr[..., ::-1])
        np.testing.assert_array_equal(decode(EVERY_FILE[name], "gray"), grey)

    @pytest.mark.parametrize("name", LOSSY)
    def test_lossy_files_match_pillow(self, name: str) -> None:
        with Image.open(io.BytesIO(LOSSY[name])) as image:
            expected = np.asarray(image.convert("RGB")).astype(int)
        assert np.abs(decode(LOSSY[name]) - expected).max() <= 2

    @pytest.mark.parametrize(
        "name", ["PNG 1", "PNG L", "PNG LA", "BMP L", "TIFF 1", "TIFF L", "TIFF LA", "TIFF 1 group4"]
    )
    def test_grey_of_grey_files_is_exact(self, name: str) -> None:
        mode, data = LOSSLESS[name]
        np.testing.assert_array_equal(decode(data, "gray"), np.asarray(IMAGES[mode].convert("L")))

    def test_sixteen_bits_keep_the_high_byte(self) -> None:
        np.testing.assert_array_equal(decode(DEEP["PNG I;16"], "gray"), GREY16 >> 8)
        np.testing.assert_array_equal(decode(DEEP["TIFF I;16"], "gray"), GREY16 >> 8)
        np.testing.assert_array_equal(decode(DEEP["PNG RGB16"]), COLOR16[..., ::-1] >> 8)

    def test_sixteen_bit_colour_tiff_is_rounded(self) -> None:
        np.testing.assert_array_equal(decode(DEEP["TIFF RGB16"]), np.rint(COLOR16[..., ::-1] / 257))

    def test_unassociated_alpha_of_a_tiff_multiplies_its_colour(self) -> None:
        blended = RGB * (ALPHA[..., None] / 255)
        assert np.abs(decode(encode(IMAGES["RGBA"], "TIFF")) - blended).max() <= 1

    def test_alpha_of_a_png_is_dropped(self) -> None:
        np.testing.assert_array_equal(decode(encode(IMAGES["RGBA"], "PNG")), RGB)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("format_name", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_exif_orientation_is_applied(self, format_name: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options = {"lossless": True} if format_name == "WEBP" else {}
        data = encode(RGB_IMAGE, format_name, exif=exif, **options)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
        assert decode(data).shape == expected.shape
        assert np.abs(decode(data) - expected.astype(int)).max() <= 1
        assert decode(data, "gray").shape == expected.shape[:2]

    def test_first_of_several_pages_and_frames(self) -> None:
        turned = Image.fromarray(RGB[::-1].copy())
        for format_name, options in (("TIFF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
            data = encode(RGB_IMAGE, format_name, save_all=True, append_images=[turned], **options)
            np.testing.assert_array_equal(decode(data), RGB)

    def test_bigtiff_and_the_other_byte_order(self) -> None:
        np.testing.assert_array_equal(decode(encode(RGB_IMAGE, "TIFF", big_tiff=True)), RGB)
        big_endian = Image.frombytes("I;16B", (WIDTH, HEIGHT), GREY16.astype(">u2").tobytes())
        data = encode(big_endian, "TIFF")
        assert data.startswith(b"MM")
        np.testing.assert_array_equal(decode(data, "gray"), GREY16 >> 8)

    def test_colour_profile_of_a_png_changes_nothing(self) -> None:
        for profile in (b"\0" * 200, b"no profile at all"):
            data = encode(RGB_IMAGE, "PNG", icc_profile=profile)
            np.testing.assert_array_equal(decode(data), RGB)
            np.testing.assert_array_equal(decode(data, "gray"), decode(encode(RGB_IMAGE, "PNG"), "gray"))


class TestGrayAndRgb:
    @pytest.mark.parametrize("name", EVERY_FILE)
    def test_equals_both_single_readings(self, name: str) -> None:
        gray, rgb = decode_gray_and_rgb(EVERY_FILE[name], max_pixels=2**28)
        np.testing.assert_array_equal(gray, decode(EVERY_FILE[name], "gray"))
        np.testing.assert_array_equal(rgb, decode(EVERY_FILE[name]))

    def test_every_colour_of_a_coarse_cube_as_png(self) -> None:
        levels = np.arange(0, 256, 3, dtype=np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3)
        data = encode(Image.fromarray(cube), "PNG")
        gray, rgb = decode_gray_and_rgb(data, max_pixels=2**28)
        alone = decode_image(data, "gray", max_pixels=2**28)
        np.testing.assert_array_equal(gray, alone)
        np.testing.assert_array_equal(rgb, cube)

    def test_an_image_in_memory_has_the_colours_of_its_png(self) -> None:
        data = encode(RGB_IMAGE, "PNG")
        np.testing.assert_array_equal(recoloured(RGB, "gray"), decode(data, "gray"))
        grey = decode(data, "gray")
        np.testing.assert_array_equal(recoloured(grey, "rgb"), np.dstack([grey] * 3))
        assert recoloured(RGB, "rgb") is RGB
        assert recoloured(grey, "gray") is grey

    def test_every_grey_level_of_a_bmp(self) -> None:
        levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
        gray, rgb = decode_gray_and_rgb(encode(Image.fromarray(levels), "BMP"), max_pixels=256)
        np.testing.assert_array_equal(gray, levels)
        np.testing.assert_array_equal(rgb, np.dstack([levels] * 3))

    def test_limit_and_format_are_checked(self) -> None:
        with pytest.raises(InputError, match="none of PNG"):
            decode_gray_and_rgb(b"hello", max_pixels=10)
        data = encode(Image.fromarray(np.zeros((4, 4), np.uint8)), "PNG")
        with pytest.raises(InputError, match="the limit is 15"):
            decode_gray_and_rgb(data, max_pixels=15)


class TestLimits:
    def test_file_bytes_hold_16_bit_rgba(self) -> None:
        assert max_file_bytes(0) == 2**20
        assert max_file_bytes(1000) - max_file_bytes(0) == 8 * 1000

    @pytest.mark.parametrize("name", EVERY_FILE)
    def test_limit_counts_pixels(self, name: str) -> None:
        assert decode(EVERY_FILE[name], max_pixels=WIDTH * HEIGHT).shape == (HEIGHT, WIDTH, 3)
        with pytest.raises(
            InputError, match=rf"{WIDTH} x {HEIGHT} .*{WIDTH * HEIGHT - 1}.*--max-image-pixels"
        ) as caught:
            decode(EVERY_FILE[name], max_pixels=WIDTH * HEIGHT - 1)
        assert caught.value.kind == "ImageTooLargeError"

    def test_header_alone_is_enough_to_refuse_a_bomb(self) -> None:
        side = 2**30
        webp = bytearray(EVERY_FILE["WebP RGB"])
        webp[21:25] = struct.pack("<I", 16383 | 16383 << 14)
        bmp = bytearray(EVERY_FILE["BMP RGB"])
        bmp[18:26] = struct.pack("<ii", side, side)
        jpeg = EVERY_FILE["JPEG RGB"].replace(struct.pack(">HH", HEIGHT, WIDTH), b"\xff\xf0\xff\xf0", 1)
        assert fault_of(png(side, side), 2**28) == "ImageTooLargeError"
        assert fault_of(bytes(webp), 16383 * 16383 - 1) == "ImageTooLargeError"
        assert fault_of(jpeg, 2**28) == "ImageTooLargeError"
        assert fault_of(bytes(bmp), 2**28) in ("ImageTooLargeError", "TruncatedImageError")

    @pytest.mark.parametrize(("width", "height"), [(2**20 + 1, 1), (1, 2**20 + 1), (2**16, 2**16)])
    def test_beyond_the_decoder(self, width: int, height: int) -> None:
        with pytest.raises(InputError, match="whatever --max-image-pixels says") as caught:
            decode(png(width, height), max_pixels=2**40)
        assert caught.value.kind == "ImageTooLargeError"


class TestCutFiles:
    @pytest.mark.parametrize("name", EVERY_FILE)
    def test_every_cut_is_an_error_or_harmless(self, name: str) -> None:
        data = EVERY_FILE[name]
        whole = decode(data)
        for length in range(0, len(data), max(1, len(data) // 60)):
            self.check_cut(data, length, whole)
        for length in range(len(data) - 12, len(data)):
            self.check_cut(data, length, whole)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_any_cut(self, draw: st.DataObject) -> None:
        data = EVERY_FILE[draw.draw(st.sampled_from(sorted(EVERY_FILE)))]
        self.check_cut(data, draw.draw(st.integers(0, len(data) - 1)), decode(data))

    @staticmethod
    def check_cut(data: bytes, length: int, whole: np.ndarray) -> None:
        pixels = pixels_or_kind(data[:length])
        if isinstance(pixels, np.ndarray):
            np.testing.assert_array_equal(pixels, whole)
        else:
            assert pixels in DAMAGE

    @pytest.mark.parametrize("name", EVERY_FILE)
    def test_half_a_file_is_called_truncated(self, name: str) -> None:
        data = EVERY_FILE[name]
        assert fault_of(data[: len(data) // 2]) == "TruncatedImageError"

    def test_end_marker_of_an_exif_thumbnail_does_not_count(self) -> None:
        thumbnail = encode(RGB_IMAGE.resize((8, 8)), "JPEG")
        segment = b"Exif\0\0" + thumbnail
        data = EVERY_FILE["JPEG RGB"]
        data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
        np.testing.assert_array_equal(decode(data), decode(EVERY_FILE["JPEG RGB"]))
        assert END_OF_JPEG in data[: len(segment) + 6]
        assert fault_of(data[:-200]) == "TruncatedImageError"
        assert fault_of(data[:-2]) == "TruncatedImageError"

    @pytest.mark.parametrize("name", [name for name in EVERY_FILE if name.startswith(("PNG", "JPEG"))])
    def test_bytes_after_the_end_are_allowed(self, name: str) -> None:
        np.testing.assert_array_equal(decode(EVERY_FILE[name] + b"\0appended\xff"), decode(EVERY_FILE[name]))

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    @pytest.mark.parametrize("restarts", [0, 1])
    def test_jpeg_that_lost_data_before_its_end_marker(self, mode: str, restarts: int, orientation: int) -> None:
        image = Image.fromarray(smooth_noise(7, 70, 90, 3)).convert(mode)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encode(image, "JPEG", quality=90, restart_marker_rows=restarts, exif=exif)
        first, last = data.rindex(b"\xff\xda") + 40, len(data) - 300
        for length in range(first, last, (last - first) // 12):
            if data[length - 1] != 0xFF:
                assert fault_of(data[:length] + END_OF_JPEG) == "TruncatedImageError"

    @pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
    def test_jpeg_that_really_is_mid_grey(self, mode: str) -> None:
        grey = Image.fromarray(np.full((40, 50, 3), 128, np.uint8)).convert("RGB")
        image = Image.merge("CMYK", [grey.getchannel(0)] * 4) if mode == "CMYK" else grey.convert(mode)
        for progressive in (False, True):
            assert np.ptp(decode(encode(image, "JPEG", progressive=progressive))) == 0


class TestDamagedFiles:
    def test_empty(self) -> None:
        assert fault_of(b"") == "EmptyImageError"

    @given(st.binary(min_size=1, max_size=200))
    def test_random_bytes(self, data: bytes) -> None:
        assert fault_of(data) in ("UnsupportedImageError", "CorruptImageError", "TruncatedImageError")

    @settings(max_examples=400, deadline=None)
    @given(
        st.sampled_from(
            [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"RIFF\x30\0\0\0WEBP"]
        ),
        st.binary(max_size=200),
    )
    def test_random_bytes_after_a_right_beginning(self, magic: bytes, data: bytes) -> None:
        with pytest.raises(InputError):
            decode(magic + data)

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_one_wrong_byte_in_a_png(self, draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from([name for name in EVERY_FILE if name.startswith("PNG")]))
        data = bytearray(EVERY_FILE[name])
        position = draw.draw(st.integers(0, len(data) - 1))
        data[position] ^= draw.draw(st.integers(1, 255))
        assert fault_of(bytes(data)) in (
            "UnsupportedImageError",
            "CorruptImageError",
            "TruncatedImageError",
            "ImageTooLargeError",
        )

    @settings(max_examples=300, deadline=None)
    @given(st.data())
    def test_one_wrong_byte_elsewhere_is_an_input_error_at_worst(self, draw: st.DataObject) -> None:
        name = draw.draw(st.sampled_from(sorted(EVERY_FILE)))
        data = bytearray(EVERY_FILE[name])
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
        pixels = pixels_or_kind(bytes(data))
        if isinstance(pixels, np.ndarray):
            assert pixels.ndim == 3
            assert pixels.dtype == np.uint8
        else:
            assert pixels in {*DAMAGE, "ImageTooLargeError"}

    def test_png_with_right_checksums_and_missing_rows(self) -> None:
        assert fault_of(png(WIDTH, HEIGHT, grey_png_pixels(GREY[: HEIGHT // 2]))) == "CorruptImageError"
        assert fault_of(png(WIDTH, HEIGHT)) == "CorruptImageError"
        np.testing.assert_array_equal(decode(png(WIDTH, HEIGHT, grey_png_pixels(GREY)), "gray"), GREY)

    @pytest.mark.parametrize(("depth", "color_type"), [(3, 0), (8, 5), (16, 3), (4, 2)])
    def test_png_header_that_the_standard_forbids(self, depth: int, color_type: int) -> None:
        data = png(WIDTH, HEIGHT, grey_png_pixels(GREY), depth=depth, color_type=color_type)
        assert fault_of(data) == "CorruptImageError"

    def test_png_of_no_size(self) -> None:
        assert fault_of(png(0, HEIGHT)) == "CorruptImageError"

    @pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
    def test_palette_tiff_whose_strip_is_wiped(self, compression: str) -> None:
        data = EVERY_FILE[f"TIFF P {compression}"]
        strips = Image.open(io.BytesIO(data)).tag_v2
        middle, end = strips[273][0] + strips[279][0] // 2, strips[273][0] + strips[279][0]
        assert fault_of(data[:middle] + b"\0" * (end - middle) + data[end:]) == "CorruptImageError"

    @pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint32])
    def test_tiff_samples_without_a_scale(self, dtype: type) -> None:
        data = encode(Image.fromarray(GREY.astype(dtype)), "TIFF")
        with pytest.raises(InputError, match="at most 16 bits") as caught:
            decode(data)
        assert caught.value.kind == "UnsupportedImageError"

    @pytest.mark.parametrize("format_name", ["GIF", "PPM", "ICO", "JPEG2000"])
    def test_other_formats_of_pillow_play_no_part(self, format_name: str) -> None:
        assert fault_of(encode(RGB_IMAGE, format_name)) == "UnsupportedImageError"

    def test_lossless_jpeg_process(self) -> None:
        data = EVERY_FILE["JPEG L"].replace(b"\xff\xc0", b"\xff\xc3", 1)
        assert fault_of(data) == "UnsupportedImageError"

    def test_jpeg_without_scan_or_frame(self) -> None:
        data = EVERY_FILE["JPEG L"]
        assert fault_of(data[: data.index(b"\xff\xda")] + END_OF_JPEG) == "CorruptImageError"
        assert fault_of(b"\xff\xd8" + END_OF_JPEG) == "CorruptImageError"


def test_bad_files_leave_stderr_clean(tmp_path: Path) -> None:
    files = {f"{name} cut": data[: len(data) * 2 // 3] for name, data in EVERY_FILE.items()}
    for name, data in EVERY_FILE.items():
        if name.startswith("PNG"):
            files[f"{name} damaged"] = data[:60] + bytes([data[60] ^ 1]) + data[61:]
    files["odd profile"] = encode(RGB_IMAGE, "PNG", icc_profile=b"\0" * 20)
    files["no image"] = b"hello"
    files["empty"] = b""
    files["bomb"] = png(2**30, 2**30)
    files["float"] = encode(Image.fromarray(GREY.astype(np.float32)), "TIFF")
    for index, data in enumerate(files.values()):
        (tmp_path / str(index)).write_bytes(data)
    program = """
import pathlib, sys
from pyimgano_dask.errors import InputError
from pyimgano_dask.images.decoding import decode_image
for path in pathlib.Path(sys.argv[1]).iterdir():
    try:
        decode_image(path.read_bytes(), "rgb", max_pixels=10_000)
    except InputError:
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("refused") == len(files) - 1
