"""Model files: the published ones, fetched once and checked each time, and the user's own, which are only read."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from facedata.download.digest import Digest
from facedata.download.links import Link
from facedata.download.transfer import FileRequest, TransferOptions, fetch_files
from facedata.errors import (
    ChecksumError,
    InputError,
    InputNotFoundError,
    InterruptedJobError,
    ModelError,
    OptionError,
    OutputLockedError,
    TransferError,
    input_error,
    output_error,
)
from facedata.files import open_regular
from facedata.jobs.signals import StopRequest

__all__ = ["LARGEST_MODEL", "Fetching", "ModelFile", "cached_model", "model_folder", "read_model", "sha256_of"]

_log = logging.getLogger(__name__)

LARGEST_MODEL = 1 << 30
"""Bytes; the detectors' own are 0.2 to 30 MB."""

_TRANSFER = TransferOptions(connections=1, retries=2, overwrite=True)
_WAIT_FOR_ANOTHER = 600.0  # seconds, for a run beside this one that fetches the same file
_TICK = 0.5


@dataclass(frozen=True)
class ModelFile:
    """A published model.

    Attributes
    ----------
    name : str
        Of the file.
    urls : tuple of str
        Where it is published, in order of preference.
    sha256 : str
    """

    name: str
    urls: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class Fetching:
    """Who looks on while a model is fetched.

    Attributes
    ----------
    observer : callable, optional
        Called with bytes done and bytes in all, 0 where nobody knows.
    stop : StopRequest
    """

    observer: Callable[[int, int], None] | None = None
    stop: StopRequest = field(default_factory=StopRequest)


def model_folder() -> Path:
    """Where fetched models are kept: ``facedata/models`` in the user's cache folder.

    Raises
    ------
    OptionError
        Where the user has none.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~/.cache"))
    if not folder.is_absolute():
        raise OptionError("no folder to keep a model in: set XDG_CACHE_HOME, or give a model file with --model")
    return folder / "facedata" / "models"


def cached_model(model: ModelFile, fetching: Fetching | None = None) -> Path:
    """The path of a published model, which is fetched where it is not there or not whole.

    Raises
    ------
    TransferError
        Where it cannot be had; says how else to get it.
    ChecksumError
        Where what the server gives is another file.
    OutputError
        Where it cannot be kept.
    InterruptedJobError
        Where it was asked to stop.
    """
    fetching, path = fetching or Fetching(), model_folder() / model.name
    if not _is_whole(path, model):
        with _alone(path, fetching.stop):
            if not path.exists() or not _is_whole(path, model):  # unless another run has just fetched it
                _fetch(path, model, fetching)
    return path


@contextmanager
def _alone(path: Path, stop: StopRequest) -> Iterator[None]:
    """While no other run fetches the same file; where the file system has no locks, beside it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent / f".{path.name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise output_error(error, path.parent) from error
    try:
        _lock(descriptor, path, stop)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, stop: StopRequest) -> None:
    deadline = time.monotonic() + _WAIT_FOR_ANOTHER
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OutputLockedError(f"{path}: another run has been fetching it for ten minutes") from None
            _wait(stop)
        except OSError:  # no locks here
            return
        else:
            return


def _is_whole(path: Path, model: ModelFile) -> bool:
    try:
        found = sha256_of(read_model(path))
    except InputNotFoundError:
        return False
    except (InputError, ModelError) as error:
        _log.warning("%s; it is fetched anew", error)
        return False
    if found != model.sha256:
        _log.warning("%s: is damaged: expected sha256 %s, found %s; it is fetched anew", path, model.sha256, found)
    return found == model.sha256


def _fetch(path: Path, model: ModelFile, fetching: Fetching) -> None:
    _log.info("%s: fetching it from %s", path, model.urls[0])
    links = tuple(Link("http", url) for url in model.urls)
    request = FileRequest(path, links, Digest("sha256", model.sha256))
    try:
        fetch_files([request], _TRANSFER, observer=fetching.observer, stop=fetching.stop)
    except (TransferError, ChecksumError) as error:
        reason, _, _ = str(error).partition(" What to do: ")  # its advice is for datasets
        kind = ChecksumError if isinstance(error, ChecksumError) else TransferError
        raise kind(
            f"{reason} What to do: fetch {model.urls[0]} on another machine and put it at {path}, "
            "or name the file with --model"
        ) from error


def _wait(stop: StopRequest) -> None:
    if stop:
        raise InterruptedJobError(f"stopped by {stop.signal_name or 'request'}: run the same command again to go on")
    time.sleep(_TICK)


def read_model(path: str | os.PathLike[str], sha256: str | None = None) -> bytes:
    """The bytes of a model file.

    Parameters
    ----------
    path : path
    sha256 : str, optional
        What it must be.

    Raises
    ------
    InputError
        Where it cannot be read, or is no plain file.
    ModelError
        Where it is empty, or larger than `LARGEST_MODEL`.
    ChecksumError
        Where it is another file.
    """
    data = _read(path)
    if not data:
        raise ModelError(f"{os.fspath(path)}: expected an ONNX model, found an empty file")
    if sha256 is not None and sha256_of(data) != sha256:
        raise ChecksumError(f"{os.fspath(path)}: expected sha256 {sha256}, found {sha256_of(data)}: it is another file")
    return data


def _read(path: str | os.PathLike[str]) -> bytes:
    descriptor = open_regular(path)
    status = os.fstat(descriptor)
    with open(descriptor, "rb") as file:
        if status.st_size > LARGEST_MODEL:
            raise ModelError(
                f"{os.fspath(path)}: expected an ONNX model of at most {LARGEST_MODEL:,} bytes, "
                f"found {status.st_size:,} bytes"
            )
        try:
            return file.read(LARGEST_MODEL)
        except OSError as error:
            raise input_error(error, path) from error


def sha256_of(data: bytes) -> str:
    """In hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
