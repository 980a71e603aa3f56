from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support import RecordSetMaker, jpeg, raised_without_root

from facedata.converters.convert import convert_dataset
from facedata.converters.rec.source import RecSource
from facedata.dataset import FORMATS, Format, Sample, create_dataset, find_format, open_dataset, split_spec
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
    with pytest.raises(FormatError, match=r"is incomplete: .* index-rec --overwrite$"):
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
    assert [(sample.label, sample.image) for sample in open_dataset(f"{tmp_path}/again")] == samples
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
