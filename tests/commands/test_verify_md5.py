from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import FACEDATA, Ran, Running, bytes_read, wait_until_idle, write_tree

Facedata = Callable[..., Ran]


@pytest.fixture
def verify(inline_facedata: Facedata) -> Facedata:
    return partial(inline_facedata, "verify-md5")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three files that have been there for a while, and the list that md5sum makes of them."""
    folder = write_tree(tmp_path / "data", {name: name for name in ("a", "sub/b", "sub/c d")})
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    with open(tmp_path / "MD5SUMS", "wb") as file:
        subprocess.run(["md5sum", "a", "sub/b", "sub/c d"], cwd=folder, stdout=file, check=True)
    return folder


@pytest.fixture
def check(verify: Facedata, data: Path) -> Facedata:
    return partial(verify, "--manifest", "MD5SUMS", "--root", "data")


def test_all_that_is_wrong_is_reported(data: Path, check: Facedata) -> None:
    theirs = subprocess.run(["md5sum", "-c", "../MD5SUMS"], cwd=data, capture_output=True, text=True, check=True)
    ran = check()
    assert (ran.status, ran.stdout) == (0, theirs.stdout)
    assert "3 files: 3 OK (" in ran.stderr
    with open("MD5SUMS", "a") as file:
        file.write("garbled\n")
    ran = check()
    assert (ran.status, ran.stdout) == (1, theirs.stdout)
    assert "MD5SUMS: line 4: 'garbled' is neither" in ran.stderr
    assert "MD5SUMS: 1 line cannot be parsed" in ran.stderr
    (data / "sub" / "b").unlink()
    (data / "sub" / "c d").rename(data / "c d")
    write_tree(data, {"a": "other", "new\nfile": ""})
    ran = check()
    assert ran.status == 1
    assert ran.stdout.splitlines() == [
        f"a: FAILED (expected md5 {hashlib.md5(b'a').hexdigest()}, found {hashlib.md5(b'other').hexdigest()})",
        "sub/b: MISSING",
        "sub/c d: OK (found at c d)",
        "\\new\\nfile: EXTRA",
    ]
    assert "4 files: 1 OK, 1 FAILED, 1 MISSING, 1 EXTRA" in ran.stderr
    assert "fetch it again" in ran.stderr
    assert "--root the right folder?" in ran.stderr


def test_options_decide_what_counts_and_what_is_shown(data: Path, check: Facedata) -> None:
    assert check("--quiet", "--only-wrong") == Ran(0, "", "")
    (data / "more").write_text("")
    assert (check().status, check("--strict").status, check("--strict", "--no-extra").status) == (0, 1, 0)
    (data / "a").unlink()
    assert check("--only-wrong", "--no-extra").stdout == "a: MISSING\n"
    ran = check("--json", "--no-extra")
    summary = json.loads(ran.stdout)
    assert ran.status == 1
    assert summary["verdicts"] == {"OK": 2, "FAILED": 0, "MISSING": 1, "EXTRA": 0}
    assert [result["path"] for result in summary["not_plainly_ok"]] == ["a"]


def test_a_list_can_come_from_stdin_and_lies_by_default_beside_the_files(data: Path, verify: Facedata) -> None:
    listed = Path("MD5SUMS").read_bytes() + b"0" * 32 + b"  nope\n"
    command = [*FACEDATA, "verify-md5", "--manifest", "-"]
    done = subprocess.run(command, input=listed, cwd=data, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"a: OK\nsub/b: OK\nsub/c d: OK\nnope: MISSING\n")
    Path("MD5SUMS").rename(data / "MD5SUMS")
    ran = verify("--manifest", "data/MD5SUMS", "--strict")
    assert (ran.status, ran.stdout) == (0, "a: OK\nsub/b: OK\nsub/c d: OK\n")


def test_a_folder_and_a_list_by_their_names_alone(data: Path, verify: Facedata) -> None:
    said = verify("data").stderr
    assert "data: has no list of checksums in it, as MD5SUMS, and no known dataset was downloaded to it" in said
    assert "nowhere/x: no such file" in verify("nowhere/x").stderr
    Path("MD5SUMS").rename(data / "MD5SUMS")
    Path("lfw").symlink_to("data")  # the name of a dataset too
    for words in (["data"], ["./lfw"], ["data/MD5SUMS"], ["data/MD5SUMS", "--root", "lfw"], ["data", "data"]):
        ran = verify(*words, "--strict")
        assert (ran.status, ran.stdout) == (0, "a: OK\nsub/b: OK\nsub/c d: OK\n" * (2 if "data" in words[1:] else 1))
    write_tree(data, {"sub.sha256": f"{hashlib.sha256(b'sub/b').hexdigest()}  sub/b\n", "more": ""})
    assert verify("data").stdout.endswith("sub/c d: OK\nsub/b: OK\n")
    (data / "a").write_text("b")
    assert verify("data", "--quiet").stdout.startswith("a: FAILED (")


def test_a_check_as_md5sum_makes_it(data: Path, verify: Facedata, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data)
    for words in (["-c", "../MD5SUMS"], ["-c", "../MD5SUMS", "../MD5SUMS"], ["--quiet", "-c", "../MD5SUMS"]):
        theirs = subprocess.run(["md5sum", *words], capture_output=True, text=True, check=True)
        ran = verify(*words)
        assert (ran.status, ran.stdout, "warning" in ran.stderr) == (0, theirs.stdout, False)
    with open("../MD5SUMS") as file:
        done = subprocess.run([*FACEDATA, "verify-md5", "-c"], stdin=file, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"a: OK\nsub/b: OK\nsub/c d: OK\n")


def test_a_list_that_was_made_has_all_plain_files_in_order_but_itself(data: Path, verify: Facedata) -> None:
    write_tree(data, dict.fromkeys([".hidden", "a-b", "a\\b\nc", "sub-x", "ä"], ""))
    write_tree(data, dict.fromkeys(["a.part", ".facedata-note", ".facedata/x"], "left out"))
    for name, target in {"link": "a", "loop": ".", "lost": "nowhere", "circle": "circle"}.items():
        (data / name).symlink_to(target)
    command = [*FACEDATA, "verify-md5", "--create", "data", "--algorithm", "sha256"]
    with open(data / "LIST", "wb") as file:
        ran = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, text=True, check=False)
    assert ran.returncode == 1
    assert sorted(re.findall(r"data/(.*): left out", ran.stderr)) == ["circle", "loop", "lost"]
    names = [".hidden", "a", "a-b", "a\\b\nc", "link", "sub-x", "sub/b", "sub/c d", "ä"]
    theirs = subprocess.run(["sha256sum", *names], cwd=data, capture_output=True, check=True)
    assert (data / "LIST").read_bytes() == theirs.stdout
    assert verify("--manifest", "data/LIST", "--strict").status == 0


def test_what_cannot_be_listed_is_named(data: Path, verify: Facedata) -> None:
    os.mkfifo(data / "pipe")
    assert "is a named pipe, not a file" in verify("--manifest", "data/pipe").stderr
    ran = verify("--create", "data", "--quiet")
    assert ran.status == 0
    assert "data/pipe: left out: it is a named pipe" in ran.stderr
    (data / "lost").symlink_to("nowhere")
    ran = verify("--create", "data")
    assert (ran.status, ran.stdout.count("\n")) == (1, 3)
    assert "data/lost: left out: it is a link that leads to no file" in ran.stderr
    assert verify("--create", "data/a").stdout == f"{hashlib.md5(b'a').hexdigest()}  a\n"
    for way in ("--manifest", "--create"):
        assert "nowhere: no such file" in verify(way, "nowhere").stderr
    (data / "empty").mkdir()
    ran = verify("--create", "data/empty")
    assert (ran.status, ran.stdout) == (1, "")
    assert "empty: has no files in it" in ran.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give the NAME of a dataset, a FOLDER, a LIST of checksums, or --create FOLDER"),
        (["glint360k", "--manifest", "M"], "NAME and --manifest were given; give one of"),
        (["--create", ".", "--manifest", "M"], "--manifest and --create were given"),
        (["--create", ".", "--root", "."], "--root does not apply to --create"),
        (["--create", ".", "--json"], "--json does not apply to --create"),
        (["glint360k", "--algorithm", "md5"], "--algorithm does not apply to NAME"),
        (["no-such-set"], "there is no dataset named 'no-such-set'"),
        (["-c", "--create", "."], "NAME and --create were given"),
        (["./", "--root", "."], "--root does not apply to a folder"),
    ],
)
def test_contradictions_are_wrong_usage(arguments: list[str], sentence: str, verify: Facedata) -> None:
    ran = verify(*arguments)
    assert ran.status == 2
    assert sentence in " ".join(ran.stderr.split())


def test_an_interrupted_call_resumes(verify: Facedata) -> None:
    lines = [f"{hashlib.md5(b'x').hexdigest()}  {name}\n" for name in ("small", "large")]
    write_tree(Path(), {"LIST": "".join(lines), "ONE": lines[0]})
    with open("large", "wb") as file:
        file.truncate(1 << 40)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        Path("small").write_text("x")
        os.utime("small", (1e9, 1e9))  # it has changed: read again
        running = Running(Path(), "verify-md5", "--manifest", "LIST")
        while bytes_read(running.process.pid) < 100_000_000:
            time.sleep(0.02)
        if number == signal.SIGKILL:
            time.sleep(2.5)  # what was read is written down every two seconds
        running.process.send_signal(number)
        said = running.end()
        if number != signal.SIGKILL:
            assert "1 file checked; run the same command again to resume" in said
            assert running.process.returncode == 75
        ran = verify("--manifest", "ONE")
        assert "1 unchanged since they were read before, --no-cache reads them again" in ran.stderr
        assert "corrupt" not in ran.stderr


def test_waiting_for_a_list_on_stdin_can_be_interrupted() -> None:
    command = [*FACEDATA, "verify-md5", "--manifest", "-"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    wait_until_idle(process.pid)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, b"Traceback" in errors) == (75, False)


def test_a_stdout_that_is_closed_now_or_soon_is_no_crash(data: Path, tmp_path: Path) -> None:
    ways = {"--create data | true": 1, "--create data >&-": 0, "--json --manifest MD5SUMS --root data >&-": 0}
    for way, status in ways.items():
        words = ["bash", "-c", f'set -o pipefail; "$@" verify-md5 {way}', "bash", *FACEDATA]
        ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (ran.returncode, "Traceback" in ran.stderr, "ignored" in ran.stderr) == (status, False, False), ran


def test_nothing_heavy_is_loaded_to_check_a_list(data: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['facedata', 'verify-md5', '--manifest', 'MD5SUMS', '--root', 'data', '--no-cache']\n"
        "from facedata.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(*{'numpy', 'requests', 'sqlite3', 'cv2', 'tqdm'}.intersection(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""
