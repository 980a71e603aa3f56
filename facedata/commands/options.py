"""The options that commands share, each defined once, logging, and the library's errors as exit statuses."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, TypeVar

import click

from facedata.commands import INTERRUPTED
from facedata.errors import FacedataError, InterruptedJobError, OptionError
from facedata.text import escaped

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_VERBOSE = "facedata.verbose"
_Command = TypeVar("_Command", bound=Callable[..., Any])


class Command(click.Command):
    """A command whose help shows its options in sections."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections."""
        from facedata.commands.help_page import write_options

        write_options(context, formatter)


class _PartType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``i/n``, as a pair, so that ``--help`` imports nothing heavy."""

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


class SizeType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of bytes: ``1GB``, ``500 MB``, ``64MiB``, ``1000000``."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int:
        """The number of bytes."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([kMGT]?)(i?)B?", str(value).strip())
        size = 0
        if match:
            size = int(float(match[1]) * (1024 if match[3] else 1000) ** " kMGT".index(match[2] or " "))
        if not 0 < size < 1 << 50:
            self.fail(f"'{value}' is not a size, as 1GB, 500MB or 64MiB", parameter, context)
        return size


class _FailuresType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """A number of images, ``100``, as an int; or a share of all, ``0.1%``, as a float."""

    name = "failures"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> int | float:
        match = re.fullmatch(r"(\d{1,15})|(\d{1,3}(?:\.\d+)?) ?%", str(value).strip(), re.ASCII)
        if not match or float(match[2] or 0) > 100:
            self.fail(f"'{value}' is not a number of images or a share of them, as 100 or 0.1%", parameter, context)
        return float(match[2]) / 100 if match[2] else int(match[1])


def together(*several: Callable[[_Command], _Command]) -> Callable[[_Command], _Command]:
    """Combine several options into one decorator, in this order."""

    def decorate(function: _Command) -> _Command:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate


def output(what: str, *, required: bool = True, **attributes: Any) -> Callable[[_Command], _Command]:
    """The option ``--output``, with help that says `what` it is in this command."""
    return click.option("-o", "--output", required=required, help=what, **{"type": click.Path(), **attributes})


