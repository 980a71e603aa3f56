"""Writing the database: one process, one transaction per shard, from wherever the last commit left it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from facedata.converters.lmdb import DATA
from facedata.converters.lmdb.database import read_meta
from facedata.dataset import OrderedWriter, Publish
from facedata.errors import InputError, OptionError, OutputError, output_error
from facedata.files import atomic_writer, free_bytes, make_own_folder, open_own, output_errors, read_small, write_fully

if TYPE_CHECKING:
    from facedata.converters.lmdb.sink import Block

__all__ = ["BuildFiles", "LmdbWriter", "round_map_size"]

_LOOSE = 1.02  # pages in all, relative to those in use, from which the database is compacted
_MEGABYTE = 1 << 20
_LONGEST_LINE = 32 << 20  # bytes of the line of a shard
_NOTHING: Mapping[str, Any] = {"transaction": 0, "kv": 0}
_NAMED_BY_LMDB = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


def round_map_size(size: int) -> int:
    """`size` rounded up to whole megabytes, since a map consists of whole pages."""
    return -(-max(size, 1) // _MEGABYTE) * _MEGABYTE


@dataclass(frozen=True)
class BuildFiles:
    """The files of a database while it is built, and how they become those that readers open.

    They are built in `folder`; the database alone in `data_folder`, which may be on another file system.
    """

    folder: str
    data_folder: str
    target: str
    kv_target: str

    @property
    def data(self) -> str:
        """The data file while it is built."""
        return os.path.join(self.data_folder, DATA)

    @property
    def kv(self) -> str:
        """The key-label file while it is written."""
        return os.path.join(self.folder, "kv.txt")

    def current_data(self) -> str:
        """The data file, published or not."""
        return self.data if os.path.exists(self.data) else self.target

    def current_kv(self) -> str:
        """The key-label file, published or not."""
        return self.kv if os.path.exists(self.kv) else self.kv_target

    def make_folders(self) -> None:
        """Make the folders that are missing."""
        for folder in (self.folder, self.data_folder):
            make_own_folder(folder)

    def remove(self) -> None:
        """Remove the files being built, and their folders."""
        for folder in {self.folder, self.data_folder}:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)

    def write_pending(self, entry: Mapping[str, Any]) -> None:
        """Note the journal entry of the commit that follows."""
        with atomic_writer(os.path.join(self.folder, "pending.json"), sync=False) as file:
            file.write(json.dumps(entry).encode())

    def read_pending(self) -> dict[str, Any] | None:
        """The journal entry that was noted last, with ``shard`` and, in ``end``, ``transaction`` and ``kv``."""
        try:
            entry: dict[str, Any] = json.loads(read_small(os.path.join(self.folder, "pending.json"), _LONGEST_LINE))
            numbers = (entry["shard"], entry["end"]["transaction"], entry["end"]["kv"])
        except (InputError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return entry if all(isinstance(number, int) for number in numbers) else None

    def publish_kv(self, publish: Publish) -> None:
        """Move the key-label file to its final name, unless that was done before."""
        if os.path.exists(self.kv):
            _move(self.kv, self.kv_target, publish)

    def publish_data(self, publish: Publish) -> None:
        """Move the database to its final name, without its free pages if there are many."""
        if not os.path.exists(self.data):
            return
        meta = read_meta(self.data)
        if meta.last_page + 1 <= _LOOSE * meta.used_pages:
            _move(self.data, self.target, publish)
            return

        import lmdb

        # what was built stays until the summary is written: the copy has another transaction number, which does not say
        # to the next run that all shards are in it
        with (
            output_errors(self.target),
            atomic_writer(self.target, rename=publish) as file,
            _lmdb_errors(self.target, lambda: meta.used_pages * meta.page_size),
            lmdb.open(os.fsencode(self.data), subdir=False, readonly=True, lock=False, create=False) as environment,
        ):
            environment.copyfd(file.fileno(), compact=True)


def _move(source: str, target: str, publish: Publish) -> None:
    """Rename, or copy if the target is on another file system; the bytes are on the disk before the name is."""
    with output_errors(target), open(source, "rb") as file:
        os.fsync(file.fileno())
        try:
            publish(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with atomic_writer(target, rename=publish) as copy:
                shutil.copyfileobj(file, copy, _MEGABYTE)
            os.unlink(source)  # a run that was killed before this finds both files, and the same content


@contextmanager
def _lmdb_errors(path: str, needed: Callable[[], int]) -> Iterator[None]:
    """Turn an error of LMDB met while writing `path` into an `OutputError`.

    LMDB reports a write that was cut short as an input/output error; if the disk has no room for the bytes that
    `needed` returns, it was a full disk.
    """
    import lmdb

    try:
        yield
    except lmdb.MemoryError as error:
        raise OutputError(f"{path}: LMDB cannot map it: {error}; is the address space limited (ulimit -v)?") from error
    except lmdb.Error as error:
        message = str(error)
        code = next((code for code in _NAMED_BY_LMDB if os.strerror(code) in message), None)
        if code is None:
            raise OutputError(f"{path}: LMDB cannot write it: {error}") from error
        if code == errno.EIO and free_bytes(path) < needed() + _MEGABYTE:
            code = errno.ENOSPC
        raise output_error(OSError(code, os.strerror(code)), path) from error


class LmdbWriter(OrderedWriter):
    """Puts blocks into the database and their lines into the key-label file.

    The end of a shard is the number of the last transaction, and the size of the key-label file. The number does not
    count shards, since a shard without records has no transaction: it is compared with the end that the journal has for
    the last shard. The journal entry is noted beside the database before each commit, for a run that is killed between
    the commit and the journal.

    The database is opened again for each shard. LMDB reuses memory of written pages without clearing it, and their
    unused parts would differ between a run and one that was interrupted and resumed.

    Parameters
    ----------
    ends : mapping
        What `write` returned for each shard that is done.
    map_size : int
        Bytes that the database is expected to need; it grows if that is too little.
    """

    def __init__(
        self, files: BuildFiles, ends: Mapping[int, Mapping[str, Any]], map_size: int, *, single_file: bool
    ) -> None:
        self.files, self._map_size, self._single_file = files, map_size, single_file
        self._environment: Any = None
        self._transaction: Any = None
        self._buffer = bytearray()
        self._records: Sequence[tuple[bytes, memoryview]] = ()
        self._kv = self._folder = -1
        # what of the output is there: as the journal says, or one shard more, whose entry was noted but not recorded
        self.done, self._end = 0, _NOTHING
        recorded = ends[len(ends) - 1] if ends else _NOTHING
        pending = files.read_pending()
        if ends and self._reaches(recorded):
            self.done, self._end = len(ends), recorded
        elif pending is not None and pending["shard"] == len(ends) and self._reaches(pending["end"]):
            self.done, self._end, self.unrecorded = len(ends) + 1, pending["end"], (pending,)
        self._agrees = self.done > 0 or not ends

    def _reaches(self, end: Mapping[str, Any]) -> bool:
        """Whether the database, built or published, is just at `end`, and the key-label file goes as far."""
        try:
            transaction = read_meta(self.files.current_data()).transaction
            kv = os.path.getsize(self.files.current_kv())
        except (InputError, OSError):
            return False
        return transaction == int(end["transaction"]) and kv >= int(end["kv"])

    def __enter__(self) -> LmdbWriter:
        # a file that is published, and nothing more to write
        if not self._agrees or (
            self.done > 0 and not (os.path.exists(self.files.kv) and os.path.exists(self.files.data))
        ):
            return self
        with output_errors(self.files.folder):
            if self.done == 0:
                self.files.remove()
            self.files.make_folders()
            self._folder = os.open(self.files.data_folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._kv = open_own(self.files.kv, published=self.files.kv_target)
            os.close(open_own(self.files.data, published=self.files.target))  # LMDB would follow a link
            os.ftruncate(self._kv, self._end["kv"])
            os.lseek(self._kv, 0, os.SEEK_END)
            if self.done:
                meta = read_meta(self.files.data)
                self._map_size = max(self._map_size, meta.map_size)
                end = (meta.last_page + 1) * meta.page_size
                if os.path.getsize(self.files.data) > end:  # what a transaction wrote that was not committed
                    os.truncate(self.files.data, end)
            with self._errors():
                self._open()
            self._close()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for descriptor in (self._kv, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._kv = self._folder = -1

    def write(self, shard: int, block: Block) -> Mapping[str, Any]:
        """Put the records of a block into a transaction of their own, and append its lines to the key-label file."""
        if len(self._buffer) < block.data.size:
            self._buffer = bytearray(block.data.size)
        self._records, kv = block.unpack(memoryview(self._buffer))
        with output_errors(self.files.kv):
            write_fully(self._kv, kv)
        with self._errors():
            self._put()
        # a transaction that puts nothing gets no number
        transaction = int(self._end["transaction"]) + (len(self._records) > 0)
        self._end = {"transaction": transaction, "kv": int(self._end["kv"]) + len(kv)}
        return self._end

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Commit the transaction."""
        import lmdb

        self.files.write_pending(entry)
        with self._errors():
            while self._transaction is not None:
                try:
                    self._transaction.commit()
                    break
                except lmdb.MapFullError:  # the list of free pages needs pages too
                    self._grow()
                    self._put()
        self._close()

    def _put(self) -> None:
        """Put the records of the block; if the map is full, put all of them again into a larger one."""
        import lmdb

        while self._records:
            self._open()
            self._transaction = self._environment.begin(write=True)
            try:
                with self._transaction.cursor() as cursor:
                    _, added = cursor.putmulti(self._records, overwrite=False)
            except lmdb.MapFullError:
                self._grow()
                continue
            if added == len(self._records):
                return
            # name a key that the database or the block has already; nothing of this shard is kept
            self._close()
            self._open()
            with self._environment.begin() as transaction:
                before = b""
                for key, _ in self._records:
                    if key == before or transaction.get(key) is not None:
                        break
                    before = key
            raise OptionError(
                f"{self.files.target}: two samples have the key {key.decode('utf-8', 'replace')}, and one would be "
                "lost; give --keys generated, and --overwrite to start again with these"
            )

    def _grow(self) -> None:
        self._close()
        self._map_size = round_map_size(self._map_size + max(self._map_size // 2, self._needed()))

    def _needed(self) -> int:
        return 2 * sum(len(value) for _, value in self._records)

    def _open(self) -> None:
        import lmdb

        folder = f"/proc/self/fd/{self._folder}"  # wherever it is moved
        folder = folder if os.path.isdir(folder) else self.files.data_folder
        path = os.path.join(folder, DATA) if self._single_file else folder
        # the job's own lock keeps other writers away, and publishing forces everything to the disk once
        options: dict[str, Any] = {
            "subdir": not self._single_file,
            "lock": False,
            "sync": False,
            "max_dbs": 0,
            "create": False,
        }
        if hasattr(lmdb.Environment, "lib_version"):
            options["lib_version"] = 0  # the data format that the loaders of FFC and LFS read
        self._environment = lmdb.open(os.fsencode(path), map_size=self._map_size, **options)

    def _close(self) -> None:
        """Close the database; a transaction that was not committed is dropped."""
        import lmdb

        if self._transaction is not None:
            with suppress(lmdb.Error):  # it was committed, or failed to be
                self._transaction.abort()
            self._transaction = None
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _errors(self) -> Any:
        return _lmdb_errors(self.files.data, self._needed)
