from __future__ import annotations

import io
import os
import re
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from facedata.download.checksums import ALGORITHMS, Digest
from facedata.download.manifest import (
    BadLine,
    Listed,
    ManifestFile,
    list_checksums,
    manifest_line,
    read_manifest,
    verify_manifest,
)
from facedata.errors import FormatError, InterruptedJobError, OptionError
from facedata.jobs.signals import StopRequest

EMPTY = "d41d8cd98f00b204e9800998ecf8427e"
NAMES = st.binary(min_size=1, max_size=40).filter(
    lambda name: not set(name) & {0, ord("/")} and not name.startswith(b".") and not name.endswith(b".part")
)
PIECES = [b"\n", b"\\", b"\r", b" ", b"*", b"a", b"\xff", b"(", b") = ", b"n"]
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6)


def read(text: bytes, title: str = "LIST", algorithm: str | None = None) -> list[Listed | BadLine]:
    return list(read_manifest(io.BytesIO(text), title, algorithm))


def one(text: bytes) -> tuple[str, str]:
    (line,) = read(text)
    assert isinstance(line, Listed), line
    return line.name, line.digest.algorithm


@given(st.sets(NAMES | HOSTILE.map(b"".join), min_size=1, max_size=6), st.sampled_from(["md5", "sha256"]))
@example({b"-"}, "md5")
@settings(max_examples=6, deadline=None)
def test_lists_go_round_with_the_reference_programs(names: set[bytes], algorithm: str) -> None:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as lists:
        for name in names:
            Path(folder, os.fsdecode(name)).write_bytes(name)
        entries = list(list_checksums(folder, algorithm))
        assert [os.fsencode(entry.name) for entry in entries if isinstance(entry, Listed)] == sorted(names)
        ours = Path(lists, "ours")
        ours.write_bytes(b"".join(manifest_line(*entry) for entry in entries if isinstance(entry, Listed)))
        program = f"{algorithm}sum"
        arguments = [b"./-" if name == b"-" else name for name in names]
        subprocess.run([program, "--check", "--strict", ours], cwd=folder, check=True, capture_output=True)

        for options in ([], ["--tag"], ["--binary"]):
            theirs = Path(lists, "theirs")
            made = subprocess.run([program, *options, "--", *arguments], cwd=folder, check=True, capture_output=True)
            theirs.write_bytes(made.stdout)
            with ManifestFile(str(theirs)) as listed:
                done = verify_manifest(listed, folder, use_cache=False)
            assert done.good
            assert done.verdicts == {"OK": len(names)}


@given(st.binary(max_size=200) | st.text(alphabet="0123456789abcdef \\*()=MD5\n\r", max_size=200).map(str.encode))
def test_any_bytes_are_a_list_or_refused(text: bytes) -> None:
    with suppress(FormatError):
        assert all(isinstance(line, Listed | BadLine) for line in read(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("{}  a", "a"),
        ("{}  a\n", "a"),
        ("{} *a b\n", "a b"),
        ("{}   a\n", " a"),
        ("{} a\n", "a"),
        ("\ufeff{}  ü\r\n", "ü"),
        ("# made by hand\n\n{}  a\n\n", "a"),
        ("\\{}  a\\\\b\\nc\\rd\n", "a\\b\nc\rd"),
        ("{}  a\\b\n", "a\\b"),
        ("MD5 (a) = {}\n", "a"),
        ("MD5(a (1))= {}\n", "a (1)"),
        ("\\MD5 (a\\nb) = {}\n", "a\nb"),
        ("{}  end\r\r\n", "end\r"),
    ],
)
def test_every_way_to_write_a_line_is_read(text: str, name: str) -> None:
    assert one(text.format(EMPTY).encode()) == (name, "md5")
    assert one(text.format(EMPTY.upper()).encode()) == (name, "md5")


def test_an_algorithm_is_known_by_its_digits_and_one_that_was_asked_for_is_insisted_on() -> None:
    for algorithm, digits in ALGORITHMS.items():
        assert one(f"{'0' * digits}  a\n".encode()) == ("a", algorithm)
        assert one(f"{algorithm.upper()} (a) = {'0' * digits}\n".encode()) == ("a", algorithm)
        with pytest.raises(OptionError):
            Digest(algorithm, "0" * (digits - 1))
    with pytest.raises(OptionError):
        Digest("crc32", "0" * 8)
    line = f"{EMPTY}  a\n".encode()
    assert len(read(line, algorithm="md5")) == 1
    with pytest.raises(FormatError, match="has no checksums"):
        read(line, algorithm="sha1")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("hello", "'hello' is neither 'digest  name' nor 'MD5 \\(name\\) = digest'"),
        ("0" * 31 + "  a", "neither"),
        ("0" * 56 + "  a", "found 56"),
        ("0" * 32 + "  ", "neither"),
        ("SHA1 (a) = " + "0" * 32, "expected a checksum of sha1, 40 digits, found 32"),
        ("BLAKE2b (a) = " + "0" * 128, "'blake2b' is not one of the algorithms"),
        ("\\" + "0" * 32 + "  a\\q", "an escape other than"),
        ("\\" + "0" * 32 + "  a\\", "an escape other than"),
    ],
)
def test_a_line_that_is_not_understood_is_named_and_the_others_are_read(line: str, reason: str) -> None:
    first, bad, last = read(f"{EMPTY}  first\n{line}\n{EMPTY}  last\n".encode())
    assert isinstance(first, Listed)
    assert isinstance(last, Listed)
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert re.search(reason, bad.reason)


@pytest.mark.parametrize(
    ("text", "title", "reason"),
    [
        (b"", "LIST", "has no checksums"),
        (b"\n\n# nothing\n", "LIST", "has no checksums"),
        (b"\x7fELF\x00\x01", "LIST", "is not a list of checksums but binary"),
        ("d41d  a\n".encode("utf-16"), "LIST", "save it as UTF-8"),
        (b"word " * 10_000, "LIST", "a line has 32,768 bytes or more"),
        (b"a line of a book\n" * 100, "LIST", "'a line of a book' is neither"),
        (b"0" * 128 + b"  a\n", "x/B2SUMS.b2sum", "its name mentions an algorithm other than md5, sha1"),
    ],
)
def test_what_is_no_list_at_all_is_refused(text: bytes, title: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read(text, title)


def test_a_list_that_is_interrupted_is_not_complete(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    stop = StopRequest()
    stop.count, stop.signal_name = 1, "SIGTERM"
    with pytest.raises(InterruptedJobError, match="stopped by SIGTERM; the list is not complete"):
        list(list_checksums(tmp_path, stop=stop))
