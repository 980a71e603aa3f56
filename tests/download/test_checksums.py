from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from facedata.download import checksums
from facedata.download.checksums import hash_file
from facedata.download.digest import ALGORITHMS
from facedata.errors import InputError, InputNotFoundError


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 9_000_001])
def test_what_the_reference_program_finds_is_found(
    algorithm: str, ahead: bool, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checksums, "_WORTH_A_THREAD", 0)
    path = tmp_path / "file"
    path.write_bytes((os.urandom(1021) * (size // 1021 + 1))[:size])
    blocks: list[int] = []
    hashed = hash_file(path, algorithm, ahead=ahead, advance=blocks.append)
    theirs = subprocess.run([f"{algorithm}sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
    assert (hashed.digest.value, hashed.digest.algorithm) == (theirs, algorithm)
    assert (hashed.steady, hashed.status.st_size, sum(blocks)) == (True, size, size)


def test_a_file_that_grows_meanwhile_is_not_steady(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 << 20))

    def grow(_: int) -> None:
        if path.stat().st_size < 4 << 20:
            with open(path, "ab") as file:
                file.write(bytes(1 << 20))

    hashed = hash_file(path, "md5", advance=grow)
    assert not hashed.steady
    assert hashed.digest.value == hashlib.md5(bytes(4 << 20)).hexdigest()


@pytest.mark.parametrize("ahead", [False, True])
def test_whoever_is_told_of_blocks_can_end_it(ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "_WORTH_A_THREAD", 0)
    path = tmp_path / "file"
    path.write_bytes(bytes(20 << 20))
    before = len(os.listdir("/proc/self/fd"))

    def refuse(_: int) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        hash_file(path, "md5", advance=refuse, ahead=ahead)
    assert len(os.listdir("/proc/self/fd")) == before


def test_only_plain_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is a named pipe, not a file"):
        hash_file(tmp_path / "pipe", "md5")
    with pytest.raises(InputError, match="is a folder, not a file"):
        hash_file(tmp_path, "md5")
    with pytest.raises(InputError, match="is a device, not a file"):
        hash_file("/dev/zero", "md5")
    with pytest.raises(InputNotFoundError, match="nothing"):
        hash_file(tmp_path / "nothing", "md5")
