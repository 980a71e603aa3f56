"""The output of a job: nothing is overwritten silently, a job recognises its own work, files appear at its end."""

from __future__ import annotations

import logging
import os
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from facedata.dataset import Output
from facedata.errors import (
    FacedataError,
    OptionError,
    OutputError,
    OutputExistsError,
    OutputMismatchError,
    input_error,
    output_error,
)
from facedata.files import StrPath, make_own_folder, open_own, output_errors, sync_folder
from facedata.jobs.engine import check_in_place
from facedata.jobs.journal import (
    BESIDE,
    BUILDING,
    CLEARING,
    FAILURES,
    PREFIX,
    SKIPPED,
    SUMMARY,
    JobState,
    Journal,
)
from facedata.jobs.plan import Plan
from facedata.text import listed

__all__ = [
    "StagedOutput",
    "check_output",
    "check_still_ours",
    "claim_output",
    "lost_files",
    "make_folders",
    "new_folders",
    "refuse_overlap",
]

_NAMING_OPTIONS = ("format", "names")  # that decide what files are called
_SOURCE_LAYOUT = "source"  # it keeps the names of the input, which no later job knows

_log = logging.getLogger(__name__)


def check_output(plan: Plan, output: Output, *, overwrite: bool) -> None:
    """Raise if `plan` may not write its output; changes nothing.

    Raises
    ------
    OutputExistsError
        If something exists that no job wrote, or that `overwrite` would delete although no job wrote it.
    OutputMismatchError
        If another job's output exists.
    """
    folder = Path(output.root)
    names = _names_in(folder)
    journal = Journal(folder)
    existing = journal.read_plan(plan) if names and not overwrite and CLEARING not in names else None
    if existing is None:
        _check_named_files(output, overwrite=overwrite)
        _check_foreign(plan, folder, names, output, overwrite=overwrite)
    elif existing.fingerprint != plan.fingerprint:
        raise OutputMismatchError(
            f"{folder}: belongs to a job that differs: {'; '.join(plan.differences(existing))}. Choose another output, "
            "or --overwrite to start again; that job resumes with"
        ).with_command(existing.command_line)
    elif SUMMARY not in names:
        _refuse_appeared(output, journal)


def _names_in(folder: Path) -> list[str]:
    if not os.path.lexists(folder):
        return []
    if not os.path.isdir(folder):
        raise OutputExistsError(f"{folder}: exists and is not a folder; choose another output")
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise output_error(error, folder) from error


def _refuse_same_names(output: Output) -> None:
    """Refuse files that the user named alike, or like what the output itself writes."""
    root = os.path.realpath(output.root)
    names = output.named_files()
    taken = set[str]()
    for path in names:
        folder, name = os.path.split(os.path.realpath(path))
        inside = os.path.relpath(os.path.join(folder, name), root).partition(os.sep)[0]
        if any(name in (FAILURES, SKIPPED) or output.owns(name) for name in (inside, inside.casefold())):  # on any disk
            raise OptionError(f"{path}: the output itself uses '{inside}'; choose another name")
        if len(names) > 1:
            from facedata.names import name_folding

            name = name_folding(folder)(name)
        if (place := os.path.join(folder, name)) in taken:
            raise OptionError(f"{path}: two files would get this name; choose another name for one of them")
        taken.add(place)


def _check_named_files(output: Output, *, overwrite: bool) -> None:
    _refuse_same_names(output)
    for name in output.named_files():
        if os.path.isdir(name) or os.path.realpath(name) == os.path.realpath(output.root):
            raise OutputExistsError(f"{name}: is a folder; a file would be written there")
        if os.path.lexists(name) and not overwrite:
            raise OutputExistsError(f"{name}: already exists; choose another name, or --overwrite to replace it")
        folder = os.path.dirname(os.path.abspath(name))
        if not name or os.path.basename(name).startswith(PREFIX):
            raise OutputExistsError(f"'{name}': is reserved by facedata; choose another file name")
        if not os.path.isdir(folder) and folder != os.path.abspath(output.root):
            raise OutputError(f"{name}: the folder {folder} does not exist; create it first")
        if os.path.isdir(folder) and not os.access(folder, os.W_OK):
            raise OutputError(f"{name}: no permission to write in {folder}, or it is read-only; choose another place")


def _refuse_appeared(output: Output, journal: Journal) -> None:
    """Refuse a file at a final name that appeared after the job began and that the job has not written."""
    for name in dict.fromkeys((*output.named_files(), *output.final_files())):
        if os.path.lexists(name) and not journal.has_published(name):
            raise OutputExistsError(
                f"{name}: appeared after this job began and was not written by it, but the job will write there. "
                "Move it away and run the same command again; --overwrite starts the job again and replaces it"
            )


