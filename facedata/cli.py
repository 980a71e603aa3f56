"""The entry point: maps command names to modules that are imported only when called, so that ``--help`` is fast."""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys

import click

from facedata import __version__
from facedata.commands import INTERRUPTED
from facedata.jobs.signals import interrupt

SECTIONS = {
    "Get a dataset": {
        "datasets": "List the known datasets, show one, or add your own.",
        "download": "Fetch a dataset by its name: checked, unpacked, in its final layout.",
        "verify-md5": "Check files against published checksums, or make a list of checksums.",
        "extract": "Unpack .tar, .tar.gz and .zip archives, whole or in parts.",
        "make-sample": "Draw a small dataset of invented faces, for trying things out.",
    },
    "Convert it": {
        "convert": "Convert a dataset from any format to any other.",
        "unpack-rec": "Unpack MXNet record sets into folders of images.",
        "pack-rec": "Pack images into a record set, as InsightFace, MXNet and DALI read it.",
        "build-lmdb": "Build an LMDB and its key-label file, as FFC and LFS read them.",
        "index-rec": "Write the missing train.idx of a record file.",
        "purge": "Write a dataset without some people, and prove it.",
    },
    "Make lists": {
        "make-list": "Write a list of the images of a dataset, with labels.",
        "split-classes": "Split a dataset by classes, as UDML-SS reads it.",
        "find-overlap": "Find people who are in two sets, or twice in one.",
        "make-pairs": "Write evaluation pairs: of a published list, or drawn from a dataset.",
        "pack-pairs": "Pack evaluation pairs into a verification set of InsightFace, a .bin.",
        "unpack-pairs": "Unpack a verification set of InsightFace into images and a list of pairs.",
    },
    "Align faces": {
        "align": "Cut out faces and align them to a template, from any dataset to any.",
    },
    "Compute features": {
        "extract-features": "Embed the images of a dataset with an ONNX model: .bin, .meta and keys.",
        "pack-features": "Write arrays of features as a set for clustering, or a set as an array.",
        "build-knn": "Find the nearest neighbours of each row of a feature set.",
        "check-features": "Check feature sets: sizes, labels, values, neighbours, and their quality.",
    },
    "Look at it": {
        "preview": "Draw a contact sheet of any dataset.",
    },
    "Follow jobs": {
        "status": "Show what of a job is done, missing and failed.",
    },
}
"""The commands by what people do, with their short help; the module is ``facedata.commands.<name>``, with _ for -."""

COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}


class _LazyGroup(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"facedata.commands.{name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        typed = arguments[0]
        if typed not in COMMANDS and not typed.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(typed.replace("_", "-"), COMMANDS) or [name for name in COMMANDS if typed in name]
            context.fail(f"No such command '{typed}'." + (f" Did you mean {' or '.join(close[:3])}?" if close else ""))
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        from facedata.commands.help_page import write_sections

        write_sections(formatter, {title: list(commands.items()) for title, commands in SECTIONS.items()})


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="facedata")
def facedata() -> None:
    """Face-recognition datasets, from a link in a README to what training code opens.

    Results go to stdout, progress and logs to stderr. Exit status: 0 success, 1 the data or the work failed, 2 wrong
    usage, 75 interrupted: run the same command again to resume.

    \b
    Example:
      facedata unpack-rec glint360k -o out/
    """


def main() -> None:
    """Run the command line. SIGTERM and SIGINT end it with status 75, inside or outside of a job."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, interrupt)
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # show a file name that is not UTF-8 unchanged
    try:
        colour = False if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" else None  # None: on terminals
        status = facedata(prog_name="facedata", standalone_mode=False, color=colour)
    except (click.exceptions.Abort, KeyboardInterrupt):
        from facedata.commands.options import report_error

        sys.exit(report_error("interrupted; run the same command again", INTERRUPTED))
    except click.ClickException as error:
        from facedata.commands.options import echo, json_error

        error.show(shown := io.StringIO())
        echo(*shown.getvalue().rstrip("\n").split("\n"), err=True)
        sys.exit(json_error(error.format_message(), error.exit_code))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the work is done: a signal must not change the status now
    sys.exit(status if isinstance(status, int) else 0)


def _open_closed_streams() -> None:
    """Open stdout and stderr if the shell closed them (``>&-``): the next opened file would get their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
