"""The output of a job that publishes a few files by rename, after all parts of them lie in a hidden folder."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress

from facedata.dataset import Output
from facedata.errors import OutputMismatchError, input_error, output_error
from facedata.files import StrPath, remove_stale_temporaries
from facedata.jobs.journal import BESIDE, PREFIX

__all__ = ["StagedOutput", "make_folders"]

_STAGING = f"{PREFIX}building"


class StagedOutput(Output):
    """An output of one or a few files that appear when the job is finished.

    The journal lies in ``PATH.facedata`` beside the main file, because several outputs share a folder. The parts, one
    file a shard, lie in a hidden folder inside until they are joined. Subclasses define `path`, `named_files` and
    `finish`.
    """

    @property
    def path(self) -> str:
        """The main file, which is published last."""
        raise NotImplementedError

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
        """Make the folder of the parts.

        Raises
        ------
        OutputError
            If that is not possible.
        """
        make_folders(self.staging)

    def write_part(self, shard: int, *data: bytes | memoryview) -> None:
        """Write the part of a shard.

        A part is only read after the journal lists its shard as done, so it need not appear by rename.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        path = self.part_path(shard)
        try:
            with open(path, "wb") as file:
                for piece in data:
                    file.write(piece)
        except OSError as error:
            raise output_error(error, path) from error

    def read_part(self, shard: int) -> bytes:
        """Read the part of a shard.

        Raises
        ------
        OutputMismatchError
            If it does not exist any more.
        InputError
            If it cannot be read.
        """
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

    def part_path(self, shard: int) -> str:
        """The file with the part of a shard."""
        return os.path.join(self.staging, f"{shard:06d}")

    def clean_up(self) -> None:
        """Remove the parts, and the temporary files that killed runs left."""
        shutil.rmtree(self.staging, ignore_errors=True)
        for folder in {os.path.dirname(os.path.abspath(path)) for path in self.named_files()}:
            with suppress(OSError):
                remove_stale_temporaries(folder)


def make_folders(*folders: StrPath) -> None:
    """Make folders and their parents.

    Raises
    ------
    OutputError
        If that is not possible.
    """
    for folder in folders:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            raise output_error(error, folder) from error
