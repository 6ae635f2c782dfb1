"""Exact quantiles of any number of float32 pixels, from partial results that merge in any order.

Method: radix selection with two digits of 16 bits, the high digit first (the selection counterpart of
radix sort; Alabi et al., "Fast k-selection algorithms for graphics processing units", 2012).

* The bits of a float32 become a uint32 key that orders like the number: a negative number has all its bits
  flipped, any other only its sign bit (Herf, "Radix tricks", 2001). -0.0 is turned into 0.0 first, so the two
  zeros are one value.
* Round 1 counts the pixels of each bucket, a bucket being the numbers that share the high 16 bits of the
  key (sign, exponent and 7 bits of fraction). The counts of all chunks add up, and the sum tells which bucket
  holds a given rank.
* A chunk also keeps a bounded tail: the raw pixels of its highest buckets, whole buckets only. Pixel
  quantiles are high ones as a rule, so the merged tails mostly hold the wanted rank, and one round is enough.
* Round 2, where the tails do not reach: each chunk is asked again for the counts of the low 16 bits inside
  the bucket or two that hold the wanted ranks. A bucket and its low bits are the whole number.

The two order statistics around q·(N-1) are interpolated in float64 by numpy itself, so the answer equals
`numpy.quantile(pixels.astype(float64), q)` bit for bit (a zero is always 0.0), however the pixels are split
into chunks.

Memory: a `PixelHistogram` holds at most 65536 counts and `MERGED_TAIL_LIMIT` raw values (17.6 MB), a
`BucketHistogram` at most 2·65536 counts (1.6 MB), for any number of pixels.

    >>> maps = [np.array([[1, 2], [3, 4]], np.float32), np.array([[5, 6, 7]], np.float32)]
    >>> PixelHistogram.of(maps[:1], q=0.75).merge(PixelHistogram.of(maps[1:], q=0.75)).quantile()
    5.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyimgano_dask.errors import InputError, RunError

Pixels = NDArray[np.float32]

SMALLEST_TAIL_LIMIT = 2**16
"""Raw values a chunk may keep whatever its size: room for chunks that are louder than the others."""

LARGEST_TAIL_LIMIT = 2**18
"""Raw values a chunk keeps at most (1 MB to send)."""

MERGED_TAIL_LIMIT = 2**22
"""Raw values kept at most after merging (16 MB): the top thousandth of four billion pixels."""

_BLOCK_PIXELS = 2**16
_BUCKETS = 2**16
_FIRST_FINITE_BUCKET = 0x0080
_FIRST_INFINITE_BUCKET = 0xFF80
_SIGN_BIT = np.uint32(0x80000000)


@dataclass(frozen=True)
class NeedsRefinement:
    """The tails do not hold the wanted ranks: count inside these `buckets` (one or two, ascending)."""

    buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tally:
    """How often each key occurs: ascending distinct `keys` (uint32), `counts` (int64, all positive)."""

    keys: NDArray[np.uint32]
    counts: NDArray[np.int64]

    @classmethod
    def of_dense(cls, counts: NDArray[np.int64], first_key: int = 0) -> Tally:
        """The tally of `counts[i]` occurrences of key `first_key + i`."""
        occupied = np.flatnonzero(counts)
        return cls((occupied + first_key).astype(np.uint32), counts[occupied])

    @classmethod
    def join(cls, parts: Sequence[Tally]) -> Tally:
        """The sum of `parts`."""
        keys, positions = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
        counts = np.zeros(keys.size, np.int64)
        np.add.at(counts, positions, np.concatenate([part.counts for part in parts]))
        return cls(keys, counts)

    @property
    def total(self) -> int:
        """Number of occurrences of all keys."""
        return int(self.counts.sum())

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self.keys.nbytes + self.counts.nbytes

    def find(self, rank: int) -> tuple[int, int]:
        """The key of the occurrence number `rank` (0-based, ascending), and its rank among equal keys."""
        ends = np.cumsum(self.counts)
        position = int(np.searchsorted(ends, rank, side="right"))
        return int(self.keys[position]), rank - int(ends[position] - self.counts[position])

    def between(self, first_key: int, end_key: int) -> Tally:
        """The part with `first_key` <= key < `end_key`."""
        first, end = np.searchsorted(self.keys, [first_key, end_key])
        return Tally(self.keys[first:end], self.counts[first:end])


@dataclass(frozen=True, slots=True, eq=False)
class PixelHistogram:
    """Round 1: the pixels of some maps counted by bucket, and the raw values of the highest buckets.

    `tail` (float32, in no particular order) is every pixel in the buckets from `tail_floor` up. Of merged
    partials it holds all buckets that every part holds, less the lowest ones until `MERGED_TAIL_LIMIT` values
    remain. So `count`, `buckets`, `tail_floor` and the set of `tail` do not depend on the order of merging:
    the counts only grow, and a bucket that is too deep for a part is too deep for the whole.
    """

    q: float
    buckets: Tally
    tail: Pixels
    tail_floor: int

    @classmethod
    def empty(cls, q: float) -> PixelHistogram:
        """No pixel at all: merging with it changes nothing. `q` is the wanted quantile, 0 to 1."""
        return cls(
            q,
            Tally(np.empty(0, np.uint32), np.empty(0, np.int64)),
            np.empty(0, np.float32),
            _FIRST_FINITE_BUCKET,
        )

    @classmethod
    def of(cls, values: Sequence[Pixels] | Pixels, q: float, *, tail_limit: int | None = None) -> PixelHistogram:
        """Count the pixels of one chunk.

        `values`: float32 maps of any shapes and strides (crops included), or one array. `q`: the wanted
        quantile, 0 to 1. `tail_limit`: the number of raw values to keep at most, 0 for none; by default four
        times the number of pixels above `q`, between `SMALLEST_TAIL_LIMIT` and `LARGEST_TAIL_LIMIT`.

        Raises InputError (`extract`, `NonFiniteMapError`) when a value is NaN or infinite, and TypeError for
        another dtype.
        """
        maps = _as_maps(values)
        dense = _count_buckets(maps)
        if dense[:_FIRST_FINITE_BUCKET].any() or dense[_FIRST_INFINITE_BUCKET:].any():
            raise _non_finite_map(maps)
        buckets = Tally.of_dense(dense)
        limit = _chunk_tail_limit(buckets.total, q) if tail_limit is None else tail_limit
        floor = _tail_floor(buckets, limit)
        edge = _lowest_value(floor)
        tail = [block[block >= edge] for block in _blocks(maps)]
        return cls(q, buckets, np.concatenate([np.empty(0, np.float32), *tail]), floor)

    @property
    def count(self) -> int:
        """Number of pixels counted."""
        return self.buckets.total

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self.buckets.nbytes + self.tail.nbytes

    def merge(self, other: PixelHistogram) -> PixelHistogram:
        """The partial of the pixels of both; the operands stay as they are."""
        if self.q != other.q:
            raise ValueError(f"Partials of two quantiles, {self.q} and {other.q}, do not merge.")
        buckets = Tally.join([self.buckets, other.buckets])
        floor = max(self.tail_floor, other.tail_floor, _tail_floor(buckets, MERGED_TAIL_LIMIT))
        return PixelHistogram(self.q, buckets, np.concatenate([self._tail_from(floor), other._tail_from(floor)]), floor)

    def quantile(self) -> float | NeedsRefinement:
        """The quantile `q` of all pixels, or the buckets to count in round 2.

        Raises RunError when there is no pixel.
        """
        low, high, fraction = _ranks(self.count, self.q)
        below_tail = self.count - self.tail.size
        if low < below_tail:
            return NeedsRefinement(tuple(sorted({self.buckets.find(rank)[0] for rank in (low, high)})))
        places = [low - below_tail, high - below_tail]
        below, above = np.partition(self.tail, places)[places]
        return _interpolate(float(below), float(above), fraction)

    def _tail_from(self, floor: int) -> Pixels:
        return self.tail if floor == self.tail_floor else self.tail[self.tail >= _lowest_value(floor)]


@dataclass(frozen=True, slots=True, eq=False)
class BucketHistogram:
    """Round 2: the pixels inside the `buckets` counted by their whole key."""

    buckets: tuple[int, ...]
    keys: Tally

    @classmethod
    def of(cls, values: Sequence[Pixels] | Pixels, buckets: tuple[int, ...]) -> BucketHistogram:
        """Count the pixels of one chunk: `values` are its maps of round 1, `buckets` those asked for."""
        dense = np.zeros((len(buckets), _BUCKETS), np.int64)
        for block in _blocks(_as_maps(values)):
            keys = _keys(block)
            for counts, bucket in zip(dense, buckets, strict=True):
                _add_counts(counts, keys[keys >> 16 == bucket] & 0xFFFF)
        parts = [Tally.of_dense(counts, bucket << 16) for counts, bucket in zip(dense, buckets, strict=True)]
        return cls(buckets, Tally.join(parts))

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes."""
        return self.keys.nbytes

    def merge(self, other: BucketHistogram) -> BucketHistogram:
        """The partial of the pixels of both; the operands stay as they are."""
        if self.buckets != other.buckets:
            raise ValueError(f"Partials of buckets {self.buckets} and {other.buckets} do not merge.")
        return BucketHistogram(self.buckets, Tally.join([self.keys, other.keys]))


