"""Disturb each facedata command at each call that changes a file, run it again, and compare with an undisturbed run.

    python tests/faults/sweep.py                      everything, which takes minutes
    python tests/faults/sweep.py align --stride 10    one command, at every tenth call
    python tests/faults/sweep.py align --at 17 --kinds kill-after --show

A case is broken if a disturbed run leaves something that reads as finished and is not, or if the same command then does
not end in the bytes of the undisturbed run, or leaves a temporary file. Commands are forked from this process, which
has imported them already, and which `faults.c` is loaded into. Shards are small, so that each job has several.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import hashlib
import importlib
import json
import os
import pkgutil
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
KINDS = {  # what happens, and how much room a call must take to be disturbed: see faults.c
    "kill-before": (1, 0, 0),
    "kill-after": (2, 0, 0),
    "kill-one": (3, 0, 0),
    "eio": (4, errno.EIO, 0),
    "eio-on": (5, errno.EIO, 0),
    "full": (4, errno.ENOSPC, 1),
    "full-on": (5, errno.ENOSPC, 1),
    "short": (6, 0, 2),
}
CONTROL = struct.Struct("4i4096s2i")
LOG = 1 << 20
SECONDS = 60


class Case(NamedTuple):
    """A command, run in an empty folder, where IN is the folder of the inputs.

    `reader` is a command that must refuse what an interrupted run leaves; without one, each file that is there must be
    whole. `before` are commands that are run first.
    """

    command: str
    reader: str | None = None
    before: Sequence[str] = ()


DATASET = "convert out null:NEW/null"
FEATURES = "check-features out --name a --sample 0"
CASES = {
    "make-sample": Case("make-sample out --identities 3 --images 6 --size 24 --preview sheet.png", DATASET),
    "unpack-rec": Case("unpack-rec IN/sample -o out --layout imagefolder --list out.txt", DATASET),
    "unpack-rec-glint": Case("unpack-rec IN/sample -o out", DATASET),
    "to-folder": Case("convert IN/folder folder:out --layout source", DATASET),
    "to-webdataset": Case("convert IN/sample webdataset:out/%06d.tar --shard-samples 8", DATASET),
    "to-parquet": Case("convert IN/folder parquet:out --shard-samples 8", DATASET),
    "to-lmdb": Case("convert IN/sample lmdb:out.lmdb --single-file", "convert out.lmdb null:NEW/null"),
    "to-list": Case("convert IN/sample list:out.txt@out", DATASET),
    "pack-rec": Case("pack-rec IN/folder -o out --list", DATASET),
    "pack-rec-shuffled": Case("pack-rec IN/folder -o out --style plain --shuffle", DATASET),
    "build-lmdb": Case("build-lmdb IN/folder -o out.lmdb", "convert out.lmdb null:NEW/null"),
    "build-lmdb-elsewhere": Case(
        "build-lmdb IN/folder -o out.lmdb --build-dir build", "convert out.lmdb null:NEW/null", ["mkdir build"]
    ),
    "index-rec": Case("index-rec out", None, ["copy IN/sample out", "remove out/train.idx"]),
    "extract-tar": Case("extract IN/folder.tar.gz -o out", "convert out/set null:NEW/null"),
    "extract-zip": Case("extract IN/folder.zip -o out", DATASET),
    "download": Case(
        "download x --catalogue IN/c.toml --root out --timeout 2 --accept-terms", "convert out/set null:NEW/null"
    ),
    "verify-md5": Case("verify-md5 --manifest IN/MD5SUMS --root IN/folder"),
    "verify-md5-create": Case("verify-md5 --create IN/folder > out.md5", "false"),
    "align": Case(
        "align IN/sample --landmarks IN/landmarks.jsonl -o out --preview sheet.jpg --write-landmarks found.csv", DATASET
    ),
    "align-to-rec": Case("align IN/sample --landmarks IN/landmarks.jsonl -o rec:out", DATASET),
    "extract-features": Case(
        "extract-features IN/folder --model IN/net.onnx -o out --name a --resize --labels-npy", FEATURES
    ),
    "pack-features": Case("pack-features IN/x.npy --labels IN/x.txt -o out --name a --labels-npy", FEATURES),
    "pack-features-npy": Case("pack-features IN/data/features/a.bin --dim 8 -o out.npy"),
    "build-knn": Case("build-knn IN/data --name a --k 5 -o out.npz"),
    "build-knn-npy": Case("build-knn IN/data --name a --k 5 --format npy -o out.npy"),
    "make-list": Case("make-list IN/folder -o out.txt --mapping out.map"),
    "make-pairs": Case("make-pairs IN/folder --count 20 --folds 2 -o out.txt"),
    "pack-pairs": Case("pack-pairs IN/pairs.txt --root IN/folder -o out.bin"),
    "unpack-pairs": Case("unpack-pairs IN/pairs.bin -o out", DATASET),
    "datasets-add": Case("datasets own --add IN/folder --url http://localhost/ --catalogue own.toml"),
    "preview": Case("preview IN/sample -o out.png"),
    "check-features": Case("check-features IN/data --name a --plot out.png"),
    "overwrite-folder": Case(
        "unpack-rec IN/sample -o out --overwrite", DATASET, ["unpack-rec IN/sample -o out --limit 9"]
    ),
    "overwrite-rec": Case("pack-rec IN/folder -o out --overwrite", DATASET, ["pack-rec IN/folder -o out --limit 9"]),
    "overwrite-parquet": Case(
        "convert IN/folder parquet:out --shard-samples 8 --overwrite",
        DATASET,
        ["convert IN/folder parquet:out --shard-samples 5"],
    ),
    "overwrite-lmdb": Case(
        "build-lmdb IN/folder -o out.lmdb --overwrite",
        "convert out.lmdb null:NEW/null",
        ["build-lmdb IN/folder -o out.lmdb --limit 9"],
    ),
    "overwrite-features": Case(
        "extract-features IN/folder --model IN/net.onnx -o out --name a --resize --overwrite",
        FEATURES,
        ["extract-features IN/folder --model IN/net.onnx -o out --name a --resize --limit 9"],
    ),
    "overwrite-sample": Case(
        "make-sample out --identities 3 --images 6 --size 24 --overwrite",
        DATASET,
        ["make-sample out --identities 2 --images 5 --size 24"],
    ),
    "self-check": Case("verify-md5 --create IN/folder > out.md5"),  # what the shell writes is not whole at once
}


class Ended(NamedTuple):
    """How a command ended: minus the number of a signal, or its exit status; and what it printed."""

    status: int
    text: str


class Laboratory:
    """The folder of the inputs and of all runs, and the way to run a command in it."""

    def __init__(self, root: Path) -> None:
        self.root, self.inputs = root, root / "inputs"
        self.inputs.mkdir()

    def run(self, command: str, folder: Path, arm: tuple[str, int] | None = None) -> Ended:
        """Run a command in a folder, disturbed as `arm` says: the kind and the number of the call."""
        new = self.root / f"new-{folder.name}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        words = command.replace("IN/", f"{self.inputs}/").replace("NEW/", f"{new}/").split()
        words, printed = (words[: words.index(">")], folder / words[-1]) if ">" in words else (words, new / "stdout")
        if words[0] in ("mkdir", "copy", "remove", "false"):
            return _by_hand(words, folder)
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            try:
                self._exec(words, folder, printed, new / "stderr", arm)
            finally:
                os._exit(70)
        deadline, status = time.monotonic() + SECONDS, None
        while status is None:
            pid, ended = os.waitpid(child, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(ended)
            elif time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                deadline = float("inf")
                (new / "stderr").open("a").write("HANGS\n")
            else:
                time.sleep(0.002)
        with contextlib.suppress(OSError):  # what a killed parent left
            os.killpg(child, signal.SIGKILL)
        text = "".join(path.read_text(errors="replace") for path in (printed, new / "stderr") if path.exists())
        return Ended(status, text)

    def _exec(self, words: list[str], folder: Path, out: Path, err: Path, arm: tuple[str, int] | None) -> None:
        os.setsid()
        os.chdir(folder)
        os.environ.update(XDG_CACHE_HOME=str(folder / "cache"), XDG_CONFIG_HOME=str(self.inputs), COLUMNS="80")
        control = self.control(folder)
        if arm is not None:
            kind, error, _ = KINDS.get(arm[0], (0, 0, 0))
            prefix = os.fsencode(f"{folder}/")
            with open(control, "wb") as file:
                file.write(CONTROL.pack(kind, arm[1], error, len(prefix), prefix, 0, 0))
                file.truncate(CONTROL.size + LOG)
            os.environ["FAULTS"] = str(control)
            ctypes.CDLL(None).faults_use(os.fsencode(control))
        for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
            opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(opened, descriptor)
            os.close(opened)
        from facedata.cli import main

        sys.argv = ["facedata", *words]
        status: Any = 1
        try:
            main()
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))

    def control(self, folder: Path) -> Path:
        return self.root / f"control-{folder.name}"

    def prepare(self, case: Case, name: str) -> Path:
        """A new folder in which the command of a case can be run."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for command in case.before:
            ended = self.run(command, folder)
            assert ended.status == 0, (command, ended)
        return folder

    def calls(self, folder: Path) -> list[tuple[str, int, str]]:
        """The calls that the last disturbed run in a folder made: what, how much room it takes, and the path."""
        data = self.control(folder).read_bytes()
        text = data[CONTROL.size :].rstrip(b"\0").decode(errors="replace")
        fields = [line.split(" ", 2) for line in text.splitlines()]
        return [(op, int(room), path) for op, room, path in fields]


