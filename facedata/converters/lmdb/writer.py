"""Writing the database: one process, one transaction for each shard, going on behind whatever was committed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from types import TracebackType
from typing import Any

from facedata.converters.lmdb.block import Block
from facedata.converters.lmdb.files import BuildFiles
from facedata.converters.lmdb.lmdb_errors import as_output_errors
from facedata.converters.lmdb.pages import Meta, read_meta
from facedata.dataset import OrderedWriter
from facedata.errors import InputError, OptionError, output_error
from facedata.files import write_fully

__all__ = ["LmdbWriter", "round_map_size"]

_MEGABYTE = 1 << 20
_NOTHING: Mapping[str, Any] = {"transaction": 0, "kv": 0}


def round_map_size(size: int) -> int:
    """Bytes, rounded up to whole megabytes: a map is made of whole pages."""
    return -(-max(size, 1) // _MEGABYTE) * _MEGABYTE


class LmdbWriter(OrderedWriter):
    """The `OrderedWriter` of a database.

    A transaction's number is one more than that of the transaction before, so the number in the database tells how many
    shards it holds. The line that the journal is to get is put down beside it before each commit, for a run
    that is killed between the commit and the journal.

    The database is opened anew for each shard. LMDB takes memory of pages that it has written for the next ones
    without clearing it, and what is in their unused parts would differ between a run and one that was cut off and
    went on.

    Parameters
    ----------
    files : BuildFiles
    ends : mapping
        What `write` returned for each shard that is done.
    map_size : int
        Bytes that the database is expected to need; it grows beyond where it has to.
    single_file : bool
        LMDB notes in a database whether it was made as a single file.
    """

    def __init__(
        self, files: BuildFiles, ends: Mapping[int, Mapping[str, Any]], map_size: int, *, single_file: bool
    ) -> None:
        self._files, self._map_size, self._single_file = files, map_size, single_file
        self._environment: Any = None
        self._transaction: Any = None
        self._buffer = bytearray()
        self._records: Sequence[tuple[bytes, memoryview]] = ()
        self._kv = -1
        self.done, self.unrecorded, self._end = self._find_end(ends)
        self._agrees = self.done > 0 or not ends

    def _find_end(
        self, ends: Mapping[int, Mapping[str, Any]]
    ) -> tuple[int, Sequence[Mapping[str, Any]], Mapping[str, Any]]:
        """How many shards there are, those of them that are not in the journal, and how far the output is."""
        recorded = ends[len(ends) - 1] if ends else _NOTHING
        if ends and self._reaches(recorded):
            return len(ends), (), recorded
        entry = self._files.read_pending()
        if entry is not None and entry["shard"] == len(ends) and self._reaches(entry["end"]):
            return len(ends) + 1, (entry,), entry["end"]
        return 0, (), _NOTHING

    def _reaches(self, end: Mapping[str, Any]) -> bool:
        """Whether the database, built or published, is just at `end`, and the key-label file goes as far."""
        try:
            transaction, kv = read_meta(self._files.data_now()).transaction, os.path.getsize(self._files.kv_now())
        except (InputError, OSError):
            return False
        return transaction == int(end["transaction"]) and kv >= int(end["kv"])

    def __enter__(self) -> LmdbWriter:
        if self._agrees and not (self.done > 0 and self._files.some_are_published()):
            self._prepare()
        return self

    def _prepare(self) -> None:
        try:
            self._prepare_files()
        except OSError as error:
            raise output_error(error, self._files.folder) from error

    def _prepare_files(self) -> None:
        if self.done == 0:
            self._files.remove()
        self._files.make_folders()
        self._kv = os.open(self._files.kv, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        os.ftruncate(self._kv, self._end["kv"])
        os.lseek(self._kv, 0, os.SEEK_END)
        if self.done:
            meta = read_meta(self._files.data)
            self._map_size = max(self._map_size, meta.map_size)
            _cut_behind_last_page(self._files.data, meta)
        with self._telling():
            self._open()
        self._close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if self._kv >= 0:
            os.close(self._kv)
            self._kv = -1

    def write(self, shard: int, block: Block) -> Mapping[str, Any]:
        """Put a block's records into a transaction of their own, and its lines behind the key-label file."""
        if len(self._buffer) < block.data.size:
            self._buffer = bytearray(block.data.size)
        self._records, kv = block.unpack(memoryview(self._buffer))
        try:
            write_fully(self._kv, kv)
        except OSError as error:
            raise output_error(error, self._files.kv) from error
        with self._telling():
            self._put()
        # a transaction that puts nothing gets no number
        transaction = int(self._end["transaction"]) + (len(self._records) > 0)
        self._end = {"transaction": transaction, "kv": int(self._end["kv"]) + len(kv)}
        return self._end

    def commit(self, entry: Mapping[str, Any]) -> None:
        """Commit the transaction."""
        self._files.write_pending(entry)
        with self._telling():
            self._commit()
        self._close()

    def _put(self) -> None:
        """Put the records of the block; where the map is full, all of them again into a larger one."""
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
            if added < len(self._records):
                self._refuse_duplicate()
            return

    def _commit(self) -> None:
        import lmdb

        while self._transaction is not None:
            try:
                self._transaction.commit()
                return
            except lmdb.MapFullError:  # the list of free pages needs pages too
                self._grow()
                self._put()

    def _grow(self) -> None:
        self._close()
        self._map_size = round_map_size(self._map_size + max(self._map_size // 2, 2 * self._size()))

    def _size(self) -> int:
        """Bytes of the values that are to be put."""
        return sum(len(value) for _, value in self._records)

    def _open(self) -> None:
        import lmdb

        path = self._files.data if self._single_file else os.path.dirname(self._files.data)
        # the job's own lock keeps other writers away, and finishing forces all to the disk once
        options: dict[str, Any] = {"subdir": not self._single_file, "lock": False, "sync": False, "max_dbs": 0}
        if hasattr(lmdb.Environment, "lib_version"):
            options["lib_version"] = 0  # the data format that the loaders of FFC and LFS read
        self._environment = lmdb.open(os.fsencode(path), map_size=self._map_size, **options)

    def _close(self) -> None:
        """Forget the transaction, unless it was committed, and close the database."""
        import lmdb

        if self._transaction is not None:
            with suppress(lmdb.Error):  # it is over where it was committed, or failed to be
                self._transaction.abort()
            self._transaction = None
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _refuse_duplicate(self) -> None:
        """Name a key that is there already; nothing of this shard is kept."""
        self._close()
        self._open()
        with self._environment.begin() as transaction:
            before = b""
            for key, _ in self._records:
                if key == before or transaction.get(key) is not None:
                    break
                before = key
        raise OptionError(
            f"{self._files.target}: two samples have the key {key.decode('utf-8', 'replace')}, and one would be lost; "
            "give --keys generated, and --overwrite to begin again with these"
        )

    def _telling(self) -> AbstractContextManager[None]:
        """Errors of LMDB become ours."""
        return as_output_errors(self._files.data, lambda: 2 * self._size())


def _cut_behind_last_page(path: str, meta: Meta) -> None:
    """What lies there was written by a transaction that was not committed."""
    end = (meta.last_page + 1) * meta.page_size
    if os.path.getsize(path) > end:
        os.truncate(path, end)
