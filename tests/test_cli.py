from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
from support import FACEDATA, Ran, RecordSetMaker

from facedata import cli
from facedata.commands.help_page import SECTIONS

HEAVY = {"numpy", "cv2", "mxnet", "tqdm", "multiprocessing"}


def loaded(program: str) -> list[str]:
    """The modules that a program has loaded when it ends."""
    check = f"import sys\n{program}\nprint(*sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    return ran.stderr.split()


def test_importing_facedata_and_the_help_of_the_commands_load_nothing_heavy() -> None:
    program = (
        "import facedata\n"
        "from facedata.cli import COMMANDS, facedata\n"
        "for arguments in [[], *([name] for name in COMMANDS)]:\n"
        "    facedata([*arguments, '--help'], standalone_mode=False)"
    )
    assert not HEAVY & {*loaded(program)}


def test_a_conversion_loads_what_it_needs_alone(record_set: Callable[[str], RecordSetMaker], tmp_path: Path) -> None:
    folder = record_set("set").plain([0, 1])
    line = f"convert rec:{folder} lmdb:{tmp_path}/out.lmdb --keep-undecodable --workers 1 --quiet"
    modules = loaded(f"from facedata.cli import facedata; facedata({line.split()}, standalone_mode=False)")
    own = {name for name in modules if name.startswith("facedata")}
    assert not own & {"facedata.converters.folder", "facedata.converters.webdataset", "facedata.converters.parquet"}
    assert len(own) <= 32, sorted(own)


def test_the_version_and_wrong_usage(facedata: Callable[..., Ran], inline_facedata: Callable[..., Ran]) -> None:
    assert facedata("--version").stdout.startswith("facedata, version 0.")
    ran = inline_facedata("unpack")
    assert ran.status == 2
    assert "Did you mean unpack-rec or unpack-pairs?" in ran.stderr
    assert "Did you mean build-knn?" in inline_facedata("knn").stderr
    assert "nowhere: no such folder" in inline_facedata("status", "nowhere").stderr
    ran = inline_facedata("status", ".")
    assert ran.status == 1
    assert "is not the output of a facedata job" in ran.stderr


def test_every_option_in_a_section_of_the_help_exists() -> None:
    context = click.Context(cli.facedata)
    commands = [command for name in cli.COMMANDS if (command := cli.facedata.get_command(context, name)) is not None]
    known = {name for command in commands for option in command.params for name in option.opts}
    assert not {f"--{name}" for names in SECTIONS.values() for name in names.split()} - known


def test_a_terminal_gets_colours_and_lines_that_fit_and_no_one_else_does(facedata: Callable[..., Ran]) -> None:
    screen, terminal = pty.openpty()
    for command, environment, escapes in (
        ("datasets", {}, False),
        ("--help", {}, True),
        ("-h", {"NO_COLOR": "1"}, False),
    ):
        line = [*FACEDATA, command]
        changed = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "", **environment}
        subprocess.run(line, stdout=terminal, stderr=subprocess.DEVNULL, env=changed, check=True)
        shown = os.read(screen, 1 << 16).decode()
        assert ("\x1b" in shown) == escapes, command
        assert max(map(len, click.unstyle(shown).splitlines())) <= 80
    assert "\x1b" not in facedata("--help").stdout
    os.close(screen)
    os.close(terminal)
