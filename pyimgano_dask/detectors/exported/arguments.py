"""What can be declared of an exported model; what is left out is read from its file."""

from __future__ import annotations

from typing import Any, Literal

from pyimgano_dask.detectors.devices import device_knob
from pyimgano_dask.settings.knob import Block, knob

Layout = Literal["NCHW", "NHWC"]
OutputName = int | str | None
LARGEST_SIDE = 2**14

_ONE_OUTPUT = "by its name or its position from 0 (default: found by its name, else by its shape and type)."


class ExportedModelArguments(Block):
    """Arguments of every detector that runs an exported model. None: as the file says."""

    device: str | None = device_knob()
    contamination: float | None = knob(
        None,
        "Expected share of anomalies among the normal images that calibrate the score threshold (default: none, the "
        "threshold is the quantile 0.995).",
        gt=0,
        le=0.5,
    )
    input_hw: tuple[int, int] | None = knob(
        None, "Height and width of the model's input; images are resized to it (default: the file's, else 256 x 256)."
    )
    color: Literal["rgb", "bgr", "gray"] | None = knob(
        None, "Channels the model takes, in this order (default: gray for one channel, else rgb)."
    )
    value_range: Literal["unit", "byte"] | None = knob(
        None,
        "Values the model takes: 0 to 1 (unit), or 0 to 255 (byte) (default: byte for an input of uint8, else unit).",
    )
    mean: tuple[float, ...] | None = knob(
        None,
        "Subtracted from each channel, in values of value_range; one number, or one a channel in the order of color "
        "(default: 0, the model normalises itself).",
    )
    std: tuple[float, ...] | None = knob(None, "Each channel is divided by this after mean; as many numbers as mean.")
    layout: Layout | None = knob(None, "Order of the input's axes (default: where the axis of 1 or 3 channels stands).")
    batch_size: int | None = knob(
        None, "Images the model takes at a time, always as many (default: the file's where it is fixed, else 1).", ge=1
    )
    map_output: OutputName = knob(None, f"The output that is the anomaly map, {_ONE_OUTPUT}")
    map_hw: tuple[int, int] | None = knob(
        None, "Height and width of the map where it has another size than the input and covers all of it."
    )
    map_from_score: bool = knob(
        False, "For a model without a map: its score at every pixel, so that tiles make a coarse map."
    )
    score_output: OutputName = knob(
        None, f"The output that is the score, {_ONE_OUTPUT} Without one, reduction makes the score of the map."
    )
    reduction: Literal["max", "mean", "topk_mean"] = knob(
        "max", "How the map becomes the score of a model that gives none."
    )
    topk: float = knob(0.01, "Share of the largest map values that topk_mean averages.", gt=0, le=1)

    def model_post_init(self, context: Any, /) -> None:
        """Check what the types cannot say."""
        for name, size_hw in (("input_hw", self.input_hw), ("map_hw", self.map_hw)):
            if size_hw is not None and not 1 <= min(size_hw) <= max(size_hw) <= LARGEST_SIDE:
                raise ValueError(f"{name} must be two sizes from 1 to {LARGEST_SIDE}, got {size_hw}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, 3):
                raise ValueError(f"{name} must be one number or three, got {len(values)}")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std must be above 0, got {self.std}")
        for name, output in (("map_output", self.map_output), ("score_output", self.score_output)):
            if isinstance(output, int) and output < 0:
                raise ValueError(f"{name} is a position from 0, got {output}")