def _check_foreign(plan: Plan, folder: Path, names: Sequence[str], output: Output, *, overwrite: bool) -> None:
    """Refuse files that no job wrote; --overwrite accepts those that are named like this output's own."""
    others = [name for name in names if not name.startswith(PREFIX)]
    foreign = [name for name in others if not output.owns(name) and name not in (FAILURES, SKIPPED)]
    if overwrite and foreign and CLEARING not in names:
        _refuse_other_kind(plan, folder, [name for name in foreign if name not in _listed_by_job_before(folder)])
    if overwrite and foreign and f"{PREFIX}plan.json" not in names and CLEARING not in names:
        raise OutputExistsError(
            f"{folder}: --overwrite deletes only what facedata writes, and this folder holds {listed(foreign)}; choose "
            "another output, or remove the folder yourself"
        )
    if others and not overwrite and CLEARING not in names:
        way_out = "" if foreign else ", or --overwrite to replace it"
        raise OutputExistsError(
            f"{folder}: is not empty (it holds {listed(others)}), and no facedata job wrote it; choose another "
            f"output{way_out}"
        )


def _refuse_other_kind(plan: Plan, folder: Path, foreign: list[str]) -> None:
    """Refuse what a job of another format left: it would stay beside the new output and look like a part of it."""
    before = _plan_before(folder)
    if before is None or not foreign:
        return
    old, new = ({name: job.options.get(name) for name in _NAMING_OPTIONS} for job in (before, plan))
    if old != new or _SOURCE_LAYOUT in (before.options.get("layout"), plan.options.get("layout")):
        raise OutputExistsError(
            f"{folder}: holds {listed(foreign)}, which --overwrite does not delete: the output of an earlier job had "
            "another format or other names; choose another output, or remove the folder yourself"
        )


def claim_output(plan: Plan, output: Output, *, overwrite: bool) -> Journal:
    """Claim the output folder for `plan`, or find that it is claimed already.

    Raises
    ------
    OutputError
        As `check_output`, and if the folder cannot be created or written.
    OutputLockedError
        If `overwrite` is given and another run is writing there.
    """
    check_output(plan, output, overwrite=overwrite)
    folder = Path(output.root)
    try:
        if folder.name.endswith(BESIDE):  # not named by the user
            make_own_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite or (folder / CLEARING).exists():
            _clear(folder, output)
        journal = Journal(folder)
        existing = journal.read_plan(plan)
        if existing is plan:
            _log.warning("%s: the plan was damaged, and is written again", folder)
        if existing is None or existing is plan:
            journal.write_plan(plan, replace=existing is plan)
        journal.hold()
    except OutputError:
        raise
    except OSError as error:
        raise output_error(error, folder) from error
    check_output(plan, output, overwrite=False)  # another job may have claimed it at the same moment
    return journal


def check_still_ours(plan: Plan, output: Output) -> None:
    """Raise if another job took the output after it was claimed; called with the shards locked, so that it stays ours.

    Raises
    ------
    OutputMismatchError
    """
    existing = Journal(output.root).read_plan()
    if existing is None or existing.fingerprint != plan.fingerprint:
        raise OutputMismatchError(
            f"{output.root}: another job took this output with --overwrite; choose another output"
        )


def lost_files(plan: Plan, journal: Journal, state: JobState, output: Output) -> tuple[dict[int, str], int]:
    """What is missing of that which the shards wrote, or is not as they wrote it.

    Returns the path of such a file for each shard that has one, and how many files these are.
    """
    lost: dict[int, str] = {}
    missing = 0
    for shard in range(plan.shards):
        if (path := output.shard_file(shard)) is not None:
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            if size != state.file_sizes.get(shard, max(size, 0)):
                lost[shard] = path
                missing += 1
    count = output.count_images()
    if count is not None and count < state.samples:
        undelivered, shard = journal.undelivered(plan), 0
        for number, path in output.missing_images(plan.samples):
            while number >= plan.bounds(shard)[1]:
                shard += 1
            if number not in undelivered:
                lost.setdefault(shard, path)
                missing += 1
        if not missing:  # several faces of one photo, of which some are gone
            return dict.fromkeys(range(plan.shards), f"{output.root}/*"), state.samples - count
    return lost, missing


