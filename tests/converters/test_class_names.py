from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.converters.class_names import read_class_names, write_class_names
from facedata.errors import FormatError, InputNotFoundError, OutputError

NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)


@given(st.dictionaries(st.integers(0, 10**9), NAMES, max_size=20))
def test_names_come_back(names: dict[int, str]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "classes.txt"
        write_class_names(path, names)
        assert read_class_names(path) == names
        assert [int(line.split("\t")[0]) for line in path.read_bytes().decode().split("\n")[:-1]] == sorted(names)


def test_a_name_with_a_line_break_stays_on_its_line(tmp_path: Path) -> None:
    write_class_names(tmp_path / "classes.txt", {0: "a\nb", 1: "c\rd\te"})
    assert (tmp_path / "classes.txt").read_text() == "0\ta b\n1\tc d e\n"


@pytest.mark.parametrize("text", ["a\n", "0 name\n", "x\tname\n", "0\ta\n0\tb\n", "-1\ta\n", "99999999999999\ta\n"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(FormatError, match=r"classes\.txt: line \d: expected 'label<TAB>name'"):
        read_class_names(tmp_path / "classes.txt")


def test_a_file_that_is_not_there_or_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError):
        read_class_names(tmp_path / "classes.txt")
    with pytest.raises(OutputError):
        write_class_names(tmp_path / "none" / "classes.txt", {})
