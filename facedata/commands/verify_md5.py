"""``facedata verify-md5``."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from facedata.commands import options
from facedata.errors import InputError, OptionError
from facedata.text import escaped, listed

if TYPE_CHECKING:
    from facedata.download.catalogue import CatalogueSet
    from facedata.download.verify import Result, Verification

_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_VERDICTS = ("OK", "FAILED", "MISSING", "EXTRA")
_MOST_LISTED = 10_000
_BAR_AFTER = 0.5
_log = logging.getLogger(__name__)


@click.command(
    "verify-md5",
    cls=options.Command,
    short_help="Check files against published checksums, or make a list of checksums.",
)
@click.argument("names", nargs=-1, metavar="[NAME|FOLDER|LIST]...", shell_complete=options.complete_dataset)
@click.option("-c", "--check", is_flag=True, help="As md5sum -c: check each LIST (or stdin) in the current folder.")
@click.option(
    "--root",
    type=click.Path(file_okay=False),
    help="The folder with the files.  [default: that of the LIST; with NAME or -c the current one]",
)
@click.option(
    "--manifest",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="A list of checksums, as md5sum, sha1sum, sha256sum and sha512sum write it; - is stdin.",
)
@click.option(
    "--create", type=click.Path(), metavar="FOLDER", help="Write such a list of all files in FOLDER to stdout."
)
@options.CATALOGUE
@click.option(
    "--algorithm",
    type=click.Choice(_ALGORITHMS),
    help="The algorithm to create a list with, or that of a manifest.  [default: md5; a manifest's digits decide]",
)
@options.WORKERS
@click.option("--no-cache", is_flag=True, help="Read every file, also if it has not changed since it was read before.")
@click.option("--no-extra", is_flag=True, help="Do not look for files that are not expected.")
@click.option("--strict", is_flag=True, help="Exit with 1 if there are such files.")
@click.option("--only-wrong", is_flag=True, help="Print no lines for files that are OK, as --quiet does too.")
@options.JSON
@options.QUIET
@options.shows_errors
def command(
    names: tuple[str, ...],
    check: bool,
    root: str | None,
    manifest: str | None,
    create: str | None,
    catalogue: tuple[str, ...],
    algorithm: str | None,
    workers: int | None,
    no_cache: bool,
    no_extra: bool,
    strict: bool,
    only_wrong: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Check the files of dataset NAME, of a FOLDER, or of a LIST of checksums; or make such a list.

    A FOLDER is checked against the lists in it and the datasets that were downloaded to it. Each file is OK, FAILED,
    MISSING or EXTRA (not expected); the exit status is 1 if any FAILED or is MISSING. A file that is not in its place
    is searched for by its name. If no checksum was ever published, the structure of the file is checked, and its line
    says so.

    \b
    Example:
      facedata verify-md5 glint360k --root data/
      facedata verify-md5 MD5SUMS --root data/
    """
    ways = {"NAME": names or check or None, "--manifest": manifest, "--create": create}
    chosen = [way for way, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise OptionError(f"{' and '.join(chosen)} were given; give one of {', '.join(ways)}")
    if not chosen:
        raise OptionError("give the NAME of a dataset, a FOLDER, a LIST of checksums, or --create FOLDER")
    others: dict[str, dict[str, object]] = {
        "NAME": {},
        "--manifest": {"--catalogue": catalogue},
        "--create": {
            "--root": root,
            "--catalogue": catalogue,
            "--strict": strict,
            "--only-wrong": only_wrong,
            "--no-extra": no_extra,
            "--no-cache": no_cache,
            "--json": as_json,
        },
    }
    for option, value in others[chosen[0]].items():
        if value:
            raise OptionError(f"{option} does not apply to {chosen[0]}: leave it out")
    options.start_logging(quiet=quiet)
    if create is not None:
        return _create(create, algorithm or "md5", workers, quiet=quiet)
    from facedata.download.verify import Verification
    from facedata.jobs.signals import stop_on_signals

    shown: list[Result] = []
    repairs: list[str] = []
    with ExitStack() as stack:
        checks: list[_Check] = []
        for name in names or (manifest or "-",):
            if manifest is not None or check:
                checks.append(
                    _of_list(name, "." if check and root is None else root, algorithm, stack, extra=not check)
                )
            else:
                checks += _find_checks(name, root, catalogue, algorithm, stack)
        screen = stack.enter_context(_Screen("checked", quiet=quiet))

        def report(result: Result) -> None:
            if as_json:
                is_plain = result.verdict == "OK" and result.how == "checksum" and not result.found_at
                if not is_plain and len(shown) < _MOST_LISTED:
                    shown.append(result)
            elif not ((only_wrong or quiet) and result.verdict == "OK"):
                screen.write(result.line)

        how: dict[str, Any] = {
            "workers": workers,
            "use_cache": not no_cache,
            "observer": screen.show,
            "stop": stack.enter_context(stop_on_signals()),
            "on_result": report,
        }
        done = Verification()
        for each in checks:
            found = each.run(extra=each.extra and not no_extra, **how)
            if each.repair and not found.good:
                repairs.append(each.repair)
            done.add(found)
    good = done.good and not (strict and done.verdicts["EXTRA"])
    if as_json:
        summary = {
            "root": checks[0].root,
            "files": sum(done.verdicts.values()),
            "verdicts": {verdict: done.verdicts[verdict] for verdict in _VERDICTS},
            "checked_by": dict(done.hows),
            "from_cache": done.from_cache,
            "bytes_read": done.bytes_read,
            "seconds": round(done.seconds, 3),
            "not_plainly_ok": [asdict(result) for result in shown],
        }
        options.print_json(summary)
    _log_sum(done, repairs, good=good)
    return 0 if good else 1


class _Check(NamedTuple):
    """Something to check: the folder, the function, whether to report extra files, the command that repairs it."""

    root: str
    run: Callable[..., Verification]
    extra: bool = True
    repair: str = ""


def _of_list(path: str, root: str | None, algorithm: str | None, stack: ExitStack, *, extra: bool = True) -> _Check:
    from facedata.download.manifest import ManifestFile, verify_manifest

    listed = stack.enter_context(ManifestFile(None if path == "-" else path, algorithm))
    root = root or os.path.dirname(path) or "."
    return _Check(root, partial(verify_manifest, listed, root), extra)


def _of_set(entry: CatalogueSet, root: str, catalogue: tuple[str, ...]) -> _Check:
    from facedata.download.expectations import verify_set

    words = ["facedata", "download", entry.name, "--root", root]
    words += [word for file in catalogue for word in ("--catalogue", file)]
    return _Check(root, partial(verify_set, entry, Path(root)), repair=shlex.join(words))


def _find_checks(
    name: str, root: str | None, catalogue: tuple[str, ...], algorithm: str | None, stack: ExitStack
) -> list[_Check]:
    """What to check for the name of a dataset, a list, or a folder."""
    from facedata.download.catalogue import load_catalogue

    if os.sep not in name:
        try:
            entry = load_catalogue(catalogue).find(name)
        except OptionError:
            if not os.path.exists(name):
                raise
        else:
            if algorithm:
                raise OptionError("--algorithm does not apply to NAME: leave it out")
            return [_of_set(entry, root or ".", catalogue)]
    if not os.path.isdir(name):
        return [_of_list(name, root, algorithm, stack)]
    if root is not None:
        raise OptionError(f"--root does not apply to a folder, as {name} is: leave it out")
    from facedata.download.available import read_records
    from facedata.download.manifest import lists_in

    lists, known, records = lists_in(name), load_catalogue(catalogue), read_records(Path(name))
    checks = [_of_list(each, name, algorithm, stack, extra=len(lists) == 1) for each in lists]
    checks += [_of_set(known.find(each), name, catalogue) for each in records if each in known.sets]
    if unknown := [each for each in records if each not in known.sets]:
        _log.warning("%s: the catalogue does not know %s, downloaded to it: give --catalogue", name, listed(unknown))
    if not checks:
        raise InputError(
            f"{name}: has no list of checksums in it, as MD5SUMS, and no known dataset was downloaded to it; name the "
            f"dataset: facedata verify-md5 NAME --root {name}; or make a list: facedata verify-md5 --create {name}"
        )
    return checks


def _log_sum(done: Verification, repairs: Sequence[str], *, good: bool) -> None:
    """Log the sum, and what to do if something is wrong."""
    from facedata.commands.progress import human_bytes, human_seconds
    from facedata.text import counted

    verdicts = [f"{done.verdicts[verdict]:,} {verdict}" for verdict in _VERDICTS if done.verdicts[verdict]]
    weaker = [f"{number:,} by {how}" for how, number in done.hows.items() if how != "checksum"]
    notes = [f"{', '.join(weaker)}, because no checksum is published"] if weaker else []
    if done.from_cache:
        notes += [f"{done.from_cache:,} unchanged since they were read before, --no-cache reads them again"]
    notes += [f"{human_bytes(done.bytes_read)} read in {human_seconds(done.seconds)}"]
    files = counted(sum(done.verdicts.values()), "file")
    text = f"{files}: {', '.join(verdicts) or 'nothing to check'} ({'; '.join(notes)})"
    _log.log(logging.INFO if good else logging.WARNING, "%s", text)
    if repairs:
        _log.warning("to fetch what is wrong again: %s", "; ".join(repairs))
    elif done.verdicts["FAILED"]:
        _log.warning("a FAILED file is damaged or is not the published one: fetch it again")
    if done.verdicts["MISSING"]:
        _log.warning("a MISSING file was searched for by name in the whole folder; is --root the right folder?")


def _create(folder: str, algorithm: str, workers: int | None, *, quiet: bool) -> int:
    from facedata.download.manifest import Listed, list_checksums, manifest_line
    from facedata.jobs.signals import stop_on_signals

    try:
        status = os.fstat(sys.stdout.fileno())
        own: tuple[int, int] | None = (status.st_dev, status.st_ino)
    except (OSError, ValueError):
        own = None
    is_complete = True
    with _Screen("read", quiet=quiet) as screen, stop_on_signals() as stop:
        for entry in list_checksums(folder, algorithm, workers=workers, leave_out=own, observer=screen.show, stop=stop):
            if isinstance(entry, Listed):
                screen.write(manifest_line(entry.name, entry.digest))
            else:
                is_complete = is_complete and not entry.is_lost
                _log.warning("%s: left out: %s", entry.path, entry.reason)
    return 0 if is_complete else 1


class _Screen(ExitStack):
    """Lines on stdout, flushed often, and progress on stderr, whose modules are loaded only if it is shown."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        super().__init__()
        self._what, self._quiet = what, quiet
        self._begin = time.monotonic()
        self._stdout = sys.stdout.buffer
        self._observer: Callable[[int, int], None] | None = None
        self._is_terminal = sys.stdout.isatty()
        self._above_bar = sys.stderr.isatty() and self._is_terminal
        self.callback(self._stdout.flush)

    def write(self, line: bytes) -> None:
        """Write to stdout, above the bar if there is one; escaped on a terminal, exact in a pipe."""
        if self._is_terminal:
            line = os.fsencode(f"{escaped(os.fsdecode(line[:-1]))}\n")
        tqdm: Any = sys.modules.get("tqdm") if self._above_bar else None
        if tqdm is None:
            self._stdout.write(line)
        else:
            tqdm.tqdm.write(os.fsdecode(line), file=sys.stdout, end="")

    def show(self, done: int, total: int) -> None:
        """Called several times a second."""
        from facedata.commands.progress import show_bytes  # while the threads read, this import costs no time

        self._stdout.flush()
        if self._observer is None and time.monotonic() - self._begin > _BAR_AFTER:
            self._observer = self.enter_context(show_bytes(self._what, quiet=self._quiet))
        if self._observer is not None:
            self._observer(done, total)
