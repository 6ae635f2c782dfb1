"""Illumination and contrast correction: white balance, homomorphic filter, CLAHE, gamma, contrast stretch.

Images are uint8, RGB (H, W, 3) or grey (H, W), of any size from one pixel; answers are new arrays of the same shape, or
the image itself where there is nothing to do. Names and results are those of the package pyimgano 0.9.1, which cuts
fractions of a level off instead of rounding. Sums are exact, transcendental functions those of the C library, so that
bytes depend neither on the number of threads nor on a processor's vector instructions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

# Rows are worked on in bands of so many pixels, so that no float copy of a large image is made.
_BAND_PIXELS = 1 << 20

_LEVELS = np.arange(256)
_SMALLEST_GAIN_DIVISOR = np.float32(1e-6)
_SMALLEST_RADIUS_SQUARED = 1e-6

# The logarithm of each level as a share of 255; black counts as 1e-6, which has one.
_LOGS = np.array([math.log(max(level / 255, 1e-6)) for level in range(256)], np.float32)
# The least logarithm that is still this level, and the one from which it is the next.
_LOWER = np.array([-math.inf, *(math.log(level / 255) for level in range(1, 256))], np.float32)
_UPPER = np.append(_LOWER[1:], np.float32(math.inf))

# From here on no bin of a histogram is clipped; OpenCV counts in whole numbers, which larger limits overflow.
_CLIPS_NOTHING = 256.0


def gray_world(image: Pixels) -> Pixels:
    """Scale the channels of an RGB image so that their means are equal; a grey image stays as it is.

    v' = v · m / m_c with m_c the mean of a channel and m the mean of the three, cut to [0, 255] (G. Buchsbaum, A
    spatial processor model for object colour perception, J. Franklin Institute 310, 1980). Means are exact.
    """
    if image.ndim == 2:
        return image
    means = np.array([cv2.mean(image)[:3]]).ravel().astype(np.float32)
    return _scaled_channels(image, means.mean(), means)


def max_rgb(image: Pixels) -> Pixels:
    """Scale the channels of an RGB image so that their largest values are equal; a grey image stays as it is.

    v' = v · max(M_r, M_g, M_b) / M_c, cut to [0, 255]: the brightest of each channel is taken for white (E. H. Land and
    J. J. McCann, Lightness and retinex theory, J. Optical Society of America 61, 1971).
    """
    if image.ndim == 2:
        return image
    largest = np.array([channel.max() for channel in _channels(image)], np.float32)
    return _scaled_channels(image, largest.max(), largest)


def _scaled_channels(image: Pixels, target: np.float32, of_channels: NDArray[np.float32]) -> Pixels:
    gains = target / np.maximum(of_channels, _SMALLEST_GAIN_DIVISOR)
    return _looked_up(image, _cut(_LEVELS.astype(np.float32)[:, None] * gains))


def gamma_correction(image: Pixels, gamma: float) -> Pixels:
    """v' = 255 · (v / 255)^(1 / gamma) with gamma > 0: above 1 brightens the dark levels, below 1 darkens them."""
    power = 1 / gamma
    return _looked_up(image, _cut(np.array([(level / 255) ** power * 255 for level in range(256)])))


def contrast_stretch(image: Pixels, lower_percentile: float, upper_percentile: float) -> Pixels:
    """Stretch the levels between two percentiles of each channel over the whole range.

    v' = 255 · (v - p_low) / (p_high - p_low), cut to [0, 255], with percentiles 0 ≤ lower < upper ≤ 100 as
    `numpy.percentile` (linear) gives them. A channel whose two percentiles are equal stays as it is.
    """
    tables = np.empty((256, 1 if image.ndim == 2 else 3), np.uint8)
    for number, channel in enumerate([image] if image.ndim == 2 else _channels(image)):
        ends = np.cumsum(np.bincount(channel.ravel(), minlength=256))
        low, high = _percentile(ends, lower_percentile), _percentile(ends, upper_percentile)
        tables[:, number] = _LEVELS if low == high else _cut((_LEVELS - low) * 255.0 / (high - low))
    return _looked_up(image, tables if image.ndim == 3 else tables[:, 0])


def _percentile(ends: NDArray[np.int64], percentile: float) -> float:
    """Linear percentile of levels of which `ends[k]` are k or less, with the rounding of `numpy.percentile`."""
    place = (int(ends[-1]) - 1) * (percentile / 100)
    before = math.floor(place)
    share = place - before
    low, high = (int(np.searchsorted(ends, position, side="right")) for position in (before, math.ceil(place)))
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def clahe(image: Pixels, clip_limit: float, tile_grid_size: tuple[int, int]) -> Pixels:
    """Contrast limited adaptive histogram equalisation; of an RGB image, its intensity is equalised.

    Each of `tile_grid_size` (columns, rows) parts of the image has its histogram equalised; a bin of more than
    `clip_limit` (> 0) times the mean is cut, its excess spread over all bins; pixels blend the curves of the four parts
    about them (S. M. Pizer et al., Adaptive histogram equalization and its variations, 1987; K. Zuiderveld, Graphics
    Gems IV, 1994). The colours of a pixel are scaled by its new through its old intensity, the mean of its channels.
    """
    equalizer = cv2.createCLAHE(min(clip_limit, _CLIPS_NOTHING), tile_grid_size)
    if image.ndim == 2:
        return np.asarray(equalizer.apply(image), np.uint8)
    return _with_intensity(image, np.asarray(equalizer.apply(_intensity(image)), np.uint8), np.float32(1))


