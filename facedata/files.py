"""Files: opening regular ones only, reading and writing in full, appearing by rename, locks, free space, identity."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar
from weakref import finalize

from facedata.errors import (
    DiskFullError,
    FacedataError,
    FormatError,
    InputError,
    OptionError,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    changed_error,
    input_error,
    is_transient,
    output_error,
)

_P = ParamSpec("_P")
_T = TypeVar("_T")
StrPath = str | os.PathLike[str]

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a symbolic link",
}
_TEMPORARY = ".facedata-temporary-"
_LONGEST_NAME = 150  # bytes of the name in that of its temporary file, which may have 255
_OWNER = re.compile(r"([0-9a-f]*)\.([0-9a-f]{32})\.([0-9]{1,10})\.([0-9]{1,9})\.([0-9]+)\.[0-9a-f]{16}")
_IDENTITY_BLOCKS = 16
_IDENTITY_BLOCK_SIZE = 1 << 16
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1  # of renameat2 on Linux
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_MOUNTS = "/proc/self/mountinfo"
_NETWORK = re.compile(
    r"9p|afs|beegfs|ceph|cifs|coda|drvfs|fhgfs|gfs2|glusterfs|gpfs|lizardfs|lustre|moosefs|ncpfs|nfs4?|ocfs2|orangefs"
    r"|panfs|prl_fs|pvfs2|quobyte|smb2|smb3|smbfs|vboxsf|virtiofs|wekafs"
    r"|fuse\.(beegfs|blobfuse2?|ceph(-fuse)?|curlftpfs|davfs2?|gcsfuse|geesefs|glusterfs|goofys|juicefs|lizardfs|mfs"
    r"|alluxio-fuse|dfuse|gpfs|grpcfuse|hdfs|moosefs|nfs|objectivefs|osxfs|quobyte|vmhgfs-fuse|mount-s3|mountpoint-s3"
    r"|rclone|s3fs|s3ql|seaweedfs|smbnetfs|sshfs|xtreemfs)",
    re.IGNORECASE,
)
_PAUSES = (0.05, 0.25, 1.0, None)  # seconds until an I/O error that may pass is tried again
_IMPATIENT = 10.0  # seconds without such pauses after an error that did not pass: a disk may be gone for good
_given_up = -_IMPATIENT
_log = logging.getLogger(__name__)


def retried(read: Callable[_P, _T], *arguments: _P.args, **options: _P.kwargs) -> _T:
    """Call a function that reads an input; if it fails with an I/O error that may pass, again after short pauses."""
    global _given_up
    for pause in _PAUSES:
        try:
            return read(*arguments, **options)
        except OSError as error:
            if not is_transient(error):
                raise
            if pause is None or time.monotonic() < _given_up + _IMPATIENT:
                _given_up = time.monotonic()
                raise
            time.sleep(pause)
    raise AssertionError


_latest: tuple[int, bool] | None = None


@contextmanager
def no_later(latest: tuple[int, bool] | None) -> Iterator[None]:
    """In the block, `check_time` refuses files with a later time, in nanoseconds, of inode (True) or any change."""
    global _latest
    _latest = latest
    try:
        yield
    finally:
        _latest = None


def check_time(status: os.stat_result, path: str) -> None:
    """Raise `InputChangedError` if a file was changed later than `no_later` says."""
    if _latest is not None:
        latest, by_inode = _latest
        if status.st_ctime_ns > latest and (by_inode or status.st_mtime_ns > latest):
            raise changed_error(path)


def open_regular(path: StrPath, *, follow_symlinks: bool = True) -> int:
    """Open a regular file for reading; return its descriptor.

    A named pipe is refused instead of waited for.

    Raises
    ------
    InputError
        If the file does not exist, cannot be opened or is not a regular file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | (0 if follow_symlinks else os.O_NOFOLLOW)
    try:
        descriptor = retried(os.open, path, flags)
    except ValueError as error:  # a zero byte in the name
        raise InputError(f"{os.fspath(path)!r}: is not a valid path: {error}") from error
    except OSError as error:
        with suppress(OSError):
            mode = (os.stat if follow_symlinks else os.lstat)(path).st_mode
            if not stat.S_ISREG(mode):
                raise InputError(f"{os.fspath(path)}: is {kind_name(mode)}, not a file") from error
        raise input_error(error, path) from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InputError(f"{os.fspath(path)}: is {kind_name(mode)}, not a file")
    return descriptor


def open_for(owner: object, path: StrPath) -> int:
    """Open a regular file for reading, as `open_regular`; it is closed when `owner` is gone."""
    descriptor = open_regular(path)
    finalize(owner, os.close, descriptor)
    return descriptor


