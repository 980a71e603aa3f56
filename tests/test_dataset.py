"""Specs, the registry of formats, and several sources read as one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MemorySource, RecordSetMaker, jpeg, raised_without_root

from facedata.converters.combined import ConcatenatedSource
from facedata.converters.conversion import convert_dataset
from facedata.converters.folder import FolderSink
from facedata.converters.null import NullSink
from facedata.converters.rec import RecSource
from facedata.converters.selected import SelectedSource
from facedata.dataset import (
    FORMATS,
    Format,
    Sample,
    Sink,
    Source,
    create_dataset,
    find_format,
    open_dataset,
    split_spec,
)
from facedata.errors import FormatError, InputNotFoundError, OptionError, SampleError

MakeSet = Callable[..., RecordSetMaker]


def listed(name: str, labels: Sequence[int]) -> MemorySource:
    """A source of samples; a negative label stands for one that cannot be read."""
    return MemorySource(
        [
            SampleError(name, str(key), "bad", key) if label < 0 else Sample(str(key), label, b"")
            for key, label in enumerate(labels)
        ],
        name,
    )


SETS = st.lists(st.lists(st.integers(-1, 9), max_size=6), max_size=5)


def joined(sets: Sequence[Sequence[int]], shifts: Sequence[int], classes: Sequence[int | None]) -> ConcatenatedSource:
    return ConcatenatedSource([listed(f"set {n}", labels) for n, labels in enumerate(sets)], shifts, classes)


def flat(source: Source) -> list[tuple[str, int] | str]:
    return [str(item) if isinstance(item, SampleError) else (item.key, item.label) for item in source.read()]


@settings(deadline=None)
@given(SETS, st.lists(st.integers(0, 100), min_size=5, max_size=5), st.data())
def test_joined_sources_are_one_list_however_they_are_sliced(
    sets: list[list[int]], shifts: list[int], data: st.DataObject
) -> None:
    source = joined(sets, shifts[: len(sets)], [None] * len(sets))
    expected = [
        (str(key), label + shift) if label >= 0 else f"set {number}: key {key}, byte {key}: bad"
        for number, (labels, shift) in enumerate(zip(sets, shifts, strict=False))
        for key, label in enumerate(labels)
    ]
    places = [f"set {number}" for number, labels in enumerate(sets) for _ in labels]
    for _ in range(3):
        assert isinstance(source, Source)
        assert len(source) == len(expected)
        assert flat(source) == expected
        assert [source.locate(position)[0] for position in range(len(source))] == places
        bounds = st.none() | st.integers(-len(expected) - 2, len(expected) + 2)
        part = slice(data.draw(bounds), data.draw(bounds))
        source, expected, places = source[part], expected[part], places[part]


@settings(deadline=None)
@given(SETS, st.integers(1, 10))
def test_shards_of_a_joined_source_are_the_whole(sets: list[list[int]], shards: int) -> None:
    source = joined(sets, [10 * number for number in range(len(sets))], [None] * len(sets))
    cuts = [len(source) * shard // shards for shard in range(shards + 1)]
    parts = [source[first:end] for first, end in pairwise(cuts)]
    assert [item for part in parts for item in flat(pickle.loads(pickle.dumps(part)))] == flat(source)  # noqa: S301


@settings(deadline=None)
@given(SETS, st.data())
def test_samples_of_a_joined_source_are_taken_in_any_order(sets: list[list[int]], data: st.DataObject) -> None:
    source: Source = joined(sets, [10 * number for number in range(len(sets))], [None] * len(sets))
    expected = flat(source)
    for _ in range(3):
        wanted = data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12) if expected else st.just([]))
        places = [source.locate(position) for position in wanted]
        source, expected = source.take(np.array(wanted, np.int64)), [expected[position] for position in wanted]
        assert isinstance(source, Source)
        assert flat(source) == expected
        assert [source.locate(position) for position in range(len(source))] == places
        keys_and_labels = zip(source.keys(), np.concatenate([*source.labels(), np.empty(0, int)]).tolist(), strict=True)
        told = [
            item if isinstance(item, tuple) else (str(int(item.split("key ")[1].split(",")[0])), -1)
            for item in expected
        ]
        assert list(keys_and_labels) == told
        assert flat(source[1:]) == expected[1:]


def test_a_choice_of_samples_gets_new_labels_and_keeps_their_names() -> None:
    source = MemorySource([Sample(str(n), n, b"%d" % n) for n in range(5)], names={n: f"name {n}" for n in range(5)})
    chosen = SelectedSource(source, np.array([4, 2, 0]), np.array([0, 2, 4]))
    assert [(sample.key, sample.label) for sample in chosen] == [("4", 2), ("2", 1), ("0", 0)]
    assert [(sample.key, sample.label) for sample in chosen[1:]] == [("2", 1), ("0", 0)]
    assert chosen.class_names() == {0: "name 0", 1: "name 2", 2: "name 4"}
    assert np.concatenate(list(chosen.labels())).tolist() == [2, 1, 0]
    assert chosen.declared_classes() == 3


@pytest.mark.parametrize("step", [2, -1])
def test_a_joined_source_is_sliced_in_steps_of_one_alone(step: int) -> None:
    with pytest.raises(ValueError, match=f"steps of 1, not {step}"):
        joined([[0, 1]], [0], [None])[::step]


def test_a_position_behind_the_end_is_an_index_error() -> None:
    with pytest.raises(IndexError, match="behind the last sample"):
        joined([[0], [1]], [0, 1], [None, None]).locate(2)


def test_a_label_above_the_classes_of_its_set_fails_by_name() -> None:
    source = joined([[0, 2, 1], [5]], [0, 2], [2, None])
    items = flat(source)
    assert [items[0], *items[2:]] == [("0", 0), ("2", 1), ("0", 7)]
    assert str(items[1]).startswith("set 0: key 1, byte 1: label 2, but the set declares 2 classes")


def test_iterating_raises_what_reading_delivers() -> None:
    source = joined([[0], [-1]], [0, 5], [None, None])
    with pytest.raises(SampleError, match="set 1: key 0, byte 0: bad"):
        list(source)


def test_shifts_and_sets_are_part_of_the_identity() -> None:
    same = [joined([[0], [1]], [0, 1], [1, None]).identity() for _ in range(2)]
    assert same[0] == same[1]
    assert joined([[0], [1]], [0, 2], [1, None]).identity() != same[0]
    assert joined([[0]], [0], [None]).identity() != same[0]


def test_a_sample_error_survives_the_way_from_a_worker() -> None:
    for error in (SampleError("set", "7", "bad", 12), SampleError("set", "7", "bad")):
        sent = pickle.loads(pickle.dumps(error))  # noqa: S301, our own bytes
        assert (str(sent), sent.dataset, sent.key, sent.reason, sent.offset) == (
            str(error),
            error.dataset,
            error.key,
            error.reason,
            error.offset,
        )


# Specs


def test_a_spec_is_a_path_or_a_format_and_a_path() -> None:
    assert split_spec("rec:some/set") == ("rec", "some/set")
    assert split_spec("rec:a:b") == ("rec", "a:b")
    assert split_spec("some/set") == (None, "some/set")
    assert split_spec("C:/sets/ms1m") == (None, "C:/sets/ms1m")
    assert split_spec("rec") == (None, "rec")


@pytest.mark.parametrize("spec", ["{}", "rec:{}", "{}/train.rec", "rec:{}/train.rec"])
def test_a_record_set_is_opened_by_path_or_by_name(record_set: MakeSet, spec: str) -> None:
    folder = record_set().plain([0, 3])
    source = open_dataset(spec.format(folder))
    assert isinstance(source, RecSource)
    assert list(source) == [Sample("0", 0, jpeg("label 0 key 0")), Sample("1", 3, jpeg("label 3 key 1"))]


def test_content_of_no_format_is_refused_with_the_formats_there_are(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(jpeg(0))
    for path in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(FormatError, match=f"no format fits its content.*; name the .*: FORMAT:{path}, one of"):
            open_dataset(str(path))


def test_a_path_that_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        open_dataset(str(tmp_path / "nowhere"))


def test_a_path_that_may_not_be_read_is_said_by_name() -> None:
    with TemporaryDirectory() as folder:
        RecordSetMaker(Path(folder, "set")).plain([0])
        Path(folder, "set").chmod(0o000)
        Path(folder).chmod(0o755)
        message = raised_without_root(lambda: open_dataset(f"{folder}/set"))
    assert message == f"InputPermissionError: {folder}/set: no permission to read it; check its mode and owner"


def test_a_named_format_says_that_a_path_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="nowhere: no such file or folder"):
        open_dataset(f"rec:{tmp_path}/nowhere")


def test_a_format_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "tiny", "tiny_format")
    maker = RecordSetMaker(tmp_path / "set")
    samples = [(number // 2, jpeg(number)) for number in range(5)]
    for number, (label, image) in enumerate(samples):
        maker.add(number, float(label), image)
    maker.write()
    convert_dataset([f"{tmp_path}/set"], f"tiny:{tmp_path}/tiny")
    assert find_format(f"{tmp_path}/tiny") == ("tiny", f"{tmp_path}/tiny")
    convert_dataset([f"{tmp_path}/tiny"], f"rec:{tmp_path}/again")
    assert [(sample.label, sample.image) for sample in open_dataset(f"{tmp_path}/again")] == samples
    with pytest.raises(OptionError, match=r"--style does not apply to the format 'tiny'"):
        create_dataset(f"tiny:{tmp_path}/b", style="plain")


def test_a_format_that_cannot_be_read_or_written_is_a_wrong_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMATS, "odd", "tiny_format")
    monkeypatch.setattr("tiny_format.FORMAT", Format("odd"))
    with pytest.raises(OptionError, match="null: this format cannot be read"):
        open_dataset(f"null:{tmp_path}")
    with pytest.raises(OptionError, match="odd: this format cannot be written"):
        create_dataset(f"odd:{tmp_path}")


def test_to_write_a_format_must_be_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"name the format to write: FORMAT:{tmp_path}, one of"):
        create_dataset(str(tmp_path))


def test_sinks_are_made_by_their_format(tmp_path: Path) -> None:
    made: dict[str, Sink] = {name: create_dataset(f"{name}:{tmp_path}") for name in ("folder", "null")}
    assert isinstance(made["folder"], FolderSink)
    assert isinstance(made["null"], NullSink)
    assert {sink.root for sink in made.values()} == {str(tmp_path)}


def test_every_format_can_be_read_or_written() -> None:
    for name in FORMATS:
        with pytest.raises((OptionError, InputNotFoundError), match=r"cannot be|no such file"):
            open_dataset(f"{name}:/nowhere")
