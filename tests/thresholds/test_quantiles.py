import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pyimgano_dask.errors import InputError, RunError
from pyimgano_dask.thresholds import (
    BucketHistogram,
    NeedsRefinement,
    PixelHistogram,
    refined_quantile,
    score_quantile,
)
from pyimgano_dask.thresholds.quantiles import LARGEST_TAIL_LIMIT, MERGED_TAIL_LIMIT

FLOAT32 = np.finfo(np.float32)
LARGEST, SMALLEST_DENORMAL = float(FLOAT32.max), float(FLOAT32.smallest_subnormal)

pixel = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(0, 1, width=32),
    st.sampled_from(
        [
            0.0,
            -0.0,
            1.0,
            -1.0,
            SMALLEST_DENORMAL,
            -SMALLEST_DENORMAL,
            LARGEST,
            -LARGEST,
            1.0078125,
            0.99609375,
        ]
    ),
)
quantiles = st.one_of(
    st.sampled_from([0.5, 0.25, 0.999, 0.995, 1e-6, 1 - 1e-12]),
    st.floats(0, 1, exclude_min=True, exclude_max=True),
)
anomaly_map = hnp.arrays(np.float32, hnp.array_shapes(max_dims=2, max_side=6), elements=pixel)


def bits(value):
    """The float64 bits; the two zeros are one value here, as numpy's choice between them is arbitrary."""
    return np.float64(value + 0.0).tobytes()


def numpy_quantile(maps, q):
    return np.quantile(np.concatenate([m.ravel() for m in maps]).astype(np.float64), q)


def merge_in_order(partials, draw_index):
    """Merge two arbitrary partials at a time until one is left: any order and any tree."""
    partials = list(partials)
    while len(partials) > 1:
        one = partials.pop(draw_index(len(partials)))
        other = partials.pop(draw_index(len(partials)))
        partials.append(one.merge(other))
    return partials[0]


def first(_count):
    return 0


def last(count):
    return count - 1


def quantile_in_rounds(chunks, q, tail_limit=None, draw_index=first):
    """What the dataflow does. Returns the quantile and the number of rounds it took."""
    coarse = merge_in_order([PixelHistogram.of(c, q, tail_limit=tail_limit) for c in chunks], draw_index)
    answer = coarse.quantile()
    if not isinstance(answer, NeedsRefinement):
        return answer, 1
    fine = merge_in_order([BucketHistogram.of(chunk, answer.buckets) for chunk in chunks], draw_index)
    return refined_quantile(coarse, fine), 2


@given(
    maps=st.lists(anomaly_map, min_size=1, max_size=8),
    q=quantiles,
    tail_limit=st.none() | st.integers(0, 40),
    data=st.data(),
)
def test_any_split_and_any_merge_order_equals_numpy_bit_for_bit(maps, q, tail_limit, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(maps)), max_size=4)))
    edges = [0, *cuts, len(maps)]
    chunks = [maps[start:end] for start, end in itertools.pairwise(edges)]

    def draw_index(count):
        return data.draw(st.integers(0, count - 1))

    answer, rounds = quantile_in_rounds(chunks, q, tail_limit, draw_index)

    assert bits(answer) == bits(numpy_quantile(maps, q))
    if tail_limit is None:
        assert rounds == 1
    if tail_limit == 0:
        assert rounds == 2


@given(maps=st.lists(anomaly_map, min_size=2, max_size=6), tail_limit=st.integers(0, 20), data=st.data())
def test_whether_a_second_round_is_needed_does_not_depend_on_the_merge_order(maps, tail_limit, data):
    partials = [PixelHistogram.of([m], 0.9, tail_limit=tail_limit) for m in maps]
    in_order = merge_in_order(partials, first)
    shuffled = merge_in_order(partials, lambda count: data.draw(st.integers(0, count - 1)))

    assert in_order.quantile() == shuffled.quantile()
    assert in_order.tail_floor == shuffled.tail_floor
    np.testing.assert_array_equal(np.sort(in_order.tail), np.sort(shuffled.tail))


@pytest.mark.parametrize("value", [0.0, -0.0, 0.25, -3.5, SMALLEST_DENORMAL, LARGEST, -LARGEST])
@pytest.mark.parametrize("tail_limit", [None, 5])
def test_maps_of_one_value_give_that_value(value, tail_limit):
    maps = [np.full((3, 4), value, np.float32), np.full((2, 2), value, np.float32)]

    answer, rounds = quantile_in_rounds([maps[:1], maps[1:]], 0.3, tail_limit)

    assert answer == value
    assert rounds == (1 if tail_limit is None else 2)


