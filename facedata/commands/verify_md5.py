"""``facedata verify-md5``."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.errors import OptionError

if TYPE_CHECKING:
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
@click.argument("name", required=False)
@click.option(
    "--root",
    type=click.Path(file_okay=False),
    help="The folder with the files.  [default: the folder of the manifest; for NAME the current one]",
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
@click.option("--only-wrong", is_flag=True, help="Print no lines for files that are OK, as md5sum --quiet.")
@options.JSON
@options.QUIET
@options.shows_errors
def command(
    name: str | None,
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
    """Check the files of dataset NAME, or of a list of checksums, or make such a list.

    Each file is OK, FAILED, MISSING or EXTRA (not expected); the exit status is 1 if any FAILED or is MISSING. A file
    that is not in its place is searched for by its name. If no checksum was ever published, the structure of the file
    is checked, and its line says so.

    \b
    Example:
      facedata verify-md5 --manifest MD5SUMS --root data/
    """
    ways = {"NAME": name, "--manifest": manifest, "--create": create}
    chosen = [way for way, value in ways.items() if value is not None]
    if len(chosen) > 1:
        raise OptionError(f"{' and '.join(chosen)} were given; give one of {', '.join(ways)}")
    if not chosen:
        raise OptionError("give the NAME of a dataset, or --manifest with a list of checksums, or --create FOLDER")
    others: dict[str, dict[str, object]] = {
        "NAME": {"--algorithm": algorithm},
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
    from facedata.jobs.signals import stop_on_signals

    shown: list[Result] = []
    with ExitStack() as stack:
        if manifest is not None:
            from facedata.download.manifest import ManifestFile, verify_manifest

            listed = stack.enter_context(ManifestFile(None if manifest == "-" else manifest, algorithm))
        else:
            from facedata.download.catalogue import load_catalogue
            from facedata.download.expectations import verify_set

            try:
                entry = load_catalogue(catalogue).find(name or "")
            except OptionError as error:
                if os.path.isfile(name or ""):
                    raise OptionError(f"{name} is a file; a list of checksums is given with --manifest") from error
                raise
        screen = stack.enter_context(_Screen("checked", quiet=quiet))

        def report(result: Result) -> None:
            if as_json:
                is_plain = result.verdict == "OK" and result.how == "checksum" and not result.found_at
                if not is_plain and len(shown) < _MOST_LISTED:
                    shown.append(result)
            elif not (only_wrong and result.verdict == "OK"):
                screen.write(result.line)

        how: dict[str, Any] = {
            "workers": workers,
            "use_cache": not no_cache,
            "extra": not no_extra,
            "observer": screen.show,
            "stop": stack.enter_context(stop_on_signals()),
            "on_result": report,
        }
        if manifest is not None:
            root = root or ("." if manifest == "-" else os.path.dirname(manifest) or ".")
            done = verify_manifest(listed, root, **how)
        else:
            root = root or "."
            done = verify_set(entry, Path(root), **how)
    good = done.good and not (strict and done.verdicts["EXTRA"])
    if as_json:
        summary = {
            "root": root,
            "files": sum(done.verdicts.values()),
            "verdicts": {verdict: done.verdicts[verdict] for verdict in _VERDICTS},
            "checked_by": dict(done.hows),
            "from_cache": done.from_cache,
            "bytes_read": done.bytes_read,
            "seconds": round(done.seconds, 3),
            "not_plainly_ok": [asdict(result) for result in shown],
        }
        options.print_json(summary)
    _log_sum(done, good=good)
    return 0 if good else 1


def _log_sum(done: Verification, *, good: bool) -> None:
    """Log the sum, and what to do if something is wrong."""
    from facedata.commands.progress import human_bytes, human_seconds
    from facedata.text import counted

    verdicts = [f"{done.verdicts[verdict]:,} {verdict}" for verdict in _VERDICTS if done.verdicts[verdict]]
    weaker = [f"{number:,} by {how}" for how, number in done.hows.items() if how != "checksum"]
    notes = [f"{', '.join(weaker)}, because no checksum is published"] if weaker else []
    notes += [f"{done.from_cache:,} unchanged since they were read before"] if done.from_cache else []
    notes += [f"{human_bytes(done.bytes_read)} read in {human_seconds(done.seconds)}"]
    files = counted(sum(done.verdicts.values()), "file")
    text = f"{files}: {', '.join(verdicts) or 'nothing to check'} ({'; '.join(notes)})"
    _log.log(logging.INFO if good else logging.WARNING, "%s", text)
    if done.verdicts["FAILED"]:
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
        self._above_bar = sys.stderr.isatty() and sys.stdout.isatty()
        self.callback(self._stdout.flush)

    def write(self, line: bytes) -> None:
        """Write to stdout, above the bar if there is one."""
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
