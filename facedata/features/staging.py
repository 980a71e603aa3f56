"""The output of a job that publishes a few files by rename, after all parts of them lie in a hidden folder."""

from __future__ import annotations

import os
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from facedata.dataset import Output
from facedata.errors import FacedataError, OutputMismatchError, input_error, output_error
from facedata.files import StrPath, remove_stale_temporaries
from facedata.jobs.journal import BESIDE, PREFIX

__all__ = ["StagedOutput", "make_folders", "new_folders", "output_errors"]

_STAGING = f"{PREFIX}building"


class StagedOutput(Output):
    """An output of one or a few files that appear when the job is finished.

    The journal lies in ``PATH.facedata`` beside the main file, because several outputs share a folder. The parts, one
    file a shard, lie in a hidden folder inside until they are joined. Subclasses define `path`, `named_files` and
    `finish`.
    """

    @property
    @abstractmethod
    def path(self) -> str:
        """The main file, which is published last."""

    @property
    def root(self) -> str:
        """The folder of the journal."""
        return self.path + BESIDE

    @property
    def staging(self) -> str:
        """The hidden folder of the parts."""
        return os.path.join(self.root, _STAGING)

    def owns(self, name: str) -> bool:
        """Whether `name`, an entry of the root, is the folder of the parts; all else there is the journal's."""
        return name == _STAGING

    def prepare(self) -> None:
        """Make the folder of the parts; raises `OutputError` if that is not possible."""
        make_folders(self.staging)

    def part_path(self, shard: int) -> str:
        """The file with the part of a shard."""
        return os.path.join(self.staging, f"{shard:06d}")

    def write_part(self, shard: int, *data: bytes | memoryview) -> None:
        """Write the part of a shard, or raise an `OutputError`.

        A part is only read after the journal lists its shard as done, so it need not appear by rename.
        """
        path = self.part_path(shard)
        with output_errors(path), open(path, "wb") as file:
            file.writelines(data)

    def read_part(self, shard: int) -> bytes:
        """Read the part of a shard; raises `OutputMismatchError` if it does not exist any more."""
        path = self.part_path(shard)
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            raise OutputMismatchError(
                f"{path}: this job wrote the file, but it no longer exists; --overwrite starts the job over"
            ) from None
        except OSError as error:
            raise input_error(error, path) from error

    def clean_up(self) -> None:
        """Remove the parts, and the temporary files that killed runs left."""
        shutil.rmtree(self.staging, ignore_errors=True)
        for folder in {os.path.dirname(os.path.abspath(path)) for path in self.named_files()}:
            with suppress(OSError):
                remove_stale_temporaries(folder)


@contextmanager
def output_errors(path: StrPath) -> Iterator[None]:
    """Turn errors of the operating system into an `OutputError` about `path`."""
    try:
        yield
    except FacedataError:  # some are OSErrors too
        raise
    except OSError as error:
        raise output_error(error, path) from error


def make_folders(*folders: StrPath) -> None:
    """Make folders and their parents; raises `OutputError` if that is not possible."""
    for folder in folders:
        with output_errors(folder):
            os.makedirs(folder, exist_ok=True)


@contextmanager
def new_folders(*folders: str) -> Iterator[None]:
    """Make folders, outer ones first; after an error, those that are new and empty are removed."""
    missing = [path for path in folders if not os.path.lexists(path)]
    try:
        make_folders(*folders)
        yield
    except BaseException:
        for path in reversed(missing):
            with suppress(OSError):
                os.rmdir(path)
        raise
