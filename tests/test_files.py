"""Reading hostile files, files that appear whole or not at all, locks, room on a disk, and what a path lies on."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from support import temporary_of_dead_process

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
    make_own_folder,
    network_file_system,
    open_locked,
    open_own,
    open_regular,
    read_small,
    remove_stale_temporaries,
    rename_new,
    temporary_name,
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


def test_only_what_certainly_is_unused_is_removed(tmp_path: Path) -> None:
    dead = Path(temporary_of_dead_process(tmp_path / "file")).name.rpartition("-")[2]
    zombie = os.posix_spawn(sys.executable, ["python", "-c", ""], os.environ)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)  # it has ended, and its status was not asked for
    host, boot, space, _, start, word = dead.split(".")
    here = f"{host}.{boot}.{space}"
    other_boot = f"{host}.{'0' * 32}.{space}.1.1.{word}"
    removed = {
        "dead": dead,
        "zombie": f"{here}.{zombie}.{start}.{word}",
        "number-used-again": f"{here}.{os.getpid()}.1.{word}",
        **({"before-this-boot": other_boot} if host else {}),  # else the machine has no id
        "of-this-job": "elsewhere",
    }
    kept = {
        "alive": Path(temporary_name(tmp_path / "file")).name.rpartition("-")[2],
        "other-container": dead.replace(f".{space}.", ".1."),
        "host-of-the-same-name": other_boot,
        "other-host": other_boot.replace(host, "f" * 8) if host else other_boot,
        "unknown": "elsewhere",
    }
    for name, owner in (removed | kept).items():
        (tmp_path / f".facedata-temporary-{name}-{owner}").touch()
        if name in ("before-this-boot", "other-host"):
            os.utime(tmp_path / f".facedata-temporary-{name}-{owner}", (1e9, 1e9))
    remove_stale_temporaries(tmp_path, {"of-this-job"})
    os.waitpid(zombie, 0)
    assert {name for name in removed | kept if any(tmp_path.glob(f".facedata-temporary-{name}-*"))} == set(kept)
    assert not list(tmp_path.glob(".facedata-temporary-of-this-job-*"))


def test_a_file_of_our_own_is_not_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"of another")
    os.symlink("victim", tmp_path / "link")
    os.symlink("new", tmp_path / "dangling")
    os.link(tmp_path / "victim", tmp_path / "hard")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    found = {"link": "a symbolic link", "dangling": "a symbolic link", "hard": "a hard link to another file"}
    for name, kind in {**found, "pipe": "a named pipe", "folder": "a folder"}.items():
        for flags in (os.O_RDWR, os.O_WRONLY | os.O_TRUNC):
            with pytest.raises(OutputError, match=f"{name}: is {kind}, expected a plain file of .* remove it, or"):
                open_own(tmp_path / name, flags)
        if name != "folder":
            with pytest.raises(OutputError, match=f"{name}: is .*, expected a plain folder of facedata's own"):
                make_own_folder(tmp_path / name)
    assert (tmp_path / "victim").read_bytes() == b"of another"
    os.close(open_own(tmp_path / "hard", os.O_WRONLY | os.O_TRUNC, published=tmp_path / "victim"))
    assert (tmp_path / "victim").read_bytes() == b""
    os.symlink("folder", tmp_path / "to-folder")
    with pytest.raises(OutputError, match="to-folder: is a symbolic link"):
        make_own_folder(tmp_path / "to-folder")
    with atomic_writer(tmp_path / ("ä" * 127)) as file:  # the longest name that a file can have
        file.write(b"content")


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
    with pytest.raises(OutputError, match="pipe: is a named pipe"):
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


@pytest.mark.parametrize("lacking", [(), ("renameat2",), ("renameat2", "link")], ids=["Linux", "POSIX", "exFAT"])
def test_a_file_is_renamed_but_replaces_no_other(
    tmp_path: Path, lacking: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "renameat2" in lacking:
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: None)
    link = os.link
    if "link" in lacking:

        def unsupported(*_: object) -> None:
            raise PermissionError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", unsupported)
    one, same, other, new = (tmp_path / name for name in ("one", "same", "other", "new"))
    for path, text in ((one, "content"), (same, "content"), (other, "CONTENT")):
        path.write_text(text)
    rename_new(one, new)
    rename_new(same, new)
    link(new, one)
    rename_new(one, new)
    with pytest.raises(OutputExistsError, match="new: appeared while this job was running"):
        rename_new(other, new)
    with pytest.raises(OutputExistsError), atomic_writer(new, replace=False) as file:
        file.write(b"CONTENT")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "content", "other": "CONTENT"}
