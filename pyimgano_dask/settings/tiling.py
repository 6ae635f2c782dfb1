"""Knobs of tiled inference: the `adaptation.tiling` block of an infer config."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from pyimgano_dask.settings.knob import Block, knob

MapReduce = Literal["max", "mean", "hann", "gaussian"]
ScoreReduce = Literal["max", "mean", "topk_mean"]


class TilingSettings(Block):
    """How large images are cut into overlapping tiles, and how the answers for these become one."""

    tile_size: int | None = knob(
        None,
        "Score images in square tiles of this side, in pixels, and blend their maps (default: whole images). A shorter "
        "side of an image is filled up by mirroring it.",
        flag="--tile-size",
        metavar="N",
        ge=1,
        le=2**14,
    )
    stride: int | None = knob(
        None,
        "Pixels from one tile to the next, at most the tile size (default: the tile size, no overlap). The last tile "
        "ends at the edge of the image.",
        flag="--tile-stride",
        metavar="N",
        ge=1,
    )
    score_reduce: ScoreReduce = knob(
        "max", "How the scores of the tiles become the score of the image.", flag="--tile-score-reduce"
    )
    score_topk: float = knob(
        0.1,
        "Share of the largest tile scores that topk_mean averages.",
        flag="--tile-score-topk",
        metavar="F",
        gt=0,
        le=1,
    )
    map_reduce: MapReduce = knob(
        "max",
        "How maps are blended where tiles overlap: the largest value, the mean, or a mean that weighs the middle of a "
        "tile more than its border (hann, gaussian).",
        flag="--tile-map-reduce",
    )

    @property
    def effective(self) -> tuple[int, int, str, float | None, str] | None:
        """What answers depend on: None for whole images, else equal for settings that are told otherwise only."""
        if self.tile_size is None:
            return None
        topk = self.score_topk if self.score_reduce == "topk_mean" else None
        return self.tile_size, self.stride or self.tile_size, self.score_reduce, topk, self.map_reduce

    @model_validator(mode="after")
    def _tiles_leave_no_gap(self) -> Self:
        if self.tile_size is not None and self.stride is not None and self.stride > self.tile_size:
            raise ValueError(
                f"the stride {self.stride} is larger than the tile size {self.tile_size}, so pixels between tiles "
                f"would lie in none; give a --tile-stride of at most {self.tile_size}"
            )
        return self
