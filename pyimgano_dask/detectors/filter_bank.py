"""A small filter bank: how strongly an image varies around each place, in which direction and at which scale.

An image becomes `n_features` planes on a coarse lattice of sites, one every `stride` pixels:

- Per level k of an octave pyramid (the image shrunk to 1 / 2^k by area means): log(w * r² + floor), the local energy
  of five responses r, the first and second derivatives of a Gaussian of unit σ along x, along y, and mixed
  (x, y, xx, yy, xy). w is a Gaussian window. Energies tell a texture from another by contrast, coarseness and
  direction; a scratch, a spot or a smooth patch changes them.
- The local mean and its two derivatives at the scale of the window.
- In colour also, for the differences red − green and yellow − blue: local mean and log local variance.

Grey values are taken as log(I + 8), so that a change of the light by a factor moves the local mean alone.
Sums of squared responses over a window as texture measure: K. Laws, "Rapid texture identification" (1980);
derivative filters: T. Leung and J. Malik, "Representing and recognizing the visual appearance of materials using
three-dimensional textons" (2001).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Light = Literal["log", "linear"]
Pixels = TypeVar("Pixels", NDArray[np.uint8], NDArray[np.float32])

DARK_LEVELS = 8.0  # added before the logarithm: below this many grey levels noise outweighs light
LINEAR_UNIT = 64.0  # grey levels that count as 1 without the logarithm, near the slope of the logarithm at mid grey
ENERGY_FLOOR = 1e-4  # square of a contrast of 1 %: what is weaker is noise of the camera
RADIUS = 4  # of derivative kernels, in standard deviations
DERIVATIVES = ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))
N_MEANS = 3
N_COLOUR = 4
QUANTUM = 1024
"""Features are whole multiples of 1 / QUANTUM, so that sums of them and of their products are exact."""


@dataclass(frozen=True)
class FilterBank:
    """The filters: pyramid `levels`, pixels from site to site (`stride`), σ of the window in pixels (`window_px`)."""

    levels: tuple[int, ...]
    stride: int
    window_px: float
    light: Light
    in_colour: bool

    @property
    def n_features(self) -> int:
        """How many planes an image becomes."""
        return len(DERIVATIVES) * len(self.levels) + N_MEANS + (N_COLOUR if self.in_colour else 0)

    def sites_hw(self, height: int, width: int) -> tuple[int, int]:
        """How many sites an image of this size has, at least one each way."""
        return shrunk(height, self.stride), shrunk(width, self.stride)

    def features(self, image: NDArray[np.uint8]) -> NDArray[np.int32]:
        """uint8 (H, W) or (H, W, 3) → int32 (n_features, h, w) in units of 1 / QUANTUM, with (h, w) = `sites_hw`."""
        sites_hw = self.sites_hw(image.shape[0], image.shape[1])
        planes = np.empty((self.n_features, *sites_hw), dtype=np.int32)
        for target, plane in zip(planes, self._planes(image, sites_hw), strict=True):
            np.rint(plane * np.float32(QUANTUM), out=target, casting="unsafe")
        return planes

    def _planes(self, image: NDArray[np.uint8], sites_hw: tuple[int, int]) -> Iterator[Floats]:
        sigma = self.window_px / self.stride
        grey, colours = self._split(image)
        for plane in _octaves(grey, image.shape[:2], self.levels):
            for dx, dy in DERIVATIVES:
                response = derivative(plane, 1.0, dx, dy)
                np.multiply(response, response, out=response)
                energy = blur(shrink(response, sites_hw), sigma)
                yield np.log(np.maximum(energy, 0) + np.float32(ENERGY_FLOOR))
        lattice = shrink(grey, sites_hw)
        yield blur(lattice, sigma)
        yield derivative(lattice, sigma, 1, 0)
        yield derivative(lattice, sigma, 0, 1)
        for colour in colours:
            mean = blur(shrink(colour, sites_hw), sigma)
            square = blur(shrink(colour * colour, sites_hw), sigma)
            yield mean
            yield np.log(np.maximum(square - mean * mean, 0) + np.float32(ENERGY_FLOOR))

    def _split(self, image: NDArray[np.uint8]) -> tuple[Floats, Sequence[Floats]]:
        """The light of an image at the finest level, and its two colour differences where it has colour."""
        finest = 1 << min(self.levels)
        small = shrink(image, (shrunk(image.shape[0], finest), shrunk(image.shape[1], finest)))
        light = light_table(self.light)[small]
        if not self.in_colour:
            return light, ()
        red, green, blue = (np.ascontiguousarray(light[..., channel]) for channel in range(3))
        yellow = (red + green) * np.float32(0.5)
        grey = (red + green + blue) * np.float32(1 / 3)
        return grey, (red - green, yellow - blue)


def _octaves(plane: Floats, size_hw: Sequence[int], levels: Sequence[int]) -> Iterator[Floats]:
    """The plane at each level, the finest first, which is the plane's own."""
    for level in sorted(levels):
        plane = shrink(plane, (shrunk(size_hw[0], 1 << level), shrunk(size_hw[1], 1 << level)))
        yield plane


def light_table(light: Light) -> Floats:
    """What each of the 256 grey levels counts as: log(I + 8), or I / 64."""
    levels = np.arange(256, dtype=np.float64)
    return (np.log(levels + DARK_LEVELS) if light == "log" else levels / LINEAR_UNIT).astype(np.float32)


def shrunk(size: int, factor: int) -> int:
    """The size of a side after shrinking by `factor`, halves rounded up, at least 1."""
    return max(1, (2 * size + factor) // (2 * factor))


def shrink(plane: Pixels, size_hw: tuple[int, int]) -> Pixels:
    """Area means of a plane at another size."""
    if plane.shape[:2] == size_hw:
        return plane
    return np.asarray(cv2.resize(plane, size_hw[::-1], interpolation=cv2.INTER_AREA), dtype=plane.dtype)


def blur(plane: Floats, sigma: float) -> Floats:
    """Gaussian mean of standard deviation `sigma`; the border is mirrored."""
    kernel = gaussian_derivative(sigma, 0)
    return _filter(plane, kernel, kernel)


def derivative(plane: Floats, sigma: float, dx: int, dy: int) -> Floats:
    """Derivative of the plane smoothed by a Gaussian, times σ^(dx + dy); the border is mirrored."""
    along_x, along_y = gaussian_derivative(sigma, dx), gaussian_derivative(sigma, dy)
    return _filter(plane, along_x, along_y)


def _filter(plane: Floats, along_x: Floats, along_y: Floats) -> Floats:
    filtered = cv2.sepFilter2D(plane, cv2.CV_32F, along_x, along_y, borderType=cv2.BORDER_REFLECT)
    return np.asarray(filtered, dtype=np.float32)


def gaussian_derivative(sigma: float, order: int) -> Floats:
    """Kernel for correlation: σ^order times the derivative of a sampled Gaussian, order 0, 1 or 2.

    It is exact on polynomials: on x^order / order! it gives σ^order, on lower powers 0 (1 for order 0).
    """
    radius = max(1, round(RADIUS * sigma))
    x = np.arange(-radius, radius + 1, dtype=np.float64)
    gauss = np.exp(-(x * x) / (2 * sigma * sigma))
    gauss /= gauss.sum()
    if order == 0:
        kernel = gauss
    elif order == 1:
        kernel = x * gauss
        kernel *= sigma / (kernel @ x)
    else:
        kernel = (x * x - gauss @ (x * x)) * gauss
        kernel *= 2 * sigma * sigma / (kernel @ (x * x))
    return kernel.astype(np.float32)
