"""The read stage: paths to images, in groups that bound the memory of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from pyimgano_dask.dataflow.faults import faults_are_the_inputs
from pyimgano_dask.dataflow.preprocessing import correct
from pyimgano_dask.detectors.base import Color, Image
from pyimgano_dask.errors import InputError
from pyimgano_dask.images.decoding import decode_gray_and_rgb, decode_image, max_file_bytes, recoloured
from pyimgano_dask.images.reading import read_bytes
from pyimgano_dask.images.references import References
from pyimgano_dask.settings.preprocessing import IlluminationContrast

# Pixels of decoded images a task holds at once; one image may exceed it on its own.
GROUP_PIXELS = 1 << 24


@dataclass(frozen=True)
class Loaded:
    """One decoded input: `image` in the detector's colour, `display` RGB (H, W, 3) where overlays are drawn.

    `reference` is the defect-free image it is compared with, for detectors that need one. Both are corrected where the
    settings ask for it, `display` never is.
    """

    index: int
    path: str
    image: Image
    display: Image | None
    reference: Image | None = None

    @property
    def pixels(self) -> int:
        """Pixels of the image and its reference together."""
        images = [self.image] if self.reference is None else [self.image, self.reference]
        return sum(image.shape[0] * image.shape[1] for image in images)


@dataclass(frozen=True)
class Failed:
    """One input that could not be used, and why."""

    index: int
    path: str
    error: InputError


@dataclass(frozen=True)
class Reader:
    """How inputs are read: relative paths start at `base_dir`, images come in `color`, larger ones are refused.

    Images and references, not what is displayed, go through `correction`.
    """

    base_dir: str
    color: Color
    max_pixels: int
    with_display: bool = False
    references: References | None = None
    correction: IlluminationContrast | None = None

    def read(self, index: int, path: str) -> Loaded:
        """Read one input without its reference; raises InputError of the stage `read` or `preprocess`."""
        image, display = self._decoded(path)
        return Loaded(index, path, self._corrected(image), display)

    def groups(self, rows: Iterable[tuple[int, str]]) -> Iterator[tuple[list[Loaded], list[Failed]]]:
        """Read inputs one by one, and hand them over whenever their pixels reach `GROUP_PIXELS`.

        The lists are the caller's: nothing else holds the images, but for the last reference, which may be the next
        one's, too.
        """
        loaded: list[Loaded] = []
        failed: list[Failed] = []
        pixels = 0
        last_reference: tuple[str, Image] | None = None
        for index, path in rows:
            try:
                item = self.read(index, path)
                if self.references is not None:
                    wanted = self.references.path_for(path)
                    if last_reference is None or last_reference[0] != wanted:
                        last_reference = wanted, self._read_reference(path, wanted)
                    item = Loaded(index, path, item.image, item.display, last_reference[1])
            except InputError as error:
                failed.append(Failed(index, path, error))
                continue
            loaded.append(item)
            pixels += item.pixels
            del item
            if pixels >= GROUP_PIXELS:
                yield loaded, failed
                loaded, failed, pixels = [], [], 0
        if loaded or failed:
            yield loaded, failed

    def _decoded(self, path: str) -> tuple[Image, Image | None]:
        """The image in the detector's colour, and in RGB where it is displayed."""
        data = self._bytes(path)
        if self.with_display and self.color == "gray":
            return decode_gray_and_rgb(data, max_pixels=self.max_pixels)
        image = decode_image(data, self.color, max_pixels=self.max_pixels)
        return image, image if self.with_display else None

    def _bytes(self, path: str) -> bytes:
        return read_bytes(path, base_dir=self.base_dir, max_bytes=max_file_bytes(self.max_pixels))

    def _corrected(self, image: Image) -> Image:
        if self.correction is None:
            return image
        with faults_are_the_inputs("preprocess", "its illumination cannot be corrected"):
            return correct(image, self.correction)

    def _read_reference(self, path: str, reference: str) -> Image:
        try:
            return self._corrected(decode_image(self._bytes(reference), self.color, max_pixels=self.max_pixels))
        except InputError as error:
            if error.kind == "FileNotFoundError":
                raise InputError(
                    "read", "MissingReferenceError", f"no reference for {path!r}: there is no {reference!r}"
                ) from None
            raise InputError(error.stage, error.kind, f"the reference {reference!r}: {error.message}") from None


@dataclass(frozen=True)
class ArrayReader(Reader):
    """Images that are in memory already, by name: uint8, (H, W) grey or (H, W, 3) RGB. Not meant to travel."""

    arrays: Mapping[str, Image] = field(default_factory=dict)

    def _decoded(self, path: str) -> tuple[Image, Image | None]:
        image = self.arrays[path]
        return recoloured(image, self.color), recoloured(image, "rgb") if self.with_display else None
