"""The exceptions that facedata raises.

The tree (in brackets the builtin exception that a class also derives from)::

    FacedataError
    ├── OptionError [ValueError]                 wrong usage: exit status 2
    ├── InputError
    │   ├── InputNotFoundError [FileNotFoundError]
    │   ├── InputPermissionError [PermissionError]
    │   ├── InputUnfinishedError [ValueError]    the output of an unfinished job
    │   ├── InputChangedError                    a file was changed since the job that reads it began
    │   ├── TransientInputError                  an I/O error that may pass: the same command tries again
    │   ├── EmptyDatasetError [ValueError]
    │   ├── FormatError [ValueError]             a file that violates its format
    │   │   ├── ArchiveError                     a truncated or damaged archive
    │   │   ├── UnsafeArchiveError               an archive that may do harm
    │   │   ├── CatalogueError                   an invalid catalogue of datasets
    │   │   └── ModelError                       a model file that cannot be used
    │   ├── ChecksumError [ValueError]           a file that differs from the published one
    │   └── SampleError [ValueError]             a single sample; the others are fine
    ├── RefusedSampleError [ValueError]          a sample that the output does not accept
    │   └── FaceError                            a face that cannot be aligned
    ├── TransferError [ConnectionError]          a failed download
    │   └── WebPageError                         a web page instead of the file
    ├── WorkerStartError [OSError]
    ├── WorkerCrashError [RuntimeError]          so many samples end their worker that they are not to blame
    ├── TooManyFailuresError [RuntimeError]      more samples failed than the user allows
    ├── OutputError [OSError]
    │   ├── OutputExistsError [FileExistsError]
    │   ├── OutputMismatchError [ValueError]     the output of another job
    │   ├── OutputLockedError [BlockingIOError]  another run is writing it
    │   └── DiskFullError [OSError]
    ├── MissingLibraryError [ImportError]
    │   └── MissingExtraError                    an extra of facedata is not installed
    └── InterruptedJobError [RuntimeError]       exit status 75: run the same command to resume

A message names the file and the record, and says what was expected, what was found, and what to do now.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Self

_TRANSIENT = {
    *(errno.EIO, errno.ESTALE, errno.EINTR, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.EBUSY),
    *(errno.ETIMEDOUT, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}
_RESULTS = ("no face", "low score", "too small", "several faces")  # of looking for faces, and of the user's own bounds


class FacedataError(Exception):
    """The base class of all exceptions of facedata.

    Attributes
    ----------
    command : str
        A command line at the end of the message, if it was read from a file. Someone may have forged it for people to
        paste it into a shell, so a program shows it only if it knows the command and its options.
    """

    command: str = ""

    def with_command(self, command: str) -> Self:
        """Return the same error with a colon and a command line, which may be empty, at the end of its message."""
        error = type(self)(f"{self}: {command or 'the command that was used'}")
        error.command = command
        return error


class OptionError(FacedataError, ValueError):
    """An option is invalid, or contradicts another one."""


class InputError(FacedataError):
    """An input cannot be read."""


class InputNotFoundError(InputError, FileNotFoundError):
    """An input file or folder does not exist."""


class InputPermissionError(InputError, PermissionError):
    """There is no permission to read an input file or folder."""


class InputUnfinishedError(InputError, ValueError):
    """The input is the output of an unfinished facedata job."""


class InputChangedError(InputError):
    """An input file was changed since the job that reads it began."""


class TransientInputError(InputError):
    """An input cannot be read now, but perhaps later: a network disk's hiccup, or too many open files."""


class EmptyDatasetError(InputError, ValueError):
    """A dataset has no samples."""


class FormatError(InputError, ValueError):
    """A file violates its format."""


class ArchiveError(FormatError):
    """An archive is truncated or damaged."""


class UnsafeArchiveError(FormatError):
    """An archive would write outside its folder, or expand from a few bytes until the disk is full."""


class CatalogueError(FormatError):
    """A catalogue of datasets has an invalid key, type or value."""


class ModelError(FormatError):
    """A model file is not an ONNX model, or not one that can be used here."""


class ChecksumError(InputError, ValueError):
    """A complete file differs from the one that was published."""


