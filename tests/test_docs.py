"""Documentation that cannot drift: every command has help, an example that parses, and its places in the docs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import pytest
from support import Ran

from facedata.cli import COMMANDS, facedata

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
HOSTS = re.compile(r"(pypi|pythonhosted|anaconda|npmjs|rubygems|proxy\.golang)\.org|(anaconda|npmjs)\.com|crates\.io")
NOT_OURS = re.compile(r"\.(git|venv.*|hypothesis|.*_cache)|__pycache__|build|dist|demo|.*\.egg-info")
TEXT = {"", ".cfg", ".ini", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}


def prose(page: Path) -> str:
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def own_text_files() -> Iterator[Path]:
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if not NOT_OURS.fullmatch(name)]
        for name in names:
            path = Path(folder, name)
            if path.suffix in TEXT and not path.is_symlink() and path.stat().st_size < 1 << 20:
                yield path


def test_the_commands_are_those_of_the_modules_and_of_the_readme() -> None:
    files = (ROOT / "facedata" / "commands").glob("*.py")
    modules = {path.stem for path in files if "@click.command(" in path.read_text(encoding="utf-8")}
    assert modules == {name.replace("-", "_") for name in COMMANDS}
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(COMMANDS)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_and_the_same_short_line_everywhere(name: str) -> None:
    command = facedata.get_command(click.Context(facedata, info_name="facedata"), name)
    assert command is not None
    assert command.name == name
    assert command.help
    assert command.short_help == COMMANDS[name]
    assert not [one.name for one in command.params if isinstance(one, click.Option) and not one.help]
    page = click.unstyle(command.get_help(click.Context(command, info_name=f"facedata {name}", terminal_width=80)))
    assert not [line for line in page.splitlines() if len(line) > 80]
    assert f"\n## {name}\n\n{COMMANDS[name]}\n" in (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    assert f"\n| `{name}` | {COMMANDS[name]} |\n" in (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, section = command.help.partition("Example")  # at the end of the help text
    lines = [line.strip() for line in section.splitlines()[1:] if line.strip()]
    assert lines, f"{name}: its help does not end in an Example section"
    for line in lines:
        program, called, *arguments = shlex.split(line)
        assert (program, called) == ("facedata", name)
        with command.make_context(name, arguments):
            pass


def test_the_reference_of_the_commands_is_up_to_date() -> None:
    script = DOCS / "generate_reference.py"
    run = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_have_one_title_nothing_unfinished_and_links_that_lead_somewhere(page: Path) -> None:
    text = prose(page)
    assert len(re.findall(r"^# ", text, flags=re.MULTILINE)) == 1
    assert not re.search(r"\b(TODO|FIXME|XXX|TBD)\b", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name}: {target}: no such file"
        assert not anchor or anchor in anchors(file), f"{page.name}: {target}: no such heading"


def test_every_page_is_on_the_map() -> None:
    index = DOCS / "index.md"
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#\s]+)", prose(index))}
    missing = [str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page != index and page not in linked]
    assert not missing


def run_examples(page: str, folder: Path, before: str = "") -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 2
    script = folder / "examples.py"
    script.write_text("\n".join([before, *blocks]), encoding="utf-8")
    run = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr


def test_the_examples_of_the_python_page_run(tmp_path: Path) -> None:
    run_examples("reference/python-api.md", tmp_path)


def test_the_examples_of_the_pytorch_page_run(tmp_path: Path, inline_facedata: Callable[..., Ran]) -> None:
    assert inline_facedata("make-sample", "small", "--identities", "4", "--images", "5").status == 0
    stand_in = "" if find_spec("torch") else f"import sys\nsys.path.append({str(ROOT / 'tests')!r})\n"
    install = "import torch_protocol\ntorch_protocol.install()\n" if stand_in else ""
    run_examples("how-to/train-with-pytorch.md", tmp_path, stand_in + install)


def test_no_file_names_the_host_of_a_package_registry() -> None:
    """Where packages come from is the business of the machine on which they are installed."""
    named = {str(path.relative_to(ROOT)) for path in own_text_files() if HOSTS.search(path.read_text(errors="replace"))}
    assert not named
