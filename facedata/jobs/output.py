"""Claiming an output for a job: nothing there is overwritten silently, and a job finds its own work again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from facedata.dataset import Output
from facedata.errors import FacedataError, OutputError, OutputExistsError, OutputMismatchError, output_error
from facedata.jobs.journal import FAILURES, PREFIX, Journal
from facedata.jobs.lock import ShardLock
from facedata.jobs.plan import Plan

__all__ = ["check_output", "check_still_ours", "claim_output", "refuse_overlap"]

_CLEARING = f"{PREFIX}clearing"
_KIND = ("format", "names")  # options that decide what files are called
_KEPT_NAMES = "source"  # the layout whose names are those of the input, so that no later job knows them


def check_output(plan: Plan, output: Output, *, overwrite: bool) -> None:
    """Raise where `plan` may not write its output; changes nothing.

    Raises
    ------
    OutputExistsError
        Where something is there that no job left, or that `overwrite` would delete though no job wrote it.
    OutputMismatchError
        Where another job's output is there.
    """
    folder = Path(output.root)
    names = _names_in(folder)
    there = Journal(folder).read_plan() if names and not overwrite and _CLEARING not in names else None
    if there is None:
        _check_named_files(output, overwrite=overwrite)
        _check_foreign(plan, folder, names, output, overwrite=overwrite)
    elif there.fingerprint != plan.fingerprint:
        raise OutputMismatchError(
            f"{folder}: belongs to a job that differs: {'; '.join(plan.differences(there))}. Choose another output, or "
            f"--overwrite to start afresh; that job goes on with: {there.facts.get('command_line', 'its own command')}"
        )
    elif not Journal(folder).is_publishing():
        _refuse_appeared(output)


def _names_in(folder: Path) -> list[str]:
    if not os.path.lexists(folder):
        return []
    if not os.path.isdir(folder):
        raise OutputExistsError(f"{folder}: is there already and is not a folder; choose another output")
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise output_error(error, folder) from error


def _check_named_files(output: Output, *, overwrite: bool) -> None:
    for name in output.named_files():
        if os.path.isdir(name) or os.path.realpath(name) == os.path.realpath(output.root):
            raise OutputExistsError(f"{name}: is a folder; a file is to be written there")
        if os.path.lexists(name) and not overwrite:
            raise OutputExistsError(f"{name}: is there already; choose another name, or --overwrite to replace it")
        folder = os.path.dirname(os.path.abspath(name))
        if not name or os.path.basename(name).startswith(PREFIX):
            raise OutputExistsError(f"'{name}': is no name for a file of yours; choose another")
        if not os.path.isdir(folder) and folder != os.path.abspath(output.root):
            raise OutputError(f"{name}: there is no folder {folder} to write it in")
        if os.path.isdir(folder) and not os.access(folder, os.W_OK):
            raise OutputError(f"{name}: no permission to write in {folder}, or it is read-only; choose another place")


def _refuse_appeared(output: Output) -> None:
    """A file at a final name that was not there when the job began, and that the job has not written yet."""
    for name in output.named_files():
        if os.path.lexists(name):
            raise OutputExistsError(
                f"{name}: has appeared since this job began, and is not its own, though the job will write there. "
                "Move it away and run the same command again; --overwrite starts the job afresh, and replaces it"
            )


def _check_foreign(plan: Plan, folder: Path, names: Sequence[str], output: Output, *, overwrite: bool) -> None:
    """What no job wrote stays; --overwrite takes what looks as this output does, the old way's output for one."""
    others = [name for name in names if not name.startswith(PREFIX)]
    foreign = [name for name in others if not output.owns(name) and name != FAILURES]
    if overwrite and foreign and _CLEARING not in names:
        _refuse_other_kind(plan, folder, [name for name in foreign if name not in _listed_by_job_before(folder)])
    if overwrite and foreign and f"{PREFIX}plan.json" not in names and _CLEARING not in names:
        raise OutputExistsError(
            f"{folder}: --overwrite deletes only what facedata writes, and this folder holds {_some(foreign)}; choose "
            "another output, or remove the folder yourself"
        )
    if others and not overwrite and _CLEARING not in names:
        way_out = "" if foreign else ", or --overwrite to replace it"
        raise OutputExistsError(
            f"{folder}: is not empty (it holds {_some(others)}), and no facedata job wrote it; choose another "
            f"output{way_out}"
        )


