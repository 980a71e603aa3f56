"""How tars are named: patterns, braces, globs, folders."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedata.converters.webdataset.source import NumberedNames, find_tars, parse_numbered
from facedata.errors import EmptyDatasetError, FormatError, InputNotFoundError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_bytes(b"")


def found(folder: Path, spec: str) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in find_tars(str(folder / spec))]


@given(st.sampled_from(["s-%06d.tar", "%d.tar", "a%%b%03d-%%.tar"]), st.integers(0, 10**10))
def test_a_number_is_found_again_in_the_name_that_it_gave(pattern: str, number: int) -> None:
    names = parse_numbered(pattern)
    assert names is not None
    assert str(names) == pattern
    assert names.name(number) == pattern % number
    assert names.number(names.name(number)) == number


@pytest.mark.parametrize(
    "name",
    [
        "s-00001.tar",
        "s-0000010.tar",
        "s-+00001.tar",
        "s-\u0660\u0660\u0660\u0660\u0660\u0661.tar",
        "s-.tar",
        "s-000001.tar2",
    ],
)
def test_what_the_pattern_would_not_write_is_not_its_own(name: str) -> None:
    assert NumberedNames("s-", 6, ".tar").number(name) is None


@pytest.mark.parametrize("pattern", ["a.tar", "%s.tar", "%06d-%06d.tar", "%6d.tar", "100%.tar", "%x.tar"])
def test_what_is_no_pattern_with_one_number(pattern: str) -> None:
    assert parse_numbered(pattern) is None


def test_a_folder_stands_for_its_tars_in_natural_order(tmp_path: Path) -> None:
    make(tmp_path, "b-10.tar", "b-9.tar", "a.tar", ".hidden.tar", "notes.txt", "x.tar.gz")
    assert found(tmp_path, ".") == ["a.tar", "b-9.tar", "b-10.tar"]


def test_a_folder_without_tars_says_what_to_do_with_compressed_ones(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match=r"there is no \.tar in this folder$"):
        find_tars(str(tmp_path))
    make(tmp_path, "x.tar.gz")
    with pytest.raises(EmptyDatasetError, match=r"x\.tar\.gz is compressed: decompress it to a plain \.tar first"):
        find_tars(str(tmp_path))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..10}.tar", ["s-8.tar", "s-9.tar", "s-10.tar"]),
        ("s-{08..10}.tar", ["s-08.tar", "s-09.tar", "s-10.tar"]),
        ("s-{2..1}.tar", ["s-2.tar", "s-1.tar"]),
        ("{b,a}.tar", ["b.tar", "a.tar"]),
        ("{a,b}-{0..1}.tar", ["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
        ("{x}-{0..1}.tar", ["{x}-0.tar", "{x}-1.tar"]),
    ],
)
def test_braces_stand_for_each_of_their_names_in_order(tmp_path: Path, spec: str, expected: list[str]) -> None:
    make(tmp_path, *expected, "other.tar")
    assert found(tmp_path, spec) == expected


def test_braces_agree_with_the_webdataset_library(tmp_path: Path) -> None:
    braceexpand = pytest.importorskip("braceexpand").braceexpand
    for spec in ("s-{0..11}", "s-{00..11}", "s-{098..101}-{a,b}", "{b,a}{3..1}"):
        make(tmp_path, *(expected := list(braceexpand(spec))))
        assert found(tmp_path, spec) == expected


def test_a_tar_that_the_braces_name_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    make(tmp_path, "s-0.tar", "s-2.tar")
    with pytest.raises(InputNotFoundError, match=r"s-1\.tar: no such file; .*s-\{0\.\.2\}\.tar names 3 tars"):
        find_tars(str(tmp_path / "s-{0..2}.tar"))


@pytest.mark.parametrize("spec", ["{0..99999999999999999}.tar", "{0..1023}-{0..1024}.tar"])
def test_braces_that_stand_for_too_many_names_are_refused_at_once(spec: str) -> None:
    with pytest.raises(FormatError, match="stands for more than 1048576 names"):
        find_tars(f"nowhere/{spec}")


def test_a_pattern_stands_for_the_files_that_are_there_in_the_order_of_the_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, "s-10.tar", "s-9.tar", "s-11.tar", "s-x.tar", "t-1.tar", "s-09.tar")
    with caplog.at_level(logging.WARNING, logger="facedata"):
        assert found(tmp_path, "s-%d.tar") == ["s-9.tar", "s-10.tar", "s-11.tar"]
    assert caplog.text == ""


def test_a_gap_in_the_numbers_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make(tmp_path, "s-000000.tar", "s-000002.tar")
    with caplog.at_level(logging.WARNING, logger="facedata"):
        assert len(found(tmp_path, "s-%06d.tar")) == 2
    assert "there is no s-000001.tar; continuing without it" in caplog.text


def test_a_glob_is_sorted_by_nature(tmp_path: Path) -> None:
    make(tmp_path, "s-10.tar", "s-9.tar", "t-1.tar")
    assert found(tmp_path, "s-*.tar") == ["s-9.tar", "s-10.tar"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    names = ["{0..1}.tar", "%d.tar", "[ab].tar", "*.tar"]
    make(tmp_path, *names, "0.tar", "1.tar", "a.tar")
    assert [found(tmp_path, name) for name in names] == [[name] for name in names]


@pytest.mark.parametrize("spec", ["none.tar", "none-%06d.tar", "none-*.tar", "nowhere/s-%d.tar", "nowhere/*.tar"])
def test_where_nothing_is_named_so_the_spec_is_in_the_message(tmp_path: Path, spec: str) -> None:
    with pytest.raises(InputNotFoundError, match="no such file or folder"):
        find_tars(str(tmp_path / spec))
