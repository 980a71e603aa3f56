"""The way to pyarrow, which only the extra ``parquet`` installs; and what of it takes care with hostile files."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from facedata.errors import FormatError, InputError, MissingExtraError, input_error

__all__ = ["first_line", "import_pyarrow", "open_parquet"]

_READ_BUFFER = 1 << 20


def import_pyarrow() -> Any:
    """pyarrow, with its Parquet module; loaded where it is needed, for it takes a quarter of a second.

    Loading it starts one thread, of its memory allocator, which copes with forking. What would start pools of
    threads, which do not, is never used here.

    Raises
    ------
    MissingExtraError
        Where it is missing or does not load; says what mends it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise MissingExtraError("the format parquet", "parquet") from error
    except Exception as error:  # one that was built for another NumPy fails as it likes
        raise MissingExtraError("the format parquet", "parquet", first_line(error)) from error
    return pyarrow


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile``, read page by page through a small buffer, checksums verified where there are.

    Not mapped into memory: a file cut short meanwhile would kill the process.

    Raises
    ------
    InputError
        Where the file cannot be opened.
    FormatError
        Where it is no Parquet file, or its footer is damaged.
    """
    pyarrow = import_pyarrow()
    _check_regular(path)
    try:
        handle = pyarrow.OSFile(path)
    except OSError as error:
        raise input_error(error, path) from error
    with handle:
        try:
            file = pyarrow.parquet.ParquetFile(
                handle, pre_buffer=False, buffer_size=_READ_BUFFER, page_checksum_verification=True
            )
            _ = file.schema_arrow, file.metadata
        except Exception as error:  # pyarrow raises whatever it likes; each is about this file
            if isinstance(error, OSError) and error.errno is not None:
                raise input_error(error, path) from error
            raise FormatError(
                f"{path}: is no whole Parquet file: {first_line(error)}; copy or download it again"
            ) from error
        yield file


def _check_regular(path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        raise input_error(error if isinstance(error, OSError) else OSError(str(error)), path) from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is no regular file")


def first_line(error: BaseException) -> str:
    """What an error of pyarrow says, without the lines that only its developers need."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
