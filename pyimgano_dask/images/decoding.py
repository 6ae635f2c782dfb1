"""Bytes of an image file to uint8 pixels, with everything that is damaged, cut or too large refused first.

The pixels are those of `cv2.imdecode`. What becomes of each kind of file:

=====================  ===============================================================================
in the file            in the array
=====================  ===============================================================================
grey, 1-bit            its grey, three times for "rgb"
colour, read as grey   the decoder's own grey: up to one level away from a grey made of decoded RGB
palette                expanded
alpha                  dropped; a TIFF with unassociated 8-bit alpha has its colour multiplied by alpha
CMYK, YCCK             converted to RGB without a colour profile
16 bits a channel      `value >> 8`; a colour TIFF rounds `value / 257`
float, 32-bit, signed  UnsupportedImageError: there is no fixed scale to eight bits
EXIF orientation       applied
several pages, frames  the first one
embedded ICC profile   ignored
=====================  ===============================================================================

A half file is never scored. Each container is followed to its end before any pixel is decoded: PNG by its
chunks and their checksums, JPEG by its markers up to the end-of-image marker, TIFF by the place of its strips,
WebP by its declared size; the decoder itself refuses a short BMP. A JPEG that ends in the right marker but has
lost image data before it (a dropped network frame) is found by `_jpeg_lacks_data`. Not found: bytes overwritten
in place, in a format without checksums (all but PNG), where the file still decodes.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, TiffImagePlugin

from pyimgano_dask.errors import InputError

Pixels = NDArray[np.uint8]

# Fixed limits of OpenCV's readers (CV_IO_MAX_IMAGE_PIXELS, CV_IO_MAX_IMAGE_WIDTH and _HEIGHT).
_OPENCV_MAX_PIXELS = 2**30
_OPENCV_MAX_SIDE = 2**20

# libpng's weights of blue, green and red: 0.299 and 0.587 in 1/32768, cut to whole numbers, and blue as what is left.
_LIBPNG_WEIGHTS_BGR = np.array([[3737 / 32768, 19234 / 32768, 9797 / 32768]], np.float32)

# Pixels that are converted at once, so that a large image does not stand in memory twice.
_BAND_PIXELS = 2**20

# What Pillow raises for a file that it cannot read.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, OverflowError, struct.error)

# OpenCV logs each file that it cannot read to stderr. Here such a file becomes an error record of its input, which
# says more. The level is one for the whole process and is set once, on import.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says about itself.

    Size in pixels as stored; whether it holds grey only (then each channel of "rgb" equals "gray": a palette or
    colour file whose pixels happen to be grey does not count, but for a BMP with the plain grey palette); whether
    it is a PNG of 8 bits a sample.
    """

    width: int
    height: int
    is_grey: bool
    is_8bit_png: bool = False


def decode_image(data: bytes, color: Literal["rgb", "gray"], *, max_pixels: int) -> Pixels:
    """Pixels of an image file, uint8 in [0, 255]: (H, W, 3) in RGB order for "rgb", (H, W) for "gray".

    H and W are those after the EXIF orientation. `max_pixels` bounds width times height as the header declares
    them; a larger image is refused before any memory is taken for it. Raises InputError (stage "read") with kind
    EmptyImageError, UnsupportedImageError, TruncatedImageError, CorruptImageError or ImageTooLargeError.
    """
    read_header, decode = _functions_for(data)
    _check_size(read_header(data), max_pixels)
    if color == "gray":
        return decode(data, cv2.IMREAD_GRAYSCALE)
    return _swapped(decode(data, cv2.IMREAD_COLOR))


