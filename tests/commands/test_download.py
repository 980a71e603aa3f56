from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import pty
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from archive_support import tar_bytes
from http_server import Served, Server
from support import FACEDATA, Ran, Running, bytes_read, tree, wait_until_idle, write_tree

Run = Callable[..., Ran]
ROWS, DIMENSIONS = 50, 256
DATA = Path("data")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def download(inline_facedata: Run) -> Run:
    """Download a set into a root; the command has to end with that status."""

    def run(name: str, *options: object, root: object = DATA, status: int = 0) -> Ran:
        ran = inline_facedata("download", name, "--root", root, *options)
        assert ran.status == status, ran.stderr
        return ran

    return run


def in_background(name: str, root: object = DATA) -> Running:
    return Running(Path(), "download", name, "--root", str(root), "--quiet")


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def noise(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


def tar_gz(files: dict[str, bytes]) -> bytes:
    return gzip.compress(tar_bytes(list(files.items())), 1, mtime=0)


FEATURES = noise(ROWS * DIMENSIONS * 4)
LABELS = b"".join(b"%d\n" % (row % 7) for row in range(ROWS))
CLUSTERING = tar_gz({"x/data/features/f.bin": FEATURES, "x/data/labels/f.meta": LABELS})


def catalogue(*sets: str) -> None:
    """What the user's own catalogue has."""
    write_tree(Path("configuration/facedata"), {"catalogue.toml": "".join(sets)})


def a_set(name: str, keys: str, server: Server | None, *downloads: str, files: str = "", status: str = "free") -> str:
    """A set in TOML, its downloads given by their keys; without a server a person has to fetch them."""
    source = f'[[sets.{name}.sources]]\nkind = "http"\nurl = "{server.url("/")}"\n' if server else ""
    tables = "".join(f"[[sets.{name}.downloads]]\n{download}\n" for download in downloads)
    return f'[sets.{name}]\ntitle = "The set {name}"\nstatus = ["{status}"]\n{keys}\n{source}{tables}{files}\n'


def clustering_set(
    server: Server | None = None, *, archive: bytes = CLUSTERING, published: bytes = b"", status: str = "free"
) -> Served:
    keys = 'layout = "learn-to-cluster"\nnext = ["facedata verify-md5 small --root {root}"]'
    files = (
        f'[[sets.small.files]]\npath = "features/f.bin"\nmd5 = "{md5(FEATURES)}"\nrows = {ROWS}\n'
        f'[[sets.small.files]]\npath = "labels/f.meta"\nlines = {ROWS}\nclasses = 7\n'
    )
    download = f'name = "small.tar.gz"\nmd5 = "{md5(published or archive)}"'
    catalogue(a_set("small", keys, server, download, files=files, status=status))
    return server.add("/small.tar.gz", archive) if server else Served(b"")


def parts_set(data: bytes, count: int, server: Server | None = None) -> list[bytes]:
    """A set in parts, as Glint360K is; returns the parts."""
    size = -(-len(data) // count)
    parts = [data[size * number : size * (number + 1)] for number in range(count)]
    downloads = []
    for number, part in enumerate(parts):
        downloads.append(
            f'name = "big_{number:02d}"\nmd5 = "{md5(part)}"\n[[sets.big.downloads.superseded]]\n'
            f'name = "big{number:02d}"\nmd5 = "{md5(part[::-1])}"\nwhat = "the first release"'
        )
        if server:
            server.add(f"/big_{number:02d}", part)
    keys = 'layout = "folder"\nfolder = "big"\nholding = "train.rec"'
    catalogue(a_set("big", keys, server, *downloads, files='[[sets.big.files]]\npath = "big/train.rec"\n'))
    return parts


def plain_set(server: Server | None = None, *, more: str = "") -> str:
    """One file that is not unpacked, without a checksum."""
    text = a_set("plain", "", server, f'name = "a.bin"\n{more}')
    catalogue(text)
    return text


def folder_sets(*names: str) -> None:
    """Sets without checksums whose archives all have one name."""
    keys = 'layout = "folder"\nfolder = "{}"'
    catalogue(*(a_set(name, keys.format(name), None, 'name = "data.tar.gz"') for name in names))


def test_from_a_name_to_the_final_layout(download: Run, inline_facedata: Run, server: Server) -> None:
    served = clustering_set(server, status="withdrawn")
    said = download("small", status=2).stderr
    assert "withdrawn by its publisher" in said
    assert "add --accept-terms; nothing was fetched" in said
    assert f"small.tar.gz: would fetch it from {server.url('/small.tar.gz')}" in download("small", "--dry-run").stdout
    assert (served.requests, DATA.exists()) == (0, False)

    ran = download("small", "--accept-terms")
    assert "small: ready in data; 1 file fetched" in ran.stdout
    assert "f: 50 rows of 256 values, 7 classes: " in ran.stderr
    assert "features/f.bin: OK" in ran.stdout
    assert "labels/f.meta: OK (structure: 50 lines, 7 classes)" in ran.stdout
    assert ran.stdout.endswith("next:\n  facedata verify-md5 small --root data\n")
    assert served.bytes_served == len(CLUSTERING)
    left = {path: content for path, content in tree(DATA).items() if "lock" not in path}
    record = json.loads(left.pop("provenance.json"))["sets"]["small"]
    assert left == {"features/f.bin": FEATURES, "labels/f.meta": LABELS, "small.tar.gz": CLUSTERING}
    assert (record["accepted"]["how"], record["accepted"]["status"]) == ("--accept-terms", ["withdrawn"])
    assert record["downloads"]["small.tar.gz"]["from"] == server.url("/small.tar.gz")
    assert record["downloads"]["small.tar.gz"]["md5"] == md5(CLUSTERING)
    assert record["files"]["features/f.bin"] == len(FEATURES)
    assert record["checked"] == {"features/f.bin": "checksum", "labels/f.meta": "structure"}
    assert record["finished"].endswith("Z")

    before = tree(DATA)
    assert download("small").stdout.splitlines()[0] == "small: already complete in data"
    assert (served.requests, tree(DATA)) == (1, before)
    assert inline_facedata("verify-md5", "small", "--root", "data").status == 0

    for lost in ("small.tar.gz", "features/f.bin"):
        (DATA / lost).unlink()
    assert json.loads(download("small", "--remove-archives", "--json").stdout)["good"] is True
    assert (DATA / "features/f.bin").read_bytes() == FEATURES
    assert not (DATA / "small.tar.gz").exists()


def test_a_wrong_file_is_never_unpacked_and_a_wrong_member_is_reported(download: Run, server: Server) -> None:
    other = tar_gz({"features/f.bin": FEATURES[::-1], "labels/f.meta": LABELS})
    clustering_set(server, archive=other, published=CLUSTERING)
    said = download("small", status=1).stderr
    assert md5(CLUSTERING) in said
    assert md5(other) in said
    assert not (DATA / "features").exists()
    clustering_set(server, archive=other)
    for _ in range(2):
        said = download("small", status=1).stdout
        assert "features/f.bin: FAILED" in said
        assert "some files are wrong" in said


def test_files_are_extra_only_if_all_are_known(download: Run, inline_facedata: Run) -> None:
    (part,) = parts_set(tar_gz({"big/train.rec": noise(1000), "big/more": b"x"}), 1)
    Path("big_00").write_bytes(part)
    assert "big: ready in data; 1 file available and right" in download("big", "--from-file", "big_00").stdout
    command = ["verify-md5", "big", "--root", "data"]
    assert "EXTRA" not in inline_facedata(*command).stdout
    Path("all.toml").write_text("[sets.big]\ncomplete = true\n")
    ran = inline_facedata(*command, "--catalogue", "all.toml")
    assert (ran.status, "big/more: EXTRA" in ran.stdout) == (0, True)


def test_a_member_that_would_leave_the_folder(download: Run) -> None:
    folder_sets("a")
    Path("data.tar.gz").write_bytes(tar_gz({"../../evil": b"x", "good": b"y"}))
    assert "../../evil: not unpacked" in download("a", "--from-file", "data.tar.gz", status=1).stdout
    assert not list(Path().rglob("evil"))


def test_a_password_is_neither_shown_nor_recorded(inline_facedata: Run, server: Server) -> None:
    server.add("/a.bin", b"hello")
    url = server.url("/a.bin").replace("http://", "http://me:s3cret@")
    catalogue(plain_set(server).replace(server.url("/"), url))
    for line in ("datasets plain", "datasets plain --json", "download plain --dry-run --json", "download plain"):
        ran = inline_facedata(*line.split())
        assert ran.status == 0, ran.stderr
        assert "s3cret" not in ran.stdout + ran.stderr
    assert "s3cret" not in Path("provenance.json").read_text()


class TestFilesOfTheUser:
    def test_files_fetched_by_hand(self, download: Run) -> None:
        clustering_set(status="withdrawn")
        said = download("small", "--from-file", "nowhere", status=1).stderr
        assert "nowhere: no such file" in said
        assert "withdrawn" not in said
        clustering_set()
        said = download("small", status=1).stderr
        assert f"small.tar.gz  (md5 {md5(CLUSTERING)})" in said
        assert "facedata download small --root data --from-dir" in said
        assert "sign the agreement" in download("webface42m", status=1).stderr
        Path("loads").mkdir()
        said = download("small", "--from-dir", "loads", status=1).stderr
        assert "loads: has no file with the name of a missing one" in said
        write_tree(Path("loads"), {"small (1).tar.gz": CLUSTERING})
        download("small", "--from-dir", "loads")
        assert (DATA / "features/f.bin").read_bytes() == FEATURES
        assert tree(Path("loads")) == {"small (1).tar.gz": CLUSTERING}
        assert os.path.samefile("loads/small (1).tar.gz", DATA / "small.tar.gz")
        for name in ("provenance.json", "small.tar.gz"):
            (DATA / name).unlink()
        download("small")  # all is in its final place

    def test_a_web_page_that_the_browser_saved_instead(self, download: Run) -> None:
        plain_set()
        Path("a.bin").write_bytes(b"<!doctype html><html><title>Quota exceeded</title>")
        said = download("plain", "--from-file", "a.bin", status=1).stderr
        assert "a.bin: is a web page ('Quota exceeded')" in said

    def test_parts_good_wrong_and_of_the_first_release(self, download: Run, inline_facedata: Run) -> None:
        parts = parts_set(tar_gz({"big/train.rec": noise(100_000)}), 3)
        given = {"big_00": parts[0], "big01": parts[1][::-1], "big_02": parts[2][:-1]}
        loads = write_tree(Path("loads"), given)
        command = ["download", "big", "--from-dir", "loads"]  # without --root: into the current folder
        out = inline_facedata(*command, "--dry-run").stdout
        assert "big: free to use\nbig_00: would use loads/big_00\nloads/big01: expected md5" in out
        plan = json.loads(inline_facedata(*command, "--dry-run", "--json").stdout)
        assert (plan["found"], plan["by_hand"]) == ({"big_00": "loads/big_00"}, ["big_01", "big_02"])
        ran = inline_facedata(*command)
        assert ran.status == 1
        for said in ("loads/big01: ", "the first release", "loads/big_02: ", f"big_01  (md5 {md5(parts[1])})"):
            assert said in ran.stderr
        assert "big_00  (md5" not in ran.stderr
        assert tree(loads) == given  # files of the user are neither renamed nor lost
        write_tree(loads, {"big_01": parts[1], "big_02": parts[2]})
        ran = inline_facedata(*command)
        assert ran.status == 0, ran.stderr
        assert Path("big/train.rec").read_bytes() == noise(100_000)
        assert inline_facedata("verify-md5", "big").status == 0
        assert download("big", "--dry-run", root=".").stdout == "big: already complete in .\n"

    def test_parts_in_the_root_under_other_names(self, download: Run) -> None:
        parts = parts_set(tar_gz({"train.rec": noise(1000)}), 2)
        write_tree(DATA, {"x": parts[1], "y": parts[0]})
        assert "not used" not in download("big", "--from-file", "data/x", "--from-file", "data/y").stderr
        assert (DATA / "x").read_bytes() == parts[1]

    def test_on_another_disk_plain_files_alone_are_copied(self, download: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(os, "link", refuse)
        write_tree(Path(), {"a.bin": b"content", "small.tar.gz": CLUSTERING})
        plain_set()
        download("plain", "--from-file", "a.bin")
        assert (DATA / "a.bin").read_bytes() == b"content"
        clustering_set()
        download("small", "--from-file", "small.tar.gz")
        assert (DATA / "features/f.bin").read_bytes() == FEATURES
        assert not (DATA / "small.tar.gz").exists()

    def test_symbolic_links(self, download: Run) -> None:
        clustering_set()
        write_tree(Path(), {"real": CLUSTERING, "loads/other": b""})
        Path("loads/small.tar.gz").symlink_to("../real")
        download("small", "--from-dir", "loads", root="deep/down/data")
        assert not Path("deep/down/data/small.tar.gz").is_symlink()

    def test_wrong_files_in_the_root_are_kept_each_under_a_name_of_its_own(self, download: Run) -> None:
        parts_set(tar_gz({"train.rec": noise(1000)}), 2)
        for content in (b"one", b"two", b"three"):
            write_tree(DATA, {"big_00": content})
            assert "big_00.wrong" in download("big", status=1).stderr
        kept = [(DATA / f"big_00.wrong{end}").read_bytes() for end in ("", "-2", "-3")]
        assert kept == [b"one", b"two", b"three"]

    def test_a_file_given_wins_over_an_old_one_with_overwrite(self, download: Run) -> None:
        folder_sets("a")
        write_tree(Path(), {"data/data.tar.gz": tar_gz({"x": b"old"}), "data.tar.gz": tar_gz({"x": b"new"})})
        download("a", "--overwrite", "--from-file", "data.tar.gz")
        assert (DATA / "a/x").read_bytes() == b"new"

    def test_the_archive_of_another_set_with_the_same_name_is_not_taken(self, download: Run) -> None:
        folder_sets("a", "b")
        archives = {f"{name}/data.tar.gz": tar_gz({"x": name.encode()}) for name in "ab"}
        write_tree(Path(), archives)
        download("a", "--from-dir", "a")
        for how in ([], ["--from-dir", "b"]):
            said = download("b", *how, status=1).stderr
            assert "data/data.tar.gz: is the download of a; expected that of b" in said
        assert (DATA / "data.tar.gz").read_bytes() == archives["a/data.tar.gz"]
        (DATA / "data.tar.gz").unlink()
        download("b", "--from-dir", "b")
        assert (DATA / "b/x").read_bytes() == b"b"


class TestHealing:
    """A set that was there is damaged: the same size, other bytes."""

    def damage(self, *names: str) -> None:
        for name in names:
            data = bytearray((DATA / name).read_bytes())
            data[len(data) // 2] ^= 1
            (DATA / name).write_bytes(data)

    @pytest.mark.parametrize("published", [True, False])
    def test_of_plain_files_the_damaged_one_alone_is_fetched(
        self, download: Run, inline_facedata: Run, server: Server, published: bool
    ) -> None:
        files = {name: noise(5000, ord(name)) for name in "abc"}
        served = {name: server.add(f"/{name}", data) for name, data in files.items()}
        digests = {name: f'\nmd5 = "{md5(data)}"' if published else "" for name, data in files.items()}
        catalogue(a_set("plain", "", server, *(f'name = "{name}"{digest}' for name, digest in digests.items())))
        assert download("plain", "--quiet").stdout == ""
        assert "already complete" in download("plain").stdout
        self.damage("b")
        ran = inline_facedata("verify-md5", "plain", "--root", DATA)
        assert (ran.status, "b: FAILED" in ran.stdout) == (1, True)
        assert ("this one was recorded at the download" in ran.stdout) == (not published)
        assert "to fetch what is wrong again: facedata download plain --root data\n" in ran.stderr
        assert "b: would fetch it" in download("plain", "--dry-run").stdout
        assert "plain: ready in data; 1 file fetched" in download("plain").stdout
        assert {name: each.requests for name, each in served.items()} == {"a": 1, "b": 2, "c": 1}
        assert {name: (DATA / name).read_bytes() for name in "abc"} == files
        assert "already complete" in download("plain").stdout
        assert inline_facedata("verify-md5", "plain", "--root", DATA).status == 0

    @pytest.mark.parametrize("archive", ["kept", "removed", "damaged"])
    def test_of_unpacked_files_the_damaged_one_alone_is_replaced(
        self, download: Run, inline_facedata: Run, server: Server, archive: str
    ) -> None:
        served = clustering_set(server)
        download("small", *(["--remove-archives"] if archive == "removed" else []))
        labels = (DATA / "labels/f.meta").read_bytes()
        wrong = ["small.tar.gz"] if archive == "damaged" else []
        self.damage("features/f.bin", *wrong)
        assert "features/f.bin: FAILED" in inline_facedata("verify-md5", "small", "--root", DATA).stdout
        assert "data/features/f.bin: expected md5" in download("small", "--dry-run").stdout
        assert "f.bin: expected md5" in download("small").stderr
        assert served.requests == (1 if archive == "kept" else 2)
        assert (DATA / "features/f.bin").read_bytes() == FEATURES
        assert (DATA / "features/f.bin.wrong").exists()
        assert (DATA / "labels/f.meta").read_bytes() == labels
        assert inline_facedata("verify-md5", "small", "--root", DATA).status == 0

    def test_an_archive_alone_is_repaired_and_not_unpacked(
        self, download: Run, inline_facedata: Run, server: Server
    ) -> None:
        served = clustering_set(server)
        download("small")
        inode = (DATA / "features/f.bin").stat().st_ino
        self.damage("small.tar.gz")
        assert inline_facedata("verify-md5", "small", "--root", DATA).status == 1
        download("small")
        assert (served.requests, (DATA / "features/f.bin").stat().st_ino) == (2, inode)
        assert inline_facedata("verify-md5", "small", "--root", DATA).status == 0

    def test_a_file_cut_short_and_a_set_that_was_unpacked_by_hand(self, download: Run, server: Server) -> None:
        clustering_set(server)
        write_tree(DATA, {"features/f.bin": FEATURES[:-4], "labels/f.meta": LABELS})
        for _ in range(2):
            download("small")
            assert (DATA / "features/f.bin").read_bytes() == FEATURES
            (DATA / "features/f.bin").write_bytes(FEATURES[: len(FEATURES) // 2])
        assert (DATA / "features/f.bin.wrong").read_bytes() == FEATURES[:-4]

    def test_a_plain_file_beside_an_archive_that_was_removed(self, download: Run, server: Server) -> None:
        archive = tar_gz({"big/x": b"image"})
        served = [server.add("/big.tar.gz", archive), server.add("/labels.txt", b"0 1 2")]
        downloads = ['name = "big.tar.gz"', 'name = "labels.txt"\nplace = "big/labels.txt"']
        catalogue(a_set("big", 'layout = "folder"\nfolder = "big"', server, *downloads))
        download("big", "--remove-archives")
        self.damage("big/labels.txt")
        download("big")
        assert ([each.requests for each in served], tree(DATA / "big")["labels.txt"]) == ([1, 2], b"0 1 2")


class TestInterruptions:
    @pytest.mark.parametrize("option", ["--remove-archives", "--overwrite"])
    def test_killed_before_the_hidden_folder_was_removed(self, download: Run, option: str) -> None:
        clustering_set()
        Path("small.tar.gz").write_bytes(CLUSTERING)
        download("small", "--from-file", "small.tar.gz")
        work = DATA / ".facedata-download-small"
        write_tree(work, {"overwrite": b"", "placing.json": b'{"moves": [], "digests": {}, "refused": {}}'})
        if option == "--overwrite":
            (DATA / "features/f.bin").write_bytes(b"bad")
        ran = download("small", option)
        assert ran.stdout.startswith("small: already complete") == (option == "--remove-archives")
        assert not work.exists()
        assert (DATA / "small.tar.gz").exists() == (option == "--overwrite")
        assert (DATA / "features/f.bin").read_bytes() == FEATURES

    def test_killed_again_and_again_no_good_part_is_fetched_twice(self, download: Run, server: Server) -> None:
        placed = {f"{number % 7}/{number}.jpg": noise(3000, number) for number in range(400)}
        placed["train.rec"] = noise(2_000_000)
        parts = parts_set(tar_gz({f"deep/big/{name}": data for name, data in placed.items()}), 3, server)
        first, second, third = server.served.values()
        third.rate = 600_000
        running = in_background("big")
        third.wait_for(600_000)
        time.sleep(0.5)
        running.process.kill()
        running.end()
        server.wait_until_idle()
        assert not (DATA / "big").exists()
        before, third.rate = third.bytes_served, None
        for tenth in range(3, 12, 3):
            running = in_background("big")
            with suppress(subprocess.TimeoutExpired):
                running.process.wait(tenth / 10)
            running.process.kill()
            running.end()
            assert not (DATA / "big").exists() or tree(DATA / "big") == placed
        download("big")
        assert tree(DATA / "big") == placed
        assert not (DATA / ".facedata-download-big").exists()
        assert [first.bytes_served, second.bytes_served] == [len(part) for part in parts[:2]]
        assert third.bytes_served - before < len(parts[2])

    @pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
    def test_two_at_once_are_refused_and_one_killed_resumes(self, download: Run, server: Server, number: int) -> None:
        data = noise(3_000_000)
        served = server.add("/a.bin", data, rate=1_500_000)
        plain_set(server, more=f'md5 = "{md5(data)}"')
        running = in_background("plain")
        served.wait_for(1_500_000)
        assert "another run is writing here" in download("plain", status=1).stderr
        running.process.send_signal(number)
        said = running.end()
        assert running.process.returncode == (75 if number == signal.SIGINT else -number)
        assert ("run the same command again to resume" in said) == (number == signal.SIGINT)
        there = (DATA / "a.bin.part").stat().st_size
        assert there > 500_000  # the rest was in the buffers of the connection
        server.wait_until_idle()
        served.rate, served.bytes_served = None, 0
        download("plain")
        assert (DATA / "a.bin").read_bytes() == data
        assert served.bytes_served == len(data) - there

    def test_a_signal_ends_the_download_if_the_server_hangs(self, server: Server) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            catalogue(plain_set(server).replace(server.url("/"), address))
            running = in_background("plain")
            listener.settimeout(60)
            with listener.accept()[0] as connection:
                connection.recv(1)  # in the middle of the TLS handshake nothing can end the thread that waits
                begin = time.monotonic()
                running.process.send_signal(signal.SIGTERM)
                running.process.wait(50)
        running.end()
        assert time.monotonic() - begin < 40  # not the minute that it may wait for a server, also on a busy machine
        assert running.process.returncode == 75

    def test_stopped_while_a_large_file_is_hashed(self) -> None:
        plain_set()
        with open("a.bin", "wb") as file:
            file.truncate(30 << 30)
        running = Running(Path(), "download", "plain", "--root", "data", "--from-file", "a.bin")
        running.wait_for(lambda: bytes_read(running.process.pid) > 100_000_000)
        running.process.send_signal(signal.SIGTERM)
        try:
            running.process.wait(8)
        finally:
            running.process.kill()
        said = running.end()
        assert running.process.returncode == 75, said


def test_a_partial_file_counts_as_room_that_is_taken(download: Run, server: Server, small_disk: Path) -> None:
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    data = noise(free * 2 // 3)
    served = server.add("/a.bin", data, rate=free)
    plain_set(server, more=f'bytes = {len(data)}\nmd5 = "{md5(data)}"\n')
    running = in_background("plain", small_disk)
    served.wait_for(len(data) * 3 // 4)
    running.process.kill()
    running.end()
    served.rate = None
    download("plain", root=small_disk)
    assert (small_disk / "a.bin").read_bytes() == data


def test_a_disk_too_small_is_an_error_before_the_first_byte(download: Run, server: Server, small_disk: Path) -> None:
    served = server.add("/a.bin", b"")
    plain_set(server, more="bytes = 9000000")
    said = download("plain", root=small_disk, status=1).stderr
    assert "needs 9,000,000 bytes" in said
    assert "nothing was fetched" in said
    assert served.requests == 0


def test_a_disk_that_fills_up_while_unpacking_can_be_enlarged(download: Run, server: Server, small_disk: Path) -> None:
    parts_set(tar_gz({f"big/{number}": bytes(1_500_000) for number in range(6)} | {"big/train.rec": b"x"}), 1, server)
    assert "free" in download("big", root=small_disk / "data", status=1).stderr
    assert not (small_disk / "data/big").exists()
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    download("big", root=small_disk / "data")
    assert len(tree(small_disk / "data/big")) == 7


@pytest.mark.parametrize(
    ("answer", "status", "said"), [(b"y\n", 0, "ready in"), (b"n\n", 1, "not accepted"), (b"\x03", 75, "interrupted")]
)
def test_terms_are_asked_for_on_a_terminal(server: Server, answer: bytes, status: int, said: str) -> None:
    clustering_set(server, status="withdrawn")
    child, terminal = pty.fork()
    if child == 0:
        os.execv(FACEDATA[0], [*FACEDATA, "download", "small", "--root", "data"])
    shown = b""
    with suppress(OSError):  # the terminal is gone when the program has ended
        while piece := os.read(terminal, 1 << 16):
            shown += piece
            if b"[y/N]" in piece:
                wait_until_idle(child)  # until it reads: what comes between showing and reading may be lost
                os.write(terminal, answer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status, shown
    os.close(terminal)
    assert b"withdrawn by its publisher" in shown
    assert said.encode() in shown
