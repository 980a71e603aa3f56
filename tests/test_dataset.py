from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, SupportsIndex

import numpy as np
import pytest
from format_support import convert, numbered
from support import RecordSetMaker, jpeg, raised_without_root

from facedata.converters.convert import convert_dataset
from facedata.converters.rec.source import RecSource
from facedata.dataset import FORMATS, Format, Sample, Source, create_dataset, find_format, open_dataset, split_spec
from facedata.errors import FormatError, InputNotFoundError, OptionError

MakeSet = Callable[..., RecordSetMaker]


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


def test_a_path_that_may_not_be_read_is_said_by_name() -> None:
    with TemporaryDirectory() as folder:
        RecordSetMaker(Path(folder, "set")).plain([0])
        Path(folder, "set").chmod(0o000)
        Path(folder).chmod(0o755)
        message = raised_without_root(lambda: open_dataset(f"{folder}/set"))
    assert message == f"InputPermissionError: {folder}/set: no permission to read it; check its mode and owner"


def test_a_damaged_record_set_is_not_called_another_kind_of_file(record_set: MakeSet) -> None:
    folder = Path(record_set().plain([0, 3]))
    (folder / "property").write_text("2,112,112\n")
    os.truncate(folder / "train.rec", 70)
    with pytest.raises(FormatError, match=r"its last record .* cannot be read: .* index-rec --overwrite$"):
        open_dataset(str(folder))


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
    assert [(sample.label, sample.image) for sample in open_dataset(tmp_path / "again")] == samples
    with pytest.raises(OptionError, match=r"--style does not apply to the format 'tiny'"):
        create_dataset(f"tiny:{tmp_path}/b", style="plain")


def test_formats_that_cannot_be_read_or_written_are_wrong_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in FORMATS:
        with pytest.raises((OptionError, InputNotFoundError), match=r"cannot be|no such file"):
            open_dataset(f"{name}:/nowhere")
    monkeypatch.setitem(FORMATS, "odd", "tiny_format")
    monkeypatch.setattr("tiny_format.FORMAT", Format("odd"))
    with pytest.raises(OptionError, match="null: this format cannot be read"):
        open_dataset(f"null:{tmp_path}")
    with pytest.raises(OptionError, match="odd: this format cannot be written"):
        create_dataset(f"odd:{tmp_path}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dataset_is_a_sequence_in_any_process_and_thread(tmp_path: Path, method: str) -> None:
    source = numbered(150)
    items, datasets = list(source), []
    for spec in ("rec:rec", "folder:out", "webdataset:tars", "parquet:parquet", "lmdb:l.lmdb", "list:l.txt@images"):
        name, _, path = spec.partition(":")
        spec = f"{name}:{tmp_path}/{path.replace('@', f'@{tmp_path}/')}"
        options: dict[str, Any] = {"shard_samples": 20} if name == "webdataset" else {}
        convert(source, spec, **options)
        datasets.append(open_dataset(spec))
    places: tuple[SupportsIndex, ...] = (149, 0, -1, 75, np.int64(3))
    jobs = [(dataset, place) for dataset in datasets for place in places]
    expected = [items[int(place)].image for _, place in jobs]
    assert [dataset[place].image for dataset, place in jobs] == expected  # files stay open in this process
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(_image_at, jobs * 20)) == expected * 20
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(_image_at, jobs) == expected
    for dataset in datasets:
        assert [sample.image for sample in dataset] == [item.image for item in items]
        assert dataset.labels().tolist() == [item.label for item in items]
        assert [sample.image for sample in dataset[10:13]] == [item.image for item in items[10:13]]
        for place in (150, -151):
            with pytest.raises(IndexError, match=f"sample {place}: the dataset has 150"):
                dataset[place]
        with pytest.raises(TypeError):
            dataset["a"]  # type: ignore[call-overload]


def _image_at(job: tuple[Source, SupportsIndex]) -> bytes:
    dataset, place = job
    return dataset[place].image