def _clear(folder: Path, output: Output) -> None:
    """Delete what a job wrote in the folder, its result and its journal, and nothing else.

    The next run completes a deletion that was interrupted.
    """
    with Journal(folder).lock() as lock:
        lock.take(range(1 << 30))
        lock.take_finishing()
        listed = _listed_by_job_before(folder)
        os.close(open_own(folder / CLEARING))
        (folder / SUMMARY).unlink(missing_ok=True)  # so that what is left does not read as finished
        sync_folder(folder)
        for name in os.listdir(folder):
            if output.owns(name) or name in listed:
                _remove(folder / name)
        for path in _named_beside(folder, output):
            path.unlink(missing_ok=True)
        for path in Journal(folder).files():
            if path.name != CLEARING:
                path.unlink(missing_ok=True)
        (folder / CLEARING).unlink()


def _listed_by_job_before(folder: Path) -> set[str]:
    """Further files in the folder that its job wrote or would have written."""
    return {path.name for path in _named_by_job_before(folder) if path.parent == folder.absolute()}


def _named_by_job_before(folder: Path) -> list[Path]:
    plan = _plan_before(folder)
    facts: Mapping[str, Any] = plan.facts if plan is not None else {}
    return [Path(name) for name in facts.get("named_files", [])]


def _plan_before(folder: Path) -> Plan | None:
    """The plan of the job in the folder; None if it is damaged, which is one of the reasons to start again."""
    try:
        return Journal(folder).read_plan()
    except FacedataError:
        return None


def _named_beside(folder: Path, output: Output) -> list[Path]:
    """Files outside of the folder that will be replaced, the main one first, and those that an earlier job left there.

    A plan may be forged, so of the files that it names only those are deleted that are named after the output itself.
    """
    stem = folder.absolute().name.split(".")[0]
    before = [
        path
        for path in _named_by_job_before(folder)
        if path.parent == folder.absolute().parent and path.name.startswith((f"{stem}.", f"{stem}_"))
    ]
    paths = dict.fromkeys([*map(Path, output.named_files()), *before])
    return [path for path in paths if not path.is_dir() or path.is_symlink()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_overlap(
    inputs: Iterable[str] | Mapping[str, bool], output: str | os.PathLike[str], named_files: Iterable[str] = ()
) -> None:
    """Raise if the output lies in an input, or an input in the output.

    Parameters
    ----------
    inputs : iterable or mapping of str
        Files and folders; a mapping says whether everything in a folder belongs to the input.
    output : path
        The folder to write.
    named_files : iterable of str
        Files to write elsewhere.

    Raises
    ------
    OutputError
    """
    target, *above = _line_of(output)
    files = {name: _line_of(name) for name in named_files}
    for name in inputs:
        whole = inputs[name] if isinstance(inputs, Mapping) else True
        source, *around = _line_of(name)
        is_folder = os.path.isdir(name)  # unlike Path.is_dir, no error without permission
        folder = source if is_folder else around[0]
        if target == folder or (folder in above and is_folder and whole):
            raise OutputError(f"{output}: the output lies in the input {name}; choose another output")
        if target in around:
            raise OutputError(f"{output}: the input {name} lies in the output; choose another output")
        for file, line in files.items():
            if line[0] == source or (is_folder and whole and source in line):
                raise OutputError(f"{file}: would be written over, or into, the input {name}; choose another name")


def _line_of(path: StrPath) -> list[tuple[int, int] | str]:
    """What is known of a path and the folders that it lies in: device and inode, which have more than one name."""
    real = Path(os.path.realpath(path))  # unlike Path.resolve, no error for a loop of links
    line: list[tuple[int, int] | str] = []
    for each in (real, *real.parents):
        try:
            status = os.stat(each)
            line.append((status.st_dev, status.st_ino))
        except OSError:
            line.append(str(each))
    return line


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
        return os.path.join(self.root, BUILDING)

    def owns(self, name: str) -> bool:
        """Whether `name`, an entry of the root, is the folder of the parts; all else there is the journal's."""
        return name == BUILDING

    def prepare(self) -> None:
        """Make the folder of the parts; raises `OutputError` if that is not possible."""
        make_own_folder(self.staging)

    def part_path(self, shard: int) -> str:
        """The file with the part of a shard."""
        return os.path.join(self.staging, f"{shard:06d}")

    def write_part(self, shard: int, *data: bytes | memoryview) -> None:
        """Write the part of a shard, or raise an `OutputError`.

        A part is only read after the journal lists its shard as done, so it need not appear by rename.
        """
        path = self.part_path(shard)
        check_in_place()
        with output_errors(path), open(path, "wb", opener=open_own) as file:
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
        """Remove the parts."""
        shutil.rmtree(self.staging, ignore_errors=True)


def make_folders(*folders: StrPath) -> None:
    """Make folders and their parents; raises `OutputError` if that is not possible."""
    for folder in folders:
        with output_errors(folder):
            if os.path.lexists(folder) and not os.path.isdir(folder):
                raise OutputExistsError(f"{os.fspath(folder)}: exists and is not a folder; choose another output")
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
