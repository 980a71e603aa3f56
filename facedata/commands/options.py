"""The options that commands share, each defined once, and the edge where the library's errors become exit statuses."""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from facedata.cli import INTERRUPTED
from facedata.errors import FacedataError, InterruptedJobError, OptionError

__all__ = [
    "DRY_RUN",
    "JSON",
    "LIMIT",
    "OVERWRITE",
    "QUIET",
    "SALVAGE",
    "SHARD",
    "WORKERS",
    "command_line",
    "print_json",
    "runs_library",
    "start_logging",
]

_Command = TypeVar("_Command", bound=Callable[..., Any])


class _PartType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``i/n``, kept as a pair so that nothing heavy is imported for ``--help``."""

    name = "i/n"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        number, slash, count = str(value).partition("/")
        if not (slash and number.isdigit() and count.isdigit()):
            self.fail(f"'{value}' is not i/n, as 3/64", parameter, context)
        if not 1 <= int(number) <= int(count):
            self.fail(
                f"{value}: parts are counted from 1/{count} to {count}/{count}; with SLURM: --array=1-{count}",
                parameter,
                context,
            )
        return int(number), int(count)


WORKERS = click.option(
    "--workers", type=click.IntRange(1, 4096), help="Processes to use.  [default: the CPUs that this job may use]"
)
SHARD = click.option(
    "--shard",
    type=_PartType(),
    default="1/1",
    help="Do only the i-th of n parts (1/n to n/n), as an element of a job array; all parts write the same output.",
)
LIMIT = click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N samples.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
OVERWRITE = click.option(
    "--overwrite", is_flag=True, help="Replace what is there: delete what facedata wrote, start afresh."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
QUIET = click.option("--quiet", is_flag=True, help="No progress and no log lines, only warnings and errors.")
SALVAGE = click.option(
    "--salvage",
    is_flag=True,
    help="Take what can be read of a damaged file, walking through it; the rest fails by name.",
)


def command_line() -> str:
    """The command that goes on with the whole job: as typed, but for ``--overwrite`` and ``--shard``."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if words and words[-1] == "--shard":
            words.pop()
        elif word != "--overwrite" and not word.startswith("--shard="):
            words.append(word)
    return shlex.join(["facedata", *words])


def print_json(value: Mapping[str, Any]) -> None:
    """One JSON object, on one line of stdout."""
    click.echo(json.dumps(value, ensure_ascii=False))


def start_logging(*, quiet: bool) -> None:
    """Send the library's log to stderr."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("facedata")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.INFO)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg, unused-ignore]
    """Writes to stderr; where a bar stands there, above it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and sys.stderr.isatty():
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        else:
            super().emit(record)


class _Formatter(logging.Formatter):
    """``facedata: message`` on a terminal; with time and level in logs that somebody reads tomorrow."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        if sys.stderr.isatty():
            return f"facedata: {level}{record.getMessage()}"
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} facedata: {level}{record.getMessage()}"


def runs_library(function: _Command) -> _Command:
    """Turn the library's errors into one line on stderr and the exit status that belongs to them."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except OptionError as error:
            raise click.UsageError(str(error)) from error
        except InterruptedJobError as error:
            click.echo(f"facedata: {error}", err=True)
            return INTERRUPTED
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of our output has gone
            return 1
        except FacedataError as error:
            click.echo(f"facedata: error: {error}", err=True)
            return 1

    return wrapper  # type: ignore[return-value]