def homomorphic_filter(
    image: Pixels, *, cutoff: float, gamma_low: float, gamma_high: float, c: float, per_channel: bool
) -> Pixels:
    """Weaken slow changes of brightness and strengthen quick ones.

    An image is illumination times reflectance, its logarithm their sum; illumination changes slowly. The spectrum of
    the logarithm is multiplied by H(d) = gamma_high - (gamma_high - gamma_low) · exp(-c · d² / d0²) with d the
    distance from frequency 0 in cycles per image, in both directions, and d0 = `cutoff` · max(H, W) / 2; the
    exponential of what that gives is the image (A. V. Oppenheim, R. W. Schafer and T. G. Stockham, Nonlinear filtering
    of multiplied and convolved signals, Proc. IEEE 56, 1968; the Gaussian H is that of R. C. Gonzalez and R. E. Woods,
    Digital Image Processing).

    `cutoff` is in (0, 1], `gamma_low` and `gamma_high` in [0, 100], `c` in [0, 10⁶]. `per_channel` filters the channels
    of an RGB image one by one, else its intensity is filtered and colours are scaled with it. Takes about 8 bytes a
    pixel beside the image and the answer.
    """
    height, width = image.shape[:2]
    radius_squared = max((cutoff * max(height, width) / 2) ** 2, _SMALLEST_RADIUS_SQUARED)
    falloff = -c / radius_squared
    slow = gamma_high - gamma_low
    rows = _bell(falloff, np.fft.fftfreq(height, 1 / height)) * np.float32(slow)
    columns = _bell(falloff, np.fft.rfftfreq(width, 1 / width))

    def filtered(plane: Pixels) -> Pixels:
        spectrum = np.fft.rfft(np.asarray(cv2.LUT(plane, _LOGS), np.float32), axis=1)
        np.fft.fft(spectrum, axis=0, out=spectrum)
        for band in _bands(spectrum):
            spectrum[band] *= np.float32(gamma_high) - np.multiply.outer(rows[band], columns)
        np.fft.ifft(spectrum, axis=0, out=spectrum)
        return _levels_of(np.asarray(np.fft.irfft(spectrum, n=width, axis=1), np.float32))

    if image.ndim == 2:
        return filtered(image)
    if per_channel:
        return np.asarray(cv2.merge([filtered(channel) for channel in _channels(image)]), np.uint8)
    return _with_intensity(image, filtered(_intensity(image)), _SMALLEST_GAIN_DIVISOR)


def _bell(falloff: float, frequencies: NDArray[np.float64]) -> NDArray[np.float32]:
    """exp(falloff · f²) by the C library, whose values do not hang on the processor as those of numpy may."""
    return np.array([math.exp(falloff * frequency**2) for frequency in np.rint(frequencies).tolist()], np.float32)


def _levels_of(logs: NDArray[np.float32]) -> Pixels:
    """The whole part of 255 · exp(x), at most 255.

    Exponentials may differ in their last bit from one processor to another, so what they say is held against the
    logarithms of the levels.
    """
    levels = np.empty(logs.shape, np.uint8)
    for band in _bands(logs):
        x, level = logs[band], levels[band]
        level[...] = np.exp(np.minimum(x, np.float32(0))) * np.float32(255)
        level += x >= cv2.LUT(level, _UPPER)
        level -= x < cv2.LUT(level, _LOWER)
    return levels


def _channels(image: Pixels) -> Iterator[Pixels]:
    """The channels of an RGB image, one after the other, as images of their own."""
    return (np.asarray(cv2.extractChannel(image, channel), np.uint8) for channel in range(3))


def _intensity(image: Pixels) -> Pixels:
    """The mean of the channels without its fraction, uint8 (H, W)."""
    intensity = np.empty(image.shape[:2], np.uint8)
    for band in _bands(image):
        np.floor_divide(_channel_sums(image[band]), 3, out=intensity[band], casting="unsafe")
    return intensity


def _with_intensity(image: Pixels, intensity: Pixels, floor: np.float32) -> Pixels:
    """The RGB image with the channels of each pixel scaled by its new `intensity` through its old one (≥ `floor`)."""
    scaled = np.empty_like(image)
    for band in _bands(image):
        old = np.maximum(_channel_sums(image[band]) / np.float32(3), floor)
        scaled[band] = _cut(image[band] * (intensity[band] / old)[..., None])
    return scaled


def _channel_sums(image: Pixels) -> NDArray[np.uint16]:
    red, green, blue = (image[..., channel] for channel in range(3))
    return np.asarray(np.add(red, green, dtype=np.uint16) + blue, np.uint16)


def _cut(values: NDArray[Any]) -> Pixels:
    """Levels without their fractions, cut to [0, 255]."""
    return np.asarray(np.clip(values, 0, 255), np.uint8)


def _looked_up(image: Pixels, table: Pixels) -> Pixels:
    """Each level replaced by that of a table (256,), or (256, 3) with a column a channel."""
    return np.asarray(cv2.LUT(image, table if table.ndim == 1 else table[:, None]), np.uint8)


def _bands(array: NDArray[Any]) -> Iterator[slice]:
    """The rows of an array in bands of at most `_BAND_PIXELS`, and at least one row."""
    height, width = array.shape[:2]
    step = max(1, _BAND_PIXELS // width)
    return (slice(top, top + step) for top in range(0, height, step))
