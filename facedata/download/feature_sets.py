"""Feature sets that a download has put in their places go through the checks of ``facedata check-features``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path, PurePosixPath

from facedata.errors import InputError, InterruptedJobError, OptionError
from facedata.jobs.signals import StopRequest

__all__ = ["look_into_feature_sets"]

_log = logging.getLogger(__name__)

_Observer = Callable[[int, int], None]
_Watch = Callable[[str], AbstractContextManager[_Observer | None]]


def look_into_feature_sets(
    root: Path, placed: Iterable[str], *, watch: _Watch | None = None, stop: StopRequest | None = None
) -> None:
    """Log what `check_feature_set` finds in the sets among some files; no neighbours are searched.

    Nothing is failed for it: checksums and sizes have told that these are the files that were published, and another
    download would bring the same.

    Parameters
    ----------
    root : path
    placed : iterable of str
        Files below the root, ``/`` between names.
    watch : callable, optional
        Gives observers of the progress in bytes.
    stop : StopRequest, optional

    Raises
    ------
    InterruptedJobError
        Where `stop` was asked for; the same call does it again.
    """
    for name in sorted({name for path in placed if (name := _set_of(PurePosixPath(path)))}):
        if (root / "features" / f"{name}.bin").is_file() and (root / "labels" / f"{name}.meta").is_file():
            _look_into(root, name, partial(_watched, watch, stop, name))


def _set_of(path: PurePosixPath) -> str:
    """The name of the set that a file belongs to; empty for files that belong to none."""
    match path.parts:
        case ("features", name) if name.endswith(".bin"):
            return path.stem
        case ("knns", name, _):
            return name
    return ""


def _look_into(root: Path, name: str, watch: _Watch) -> None:
    from facedata.features.check import CheckOptions, check_feature_set  # NumPy only where there is such a set

    try:
        report = check_feature_set(root, name, CheckOptions(sample=0), watch=watch)
    except (InputError, OptionError) as error:
        _log.warning("%s", error)
        return
    classes = f", {report.classes.classes:,} classes" if report.classes else ""
    size = f"{report.rows:,} rows of {report.dimensions:,} values" if report.rows and report.dimensions else "unknown"
    _log.info("%s: %s%s: %s", name, size, classes, "good" if report.good else "published with something wrong in it")
    for finding in report.findings:
        _log.log(logging.WARNING if finding.wrong else logging.INFO, "%s: %s", finding.path, finding.message)


@contextmanager
def _watched(watch: _Watch | None, stop: StopRequest | None, name: str, what: str) -> Iterator[_Observer]:
    with watch(f"{name}: {what}") if watch else nullcontext() as observer:

        def tell(done: int, total: int) -> None:
            if stop:
                raise InterruptedJobError(f"stopped by {stop.signal_name}; run the same command again to go on")
            if observer is not None:
                observer(done, total)

        yield tell