@contextmanager
def opened_regular(path: StrPath) -> Iterator[int]:
    """Open a regular file for reading, as `open_regular`; an OSError inside the block becomes an `InputError`."""
    descriptor = open_regular(path)
    try:
        yield descriptor
    except OSError as error:
        raise error if isinstance(error, FacedataError) else input_error(error, path) from error
    finally:
        os.close(descriptor)


@contextmanager
def output_errors(path: StrPath) -> Iterator[None]:
    """Turn an OSError inside the block into the `OutputError` that says that `path` cannot be written."""
    try:
        yield
    except FacedataError:  # some are OSErrors too
        raise
    except OSError as error:
        raise output_error(error, path) from error


def kind_name(mode: int) -> str:
    """The kind of a file that is not a regular one, from its mode: ``a folder``, ``a named pipe``."""
    return _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def read_exactly(descriptor: int, length: int, offset: int) -> bytes:
    """Read `length` bytes from `offset`; fewer only if the file ends before."""
    data = retried(os.pread, descriptor, length, offset)
    while len(data) < length and (more := retried(os.pread, descriptor, length - len(data), offset + len(data))):
        data += more
    return data


def is_file(path: StrPath) -> bool:
    """Whether there is a regular file; unlike `os.path.isfile`, an error that leaves it open is raised.

    Raises
    ------
    InputError
        If the file system does not answer, or gives no permission.
    """
    try:
        return stat.S_ISREG(retried(os.stat, path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise input_error(error, path) from error


def read_small(path: StrPath, largest: int) -> bytes:
    """Read a whole file of at most `largest` bytes.

    Raises
    ------
    InputError
        If it cannot be read.
    FormatError
        If it is larger.
    """
    with opened_regular(path) as descriptor:
        data = read_exactly(descriptor, largest + 1, 0)
    if len(data) > largest:
        raise FormatError(f"{os.fspath(path)}: is larger than {largest:,} bytes, the most that is read of such a file")
    return data


def write_fully(descriptor: int, data: bytes | bytearray | memoryview, offset: int | None = None) -> None:
    """Write all of `data`, at the descriptor's own position or at `offset`.

    A disk that fills up accepts a part of a write without an error and fails the next one.
    """
    view = memoryview(data).cast("B")
    while len(view):
        if offset is None:
            written = os.write(descriptor, view)
        else:
            written = os.pwrite(descriptor, view, offset)
            offset += written
        view = view[written:]


def open_own(
    path: StrPath, flags: int = os.O_RDWR, *, dir_fd: int | None = None, published: StrPath | None = None
) -> int:
    """Open a file that only facedata writes, created if missing, and return its descriptor.

    In a folder that others may write, a link may have been planted under its name. `published` is a name that the
    file may have too: a run that was killed while it published the file may have left it with both.

    Raises
    ------
    OutputError
        If it is a link, or anything but a regular file, or has another name.
    OSError
        If it cannot be opened.
    """
    truncate = flags & os.O_TRUNC  # only a file that is ours
    flags = flags & ~os.O_TRUNC | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags, 0o666, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise _not_own(path, os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode, "file") from error
    status = os.fstat(descriptor)
    names = 1
    with suppress(OSError):
        names += published is not None and os.path.samestat(os.lstat(published), status)
    if stat.S_ISREG(status.st_mode) and status.st_nlink <= names:
        if truncate:
            os.ftruncate(descriptor, 0)
        return descriptor
    os.close(descriptor)
    raise _not_own(path, status.st_mode, "file")


def make_own_folder(path: StrPath) -> None:
    """Make a folder that only facedata writes, and its parents; raises `OutputError` if it is a link or a file."""
    with output_errors(path):
        with suppress(FileExistsError):
            os.makedirs(path, exist_ok=True)
        if not stat.S_ISDIR(mode := os.lstat(path).st_mode):
            raise _not_own(path, mode, "folder")


def _not_own(path: StrPath, mode: int, expected: str) -> OutputError:
    found = "a hard link to another file" if expected == "file" and stat.S_ISREG(mode) else kind_name(mode)
    return OutputError(
        f"{os.fspath(path)}: is {found}, expected a plain {expected} of facedata's own; remove it, or put a copy in "
        "its place, and run the same command again"
    )


def temporary_name(path: StrPath) -> str:
    """A hidden name beside `path` that cannot be guessed and contains the process that uses it."""
    folder, name = os.path.split(os.fspath(path))
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[-_LONGEST_NAME // 4 :]
    return os.path.join(folder, f"{_TEMPORARY}{name}-{_owner(os.getpid())}.{os.urandom(8).hex()}")


@cache
def _owner(process: int) -> str:
    """The machine, its boot, the namespace that counts the processes, this process, and when it started.

    Equal names of hosts and equal process numbers do not show that two processes are one: containers have both.
    """
    host = space = ""
    with suppress(OSError):
        host = f"{Path('/etc/machine-id').read_text()}{os.uname().nodename}"
        host = hashlib.blake2b(host.encode(), digest_size=4).hexdigest()
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    return f"{host}.{boot_id().replace('-', '')}.{space}.{process}.{_start_of(process) or ''}"


def _start_of(process: int) -> str | None:
    """When a process started, in the kernel's ticks; empty if it has ended, None if the system does not say."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # the processes of another namespace
            return None
        os.kill(process, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass
    except OSError:
        return None
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read(4096).rpartition(b") ")[2].split()  # after "pid (name) "
    except OSError:
        return None
    return "" if fields[0] in (b"Z", b"X") else fields[19].decode()


def remove_stale_temporaries(folder: StrPath, unused: Collection[str] = ()) -> None:
    """Remove the temporary files in `folder` of processes that certainly ran here and have ended.

    Also the temporary files, of any process, that were to become a file with one of the names `unused`.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.startswith(_TEMPORARY)]
    for name in names:
        target, _, owner = name.removeprefix(_TEMPORARY).rpartition("-")
        path = os.path.join(folder, name)
        with suppress(OSError):
            if target in unused or _is_gone(owner, os.lstat(path).st_mtime):
                os.unlink(path)


def _is_gone(owner: str, modified: float) -> bool:
    """Whether the owner of a temporary file has certainly ended; `modified` is when the file was written last."""
    match = _OWNER.fullmatch(owner)
    if match is None:
        return False
    host, boot, space, process, start = match.groups()
    here = _owner(os.getpid()).split(".")
    if boot != here[1]:  # cloned machines share even the machine-id, but this one wrote nothing while it was off
        return host == here[0] != "" and modified < time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return space == here[2] and _start_of(int(process)) not in (start, None)


def open_new(path: str, flags: int) -> int:
    """The `opener` of a temporary file: nothing exists under its name, not even a link."""
    return os.open(path, flags | os.O_EXCL | os.O_NOFOLLOW, 0o666)


@contextmanager
def atomic_writer(
    path: StrPath,
    *,
    sync: bool = True,
    replace: bool = True,
    rename: Callable[[StrPath, StrPath], None] | None = None,
    tidy: bool = False,
) -> Iterator[BinaryIO]:
    """Open a temporary file that becomes `path` if the block ends without an error.

    With `sync` the bytes are forced to the disk before the file gets its name. It gets it from `rename` if that is
    given; without `replace` from `rename_new`. After an error nothing is left. With `tidy`, what killed runs left in
    the folder is removed first: for files that belong to no job, whose output does that.
    """
    if tidy:
        remove_stale_temporaries(os.path.dirname(path) or ".")
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb", opener=open_new) as file:
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
        (rename or (os.replace if replace else rename_new))(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def rename_new(source: StrPath, target: StrPath) -> None:
    """Rename a file, but replace none: one that is at `target` already stays, and must have the same content.

    So a run that was killed after its file got this name, and makes it once more, recognises it. Raises
    `OutputExistsError` if the content differs; an OSError of EXDEV if `target` is on another file system.
    """
    try:
        _rename_exclusively(source, target)
    except FileExistsError as error:
        import filecmp  # only then

        same = not os.path.islink(target) and filecmp.cmp(source, target, shallow=False)
        if not same:
            raise OutputExistsError(
                f"{os.fspath(target)}: appeared while this job was running or interrupted, and is left as it is; "
                "was another job given the same name? Move it away and run the same command again to resume"
            ) from error
        os.unlink(source)


def _rename_exclusively(source: StrPath, target: StrPath) -> None:
    """Rename a file; raises FileExistsError if `target` exists. Not every file system has the first two ways."""
    import ctypes  # only then

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux alone has it
    if rename is not None:
        if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
            return
        if (code := ctypes.get_errno()) not in _UNSUPPORTED:
            raise OSError(code, os.strerror(code), os.fspath(target))
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(target)) from error
        os.rename(source, target)
    else:
        os.unlink(source)


def sync_folder(folder: StrPath) -> None:
    """Force the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems cannot
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def open_locked(path: StrPath, *, wait: bool = False) -> int:
    """Open a file for reading and writing, created if missing, and lock it until the descriptor is closed.

    The kernel drops the lock however the process ends. The file may be renamed or removed while it is locked.

    With `wait`, another process that has the lock is waited for.

    Raises
    ------
    OutputLockedError
        If another process has it.
    OutputError
        As `open_own`.
    OSError
        If it cannot be opened.
    """
    while True:
        descriptor = open_own(path)
        try:
            # flock, since a lockf lock would go with the first descriptor of this file that the process closes
            with _locking(path):
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            with suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # the process that had it has renamed or removed it: lock the file that is there now


def lock_region(descriptor: int, path: StrPath, start: int, length: int, *, wait: bool = False) -> None:
    """Lock `length` bytes of an open file from `start` on, until any descriptor of the file is closed.

    Raises
    ------
    OutputLockedError
        If another process has one of these bytes, unless `wait`.
    """
    if length:  # to the kernel, 0 means everything up to the end
        with _locking(path):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), length, start)


@contextmanager
def _locking(path: StrPath) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise OutputLockedError(
                f"{os.fspath(path)}: another run is writing here; wait until it ends, or stop it, and run again"
            ) from error
        if error.errno not in _NO_LOCKS:
            raise
        _log.warning(
            "%s: this file system has no locks (%s); do not run the same command twice at the same time here",
            os.fspath(path),
            error.strerror,
        )


def free_bytes(path: StrPath) -> int:
    """The bytes that are free for this user on the disk of `path`, which need not exist yet.

    Raises
    ------
    OSError
        If the file system does not answer.
    """
    status = os.statvfs(nearest_existing(path))
    return status.f_bavail * status.f_frsize


def check_room(path: StrPath, size: int, what: str, advice: str = "") -> None:
    """Check that `size` more bytes fit on the disk of `path`, which need not exist yet.

    `what` is the subject of the message, `advice` its end: what is kept, what to do instead. Raises `DiskFullError`.
    """
    try:
        free = free_bytes(path)
    except OSError:  # writing reports what is wrong
        return
    if size > free:
        rest = f"; {advice}" if advice else ""
        raise DiskFullError(
            f"{os.fspath(path)}: {what} needs {size:,} bytes, but {free:,} are free on this disk: "
            f"free {size - free:,} bytes or more and run the same command again{rest}"
        )


def nearest_existing(path: StrPath) -> str:
    """The real path of `path`, or of its nearest parent that exists; links are followed even if they are broken."""
    real = os.path.realpath(path)
    while not os.path.exists(real) and real != os.path.dirname(real):
        real = os.path.dirname(real)
    return real


def file_identity(path: StrPath) -> dict[str, Any]:
    """Identify a file without reading all of it: its size and a digest of samples.

    Hashed are up to 16 blocks of 64 KiB, spread evenly, the first and the last among them. Independent of the
    file's path and times: a copy on another machine is the same input.

    Raises
    ------
    InputError
        If the file cannot be read.
    """
    with opened_regular(path) as descriptor:
        size = os.fstat(descriptor).st_size
        digest = hashlib.blake2b(digest_size=16)
        last = max(size - _IDENTITY_BLOCK_SIZE, 0)
        for offset in sorted({last * block // (_IDENTITY_BLOCKS - 1) for block in range(_IDENTITY_BLOCKS)}):
            digest.update(read_exactly(descriptor, _IDENTITY_BLOCK_SIZE, offset))
    return {"size": size, "digest": digest.hexdigest()}


def combined_identity(identities: Iterable[tuple[str, Any]]) -> str:
    """32 hexadecimal digits that identify several files: a digest of their names and identities, in order."""
    digest = hashlib.blake2b(digest_size=16)
    for name, identity in identities:
        digest.update(f"{name}\0{identity}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def boot_id() -> str:
    """A text that changes whenever the machine starts; empty if the system does not give one.

    Bytes that a killed process wrote survive, but only until the machine itself goes down.
    """
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def cache_folder(name: str) -> Path:
    """The folder ``facedata/NAME`` in the user's cache folder (``XDG_CACHE_HOME``, or else ``~/.cache``).

    Raises
    ------
    OptionError
        If the user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        raise OptionError("there is no cache folder, because this user has no home folder: set XDG_CACHE_HOME")
    return folder / "facedata" / name


def network_file_system(path: StrPath, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` lies on, as of `file_system`; None if it is a local one."""
    kind = file_system(path, mounts)
    return kind if _NETWORK.fullmatch(kind) else None


def file_system(path: StrPath, mounts: str | None = None) -> str:
    """The type of the file system that `path` lies on: ``"ext4"``, ``"nfs4"``, ``"fuse.sshfs"``.

    `path` need not exist yet: its nearest parent that exists counts, which also makes an automounter mount it. `mounts`
    is the text of Linux's ``mountinfo``, by default this process's own. Returns no text if the system does not say.
    """
    folder = nearest_existing(path)
    if mounts is None:
        try:
            mounts = Path(_MOUNTS).read_text(errors="surrogateescape")
        except OSError:
            return ""
    longest, kind = -1, ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields, types = before.split(" "), after.split(" ")
        if len(fields) < 5:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4])
        above = folder == point or folder.startswith(point.rstrip("/") + "/")
        if above and len(point) >= longest:  # of two at one place, the later one hides the earlier
            longest, kind = len(point), types[0]
    return kind
