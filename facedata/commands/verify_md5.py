"""``facedata verify-md5``."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from facedata.commands import options
from facedata.commands.result_lines import result_line, sum_facts, tell_sum
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.download.manifest import Listed
    from facedata.download.verdicts import Expectation, Result

_ALGORITHMS = ("md5", "sha1", "sha256", "sha512")
_MOST_TOLD = 10_000
_BAR_AFTER = 0.5
_log = logging.getLogger(__name__)


class _Options(NamedTuple):
    name: str | None
    root: str | None
    manifest: str | None
    create: str | None
    catalogue: tuple[str, ...]
    algorithm: str | None
    workers: int | None
    cache: bool
    extra: bool
    strict: bool
    as_json: bool
    quiet: bool
    only_wrong: bool


@click.command("verify-md5", short_help="Check files against published checksums, or make a list of checksums.")
@click.argument("name", required=False)
@click.option(
    "--root",
    type=click.Path(file_okay=False),
    help="The folder that the files lie in.  [default: the folder of the manifest; for NAME the current one]",
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
    help="What to create, or what a manifest has.  [default: md5; a manifest's digits tell]",
)
@options.WORKERS
@click.option(
    "--no-cache", is_flag=True, help="Read every file, also those that have not changed since they were read."
)
@click.option("--no-extra", is_flag=True, help="Do not look for files that nobody expects.")
@click.option("--strict", is_flag=True, help="Exit with 1 on such files, too.")
@click.option("--only-wrong", is_flag=True, help="No lines on files that are OK, as md5sum --quiet has it.")
@options.JSON
@options.QUIET
@options.runs_library
def command(no_cache: bool, no_extra: bool, **given: Any) -> int:
    """Check the files of dataset NAME, or of a list of checksums, or make such a list.

    Each file is OK, FAILED, MISSING or EXTRA (nobody expects it); the exit status is 1 if any FAILED or is MISSING. A
    file that is not at its place is looked for by its name. Where no checksum was ever published, the structure of the
    file is checked, and its line says so.

    \b
    Example:
      facedata verify-md5 --manifest MD5SUMS --root data/
    """
    chosen = _Options(cache=not no_cache, extra=not no_extra, **given)
    _refuse_contradictions(chosen)
    options.start_logging(quiet=chosen.quiet)
    if chosen.create is not None:
        return _create(chosen)
    return _check_manifest(chosen) if chosen.manifest is not None else _check_set(chosen)


def _refuse_contradictions(chosen: _Options) -> None:
    ways = {"NAME": chosen.name, "--manifest": chosen.manifest, "--create": chosen.create}
    given = [way for way, value in ways.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} were given; give one of NAME, --manifest and --create")
    if not given:
        raise OptionError("give the NAME of a dataset, or --manifest with a list of checksums, or --create FOLDER")
    of_no_use: dict[str, dict[str, object]] = {
        "NAME": {"--algorithm": chosen.algorithm},
        "--manifest": {"--catalogue": chosen.catalogue},
        "--create": {
            "--root": chosen.root,
            "--catalogue": chosen.catalogue,
            "--strict": chosen.strict,
            "--only-wrong": chosen.only_wrong,
            "--no-extra": not chosen.extra,
            "--no-cache": not chosen.cache,
            "--json": chosen.as_json,
        },
    }
    for option, value in of_no_use[given[0]].items():
        if value:
            raise OptionError(f"{option} means nothing with {given[0]}: leave it out")


def _check_set(chosen: _Options) -> int:
    """Check what the catalogue says of a dataset."""
    from pathlib import Path

    from facedata.download.catalogue import load_catalogue
    from facedata.download.expectations import old_releases, set_expectations
    from facedata.download.provenance import read_provenance

    assert chosen.name is not None
    root = chosen.root or "."
    try:
        entry = load_catalogue(chosen.catalogue).find(chosen.name)
    except OptionError as error:
        if os.path.isfile(chosen.name):
            raise OptionError(f"{chosen.name} is a file; a list of checksums is given with --manifest") from error
        raise
    expectations = set_expectations(entry, Path(root), read_provenance(Path(root), entry.name))
    own = [entry.folder] if entry.complete and os.path.isdir(os.path.join(root, entry.folder)) else []
    for said in old_releases(entry, Path(root)):
        _log.warning(said)
    return _check(chosen, root, expectations, extra_in=own)


def _check_manifest(chosen: _Options) -> int:
    from facedata.download.manifest import ManifestFile

    assert chosen.manifest is not None
    from_stdin = chosen.manifest == "-"
    root = chosen.root or ("." if from_stdin else os.path.dirname(chosen.manifest) or ".")
    with ExitStack() as stack:
        listed = stack.enter_context(ManifestFile(None if from_stdin else chosen.manifest, chosen.algorithm))
        itself = () if from_stdin else (os.path.relpath(os.path.realpath(chosen.manifest), os.path.realpath(root)),)
        status = _check(chosen, root, _Expected(listed), extra_in=[""], not_extra=itself)
        if listed.bad_lines:
            are = "line is" if listed.bad_lines == 1 else "lines are"
            _log.warning("%s: %d %s not understood: something is not checked", listed.title, listed.bad_lines, are)
        return 1 if listed.bad_lines else status


class _Expected:
    """The lines of a manifest as expectations; can be iterated over again."""

    def __init__(self, listed: Iterable[Listed]) -> None:
        self._listed = listed

    def __iter__(self) -> Iterator[Expectation]:
        from facedata.download.verdicts import Expectation

        return (Expectation(one.name, one.digest) for one in self._listed)


def _check(
    chosen: _Options,
    root: str,
    expectations: Iterable[Expectation],
    *,
    extra_in: Sequence[str],
    not_extra: Sequence[str] = (),
) -> int:
    from facedata.download.verify import verify
    from facedata.jobs.signals import stop_on_signals

    told = _Told(chosen)
    with _Screen("checked", quiet=chosen.quiet) as screen, stop_on_signals() as stop:
        told.screen = screen
        done = verify(
            root,
            expectations,
            workers=chosen.workers,
            use_cache=chosen.cache,
            extra_in=extra_in if chosen.extra else None,
            not_extra=not_extra,
            observer=screen.show,
            stop=stop,
            on_result=told.tell,
        )
    good = done.good and not (chosen.strict and done.verdicts["EXTRA"])
    if chosen.as_json:
        options.print_json(sum_facts(root, done, told.results))
    tell_sum(done, good=good)
    return 0 if good else 1


class _Told:
    """What stdout has of each result: a line, or, for JSON, those that are not plainly OK."""

    def __init__(self, chosen: _Options) -> None:
        self._chosen = chosen
        self.results: list[Result] = []
        self.screen: _Screen | None = None

    def tell(self, result: Result) -> None:
        if self._chosen.as_json:
            plain = result.verdict == "OK" and result.how == "checksum" and not result.found_at
            if not plain and len(self.results) < _MOST_TOLD:
                self.results.append(result)
        elif self.screen is not None and not (self._chosen.only_wrong and result.verdict == "OK"):
            self.screen.write(result_line(result))


def _create(chosen: _Options) -> int:
    from facedata.download.listing import LeftOut, list_checksums
    from facedata.download.manifest import manifest_line
    from facedata.jobs.signals import stop_on_signals

    assert chosen.create is not None
    wrong = 0
    with _Screen("read", quiet=chosen.quiet) as screen, stop_on_signals() as stop:
        entries = list_checksums(
            chosen.create,
            chosen.algorithm or "md5",
            workers=chosen.workers,
            leave_out=_file_on_stdout(),
            observer=screen.show,
            stop=stop,
        )
        for entry in entries:
            if isinstance(entry, LeftOut):
                wrong += entry.wanted
                _log.warning("%s: left out: %s", entry.path, entry.reason)
            else:
                screen.write(manifest_line(entry.name, entry.digest))
    return 1 if wrong else 0


def _file_on_stdout() -> tuple[int, int] | None:
    try:
        status = os.fstat(sys.stdout.fileno())
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


class _Screen:
    """Lines on stdout, written out soon, and progress on stderr, which is loaded only when there is some."""

    def __init__(self, what: str, *, quiet: bool) -> None:
        self._what, self._quiet = what, quiet
        self._begin = time.monotonic()
        self._stdout = sys.stdout.buffer
        self._stack = ExitStack()
        self._observer: Callable[[int, int], None] | None = None
        self._above_bar = sys.stderr.isatty() and sys.stdout.isatty()

    def __enter__(self) -> _Screen:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._stdout.flush()

    def write(self, line: bytes) -> None:
        """Write to stdout; where a bar stands there, above it."""
        tqdm: Any = sys.modules.get("tqdm") if self._above_bar else None
        if tqdm is None:
            self._stdout.write(line)
        else:
            tqdm.tqdm.write(os.fsdecode(line), file=sys.stdout, end="")

    def show(self, done: int, total: int) -> None:
        """Called several times a second."""
        from facedata.commands.progress import show_bytes  # here, while others read, that costs no time

        self._stdout.flush()
        if self._observer is None and time.monotonic() - self._begin > _BAR_AFTER:
            self._observer = self._stack.enter_context(show_bytes(self._what, quiet=self._quiet))
        observer = self._observer
        if observer is not None:
            observer(done, total)
