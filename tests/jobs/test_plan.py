from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.errors import OptionError
from facedata.jobs.plan import Part, Plan, cut_by_size, shard_count


def plan(samples: int = 100, shards: int = 7, **options: object) -> Plan:
    return Plan("test", {"file": "x"}, options, samples, shards, {"note": "not decisive"})


@given(st.integers(1, 10**8), st.integers(0, 10**12))
def test_shards_cover_every_sample_once(samples: int, size: int) -> None:
    cut = plan(samples, shard_count(samples, size))
    if cut.shards > 1000:  # looking at every shard of a huge job proves no more
        cut = plan(samples, min(samples, 1000))
    bounds = [cut.bounds(shard) for shard in range(cut.shards)]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == samples
    assert all(first < end for first, end in bounds)
    assert all(before[1] == after[0] for before, after in pairwise(bounds))


@given(st.integers(1, 5000), st.integers(1, 200))
def test_parts_cover_every_shard_once(shards: int, count: int) -> None:
    cut = plan(10**6, shards)
    assert [shard for number in range(1, count + 1) for shard in Part(number, count).shards(cut)] == list(range(shards))


def test_a_shard_is_a_moderate_piece_of_work() -> None:
    assert shard_count(60_000, 60_000 * 4400) == 8
    assert shard_count(1000, 10 * 2**30) == 160
    assert shard_count(3, 10**12) == 3
    assert shard_count(0, 0) == 1


@pytest.mark.parametrize(("number", "count"), [(0, 4), (5, 4), (1, 0), (-1, 2)])
def test_a_part_that_is_not_there_is_refused(number: int, count: int) -> None:
    with pytest.raises(OptionError, match=r"counted from 1/"):
        Part(number, count)


def test_the_fingerprint_depends_on_what_decides_the_output_and_on_nothing_else() -> None:
    one, other = (Plan(name, {"file": "x"}, {"limit": 1}, 100, 7) for name in ("test", "other"))
    assert plan(limit=1).fingerprint == one.fingerprint
    different = [one, other, plan(limit=2), plan(101, limit=1), plan(100, 8, limit=1)]
    assert len({plan.fingerprint for plan in different}) == 5


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 60), st.none() | st.integers(1, 9), st.integers(1, 7))
def test_a_cut_by_size_is_the_one_of_a_plain_loop(sizes: list[int], limit: int, count: int | None, block: int) -> None:
    expected, begin = [], 0
    for end in range(1, len(sizes) + 1):
        too_many = count is not None and end - begin > count
        if end - begin > 1 and (too_many or sum(sizes[begin:end]) > limit):
            begin = end - 1
            expected.append(begin)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facedata.jobs.plan._CUT_BLOCK", block)
        assert cut_by_size(np.array(sizes, np.int32), limit, count) == (*expected, len(sizes))