def decode_gray_and_rgb(data: bytes, *, max_pixels: int) -> tuple[Pixels, Pixels]:
    """Both readings of `decode_image`, grey (H, W) and RGB (H, W, 3), in one decoding where the format allows it.

    Raises InputError as `decode_image` does.
    """
    read_header, decode = _functions_for(data)
    header = read_header(data)
    _check_size(header, max_pixels)
    if header.is_grey:
        gray = decode(data, cv2.IMREAD_GRAYSCALE)
        return gray, cast(Pixels, cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))
    bgr = decode(data, cv2.IMREAD_COLOR)
    gray = _libpng_gray(bgr) if header.is_8bit_png else decode(data, cv2.IMREAD_GRAYSCALE)
    return gray, _swapped(bgr)


def recoloured(image: Pixels, color: Literal["rgb", "gray"]) -> Pixels:
    """An image in memory, uint8 RGB (H, W, 3) or grey (H, W), in this colour: as if it came from a PNG file."""
    if color == "gray":
        return image if image.ndim == 2 else _libpng_gray(image, _LIBPNG_WEIGHTS_BGR[:, ::-1])
    return image if image.ndim == 3 else cast(Pixels, cv2.cvtColor(image, cv2.COLOR_GRAY2RGB))


def _swapped(bgr: Pixels) -> Pixels:
    """`bgr` turned into RGB, in place but for a band of rows."""
    for rows in _bands(bgr):
        cv2.cvtColor(bgr[rows], cv2.COLOR_BGR2RGB, dst=bgr[rows])
    return bgr


def _libpng_gray(bgr: Pixels, weights: NDArray[np.float32] = _LIBPNG_WEIGHTS_BGR) -> Pixels:
    """The grey that libpng makes of 8-bit colour: weights in 1/32768, truncated. Exact: no sum reaches 2**24."""
    gray = np.empty(bgr.shape[:2], np.uint8)
    for rows in _bands(bgr):
        gray[rows] = cv2.transform(bgr[rows].astype(np.float32), weights)
    return gray


def _bands(image: Pixels) -> Iterator[slice]:
    """Rows of an image in bands of at most `_BAND_PIXELS`, and at least one row."""
    height, width = image.shape[:2]
    step = max(1, _BAND_PIXELS // width)
    return (slice(top, top + step) for top in range(0, height, step))


def max_file_bytes(max_pixels: int) -> int:
    """Most bytes that a file of `max_pixels` pixels takes: 16-bit RGBA uncompressed, and 1 MiB of metadata.

    >>> max_file_bytes(1_000_000)
    9048576
    """
    return 8 * max_pixels + 2**20


def _functions_for(data: bytes) -> tuple[Callable[[bytes], _Header], Callable[[bytes, int], Pixels]]:
    """Header reader and decoder of the format that the first bytes tell."""
    if not data:
        raise InputError("read", "EmptyImageError", "the file is empty (0 bytes)")
    for magic, read_header, decode in _FORMATS:
        if magic.match(data):
            return read_header, decode
    raise _unsupported(f"the content is none of PNG, JPEG, BMP, TIFF and WebP (it begins with {data[:8]!r})")


def _check_size(header: _Header, max_pixels: int) -> None:
    width, height = header.width, header.height
    if width <= 0 or height <= 0:
        raise _corrupt(f"the header declares a size of {width} x {height} pixels")
    size = f"the image has {width} x {height} = {width * height} pixels"
    if width * height > max_pixels:
        raise _too_large(f"{size}, the limit is {max_pixels}; raise --max-image-pixels if it is a real image")
    if width * height > _OPENCV_MAX_PIXELS or max(width, height) > _OPENCV_MAX_SIDE:
        raise _too_large(
            f"{size}; the decoder takes at most {_OPENCV_MAX_PIXELS}, and {_OPENCV_MAX_SIDE} on a side, "
            f"whatever --max-image-pixels says; cut the image into parts"
        )


def _unsupported(message: str) -> InputError:
    return InputError("read", "UnsupportedImageError", message)


def _corrupt(message: str) -> InputError:
    return InputError("read", "CorruptImageError", message)


def _truncated(message: str) -> InputError:
    return InputError("read", "TruncatedImageError", f"{message}; the file is cut short, copy it again")


def _too_large(message: str) -> InputError:
    return InputError("read", "ImageTooLargeError", message)


def _imdecode(data: bytes, flag: int) -> Pixels:
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), flag)
    except cv2.error as error:
        raise _corrupt(f"the decoder refuses it: {error.err}") from error
    if pixels is None:
        raise _corrupt("the pixels cannot be decoded: the file is damaged, or of a rare variant of its format")
    return cast(Pixels, pixels)


