from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg

from facedata.converters.selection import Selection, select
from facedata.dataset import Sample, Source
from facedata.errors import EmptyDatasetError, OptionError, SampleError


def source_of(labels: list[int]) -> MemorySource:
    """A source of samples; a negative label stands for one that cannot be read."""
    return MemorySource(
        [
            Sample(str(n), label, jpeg(n)) if label >= 0 else SampleError("memory", str(n), "bad")
            for n, label in enumerate(labels)
        ]
    )


def listed(source: Source) -> list[tuple[str, int]]:
    return [(item.key, item.label if isinstance(item, Sample) else -1) for item in source.read()]


LABELS = st.lists(st.integers(-1, 6) | st.just(10**9), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0)


@settings(deadline=None)
@given(LABELS, st.none() | st.integers(1, 4), st.none() | st.integers(1, 3), st.booleans(), st.booleans())
def test_what_is_selected_is_what_was_asked_for(
    labels: list[int], min_images: int | None, max_images: int | None, relabel: bool, group: bool
) -> None:
    counts = Counter(label for label in labels if label >= 0)
    expected, taken = [], Counter[int]()
    for key, label in enumerate(labels):
        taken[label] += 1
        if label < 0 or (counts[label] >= (min_images or 0) and taken[label] <= (max_images or len(labels))):
            expected.append((str(key), label))
    left = sorted({label for _, label in expected if label >= 0})
    if group:
        expected.sort(key=lambda pair: pair[1] if pair[1] >= 0 else 1 << 40)
    if relabel:
        expected = [(key, left.index(label) if label >= 0 else -1) for key, label in expected]
    selection = Selection(min_images=min_images, max_images=max_images, relabel=relabel, group=group)
    if not left:
        with pytest.raises(EmptyDatasetError, match=r"no class has \d images: the largest has \d"):
            select(source_of(labels), selection)
        return
    selected = select(source_of(labels), selection)
    assert listed(selected) == expected
    assert listed(selected[1:3]) == expected[1:3]
    assert np.concatenate(list(selected.labels())).tolist() == [label for _, label in expected]


@settings(deadline=None)
@given(LABELS, st.integers(0, 2**32 - 1))
def test_shuffling_follows_from_the_seed(labels: list[int], seed: int) -> None:
    one = listed(select(source_of(labels), Selection(shuffle=True, seed=seed)))
    assert one == listed(select(source_of(labels), Selection(shuffle=True, seed=seed)))
    assert sorted(one) == sorted(listed(source_of(labels)))


def test_the_order_of_a_seed_stays_the_same_for_good() -> None:
    shuffled = select(source_of(list(range(10))), Selection(shuffle=True, seed=7))
    assert [label for _, label in listed(shuffled)] == [8, 5, 0, 2, 1, 9, 7, 3, 6, 4]


def test_where_nothing_is_asked_for_the_source_is_left_alone() -> None:
    source = source_of([1, 1, 0])
    assert select(source, Selection()) is source
    assert select(source_of([0, 0, 1]), Selection(group=True)).identity() == source.identity()


def test_shuffled_samples_cannot_be_grouped() -> None:
    with pytest.raises(OptionError, match="choose --style plain"):
        Selection(shuffle=True, group=True)


def test_old_labels_are_the_names_of_new_ones_where_there_are_no_others() -> None:
    assert select(source_of([5, 9, 9]), Selection(relabel=True)).class_names() == {0: "5", 1: "9"}
    named = MemorySource([Sample("0", 9, jpeg(0))], names={5: "five", 9: "nine"})
    assert select(named, Selection(relabel=True)).class_names() == {0: "nine"}


def test_a_part_of_a_selection_keeps_its_new_labels_and_their_names() -> None:
    source = MemorySource([Sample(str(n), n // 2, b"") for n in range(9)], names={n: f"name {n}" for n in range(5)})
    selected = select(source, Selection(min_images=2, relabel=True, shuffle=True, seed=1))
    whole = listed(selected)
    for part in (selected[2:5], selected.take(np.array([2, 3, 4]))):
        assert listed(part) == whole[2:5]
        assert (part.class_names() or {}).items() <= (selected.class_names() or {}).items()
    assert selected.declared_classes() == 4
    assert [selected.locate(n) for n in range(8)] == [("memory", int(key)) for key, _ in whole]
