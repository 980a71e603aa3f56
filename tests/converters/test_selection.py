"""Samples on their way: selected, renumbered, reordered, and joined from several sources."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import MemorySource, jpeg

from facedata.converters.selection import Selection, join_sources, select
from facedata.dataset import Sample, Source
from facedata.errors import EmptyDatasetError, SampleError


def source_of(labels: Sequence[int], name: str = "memory", classes: int | None = None) -> MemorySource:
    """A source of samples; a negative label stands for one that cannot be read."""
    items = [
        Sample(str(key), label, jpeg(key)) if label >= 0 else SampleError(name, str(key), "bad", key)
        for key, label in enumerate(labels)
    ]
    return MemorySource(items, name, classes=classes)


def joined(sets: Sequence[Sequence[int]]) -> Source:
    return join_sources([source_of(labels, f"set {number}") for number, labels in enumerate(sets)], shift=True)[0]


def listed(source: Source) -> list[tuple[str, int]]:
    return [(item.key, item.label if isinstance(item, Sample) else -1) for item in source.read()]


LABELS = st.lists(st.integers(-1, 6) | st.just(10**9), min_size=1, max_size=40).filter(lambda labels: max(labels) >= 0)


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
    assert selected.labels().tolist() == [label for _, label in expected]


@given(LABELS, st.integers(0, 2**32 - 1))
def test_shuffling_follows_from_the_seed(labels: list[int], seed: int) -> None:
    one = listed(select(source_of(labels), Selection(shuffle=True, seed=seed)))
    assert one == listed(select(source_of(labels), Selection(shuffle=True, seed=seed)))
    assert sorted(one) == sorted(listed(source_of(labels)))


def test_the_order_of_a_seed_stays_the_same_for_good() -> None:
    shuffled = select(source_of(range(10)), Selection(shuffle=True, seed=7))
    assert [label for _, label in listed(shuffled)] == [8, 5, 0, 2, 1, 9, 7, 3, 6, 4]


def test_where_nothing_is_asked_for_the_source_is_left_alone() -> None:
    source = source_of([1, 1, 0])
    assert select(source, Selection()) is source
    assert select(source_of([0, 0, 1]), Selection(group=True)).identity() == source.identity()


def test_a_selection_of_images_by_their_paths_has_paths_as_keys_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for paths in (True, False):
        monkeypatch.setattr(MemorySource, "keys_are_paths", paths)
        assert select(source_of([0, 0, 0]), Selection(max_images=1)).keys_are_paths is paths


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


@given(st.lists(st.lists(st.integers(-1, 9), max_size=6), min_size=1, max_size=5), st.data())
def test_joined_sources_are_one_list_however_they_are_cut(sets: list[list[int]], data: st.DataObject) -> None:
    source = joined(sets)
    shifts = np.cumsum([0, *(max(labels, default=-1) + 1 for labels in sets)]).tolist()
    expected = [
        (str(key), label + shifts[number] if label >= 0 else -1)
        for number, labels in enumerate(sets)
        for key, label in enumerate(labels)
    ]
    places = [(f"set {number}", key) for number, labels in enumerate(sets) for key in range(len(labels))]
    for _ in range(3):
        assert len(source) == len(expected)
        assert listed(source) == expected
        assert [source.locate(position) for position in range(len(source))] == places
        assert source.labels().tolist() == [label for _, label in expected]
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


def test_classes_are_declared_or_counted_and_not_those_of_the_last_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [source_of([1, 0], "a"), source_of([0, 2], "b", classes=5), source_of([0], "c")]
    labels = MemorySource.labels
    monkeypatch.setattr(
        MemorySource, "labels", lambda self: labels(self) if self.name == "a" else pytest.fail("read for nothing")
    )
    source, found = join_sources(sources, shift=True)
    assert found == [(0, 2), (2, 5), (7, None)]
    assert listed(source) == [("0", 1), ("1", 0), ("0", 2), ("1", 4), ("0", 7)]
    assert (source.declared_classes(), source.class_names()) == (None, None)
    assert join_sources([sources[2]], shift=True) == (sources[2], [(0, None)])


def test_a_label_out_of_range_fails_by_name_if_it_could_collide() -> None:
    sources = [source_of([0, 2, 1], "a", classes=2), source_of([5], "b", classes=1)]
    source = join_sources(sources, shift=True)[0]
    assert listed(source) == [("0", 0), ("1", -1), ("2", 1), ("0", 7)]
    said = r"a: key 1, byte 1: label 2 is out of range: the dataset declares 2 classes \(0 to 1\)"
    with pytest.raises(SampleError, match=said):
        list(source)
    for kept in (join_sources(sources, shift=False), join_sources(sources[:1], shift=True)):
        assert -1 not in [label for _, label in listed(kept[0])]


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
    assert (source.size(), source.sizes().tolist()) == (3, [2, 1, 0])
    assert source.take(np.array([1, 0, 2])).sizes().tolist() == [1, 2, 0]


def test_a_sample_error_survives_the_way_from_a_worker() -> None:
    for error in (SampleError("set", "7", "bad", 12), SampleError("set", "7", "bad")):
        sent = pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
        assert (str(sent), vars(sent)) == (str(error), vars(error))