@pytest.mark.parametrize("tail_limit", [None, 0])
def test_one_pixel_is_every_quantile(tail_limit):
    for q in (1e-6, 0.5, 0.999):
        assert quantile_in_rounds([[np.array([[0.7]], np.float32)]], q, tail_limit)[0] == np.float32(0.7)


def test_both_zeros_are_one_value_and_come_out_positive():
    maps = [np.array([-0.0, 0.0, -0.0, 0.0], np.float32)]

    for tail_limit in (None, 0):
        answer, _ = quantile_in_rounds([maps], 0.5, tail_limit)
        assert np.float64(answer).tobytes() == np.float64(0.0).tobytes()
    assert PixelHistogram.of(maps, 0.5, tail_limit=0).quantile() == NeedsRefinement(buckets=(0x8000,))


def test_the_tail_holds_up_to_its_limit_and_whole_buckets_only():
    maps = [np.array([1.0, 2.0, 3.0, 3.0], np.float32)]

    kept = [np.sort(PixelHistogram.of(maps, 0.5, tail_limit=limit).tail).tolist() for limit in range(5)]

    assert kept == [[], [], [3.0, 3.0], [2.0, 3.0, 3.0], [1.0, 2.0, 3.0, 3.0]]


def test_order_statistics_in_two_buckets_are_both_asked_for():
    maps = [np.array([-2.0, -1.0, 1.0, 2.0], np.float32)]

    coarse = PixelHistogram.of(maps, 0.5, tail_limit=2)
    needed = coarse.quantile()

    assert isinstance(needed, NeedsRefinement)
    assert len(needed.buckets) == 2
    assert refined_quantile(coarse, BucketHistogram.of(maps, needed.buckets)) == 0.0


def test_high_quantile_of_a_large_chunk_takes_one_round_and_the_median_two():
    rng = np.random.default_rng(3)
    chunks = [[rng.gamma(2.0, 0.1, (400, 500 + n)).astype(np.float32) for n in range(3)] for _ in range(3)]
    maps = [m for chunk in chunks for m in chunk]

    for q, expected_rounds in ((0.999, 1), (0.5, 2), (1e-6, 2)):
        answer, rounds = quantile_in_rounds(chunks, q)
        assert bits(answer) == bits(numpy_quantile(maps, q))
        assert rounds == expected_rounds


def test_twenty_million_pixels_of_mixed_sizes_equal_numpy():
    rng = np.random.default_rng(11)
    sizes = [(1000, 1000), (512, 2048), (4096, 256), (37, 999)]
    chunks = [
        [rng.standard_normal(sizes[(n + k) % 4], np.float32) * np.float32(1 + n % 3) for k in range(4)]
        for n in range(7)
    ]
    maps = [m for chunk in chunks for m in chunk]
    assert sum(m.size for m in maps) > 20_000_000

    for q in (0.999, 0.25):
        assert bits(quantile_in_rounds(chunks, q)[0]) == bits(numpy_quantile(maps, q))


def test_crops_and_transposed_views_are_read_as_they_look():
    rng = np.random.default_rng(5)
    whole = rng.random((700, 500), np.float32)
    views = [whole[100:600, 7:400], whole.T[3:, ::2], whole[::-1], whole[:0]]

    for tail_limit in (None, 100):
        answer, _ = quantile_in_rounds([views], 0.9, tail_limit)
        assert bits(answer) == bits(numpy_quantile(views, 0.9))


def test_an_array_counts_as_one_map_and_is_not_changed():
    stack = np.array([[[-0.0, 1.0], [2.0, 3.0]]], np.float32)
    before = stack.tobytes()

    assert PixelHistogram.of(stack, 0.5).quantile() == 1.5
    assert stack.tobytes() == before


def test_empty_is_neutral_and_alone_has_no_quantile():
    some = PixelHistogram.of([np.array([1, 2, 4], np.float32)], 0.75)

    assert PixelHistogram.empty(0.75).merge(some).quantile() == 3.0
    assert some.merge(PixelHistogram.empty(0.75)).quantile() == 3.0
    assert PixelHistogram.of([], 0.75).count == 0
    with pytest.raises(RunError, match="--train-dir"):
        PixelHistogram.empty(0.75).quantile()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -np.nan])
def test_a_non_finite_pixel_is_an_extract_error_naming_the_map(value):
    maps = [np.zeros((4, 4), np.float32), np.zeros((5, 5), np.float32)]
    maps[1][2, 3] = value

    with pytest.raises(InputError, match=r"map 1 .*1 values of 25") as caught:
        PixelHistogram.of(maps, 0.999)

    assert (caught.value.stage, caught.value.kind) == ("extract", "NonFiniteMapError")


