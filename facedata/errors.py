"""Every error that facedata raises on purpose.

The tree (the builtin that each leaf also is, in brackets)::

    FacedataError
    ├── OptionError [ValueError]                 wrong use: exit status 2
    ├── InputError
    │   ├── InputNotFoundError [FileNotFoundError]
    │   ├── InputPermissionError [PermissionError]
    │   ├── InputUnfinishedError [ValueError]    the output of a job that has not ended
    │   ├── EmptyDatasetError [ValueError]
    │   ├── FormatError [ValueError]             a file that is not what its format says
    │   │   ├── ArchiveError                     an archive that is cut short or damaged
    │   │   ├── UnsafeArchiveError               an archive made to do harm, or that looks it
    │   │   ├── CatalogueError                   a catalogue of datasets that breaks its own rules
    │   │   └── ModelError                       a model file that cannot be used
    │   ├── ChecksumError [ValueError]           a file that is not the one that was published
    │   └── SampleError [ValueError]             one sample; the others are fine
    ├── RefusedSampleError [ValueError]          a sample that the output does not take
    │   └── FaceError                            a face that cannot be aligned
    ├── TransferError [ConnectionError]          a server that did not give the file
    │   └── WebPageError                         it gave a web page instead
    ├── WorkerStartError [OSError]
    ├── OutputError [OSError]
    │   ├── OutputExistsError [FileExistsError]
    │   ├── OutputMismatchError [ValueError]     another job's output
    │   ├── OutputLockedError [BlockingIOError]  another run is writing there
    │   └── DiskFullError [OSError]
    ├── MissingLibraryError [ImportError]
    │   └── MissingExtraError                    only an extra of facedata installs it
    └── InterruptedJobError [RuntimeError]       exit status 75: run again to go on

A message says which file and record, what was expected, what was found, and what to do now.
"""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = [
    "ArchiveError",
    "CatalogueError",
    "ChecksumError",
    "DiskFullError",
    "EmptyDatasetError",
    "FaceError",
    "FacedataError",
    "FormatError",
    "InputError",
    "InputNotFoundError",
    "InputPermissionError",
    "InputUnfinishedError",
    "InterruptedJobError",
    "MissingExtraError",
    "MissingLibraryError",
    "ModelError",
    "OptionError",
    "OutputError",
    "OutputExistsError",
    "OutputLockedError",
    "OutputMismatchError",
    "RefusedSampleError",
    "SampleError",
    "TransferError",
    "UnsafeArchiveError",
    "WebPageError",
    "WorkerStartError",
    "input_error",
    "output_error",
]


class FacedataError(Exception):
    """The root: anything wrong that facedata noticed itself."""


class OptionError(FacedataError, ValueError):
    """Options that contradict each other or cannot be met."""


class InputError(FacedataError):
    """Something is wrong with what was to be read."""


class InputNotFoundError(InputError, FileNotFoundError):
    """A file or folder to be read is not there."""


class InputPermissionError(InputError, PermissionError):
    """A file or folder to be read may not be read."""


class InputUnfinishedError(InputError, ValueError):
    """The input is the output of a facedata job that has not ended."""


class EmptyDatasetError(InputError, ValueError):
    """A dataset without a single sample."""


class FormatError(InputError, ValueError):
    """A file that breaks the rules of its own format."""


class ArchiveError(FormatError):
    """An archive that is cut short or damaged."""


class UnsafeArchiveError(FormatError):
    """An archive that would leave its folder, or fill the disk out of nearly nothing."""


class CatalogueError(FormatError):
    """A catalogue of datasets with a wrong key, type or value."""


class ModelError(FormatError):
    """A model file that is no ONNX model, or not one that the detector can use."""


class ChecksumError(InputError, ValueError):
    """A file that is whole but not the one that was published."""


class SampleError(InputError, ValueError):
    """One sample that cannot be delivered; all others are unaffected.

    Parameters
    ----------
    dataset : str
        The file or folder that the sample is in.
    key : str
        The sample's key there.
    reason : str
        What was expected and what was found.
    offset : int, optional
        Byte offset in `dataset`, where the format has one.
    """

    def __init__(self, dataset: str, key: str, reason: str, offset: int | None = None) -> None:
        place = f"{dataset}: key {key}" if offset is None else f"{dataset}: key {key}, byte {offset}"
        super().__init__(f"{place}: {reason}")
        self.dataset, self.key, self.reason, self.offset = dataset, key, reason, offset

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.dataset, self.key, self.reason, self.offset)


class RefusedSampleError(FacedataError, ValueError):
    """A sample that a writer does not take; whoever drives the writer knows where it came from."""


class FaceError(RefusedSampleError):
    """A face, or an image with it, that cannot be aligned.

    Parameters
    ----------
    cause : str
        One of a few, for counting: ``"no face"``, ``"too small"``.
    detail : str
        What was expected and what was found.
    """

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause, self.detail = cause, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, self.detail)


class TransferError(FacedataError, ConnectionError):
    """A server did not give the file, however often it was asked."""


class WebPageError(TransferError):
    """A server gave a web page where a file was asked for: a quota, a login, a preview."""


class WorkerStartError(FacedataError, OSError):
    """The system did not let the workers start."""


class OutputError(FacedataError, OSError):
    """Something is wrong with where the result was to be written."""


class OutputExistsError(OutputError, FileExistsError):
    """The output is there already and is not this job's own."""


class OutputMismatchError(OutputError, ValueError):
    """The output belongs to a job with other inputs or options."""


class OutputLockedError(OutputError, BlockingIOError):
    """Another run is writing the same part of the output."""


class DiskFullError(OutputError):
    """The disk, or the user's share of it, is full."""


class MissingLibraryError(FacedataError, ImportError):
    """A library that facedata depends on cannot be loaded."""


class MissingExtraError(MissingLibraryError):
    """A library is needed that only an extra of facedata installs."""

    def __init__(self, what: str, extra: str, why: str = "") -> None:
        detail = f" ({why})" if why else ""
        super().__init__(f"{what} needs the extra '{extra}'{detail}: pip install 'facedata[{extra}]'")
        self.what, self.extra, self.why = what, extra, why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.extra, self.why)


class InterruptedJobError(FacedataError, RuntimeError):
    """The job was asked to stop and has stopped; the same command goes on."""


def input_error(error: OSError, path: str | os.PathLike[str]) -> InputError:
    """Turn an OSError met while reading `path` into the fitting `InputError`."""
    path = os.fspath(path)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return InputNotFoundError(f"{path}: no such file or folder")
    if isinstance(error, PermissionError):
        return InputPermissionError(f"{path}: no permission to read it; check its mode and owner")
    return InputError(f"{path}: cannot be read: {error.strerror or error}")


def output_error(error: OSError, path: str | os.PathLike[str]) -> OutputError:
    """Turn an OSError met while writing `path` into the fitting `OutputError`."""
    path = os.fspath(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(
            f"{path}: {(error.strerror or 'disk full').lower()}; what is finished is kept: "
            "free some space and run the same command again, it goes on from there"
        )
    if error.errno == errno.EROFS:
        return OutputError(f"{path}: is on a read-only file system; choose another output")
    if isinstance(error, PermissionError):
        return OutputError(f"{path}: no permission to write there; check the folder's mode and owner")
    return OutputError(f"{path}: cannot be written: {error.strerror or error}")