def _refuse_other_kind(plan: Plan, folder: Path, foreign: list[str]) -> None:
    """What a job of another format left would stay beside the new output, and be taken for a part of it."""
    try:
        there = Journal(folder).read_plan()
    except FacedataError:  # a damaged plan is one of the reasons to start afresh
        return
    if there is None or not foreign:
        return
    old, new = ({name: one.options.get(name) for name in _KIND} for one in (there, plan))
    kept = {one.options.get("layout") for one in (there, plan)}
    if old != new or _KEPT_NAMES in kept:
        raise OutputExistsError(
            f"{folder}: holds {_some(foreign)}, which --overwrite does not delete: the output of an earlier job was of "
            "another format or had other names; choose another output, or remove the folder yourself"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def claim_output(plan: Plan, output: Output, *, overwrite: bool) -> Journal:
    """Make the output folder that of `plan`, or find that it is already.

    Raises
    ------
    OutputError
        As `check_output`, and where the folder cannot be made or written.
    OutputLockedError
        Where `overwrite` is given and another run is writing there.
    """
    check_output(plan, output, overwrite=overwrite)
    folder = Path(output.root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite or (folder / _CLEARING).exists():
            _clear(folder, output)
        journal = Journal(folder)
        if journal.read_plan() is None:
            journal.write_plan(plan)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(error, folder) from error
    check_output(plan, output, overwrite=False)  # a run that began at the same moment may have been another job's
    return journal


def check_still_ours(plan: Plan, output: Output) -> None:
    """Raise where another job took the output since it was claimed; called with the shards locked, so that it stays so.

    Raises
    ------
    OutputMismatchError
    """
    there = Journal(output.root).read_plan()
    if there is None or there.fingerprint != plan.fingerprint:
        raise OutputMismatchError(
            f"{output.root}: another job took this output with --overwrite; choose another output"
        )


def _clear(folder: Path, output: Output) -> None:
    """Delete what a job wrote in the folder: its result and its journal, and nothing else.

    A clearing that was cut off is completed by the next run.
    """
    with ShardLock(folder / f"{PREFIX}lock") as lock:
        lock.take(range(1 << 30))
        lock.take_finishing()
        listed = _listed_by_job_before(folder)
        (folder / _CLEARING).touch()
        for name in os.listdir(folder):
            if output.owns(name) or name in listed:
                _remove(folder / name)
        for path in _named_beside(folder, output):
            path.unlink(missing_ok=True)
        for path in Journal(folder).files():
            if path.name != _CLEARING:
                path.unlink(missing_ok=True)
        (folder / _CLEARING).unlink()


def _listed_by_job_before(folder: Path) -> set[str]:
    """Further files in the folder that the job there was to write."""
    return {path.name for path in _named_by_job_before(folder) if path.parent == folder.absolute()}


def _named_by_job_before(folder: Path) -> list[Path]:
    try:
        plan = Journal(folder).read_plan()
    except FacedataError:  # a damaged plan is one of the reasons to start afresh
        return []
    facts: Mapping[str, Any] = plan.facts if plan is not None else {}
    return [Path(name) for name in facts.get("named_files", []) if isinstance(name, str)]


def _named_beside(folder: Path, output: Output) -> list[Path]:
    """Files outside of the folder that are to be replaced, and those that the job before left beside it.

    A plan may be forged, so of what it names only files are believed that are called after the output itself.
    """
    stem = folder.absolute().name.split(".")[0]
    before = [
        path
        for path in _named_by_job_before(folder)
        if path.parent == folder.absolute().parent and path.name.startswith((f"{stem}.", f"{stem}_"))
    ]
    paths = {*before, *map(Path, output.named_files())}
    return [path for path in paths if not path.is_dir() or path.is_symlink()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_overlap(
    inputs: Iterable[str] | Mapping[str, bool], output: str | os.PathLike[str], named_files: Iterable[str] = ()
) -> None:
    """Raise where the output lies in an input, or an input in the output.

    Parameters
    ----------
    inputs : iterable or mapping of str
        Files and folders; a mapping says of a folder whether all that lies in it belongs to the input.
    output : path
        The folder that is written.
    named_files : iterable of str
        Files that are written elsewhere.

    Raises
    ------
    OutputError
    """
    target = Path(os.path.realpath(output))  # unlike Path.resolve, no error where links go round in circles
    files = [Path(os.path.realpath(name)) for name in named_files]
    for name in inputs:
        whole = inputs[name] if isinstance(inputs, Mapping) else True
        source = Path(os.path.realpath(name))
        is_folder = os.path.isdir(source)  # unlike Path.is_dir, no error where it may not be looked at
        folder = source if is_folder else source.parent
        if target == folder or (folder in target.parents and is_folder and whole):
            raise OutputError(f"{output}: the output lies in the input {name}; choose another output")
        if target in source.parents:
            raise OutputError(f"{output}: the input {name} lies in the output; choose another output")
        for file in files:
            if file == source or (is_folder and whole and source in file.parents):
                raise OutputError(f"{file}: would be written over, or into, the input {name}; choose another name")
