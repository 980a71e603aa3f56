from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from facedata.download.available import accept_terms, change_provenance, is_accepted, is_finished, read_provenance
from facedata.download.catalogue import CatalogueSet
from facedata.download.schema import PROVENANCE
from facedata.errors import FormatError

ENTRY = CatalogueSet("a", "A", status=("derivative",), status_note="Made from B.", licence="none")


def test_nothing_is_written_when_something_fails_meanwhile(tmp_path: Path) -> None:
    with suppress(KeyError), change_provenance(tmp_path, "a") as record:
        record["x"] = 1
        raise KeyError
    assert read_provenance(tmp_path, "a") == {}


def test_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    def write(name: str) -> None:
        for number in range(10):
            with change_provenance(tmp_path, name) as record:
                record[str(number)] = number

    with ThreadPoolExecutor() as pool:
        list(pool.map(write, "ab"))
    assert [len(read_provenance(tmp_path, name)) for name in "abc"] == [10, 10, 0]


@pytest.mark.parametrize(
    "content",
    [
        *(b"{", b"[]", b'{"sets": 3}', b"\xff", b"[" * 100_000),
        *(b'{"sets": {"a": %s}}' % record for record in (b'"x"', b"[]", b'{"downloads": 3}', b'{"files": []}')),
    ],
)
def test_a_file_of_another_program_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PROVENANCE).write_bytes(content)
    with pytest.raises(FormatError, match=r"provenance\.json: is not a record"), change_provenance(tmp_path, "a"):
        pass
    assert (tmp_path / PROVENANCE).read_bytes() == content


def test_accepted_terms_are_kept_word_for_word_and_others_are_asked_for_again(tmp_path: Path) -> None:
    assert not is_accepted(ENTRY, {})
    assert not is_finished({"finished": 1, "files": {"a\0b": 1}}, tmp_path)  # no file can have this name
    accept_terms(ENTRY, tmp_path, lambda entry: "--accept-terms")
    record = json.loads((tmp_path / PROVENANCE).read_text())["sets"]["a"]
    assert record["accepted"]["terms"] == ["derivative of a withdrawn set", "Made from B.", "licence: none"]
    assert record["accepted"]["at"].endswith("Z")
    assert is_accepted(ENTRY, record)
    assert not is_accepted(CatalogueSet("a", "A", status=("withdrawn",)), record)
    assert is_accepted(CatalogueSet("a", "A", status=("synthetic",)), {})