# Bit depths that each PNG colour type allows (PNG specification, 11.2.2); types 0 and 4 are grey.
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def _png_header(data: bytes) -> _Header:
    if len(data) < 33:
        raise _truncated("the PNG ends inside its header")
    width, height, depth, color_type = struct.unpack_from(">IIBB", data, 16)
    if data[8:16] != b"\0\0\0\rIHDR" or depth not in _PNG_DEPTHS.get(color_type, ()):
        raise _corrupt("the PNG header is damaged")
    return _Header(width, height, is_grey=color_type in (0, 4), is_8bit_png=depth == 8)


def _decode_png(data: bytes, flag: int) -> Pixels:
    """Decode once every chunk up to IEND is known to be whole and to have the right CRC.

    Colour profiles are cut out: libpng does not use them here, yet warns on stderr about those it finds odd.
    """
    view = memoryview(data)
    profiles = []
    start, name = 8, b""
    while name != b"IEND":
        if start + 12 > len(data):
            raise _truncated("the PNG has no end chunk (IEND)")
        end = start + 12 + int.from_bytes(view[start : start + 4])
        name = data[start + 4 : start + 8]
        if end > len(data):
            raise _truncated(f"the PNG chunk {name!r} at byte {start} reaches beyond the end of the file")
        if zlib.crc32(view[start + 4 : end - 4]) != int.from_bytes(view[end - 4 : end]):
            raise _corrupt(f"the PNG chunk {name!r} at byte {start} has a wrong checksum: its bytes are damaged")
        if name == b"iCCP":
            profiles.append((start, end))
        start = end
    for start, end in reversed(profiles):
        data = data[:start] + data[end:]
    return _imdecode(data, flag)