WORKERS = click.option(
    "-j",
    "--workers",
    type=click.IntRange(1, 4096),
    help="Number of worker processes.  [default: the CPUs of this job]",
)
SHARD = click.option(
    "--shard",
    type=_PartType(),
    default="1/1",
    help="Do only the i-th of n parts (1/n to n/n), as one element of a job array; all parts write one output.",
)
MAX_FAILURES = click.option(
    "--max-failures",
    type=_FailuresType(),
    metavar="N|P%",
    help="So many images may fail with exit status 0; if more do, stop.  [default: continue, with exit status 1]",
)
LIMIT = click.option("--limit", type=click.IntRange(1), metavar="N", help="Use only the first N samples.")
LABELS = together(
    click.option(
        "--labels",
        type=click.Choice(["shift", "keep", "folders", "none"]),
        default="shift",
        show_default=True,
        help="shift: with several datasets, the labels of each follow those before it; keep: they stay, even if people "
        "then share a label; folders: every folder is a class; none: no labels.",
    ),
    click.option("--label", type=click.IntRange(0), metavar="N", help="Give every image this label."),
    click.option(
        "--labels-from",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Labels of the samples, in their order (.meta, .npy) or by key (a list, CSV, JSON lines).",
    ),
)
MIN_IMAGES = click.option("--min-images", type=click.IntRange(1), help="Leave out classes with fewer images.")
MAX_IMAGES = click.option("--max-images", type=click.IntRange(1), help="Use only this many images of each class.")
MAPPING = click.option(
    "--mapping",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Also write which set and class each label stands for, as TSV.",
)
RANDOM = click.option("--random", is_flag=True, help="Choose the images of each class at random, set by --seed.")
SAMPLE = click.option("--sample", type=click.IntRange(1), metavar="N", help="Use only N random samples, set by --seed.")
IDS = together(
    click.option(
        "--keep-ids",
        type=click.Path(dir_okay=False, allow_dash=True),
        metavar="FILE",
        help="Use only these people: a name of a class or folder on each line, or a label.",
    ),
    click.option(
        "--drop-ids", type=click.Path(dir_okay=False), metavar="FILE", help="Leave out these people, as --keep-ids."
    ),
    click.option(
        "--drop-keys", type=click.Path(dir_okay=False), metavar="FILE", help="Leave out the samples with these keys."
    ),
)
RELABEL = click.option(
    "--relabel", is_flag=True, help="Renumber the remaining labels from 0 without gaps, in the same order."
)
KEEP_UNDECODABLE = click.option(
    "--keep-undecodable", is_flag=True, help="Also write data that is not an image, instead of listing it as failed."
)
REBUILD_INDEX = click.option(
    "--rebuild-index",
    is_flag=True,
    help="Ignore train.idx and find the records by reading the file.",
)
LAYOUT = click.option(
    "--layout",
    type=click.Choice(["glint360k", "imagefolder", "source"]),
    help="id_<label>/, as the script of Glint360K names them; labels padded with zeros, for torchvision's "
    "ImageFolder; or the paths of the images in the source.  [default: glint360k]",
)
DATUM = click.option(
    "--datum",
    type=click.Choice(["caffe", "minimal", "raw"]),
    help="The layout of the values. caffe is read by the loaders of FFC and LFS; minimal has only the image, in "
    "field 1; raw is the image itself.  [default: caffe]",
)
KEYS = click.option(
    "--keys",
    type=click.Choice(["generated", "path", "source"]),
    help="<name>_<label>_<n>, the relative path of the image, or its key in the source.  [default: generated]",
)
KV = click.option(
    "--kv", type=click.Path(dir_okay=False), help="The key-label file to write.  [default: <output>_kv.txt]"
)
LANDMARK_COLUMN = click.option(
    "--landmark-column",
    is_flag=True,
    help="Parquet: add a column for landmarks even if the first samples have none.",
)
COLUMNS = together(
    click.option("--image-column", metavar="NAME", help="Parquet: the column of the images.  [default: found]"),
    click.option("--label-column", metavar="NAME", help="Parquet: the column of the labels.  [default: found]"),
)
SINGLE_FILE = click.option("--single-file", is_flag=True, help="Write one file, not a folder with data.mdb.")
BUILD_DIR = click.option(
    "--build-dir",
    type=click.Path(file_okay=False),
    help="Build the database in this folder on a local disk, then move it; network file systems can corrupt it.",
)
STYLE = click.option(
    "--style",
    type=click.Choice(["insightface", "plain"]),
    help="With meta and identity records, grouped by label; or only images, as im2rec writes and NVIDIA "
    "DALI reads them.  [default: insightface]",
)
LABELS_NPY = click.option(
    "--labels-npy", is_flag=True, help="Also write the labels as labels/NAME.npy, as GCN-clustering reads them."
)
LABEL_ARRAY = click.option(
    "--label-array",
    is_flag=True,
    help="Write each label as the array [label, 0], which the scripts of Glint360K and OneFlow need.",
)
LIST_SEPARATOR = click.option(
    "--list-separator",
    type=click.Choice(["space", "tab"]),
    help="Between path and label in a list; InsightFace's Paddle reader needs tab.  [default: space]",
)
LIST = click.option("--list", "list_file", is_flag=True, help="Also write train.lst, as im2rec does.")
SHUFFLE = click.option("--shuffle", is_flag=True, help="Write the samples in a random order, set by --seed.")
SEED = click.option(
    "--seed",
    type=click.IntRange(0, (1 << 32) - 1),
    default=0,
    show_default=True,
    help="Seed of --shuffle, --random and --sample.",
)
SHARD_SIZE = click.option(
    "--shard-size",
    type=SizeType(),
    metavar="SIZE",
    help="WebDataset, Parquet: about the largest size of a file, as 1GB or 64MiB.  [default: 1GB, 500MB]",
)
SHARD_SAMPLES = click.option(
    "--shard-samples", type=click.IntRange(1), metavar="N", help="WebDataset, Parquet: samples in each file."
)
FOLDS = click.option(
    "--folds",
    type=click.IntRange(1, 1000),
    default=10,
    show_default=True,
    help="Evaluation cuts the pairs into so many.",
)
CATALOGUE = click.option(
    "--catalogue",
    multiple=True,
    type=click.Path(dir_okay=False),
    help="A file with your own datasets and mirrors; may be given several times.  "
    "[also read: ~/.config/facedata/catalogue.toml]",
)
DEVICE = click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where to compute; cuda needs a GPU and libraries built for it.",
)
MODEL_TIMEOUT = click.option(
    "--model-timeout",
    type=click.FloatRange(0.0, min_open=True),
    metavar="SECONDS",
    help="Give up if the model takes longer for a batch, or an image in which faces are detected.  "
    "[default: 100 times as long as in its trial, at least 30; 300 on a GPU or for a detector]",
)
DIM = click.option(
    "--dim",
    type=click.IntRange(1, 1 << 20),
    help="Values in each row of a .bin.  [default: its size divided by the number of labels]",
)
ROOT = click.option(
    "--root", type=click.Path(file_okay=False), default=".", show_default=True, help="The folder with the files."
)
DRY_RUN = click.option("-n", "--dry-run", is_flag=True, help="Report what would be done; write nothing.")
OVERWRITE = click.option("-f", "--overwrite", is_flag=True, help="Start again, and replace the existing output.")
TRUST_INPUT = click.option(
    "--trust-input",
    is_flag=True,
    help="Resume although the times of the input have changed, since its bytes are the same (it was copied, say).",
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on stdout.")
QUIET = together(
    click.option("-q", "--quiet", is_flag=True, help="Show only warnings and errors, and no summary of a success."),
    click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=lambda context, parameter, value: context.meta.update({_VERBOSE: value}),
        help="Show more of the log, and where in the code an error arose.",
    ),
)
SALVAGE = click.option(
    "--salvage",
    is_flag=True,
    help="Read through a damaged file and use what can be read; the rest is listed as failed.",
)