def _by_hand(words: Sequence[str], folder: Path) -> Ended:
    match words:
        case ["mkdir", name]:
            (folder / name).mkdir()
        case ["copy", source, target]:
            shutil.copytree(source, folder / target)
        case ["remove", name]:
            (folder / name).unlink()
        case _:
            return Ended(1, "")
    return Ended(0, "")


def snapshot(folder: Path) -> dict[str, str]:
    """Everything in a folder by relative path; of files with times in them, only that they are there."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if name.split("/")[0] == "cache":
            continue
        is_plain = path.is_file() and not path.name.startswith(".facedata-") and path.name != "provenance.json"
        found[name] = hashlib.md5(path.read_bytes()).hexdigest() if is_plain else ""
    return found


def is_visible(name: str) -> bool:
    return not any(part.startswith(".facedata-") or part.endswith(".facedata") for part in name.split("/"))


class Reference(NamedTuple):
    """An undisturbed run: what was there before and after it, the calls, and the status of a second run."""

    before: dict[str, str]
    after: dict[str, str]
    calls: list[tuple[str, int, str]]
    again: int


def reference(laboratory: Laboratory, case: Case, name: str) -> Reference | str:
    """Run a command undisturbed; returns a text if it does not do what an undisturbed command should."""
    folder = laboratory.prepare(case, name)
    before = snapshot(folder)
    ended = laboratory.run(case.command, folder, ("count", 0))
    after, calls = snapshot(folder), laboratory.calls(folder)
    if ended.status:
        return f"undisturbed: {ended.text}"
    if case.reader not in (None, "false"):
        read = laboratory.run(str(case.reader), folder)
        if read.status:
            return f"undisturbed: {case.reader}: {read.text}"
    again = laboratory.run(case.command, folder)
    if not again.status and snapshot(folder) != after:
        return f"a second run changes the output: {_difference(after, snapshot(folder))}"
    return Reference(before, after, calls, again.status)


def disturbed(laboratory: Laboratory, case: Case, right: Reference, kind: str, at: int, name: str) -> tuple[str, str]:
    """What is wrong after a run that was disturbed at a call; and all that was printed."""
    folder = laboratory.prepare(case, name)
    first = laboratory.run(case.command, folder, (kind, at))
    left = snapshot(folder)
    visible, wanted, old = ({n: d for n, d in s.items() if is_visible(n)} for s in (left, right.after, right.before))
    is_complete = visible == wanted
    said = [f"$ {case.command}\n{first.text}[{first.status}]"]
    if "Traceback" in first.text or "HANGS" in first.text:
        return "traceback or hang", said[0]
    if first.status == 0 and not is_complete:
        return f"exit status 0, but {_difference(wanted, visible)}", said[0]
    if case.reader is None and (wrong := [n for n, d in visible.items() if d not in (wanted.get(n, d), old.get(n))]):
        return f"{wrong[0]} is there, but is not whole", said[0]
    needed = [name for name in wanted if not name.startswith("sheet.")]  # that is drawn of the finished dataset
    is_readable = all(visible.get(name) == wanted[name] for name in needed)
    if case.reader is not None and not is_readable and visible != old:
        read = laboratory.run(case.reader, folder)
        said.append(f"$ {case.reader}\n{read.text}[{read.status}]")
        if read.status == 0:
            return f"reads as finished, but {_difference(wanted, visible)}", "\n".join(said)
    again = laboratory.run(case.command, folder)
    said.append(f"$ {case.command}\n{again.text}[{again.status}]")
    found, wrong_again = snapshot(folder), ""
    if "Traceback" in again.text or "HANGS" in again.text:
        wrong_again = "traceback or hang"
    elif again.status and not (is_complete and again.status == right.again):
        wrong_again = f"status {again.status}: {again.text.strip().splitlines()[-1:]}"
    elif found != right.after and not (again.status and is_complete):
        wrong_again = _difference(right.after, found)
    return (f"run again: {wrong_again}" if wrong_again else ""), "\n".join(said)


def _difference(wanted: dict[str, str], found: dict[str, str]) -> str:
    missing, more = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = [name for name in sorted(wanted.keys() & found.keys()) if wanted[name] != found[name]]
    lists = {"missing": missing, "left over": more, "other bytes": other}
    return "; ".join(f"{what}: {', '.join(names[:3])}" for what, names in lists.items() if names)


def make_inputs(laboratory: Laboratory) -> None:
    """Draw a record set, and make of it whatever the commands take."""
    import numpy as np
    from features.extraction.conftest import embedding_net
    from http_server import Server

    folder = laboratory.inputs

    def made(command: str) -> None:
        ended = laboratory.run(command, folder)
        assert ended.status == 0, ended

    made("make-sample sample --identities 4 --images 5 --size 24")
    (folder / "sample/landmarks.jsonl").rename(folder / "landmarks.jsonl")
    made("unpack-rec sample -o images --layout imagefolder")
    shutil.copytree(folder / "images", folder / "folder", ignore=shutil.ignore_patterns(".facedata-*"))
    made("verify-md5 --create folder > MD5SUMS")
    made("make-pairs folder --count 20 --folds 2 -o pairs.txt")
    made("pack-pairs pairs.txt --root folder -o pairs.bin")
    embedding_net(folder / "net.onnx")
    random = np.random.default_rng(0)
    np.save(folder / "x.npy", random.normal(size=(60, 8)))
    (folder / "x.txt").write_text("".join(f"{number // 6}\n" for number in range(60)))
    made("pack-features x.npy --labels x.txt -o data --name a")
    with tarfile.open(folder / "folder.tar.gz", "w:gz") as archive:
        archive.add(folder / "folder", "set")
    shutil.make_archive(str(folder / "folder"), "zip", folder / "folder")
    reading, writing = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        server = Server().__enter__()
        server.add("/folder.tar.gz", (folder / "folder.tar.gz").read_bytes())
        os.write(writing, server.url("/folder.tar.gz").encode())
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)
    url = os.read(reading, 1000).decode()
    digest = hashlib.md5((folder / "folder.tar.gz").read_bytes()).hexdigest()
    (folder / "c.toml").write_text(
        'schema = 1\n[sets.x]\ntitle = "x"\nlayout = "folder"\nfolder = "set"\nstatus = ["free"]\n'
        '[[sets.x.sources]]\nkind = "http"\n'
        f'url = "{url}"\n[[sets.x.downloads]]\nname = "folder.tar.gz"\nmd5 = "{digest}"\n'
    )


def load_commands() -> None:
    """Import what the commands import, and make shards small."""
    import facedata

    for found in pkgutil.walk_packages(facedata.__path__, "facedata."):
        importlib.import_module(found.name)
    for name in ("cv2", "lmdb", "pyarrow.parquet", "sqlite3", "requests"):
        importlib.import_module(name)
    for name, constant in (
        ("jobs.plan", "_SAMPLES_PER_SHARD"),
        ("align.aligner", "_PER_SHARD"),
        ("synthetic.sample_set", "_SHARD"),
    ):
        module = importlib.import_module(f"facedata.{name}")
        assert hasattr(module, constant)
        setattr(module, constant, 8)


def spread(count: int, jobs: int, work: Callable[[int, str], Any]) -> Iterator[Any]:
    """What the calls of `work` return, as JSON, in their order; each has a number and the name of a folder."""
    pipes = []
    for job in range(jobs):
        reading, writing = os.pipe()
        if os.fork() == 0:
            try:
                with open(writing, "w") as file:
                    for number in range(job, count, jobs):
                        file.write(json.dumps(work(number, f"run-{job}")) + "\n")
                        file.flush()
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        pipes.append(open(reading))  # noqa: SIM115
    for number in range(count):
        yield json.loads(pipes[number % jobs].readline())


def main() -> int:
    parser = argparse.ArgumentParser(description="Disturb each command at each call that changes a file.")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--kinds", default=",".join(KINDS), help="what happens (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=1, help="disturb every n-th call only")
    parser.add_argument("--at", type=int, help="disturb this call only")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)")
    parser.add_argument("--sample", action="store_true", help="disturb each command once in each way")
    parser.add_argument("--show", action="store_true", help="show what the commands print")
    options = parser.parse_args()
    names = options.cases or [name for name in CASES if name != "self-check"]
    if unknown := set(names) - set(CASES):
        parser.error(f"there is no case {', '.join(unknown)}")
    load_commands()
    with tempfile.TemporaryDirectory(prefix="faults-") as root:
        laboratory = Laboratory(Path(root))
        make_inputs(laboratory)
        return sweep(laboratory, names, options)


def sweep(laboratory: Laboratory, names: Sequence[str], options: argparse.Namespace) -> int:
    """Disturb the cases of these names; print a table; return 1 if something is broken."""
    rights: dict[str, Reference] = {}
    for name, found in zip(
        names,
        spread(len(names), options.jobs, lambda number, run: reference(laboratory, CASES[names[number]], run)),
        strict=True,
    ):
        if isinstance(found, str):
            print(f"{name}: {found}")
        else:
            rights[name] = Reference(*found)
    tasks: list[tuple[str, str, int]] = []
    for name, right in rights.items():
        for number, kind in enumerate(options.kinds.split(",")):
            fit = [at for at, call in enumerate(right.calls, 1) if call[1] >= KINDS[kind][2]]
            stride = max(options.stride, len(fit)) if options.sample else options.stride
            chosen = fit[number * 7 % min(stride, len(fit)) :: stride]  # other calls for other kinds
            tasks += [(name, kind, at) for at in chosen if options.at in (None, at)]

    def work(number: int, run: str) -> tuple[str, str]:
        name, kind, at = tasks[number]
        return disturbed(laboratory, CASES[name], rights[name], kind, at, run)

    begin, broken, tried = time.monotonic(), Counter[str](), Counter(name for name, _, _ in tasks)
    for (name, kind, at), (wrong, said) in zip(tasks, spread(len(tasks), options.jobs, work), strict=True):
        op, _, path = rights[name].calls[at - 1]
        if wrong:
            broken[name] += 1
            print(f"{name} --at {at} --kinds {kind} ({op} {path}): {wrong}", flush=True)
        if options.show:
            print(said)
    print(f"{'command':22} {'calls':>6} {'tried':>6} {'kept':>6} {'broken':>6}")
    for name, right in rights.items():
        kept = tried[name] - broken[name]
        print(f"{name:22} {len(right.calls):6} {tried[name]:6} {kept:6} {broken[name]:6}")
    kept, seconds = len(tasks) - broken.total(), time.monotonic() - begin
    print(f"{'all':22} {'':6} {len(tasks):6} {kept:6} {broken.total():6}   {seconds:.0f} s")
    return int(broken.total() > 0 or len(rights) < len(names))


def build(folder: Path) -> Path:
    """Compile `faults.c`; raises a FileNotFoundError without a compiler."""
    library = folder / "faults.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, HERE / "faults.c", "-ldl"], check=True)
    return library


if __name__ == "__main__":
    if "faults.so" not in os.environ.get("LD_PRELOAD", ""):
        with tempfile.TemporaryDirectory() as place:
            environment = {**os.environ, "LD_PRELOAD": str(build(Path(place))), "OPENBLAS_NUM_THREADS": "1"}
            environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parent.parent)])
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
    sys.exit(main())