def refined_quantile(coarse: PixelHistogram, fine: BucketHistogram) -> float:
    """The quantile `coarse.q` of all pixels, from the merged partials of both rounds.

    `fine` covers the buckets that `coarse.quantile()` asks for. Raises RunError when the two rounds did not
    see the same pixels.
    """
    low, high, fraction = _ranks(coarse.count, coarse.q)
    return _interpolate(_order_statistic(coarse, fine, low), _order_statistic(coarse, fine, high), fraction)


def score_quantile(scores: NDArray[np.floating], q: float) -> float:
    """The quantile `q` (0 to 1, linear) of image scores (N,), computed in float64.

    Raises RunError when there is no score, or one that is not finite.
    """
    if scores.size == 0:
        raise RunError(
            "The score threshold cannot be calibrated: no normal image has a score. At least one is needed; "
            "look at the errors of the images in --train-dir."
        )
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise RunError(
            f"The score threshold cannot be calibrated: {bad.size} of {scores.size} normal images have a "
            f"score that is not a finite number, the first being image {bad[0]} (0-based) with "
            f"{scores[bad[0]]}. Take these images out of --train-dir, or check the model."
        )
    return float(np.quantile(scores.astype(np.float64), q))


def _order_statistic(coarse: PixelHistogram, fine: BucketHistogram, rank: int) -> float:
    bucket, rank_in_bucket = coarse.buckets.find(rank)
    expected = coarse.buckets.between(bucket, bucket + 1).total
    inside = fine.keys.between(bucket << 16, (bucket + 1) << 16)
    if inside.total != expected:
        raise RunError(
            "The pixel threshold cannot be calibrated: the anomaly maps of the normal images changed between "
            f"the two passes over them ({expected} pixels in one range of values, then {inside.total}). The "
            "images and the model must stay the same during the run, and the model must give the same map "
            "each time; otherwise give the threshold with --pixel-threshold T."
        )
    return float(_value_of(np.uint32(inside.find(rank_in_bucket)[0])))