def test_another_dtype_is_refused_rather_than_rounded():
    with pytest.raises(TypeError):
        PixelHistogram.of([np.zeros((2, 2), np.float64)], 0.5)


@pytest.mark.parametrize("tail_limit", [None, 0])
def test_partials_survive_pickling(tail_limit):
    maps = [np.linspace(-1, 1, 1001, dtype=np.float32)]
    coarse = pickle.loads(pickle.dumps(PixelHistogram.of(maps, 0.9, tail_limit=tail_limit)))
    bucket = PixelHistogram.of(maps, 0.9, tail_limit=0).quantile().buckets
    fine = pickle.loads(pickle.dumps(BucketHistogram.of(maps, bucket)))

    assert coarse.count == 1001
    assert bits(refined_quantile(coarse, fine)) == bits(numpy_quantile(maps, 0.9))
    if tail_limit is None:
        assert bits(coarse.quantile()) == bits(numpy_quantile(maps, 0.9))


def test_a_chunk_keeps_a_bounded_tail_whatever_the_quantile():
    pixels = np.random.default_rng(1).random((1000, 1500), np.float32)

    for q in (1e-6, 0.5, 0.999):
        partial = PixelHistogram.of([pixels], q)
        assert partial.tail.size <= LARGEST_TAIL_LIMIT
        assert partial.nbytes < 4 * LARGEST_TAIL_LIMIT + 2**20


def test_memory_stays_bounded_while_merging_thousands_of_partials():
    rng = np.random.default_rng(2)
    kinds = [PixelHistogram.of([rng.random((250, 250), np.float32)], 0.999) for _ in range(20)]
    small = [PixelHistogram.of([rng.random((8, 8), np.float32)], 0.999) for _ in range(20)]
    merged = PixelHistogram.empty(0.999)

    for n in range(120):
        merged = merged.merge(kinds[n % 20])
        assert merged.tail.size <= MERGED_TAIL_LIMIT
        assert merged.nbytes < 4 * MERGED_TAIL_LIMIT + 2**20
    assert merged.count > MERGED_TAIL_LIMIT
    thousands = PixelHistogram.empty(0.999)
    for n in range(3000):
        thousands = thousands.merge(small[n % 20])
    merged = merged.merge(thousands)

    assert merged.count == 120 * 250 * 250 + 3000 * 64
    assert merged.nbytes < 4 * MERGED_TAIL_LIMIT + 2**20
    assert isinstance(merged.quantile(), float)


def test_trimming_while_merging_does_not_change_the_answer():
    rng = np.random.default_rng(4)
    maps = [rng.random((256, 256), np.float32) * np.float32(n % 5) for n in range(70)]
    partials = [PixelHistogram.of([m], 0.99) for m in maps]

    forward = merge_in_order(partials, first)
    as_fold = merge_in_order(partials, last)

    assert forward.count > MERGED_TAIL_LIMIT
    assert forward.tail_floor == as_fold.tail_floor
    assert bits(forward.quantile()) == bits(as_fold.quantile()) == bits(numpy_quantile(maps, 0.99))


def test_partials_of_different_questions_do_not_merge():
    pixels = [np.ones((2, 2), np.float32)]

    with pytest.raises(ValueError, match=r"0\.5 and 0\.9"):
        PixelHistogram.of(pixels, 0.5).merge(PixelHistogram.of(pixels, 0.9))
    with pytest.raises(ValueError, match="do not merge"):
        BucketHistogram.of(pixels, (1,)).merge(BucketHistogram.of(pixels, (2,)))


def test_maps_that_change_between_the_rounds_are_an_error():
    pixels = np.linspace(0.5, 1, 64, dtype=np.float32)
    coarse = PixelHistogram.of([pixels], 0.5, tail_limit=0)
    fine = BucketHistogram.of([pixels + np.float32(0.01)], coarse.quantile().buckets)

    with pytest.raises(RunError, match="changed between the two passes"):
        refined_quantile(coarse, fine)


@given(
    scores=hnp.arrays(
        st.sampled_from([np.float32, np.float64]),
        st.integers(1, 30),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    q=quantiles,
)
def test_score_quantile_is_numpy_in_float64(scores, q):
    assert bits(score_quantile(scores, q)) == bits(np.quantile(scores.astype(np.float64), q))


def test_score_quantile_refuses_what_has_no_quantile():
    with pytest.raises(RunError, match="no normal image has a score"):
        score_quantile(np.array([]), 0.5)
    with pytest.raises(RunError, match=r"2 of 3 .* image 1 \(0-based\) with nan"):
        score_quantile(np.array([1.0, np.nan, np.inf]), 0.5)
