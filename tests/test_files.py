"""Reading hostile files, files that appear whole or not at all, locks, room on a disk, and what a path lies on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from facedata.errors import (
    DiskFullError,
    FormatError,
    InputError,
    InputNotFoundError,
    OptionError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
)
from facedata.files import (
    atomic_writer,
    cache_folder,
    check_room,
    combined_identity,
    file_identity,
    network_file_system,
    open_locked,
    open_regular,
    read_small,
    remove_stale_temporaries,
    rename_new,
)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "small").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("small")
    for name, kind in {"pipe": "a named pipe", "": "a folder", "/dev/null": "a device"}.items():
        with pytest.raises(InputError, match=f"is {kind}, not a file"):
            open_regular(tmp_path / name)
    with pytest.raises(InputError, match="is a symbolic link, not a file"):
        open_regular(tmp_path / "link", follow_symlinks=False)
    with pytest.raises(InputError, match="loop: cannot be read"):
        open_regular(tmp_path / "loop")
    with pytest.raises(InputError, match="is not a valid path"):
        open_regular("a\0b")
    with pytest.raises(InputNotFoundError, match="absent: no such file"):
        open_regular(tmp_path / "absent")
    assert read_small(tmp_path / "link", 5) == b"12345"
    with pytest.raises(FormatError, match="small: is larger than 4 bytes, the most that is read of such a file"):
        read_small(tmp_path / "small", 4)


def test_a_file_appears_whole_and_an_error_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    for sync in (True, False):
        with atomic_writer(path, sync=sync) as file:
            file.write(b"new")
            assert not path.exists() or not sync
        assert path.read_bytes() == b"new"
    with suppress(KeyboardInterrupt), atomic_writer(path) as file:
        file.write(b"part of it")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_only_what_dead_processes_of_this_machine_left_is_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    zombie = os.posix_spawn(sys.executable, ["python", "-c", ""], os.environ)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)  # it has ended, and its status was not asked for
    host = socket.gethostname()
    kept = {f".facedata-temporary-{name}" for name in (f"list-{host}-{os.getpid()}", "list-elsewhere-1", "x")}
    for name in (*kept, *(f".facedata-temporary-list-{host}-{pid}" for pid in (dead.pid, zombie))):
        (tmp_path / name).touch()
    remove_stale_temporaries(tmp_path)
    os.waitpid(zombie, 0)
    assert set(os.listdir(tmp_path)) == kept


def test_a_locked_file_is_refused_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = open_locked(path)
    with pytest.raises(OutputLockedError, match="file: another run is writing here"):
        open_locked(path)
    path.rename(tmp_path / "elsewhere")
    os.close(open_locked(path))
    os.close(descriptor)
    os.close(open_locked(tmp_path / "elsewhere", wait=True))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="pipe: is not a regular file"):
        open_locked(tmp_path / "pipe")


def test_room_is_checked_before_it_is_used(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet"
    check_room(path, 1, "the list")
    with pytest.raises(DiskFullError, match=r"yet: the list needs 1,152,.* bytes, but .* free .* again; it is kept$"):
        check_room(path, 1 << 60, "the list", "it is kept")


def test_an_identity_depends_on_size_and_content_alone(tmp_path: Path) -> None:
    contents = (b"", b"a", b"b", bytes(3 << 20), bytes((3 << 20) - 1) + b"1", b"1" + bytes((3 << 20) - 1))
    identities = []
    for number, content in enumerate(contents):
        for copy in ("a", "b"):
            (tmp_path / f"{number}{copy}").write_bytes(content)
        identities.append(file_identity(tmp_path / f"{number}a"))
        assert file_identity(tmp_path / f"{number}b") == identities[-1]
    assert all(identities.count(identity) == 1 for identity in identities)
    names = [[("a", 1), ("b", 2)], [("b", 2), ("a", 1)], [("a", 1)], [("ab", 12)]]
    assert len({combined_identity(some) for some in names}) == len(names)


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder("x") == Path("/caches/facedata/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_folder("x") == Path("/home/ada/.cache/facedata/x")
    monkeypatch.setenv("HOME", "nowhere")
    with pytest.raises(OptionError, match=r"there is no cache folder.* set XDG_CACHE_HOME"):
        cache_folder("x")


MOUNTS = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:26 / {0}/home rw - nfs4 server:/home rw,vers=4.2
31 22 0:27 / {0}/scratch rw master:1 propagate_from:2 - lustre 10.0.0.1@tcp:/work rw
32 31 0:28 / {0}/scratch/local rw - xfs /dev/nvme0n1 rw
33 22 0:29 / {0}/with\040space rw - cifs //server/share rw
34 22 0:30 / {0}/sshfs rw - fuse.sshfs user@host: rw
35 22 0:31 / {0}/ntfs rw - fuseblk /dev/sdb1 rw
36 22 0:32 / {0}/twice rw - autofs systemd-1 rw
37 36 0:33 / {0}/twice rw - nfs server:/twice rw
38 22 0:34 / {0}/over rw - nfs server:/over rw
39 38 0:35 / {0}/over rw - tmpfs tmpfs rw
40 22 0:36 / {0}/gpfs rw - GPFS /dev/gpfs rw
41 22 0:37 / {0}/portal rw - fuse.portal portal rw
a line of another kind
"""
KINDS = {
    "": None,
    "home": "nfs4",
    "home/me/not/there/yet": "nfs4",
    "homes/me": None,
    "scratch/out.lmdb": "lustre",
    "scratch/local/out.lmdb": None,
    "with space/out.lmdb": "cifs",
    "sshfs/out.lmdb": "fuse.sshfs",
    "ntfs/out.lmdb": None,
    "twice/out.lmdb": "nfs",
    "over/out.lmdb": None,
    "gpfs/out.lmdb": "GPFS",
    "portal/out.lmdb": None,
}


def test_the_nearest_mount_gives_the_file_system(tmp_path: Path) -> None:
    for name in ("home", "homes", "scratch/local", "with space", "sshfs", "ntfs", "twice", "over", "gpfs", "portal"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for path, kind in {**KINDS, "link/out.lmdb": "nfs4"}.items():
        assert network_file_system(tmp_path / path, MOUNTS.format(tmp_path)) == kind
    assert network_file_system(tmp_path) == network_file_system(tmp_path, Path("/proc/self/mountinfo").read_text())
    assert network_file_system(tmp_path, "") is None


def test_a_file_is_renamed_but_replaces_no_other(tmp_path: Path) -> None:
    one, same, other, new = (tmp_path / name for name in ("one", "same", "other", "new"))
    for path, text in ((one, "content"), (same, "content"), (other, "CONTENT")):
        path.write_text(text)
    rename_new(one, new)
    rename_new(same, new)
    os.link(new, one)
    rename_new(one, new)
    with pytest.raises(OutputExistsError, match="new: appeared while this job was running, and is left as it is"):
        rename_new(other, new)
    with pytest.raises(OutputExistsError), atomic_writer(new, replace=False) as file:
        file.write(b"CONTENT")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "content", "other": "CONTENT"}
