"""Claiming an output folder for a job: nothing there is overwritten silently, and a job finds its own work again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from facedata.errors import OutputError, OutputExistsError, OutputMismatchError, output_error
from facedata.jobs.journal import FAILURES, PREFIX, Journal
from facedata.jobs.lock import ShardLock
from facedata.jobs.plan import Plan

__all__ = ["check_output", "claim_output", "clear_output", "refuse_overlap"]

_CLEARING = f"{PREFIX}clearing"
Owns = Callable[[str], bool]
"""Whether an entry of the folder, by its name, is one that the job's sink writes."""


def check_output(folder: Path, plan: Plan, owns: Owns, *, overwrite: bool) -> None:
    """Raise where `plan` may not write into `folder`; changes nothing.

    Raises
    ------
    OutputExistsError
        Where something is there that no job left, or that `overwrite` would delete though no job wrote it.
    OutputMismatchError
        Where another job's output is there.
    """
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise OutputExistsError(f"{folder}: is there already and is not a folder; choose another output")
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise output_error(error, folder) from error
    if overwrite or _CLEARING in names:
        _check_overwrite(folder, names, owns)
        return
    there = Journal(folder).read_plan()
    if there is None:
        _check_unclaimed(folder, names)
    elif there.fingerprint != plan.fingerprint:
        raise OutputMismatchError(
            f"{folder}: belongs to a job that differs: {'; '.join(plan.differences(there))}. Choose another output, or "
            f"--overwrite to start afresh; that job goes on with: {there.facts.get('command line', 'its own command')}"
        )


def _check_unclaimed(folder: Path, names: list[str]) -> None:
    others = [name for name in names if not name.startswith(PREFIX)]
    if others:
        raise OutputExistsError(
            f"{folder}: is not empty (it holds {_some(others)}) and no facedata job wrote it; choose another output, "
            "or --overwrite to replace it"
        )


def _check_overwrite(folder: Path, names: list[str], owns: Owns) -> None:
    if os.path.exists(folder / f"{PREFIX}plan.json") or _CLEARING in names:
        return
    foreign = [name for name in names if not owns(name) and not name.startswith(PREFIX) and name != FAILURES]
    if foreign:
        raise OutputExistsError(
            f"{folder}: --overwrite deletes only what facedata writes, and this folder holds {_some(foreign)}; choose "
            "another output, or remove the folder yourself"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def claim_output(folder: Path, plan: Plan, owns: Owns, *, overwrite: bool) -> Journal:
    """Make `folder` the output of `plan`, or find that it is already.

    Raises
    ------
    OutputError
        As `check_output`, and where the folder cannot be made or written.
    OutputLockedError
        Where `overwrite` is given and another run is writing there.
    """
    check_output(folder, plan, owns, overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if overwrite or (folder / _CLEARING).exists():
            clear_output(folder, owns)
        journal = Journal(folder)
        if journal.read_plan() is None:
            journal.write_plan(plan)
    except OutputError:
        raise
    except OSError as error:
        raise output_error(error, folder) from error
    check_output(folder, plan, owns, overwrite=False)  # a run that began at the same moment may have been another job
    return journal


def clear_output(folder: Path, owns: Owns) -> None:
    """Delete what a job wrote: its result and its journal, and nothing else.

    A clearing that was cut off is completed by the next run.
    """
    with ShardLock(folder / f"{PREFIX}lock") as lock:
        lock.take(range(1 << 30))
        (folder / _CLEARING).touch()
        for path in Journal(folder).files():
            if path.name != _CLEARING:
                path.unlink(missing_ok=True)
        for name in os.listdir(folder):
            if owns(name):
                _remove(folder / name)
        (folder / _CLEARING).unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_overlap(inputs: list[str], output: str | os.PathLike[str]) -> None:
    """Raise where the output lies in an input, or an input in the output.

    Raises
    ------
    OutputError
    """
    target = Path(output).resolve()
    for name in inputs:
        source = Path(name).resolve()
        folder = source if source.is_dir() else source.parent
        if target == folder or (folder in target.parents and source.is_dir()):
            raise OutputError(f"{output}: the output lies in the input {name}; choose another output")
        if target in source.parents:
            raise OutputError(f"{output}: the input {name} lies in the output; choose another output")