# A JPEG marker is 0xFF and a byte; stuffed zeros, fill bytes and restart markers belong to the data around it.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_WITHOUT_LENGTH = frozenset({0x01, 0xD8})
_JPEG_SOS = 0xDA
_JPEG_EOI = 0xD9
# Start-of-frame markers: all of them, and those that libjpeg decodes (neither lossless nor hierarchical).
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_DECODED_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
# The level that libjpeg fills missing data with, by number of components (four: half ink of CMYK, as RGB).
_JPEG_FILL = {1: 128, 3: 128, 4: 65}
# Bits that decode to something, before the first restart marker and after each of the eight.
_JPEG_PROBE = b"".join(
    prefix + bytes((73 * i + 41) % 255 for i in range(96))
    for prefix in (b"", *(b"\xff" + bytes([0xD0 + i]) for i in range(8)))
)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and start of its content, in file order, up to and with the end-of-image marker."""
    position = 2
    while True:
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            raise _truncated("the JPEG has no end-of-image marker")
        position = match.end()
        marker = data[position - 1]
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        yield marker, position
        if marker == _JPEG_EOI:
            return
        position += int.from_bytes(data[position : position + 2])


def _jpeg_frame(data: bytes) -> tuple[_Header, int]:
    """Header and number of colour components."""
    for marker, start in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            if start + 8 > len(data):
                raise _truncated("the JPEG ends inside its frame header")
            precision, height, width, components = struct.unpack_from(">BHHB", data, start + 2)
            if precision != 8 or marker not in _JPEG_DECODED_FRAMES:
                raise _unsupported(
                    f"the JPEG has {precision} bits a sample in coding process 0x{marker:02X}; "
                    f"only 8 bits, baseline or progressive, are read"
                )
            return _Header(width, height, is_grey=components == 1), components
        if marker in (_JPEG_SOS, _JPEG_EOI):
            break
    raise _corrupt("the JPEG has no frame header before its pixels")


def _jpeg_header(data: bytes) -> _Header:
    return _jpeg_frame(data)[0]


def _decode_jpeg(data: bytes, flag: int) -> Pixels:
    header, components = _jpeg_frame(data)
    segments = list(_jpeg_segments(data))
    if not any(marker == _JPEG_SOS for marker, _ in segments):
        raise _corrupt("the JPEG holds no pixels (no start-of-scan marker)")
    pixels = _imdecode(data, flag)
    _, end = segments[-1]
    if _jpeg_ends_in_fill(pixels, header, components) and _jpeg_lacks_data(data[: end - 2], pixels, flag):
        raise _truncated("the JPEG has an end-of-image marker, but image data is missing before it")
    return pixels


def _jpeg_ends_in_fill(pixels: Pixels, header: _Header, components: int) -> bool:
    """Whether the corner that was coded last is flat and of the level that stands for missing data.

    The EXIF orientation may have moved that corner to any of the four.
    """
    # Half of what is visible of the last 8 x 8 block: away from its edge, which blends with the block before.
    rows, columns = ((header.height - 1) % 8 + 2) // 2, ((header.width - 1) % 8 + 2) // 2
    if pixels.shape[:2] != (header.height, header.width):
        rows, columns = columns, rows
    fill = _JPEG_FILL.get(components, -1)
    return any(
        (pixels[y, x] == fill).all()
        for y in (slice(rows), slice(-rows, None))
        for x in (slice(columns), slice(-columns, None))
    )


def _jpeg_lacks_data(without_end: bytes, pixels: Pixels, flag: int) -> bool:
    """Whether the entropy-coded data stops before the last pixel.

    libjpeg says so on stderr only, and fills up with grey. So bits are put in front of the end marker: a complete
    image has no use for them and stays as it is, an incomplete one takes them for the missing pixels. This
    decodes the file twice, so it is asked only when the last block looks like fill.
    """
    probed = _imdecode(without_end + _JPEG_PROBE + b"\xff\xd9", flag)
    return not np.array_equal(probed, pixels)


def _bmp_header(data: bytes) -> _Header:
    try:
        image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    except _PILLOW_ERRORS as error:
        raise _corrupt(f"the BMP header is damaged, cut short or of a rare variant: {error}") from error
    codec, _, offset, arguments = image.tile[0]
    if codec == "raw":
        _, row_bytes, _ = cast(tuple[str, int, int], arguments)
        end = offset + row_bytes * image.height
        if end > len(data):
            raise _truncated(f"the BMP has {len(data)} bytes, its pixels reach to byte {end}")
    return _Header(*image.size, is_grey=image.mode in ("1", "L"))


def _webp_header(data: bytes) -> _Header:
    declared = max(8 + int.from_bytes(data[4:8], "little"), 30)
    if len(data) < declared:
        raise _truncated(f"the WebP file has {len(data)} bytes of {declared}")
    kind = data[12:16]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(data[24:27], "little")
        height = 1 + int.from_bytes(data[27:30], "little")
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    else:
        raise _corrupt(f"the WebP file begins with the unknown chunk {kind!r}")
    return _Header(width, height, is_grey=False)


# TIFF tags that are read. The place and the length of the pixel data come as strips or as tiles.
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC = 256, 257, 258, 259, 262
_TIFF_SAMPLES, _TIFF_PALETTE, _TIFF_SAMPLE_FORMAT, _TIFF_JPEG_TABLES = 277, 320, 339, 347
_TIFF_PARTS = ((273, 279), (324, 325))
_TIFF_TAGS = frozenset(
    {_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_BITS, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC, _TIFF_SAMPLES}
    | {_TIFF_PALETTE, _TIFF_SAMPLE_FORMAT, _TIFF_JPEG_TABLES}
    | {tag for part in _TIFF_PARTS for tag in part}
)
# Field types that hold whole numbers, as struct codes: BYTE, SHORT, LONG, UNDEFINED, LONG8.
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """Fields of the first page by tag, in classic TIFF and BigTIFF. InputError when one lies outside the file."""
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] in (b"\x2b\0", b"\0\x2b"):
        page_at, count_format, entry_format, offset_format = 8, order + "Q", order + "HHQ", order + "Q"
    else:
        page_at, count_format, entry_format, offset_format = 4, order + "H", order + "HHI", order + "I"
    inline = struct.calcsize(offset_format)
    tags = {}
    try:
        (page,) = struct.unpack_from(offset_format, data, page_at)
        (entries,) = struct.unpack_from(count_format, data, page)
        position = page + struct.calcsize(count_format)
        for _ in range(entries):
            tag, kind, count = struct.unpack_from(entry_format, data, position)
            position += struct.calcsize(entry_format)
            if tag in _TIFF_TAGS and kind in _TIFF_TYPES:
                values = f"{order}{count}{_TIFF_TYPES[kind]}"
                is_inline = struct.calcsize(values) <= inline
                start = position if is_inline else struct.unpack_from(offset_format, data, position)[0]
                tags[tag] = struct.unpack_from(values, data, start)
            position += inline
        struct.unpack_from(offset_format, data, position)  # the place of the next page closes this one
    except (struct.error, OverflowError) as error:
        raise _truncated("the TIFF names header fields beyond the end of the file") from error
    return tags


def _tiff_header(data: bytes) -> _Header:
    tags = _tiff_tags(data)
    for starts, lengths in _TIFF_PARTS:
        places = tags.get(starts, ())
        sizes = tags.get(lengths) or (1,) * len(places)
        end = max((place + size for place, size in zip(places, sizes, strict=False)), default=0)
        if end > len(data):
            raise _truncated(f"the TIFF has {len(data)} bytes, its pixels reach to byte {end}")
    bits = max(tags.get(_TIFF_BITS) or (1,))
    is_unsigned = set(tags.get(_TIFF_SAMPLE_FORMAT, ())) <= {1, 4}
    if bits > 16 or not is_unsigned:
        raise _unsupported(
            f"the TIFF holds {bits}-bit {'' if is_unsigned else 'signed or float '}samples; only unsigned ones of "
            f"at most 16 bits are read, since others have no fixed scale to 8 bits; convert it first"
        )
    width, height, photometric, samples = (
        (tags.get(tag) or (default,))[0]
        for tag, default in ((_TIFF_WIDTH, 0), (_TIFF_HEIGHT, 0), (_TIFF_PHOTOMETRIC, -1), (_TIFF_SAMPLES, 1))
    )
    return _Header(width, height, is_grey=photometric in (0, 1) and samples <= 2)


def _decode_tiff(data: bytes, flag: int) -> Pixels:
    tags = _tiff_tags(data)
    if tags.get(_TIFF_PHOTOMETRIC) == (3,) and tags.get(_TIFF_COMPRESSION, (1,)) != (1,):
        # OpenCV leaves the part of a palette image that does not unpack black, so Pillow judges first.
        try:
            TiffImagePlugin.TiffImageFile(io.BytesIO(data)).load()
        except _PILLOW_ERRORS as error:
            raise _corrupt(f"the pixels of the TIFF cannot be unpacked: {error}") from error
    return _imdecode(data, flag)


# The first bytes of each format, and its functions.
_FORMATS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), _png_header, _decode_png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg_header, _decode_jpeg),
    (re.compile(rb"BM"), _bmp_header, _imdecode),
    (re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]"), _tiff_header, _decode_tiff),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp_header, _imdecode),
)