def complete_dataset(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of datasets that begin so, for the completion of shells; files too if none does."""
    from click.shell_completion import CompletionItem

    from facedata.download.catalogue import load_catalogue

    try:
        names = [entry.name for entry in load_catalogue(context.params.get("catalogue") or ())]
    except FacedataError:
        names = []
    items = [CompletionItem(name) for name in names if name.startswith(incomplete)]
    return items or [CompletionItem(incomplete, type="file")]


def command_line() -> str:
    """The command that resumes the whole job: as typed, without ``--overwrite`` and ``--shard``."""
    words: list[str] = []
    for word in sys.argv[1:]:
        if words and words[-1] == "--shard":
            words.pop()
        elif "--" in words or (words and re.fullmatch(r"-[nqv]*[oj]", words[-1])):
            words.append(word)
        elif word != "--overwrite" and not word.startswith("--shard="):
            kept = re.sub(r"(?<=^-)[nqvf]+", lambda flags: flags[0].replace("f", ""), word)  # -qfj8 becomes -qj8
            words += [kept] if kept != "-" or word == "-" else []
    return shlex.join(["facedata", *words])


def report_error(message: str, status: int) -> int:
    """Report an error on stderr, and as `json_error` does; return the exit status."""
    shown = shown_message(message)
    click.echo(f"facedata: {re.sub('^error:', click.style('error:', fg='red', bold=True), shown)}", err=True)
    return json_error(message.removeprefix("error: "), status)


def json_error(message: str, status: int) -> int:
    """Report an error as one JSON object on stdout if the command line has ``--json``; return the exit status."""
    if "--json" in sys.argv:
        print_json({"error": message, "exit": status})
    return status


def print_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object on one line of stdout; a file name that is not UTF-8 is escaped."""
    text = escaped(json.dumps(value, ensure_ascii=False), json=True)
    click.echo(text.encode(errors="backslashreplace").decode())


def echo(*lines: str, err: bool = False) -> None:
    """Print lines on stdout or stderr. What a terminal would obey, in a name or a text from a file, is escaped."""
    for line in lines:
        click.echo(escaped(line), err=err)


def shown_message(message: str) -> str:
    """A message as it is printed: escaped, with all lines but the first indented, so that no name looks like one."""
    return re.sub(r"\n(?!  )", "\n  ", "\n".join(map(escaped, message.split("\n"))))


def is_known(line: str) -> bool:
    """Whether this program has the command and the options of a command line, which may be forged."""
    root = click.get_current_context().find_root()
    name, *words = shlex.split(line)[1:] or [""]
    command = root.command.get_command(root, name) if isinstance(root.command, click.Group) else None
    try:
        return command is not None and bool(command.make_parser(click.Context(command)).parse_args(words))
    except click.UsageError:
        return False


def start_logging(*, quiet: bool) -> None:
    """Send the library's log to stderr."""
    handler = _Handler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("facedata")
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.WARNING if quiet else logging.DEBUG if _is_verbose() else logging.INFO)


def _is_verbose() -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_VERBOSE))


class _Handler(logging.StreamHandler):  # type: ignore[type-arg, unused-ignore]
    """Writes to stderr, above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        if tqdm is not None and sys.stderr.isatty():
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        else:
            super().emit(record)


class _Formatter(logging.Formatter):
    """``facedata: message`` on a terminal; in log files with the time."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        message = escaped(record.getMessage())
        if sys.stderr.isatty():
            context = click.get_current_context(silent=True)
            plain = not level or (context is not None and context.color is False)
            return f"facedata: {level if plain else click.style(level, fg='yellow')}{message}"
        return f"{self.formatTime(record, '%Y-%m-%d %H:%M:%S')} facedata: {level}{message}"


def shows_errors(function: _Command) -> _Command:
    """Turn the library's errors into one line on stderr and an exit status."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except OptionError as error:
            raise click.UsageError(str(error)) from error
        except InterruptedJobError as error:
            return report_error(str(error), INTERRUPTED)
        except FacedataError as error:
            if _is_verbose():
                echo(*traceback.format_exc().splitlines(), err=True)
            message = str(error)
            if error.command and not is_known(error.command):
                message = message.replace(error.command, "the command that was used")
            return report_error(f"error: {message}", 1)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # stdout may be a broken pipe
            if isinstance(error, BrokenPipeError):
                return 1
            return report_error(f"error: {error.strerror or error}", 1)

    return wrapper  # type: ignore[return-value]


def runs_library(function: _Command) -> _Command:
    """As `shows_errors`, for a command that prints a summary: with ``--quiet`` it is shown only after a failure."""

    @functools.wraps(function)
    def wrapper(*arguments: Any, **options: Any) -> Any:
        if not options.get("quiet") or options.get("as_json"):
            return function(*arguments, **options)
        summary = io.BytesIO()  # a command may print bytes
        with redirect_stdout(io.TextIOWrapper(summary, "utf-8", "surrogateescape", write_through=True)) as stream:
            status = function(*arguments, **options)
            stream.flush()
        if status:
            click.echo(summary.getvalue(), nl=False)
        return status

    return shows_errors(wrapper)  # type: ignore[return-value]