class SampleError(InputError, ValueError):
    """A single sample cannot be read; the others are not affected.

    Parameters
    ----------
    dataset : str
        The file or folder that the sample is in.
    key : str
        The sample's key in it.
    reason : str
        What was expected and what was found.
    offset : int, optional
        Byte offset in `dataset`, if the format has offsets.
    transient : bool
        Whether it may be readable later, see `TransientInputError`.
    """

    def __init__(self, dataset: str, key: str, reason: str, offset: int | None = None, transient: bool = False) -> None:
        place = f"{dataset}: key {key}" if offset is None else f"{dataset}: key {key}, byte {offset}"
        super().__init__(f"{place}: {reason}")
        self.dataset, self.key, self.reason, self.offset, self.transient = dataset, key, reason, offset, transient

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset, self.key, self.reason, self.offset, self.transient)


class RefusedSampleError(FacedataError, ValueError):
    """A writer does not accept a sample; the caller adds where the sample came from."""

    is_result: bool = False
    """Whether this is what the user asked for or expects, so that the sample is skipped and has not failed."""


class FaceError(RefusedSampleError):
    """A face, or the image of a face, cannot be aligned.

    Parameters
    ----------
    cause : str
        A short category, for counting: ``"no face"``, ``"too small"``.
    detail : str
        What was expected and what was found.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause, self.detail = cause, detail
        self.is_result = cause in _RESULTS

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, self.detail)


class TransferError(FacedataError, ConnectionError):
    """A download failed, also after retries."""


class WebPageError(TransferError):
    """A server sent a web page (about a quota, a login) instead of the file."""


class WorkerStartError(FacedataError, OSError):
    """The operating system refused to start worker processes."""


class WorkerCrashError(FacedataError, RuntimeError):
    """So many samples end the process that works on them that they are hardly to blame."""


class TooManyFailuresError(FacedataError, RuntimeError):
    """More samples failed than the user allows; a job that allows more resumes."""


class OutputError(FacedataError, OSError):
    """An output cannot be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output exists already and is not that of this job."""


class OutputMismatchError(OutputError, ValueError):
    """The output belongs to a job with other inputs or options."""


class OutputLockedError(OutputError, BlockingIOError):
    """Another run is writing the same part of the output."""


class DiskFullError(OutputError):
    """The disk, or the user's quota on it, is full."""


class MissingLibraryError(FacedataError, ImportError):
    """A library that facedata depends on cannot be imported."""


class MissingExtraError(MissingLibraryError):
    """A library is missing that an extra of facedata installs.

    Parameters
    ----------
    what : str
        What needs it: the subject of the message.
    extra : str
        The name of the extra.
    why : str
        Why the library cannot be imported, if it is installed.
    """

    def __init__(self, what: str, extra: str, why: str = "") -> None:
        detail = f" ({why})" if why else ""
        command = f"pip install -e '.[{extra}]', in the folder of facedata's checkout"
        super().__init__(f"{what} needs the extra '{extra}'{detail}: {command}")
        self.what, self.extra, self.why = what, extra, why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.extra, self.why)


class InterruptedJobError(FacedataError, RuntimeError):
    """A job was interrupted; the same command resumes it."""


def changed_error(path: str) -> InputChangedError:
    """The error that says that an input file has changed since the job began."""
    return InputChangedError(
        f"{path}: has changed since this job began, and the output would be a mixture; --overwrite starts again. If "
        "only its times have changed, and its bytes are the same, give --trust-input to resume"
    )


def is_transient(error: BaseException) -> bool:
    """Whether an error that occurred while an input was read may pass, and says nothing about the data."""
    return isinstance(error, TransientInputError) or (isinstance(error, OSError) and error.errno in _TRANSIENT)


def input_error(error: OSError, path: str | os.PathLike[str]) -> InputError:
    """The `InputError` for an OSError that occurred while `path` was read."""
    path = os.fspath(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputNotFoundError(f"{path}: no such file or folder")
    if isinstance(error, PermissionError):
        return InputPermissionError(f"{path}: no permission to read it; check its mode and owner")
    kind = TransientInputError if is_transient(error) else InputError
    return kind(f"{path}: cannot be read: {error.strerror or error}")


def output_error(error: OSError, path: str | os.PathLike[str]) -> OutputError:
    """The `OutputError` for an OSError that occurred while `path` was written."""
    path = os.fspath(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{path}: {(error.strerror or 'disk full').lower()}; what is finished is kept: "
            "free some space and run the same command again to resume"
        )
    if error.errno == errno.EROFS:
        return OutputError(f"{path}: is on a read-only file system; choose another output")
    if isinstance(error, PermissionError):
        return OutputError(f"{path}: no permission to write it; check the folder's mode and owner")
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