def _ranks(count: int, q: float) -> tuple[int, int, float]:
    """The ranks of the two order statistics around the quantile, and the weight of the upper one."""
    if count == 0:
        raise RunError(
            "The pixel threshold cannot be calibrated: no normal image has an anomaly map with pixels in it. "
            "At least one is needed; look at the errors of the images in --train-dir, or give "
            "--pixel-threshold T."
        )
    position = (count - 1) * q
    return math.floor(position), math.ceil(position), position - math.floor(position)


def _interpolate(below: float, above: float, fraction: float) -> float:
    """Linear interpolation by numpy's own rule: of two values, the quantile `fraction` lies at `fraction`."""
    return float(np.quantile(np.array([below, above]), fraction))


def _as_maps(values: Sequence[Pixels] | Pixels) -> Sequence[Pixels]:
    return [values] if isinstance(values, np.ndarray) else values


def _blocks(maps: Sequence[Pixels]) -> Iterator[Pixels]:
    """All pixels in flat blocks, -0.0 made 0.0; temporaries stay small, however large a map is."""
    for pixels in maps:
        for block in np.nditer(
            pixels,
            flags=["external_loop", "buffered", "zerosize_ok"],
            op_dtypes=[np.float32],
            casting="equiv",
            buffersize=_BLOCK_PIXELS,
        ):
            yield np.add(block, np.float32(0.0))


def _count_buckets(maps: Sequence[Pixels]) -> NDArray[np.int64]:
    """Pixels in each of the 65536 buckets, ascending: counted by raw bits, then the counts put in order."""
    by_raw_bits = np.zeros(_BUCKETS, np.int64)
    for block in _blocks(maps):
        _add_counts(by_raw_bits, block.view(np.uint32) >> np.uint32(16))
    negative_descending, positive_ascending = by_raw_bits[0x8000:], by_raw_bits[:0x8000]
    return np.concatenate([negative_descending[::-1], positive_ascending])


def _add_counts(counts: NDArray[np.int64], digits: NDArray[np.uint32]) -> None:
    found = np.bincount(digits)
    counts[: found.size] += found


def _keys(values: Pixels) -> NDArray[np.uint32]:
    bits = values.view(np.uint32)
    return np.where(bits & _SIGN_BIT, ~bits, bits | _SIGN_BIT)


def _value_of(key: np.uint32) -> np.float32:
    bits = key ^ _SIGN_BIT if key & _SIGN_BIT else ~key
    return bits.view(np.float32)


def _lowest_value(bucket: int) -> np.float32:
    return _value_of(np.uint32(bucket << 16))


def _chunk_tail_limit(count: int, q: float) -> int:
    return min(max(math.ceil(4 * (1 - q) * count), SMALLEST_TAIL_LIMIT), LARGEST_TAIL_LIMIT)


def _tail_floor(buckets: Tally, limit: int) -> int:
    """The lowest bucket such that it and all above it hold at most `limit` pixels together."""
    from_here_up = np.cumsum(buckets.counts[::-1])[::-1]
    too_deep = np.count_nonzero(from_here_up > limit)
    return int(buckets.keys[too_deep - 1]) + 1 if too_deep else _FIRST_FINITE_BUCKET


def _non_finite_map(maps: Sequence[Pixels]) -> InputError:
    bad_counts = [int(np.count_nonzero(~np.isfinite(pixels))) for pixels in maps]
    first = next(index for index, bad in enumerate(bad_counts) if bad)
    return InputError(
        "extract",
        "NonFiniteMapError",
        f"Anomaly map {first} (0-based) of {len(maps)} has {bad_counts[first]} values of {maps[first].size} "
        "that are NaN or infinite. All values must be finite numbers; check the model and this image.",
    )
