"""Samples on their way: selected, renumbered, reordered, and joined from several sources."""

from __future__ import annotations

import logging
import pickle
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, jpeg

from facedata.converters.selection import Selection, join_sources, select
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


@settings(max_examples=60)
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


@settings(max_examples=25)
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


def test_a_selection_of_images_by_their_paths_has_paths_as_keys_too() -> None:
    class Paths(MemorySource):
        keys_are_paths = True

    for kind in (MemorySource, Paths):
        source = kind([Sample(f"a/{n}.jpg", 0, b"") for n in range(3)])
        assert select(source, Selection(max_images=1)).keys_are_paths == source.keys_are_paths


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


# Several sources read as one: their order, their labels, and parts of them


def items_of(name: str, labels: Sequence[int], classes: int | None = None) -> MemorySource:
    """A source of samples; a negative label stands for a sample that cannot be read."""
    items = [
        SampleError(name, str(key), "bad", key) if label < 0 else Sample(str(key), label, b"")
        for key, label in enumerate(labels)
    ]
    return MemorySource(items, name, classes=classes)


def joined(sets: Sequence[Sequence[int]], *, shift: bool = True) -> Source:
    return join_sources([items_of(f"set {number}", labels) for number, labels in enumerate(sets)], shift=shift)[0]


def flat(source: Source) -> list[tuple[str, int] | str]:
    return [str(item) if isinstance(item, SampleError) else (item.key, item.label) for item in source.read()]


SETS = st.lists(st.lists(st.integers(-1, 9), max_size=6), min_size=1, max_size=5)


@settings(max_examples=25)
@given(SETS, st.data())
def test_joined_sources_are_one_list_however_they_are_cut(sets: list[list[int]], data: st.DataObject) -> None:
    source = joined(sets)
    shifts = np.cumsum([0, *(max(labels, default=-1) + 1 for labels in sets)]).tolist()
    expected = [
        (str(key), label + shifts[number]) if label >= 0 else f"set {number}: key {key}, byte {key}: bad"
        for number, labels in enumerate(sets)
        for key, label in enumerate(labels)
    ]
    places = [(f"set {number}", key) for number, labels in enumerate(sets) for key in range(len(labels))]
    for _ in range(3):
        assert len(source) == len(expected)
        assert flat(source) == expected
        assert [source.locate(position) for position in range(len(source))] == places
        known = [label[1] if isinstance(label, tuple) else -1 for label in expected]
        assert np.concatenate([*source.labels(), np.empty(0, int)]).tolist() == known
        assert list(source.keys()) == [str(key) for _, key in places]
        if data.draw(st.booleans()):
            bounds = st.none() | st.integers(-len(expected) - 2, len(expected) + 2)
            part = slice(data.draw(bounds), data.draw(bounds), data.draw(st.sampled_from([None, 1, 2, -1])))
            source, expected, places = source[part], expected[part], places[part]
        else:
            wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12) if expected else st.just([]))
            source = source.take(np.array(wanted, np.int64))
            expected, places = [expected[position] for position in wanted], [places[position] for position in wanted]
        source = pickle.loads(pickle.dumps(source))  # noqa: S301, our own bytes


@settings(max_examples=25)
@given(SETS, st.integers(1, 10))
def test_shards_of_a_joined_source_are_the_whole(sets: list[list[int]], shards: int) -> None:
    source = joined(sets)
    cuts = [len(source) * shard // shards for shard in range(shards + 1)]
    assert [item for first, end in pairwise(cuts) for item in flat(source[first:end])] == flat(source)


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=5), min_size=2, max_size=4))
def test_people_of_different_sets_never_share_a_label(sets: list[list[int]]) -> None:
    labels = [sample.label for sample in joined(sets)]
    people = [(number, label) for number, labels in enumerate(sets) for label in labels]
    assert len({*zip(people, labels, strict=True)}) == len({*people}) == len({*labels})


def test_labels_are_kept_on_request() -> None:
    assert flat(joined([[0, 1], [1]], shift=False)) == [("0", 0), ("1", 1), ("0", 1)]


def test_classes_are_declared_or_counted_and_those_of_the_last_set_are_not_needed(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [items_of("a", [1, 0]), items_of("b", [0, 2], classes=5), items_of("c", [0])]
    labels = MemorySource.labels
    monkeypatch.setattr(
        MemorySource, "labels", lambda self: labels(self) if self.name == "a" else pytest.fail("read for nothing")
    )
    with caplog.at_level(logging.INFO, logger="facedata"):
        source, found = join_sources(sources, shift=True)
    assert found == [(0, 2), (2, 5), (7, None)]
    assert flat(source) == [("0", 1), ("1", 0), ("0", 2), ("1", 4), ("0", 7)]
    assert (source.declared_classes(), source.class_names()) == (None, None)
    assert join_sources([sources[2]], shift=True) == (sources[2], [(0, None)])


def test_a_label_out_of_range_fails_by_name_if_it_could_collide() -> None:
    sources = [items_of("a", [0, 2, 1], classes=2), items_of("b", [5], classes=1)]
    items = flat(join_sources(sources, shift=True)[0])
    assert [items[0], *items[2:]] == [("0", 0), ("2", 1), ("0", 7)]
    assert items[1] == "a: key 1, byte 1: label 2 is out of range: the dataset declares 2 classes (0 to 1)"
    for kept in (join_sources(sources, shift=False), join_sources(sources[:1], shift=True)):
        assert not any(isinstance(item, str) for item in flat(kept[0]))


def test_iterating_raises_what_reading_delivers() -> None:
    with pytest.raises(SampleError, match="set 1: key 0, byte 0: bad"):
        list(joined([[0], [-1]]))


def test_sets_and_shifts_are_part_of_the_identity() -> None:
    identity = joined([[0], [1]]).identity()
    assert joined([[0], [1]]).identity() == identity
    assert joined([[1], [1]]).identity() != identity
    assert joined([[0]]).identity() != identity


def test_names_of_several_sets_are_shifted_and_the_first_of_a_shared_label_counts() -> None:
    sources = [
        MemorySource([Sample("0", 0, b"12")], names={0: "Ada"}, classes=1),
        MemorySource([Sample("0", 0, b"1"), Sample("1", 1, b"")], names={0: "Bob", 1: "Cid"}, classes=2),
    ]
    source = join_sources(sources, shift=True)[0]
    assert (source.class_names(), source.declared_classes()) == ({0: "Ada", 1: "Bob", 2: "Cid"}, 3)
    assert join_sources(sources, shift=False)[0].class_names() == {0: "Ada", 1: "Cid"}
    assert (source.size(), source.sizes().tolist(), source.take(np.array([1, 0, 2])).sizes().tolist()) == (
        3,
        [2, 1, 0],
        [1, 2, 0],
    )


def test_a_sample_error_survives_the_way_from_a_worker() -> None:
    for error in (SampleError("set", "7", "bad", 12), SampleError("set", "7", "bad")):
        sent = pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
        assert (str(sent), vars(sent)) == (str(error), vars(error))
