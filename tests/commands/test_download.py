from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from http_server import Server
from support import FACEDATA, Ran, bytes_read, tree, wait_until_idle

Run = Callable[..., Ran]


@pytest.fixture
def facedata(inline_facedata: Run) -> Run:
    return inline_facedata


ROWS, DIMENSIONS = 50, 256


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def tar_gz(files: dict[str, bytes]) -> bytes:
    """An archive with these files, of a time long ago."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_500_000_000
            tar.addfile(member, io.BytesIO(data))
    return whole.getvalue()


def noise(size: int, seed: int = 0) -> bytes:
    return Random(seed).randbytes(size)


FEATURES = noise(ROWS * DIMENSIONS * 4)
LABELS = b"".join(b"%d\n" % (row % 7) for row in range(ROWS))
CLUSTERING = tar_gz({"x/data/features/f.bin": FEATURES, "x/data/labels/f.meta": LABELS})


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as each:
        yield each


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def catalogue(tmp_path: Path, *sets: str) -> None:
    """What the user's own catalogue has."""
    folder = tmp_path / "configuration/facedata"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "catalogue.toml").write_text("".join(sets))


def a_set(name: str, keys: str, url: str, *downloads: str, files: str = "", status: str = "free") -> str:
    """A set in TOML, its downloads given by their keys."""
    source = f'[[sets.{name}.sources]]\nkind = "http"\nurl = "{url}"\n' if url else ""
    tables = "".join(f"[[sets.{name}.downloads]]\n{download}\n" for download in downloads)
    return f'[sets.{name}]\ntitle = "The set {name}"\nstatus = ["{status}"]\n{keys}\n{source}{tables}{files}\n'


def clustering_set(tmp_path: Path, url: str = "", *, archive: bytes = CLUSTERING, status: str = "free") -> None:
    keys = 'layout = "learn-to-cluster"\nnext = ["facedata verify-md5 small --root {root}"]'
    files = (
        f'[[sets.small.files]]\npath = "features/f.bin"\nmd5 = "{md5(FEATURES)}"\nrows = {ROWS}\n'
        f'[[sets.small.files]]\npath = "labels/f.meta"\nlines = {ROWS}\nclasses = 7\n'
    )
    download = f'name = "small.tar.gz"\nmd5 = "{md5(archive)}"'
    catalogue(tmp_path, a_set("small", keys, url, download, files=files, status=status))


def parts_set(tmp_path: Path, data: bytes, count: int, url: str = "") -> list[bytes]:
    """A set in parts, as Glint360K is; returns the parts."""
    size = -(-len(data) // count)
    parts = [data[size * number : size * (number + 1)] for number in range(count)]
    downloads = [
        f'name = "big_{number:02d}"\nmd5 = "{md5(part)}"\n[[sets.big.downloads.superseded]]\n'
        f'name = "big{number:02d}"\nmd5 = "{md5(part[::-1])}"\nwhat = "the first release"'
        for number, part in enumerate(parts)
    ]
    keys = 'layout = "folder"\nfolder = "big"\nholding = "train.rec"'
    files = '[[sets.big.files]]\npath = "big/train.rec"\n'
    catalogue(tmp_path, a_set("big", keys, url, *downloads, files=files))
    return parts


def plain_set(tmp_path: Path, url: str = "", *, more: str = "") -> None:
    """One file that is not unpacked, without a checksum."""
    catalogue(tmp_path, a_set("plain", "", url, f'name = "a.bin"\n{more}'))


def folder_sets(tmp_path: Path, *names: str) -> None:
    """Sets without checksums whose archives all have one name."""
    keys = 'layout = "folder"\nfolder = "{}"'
    catalogue(tmp_path, *(a_set(name, keys.format(name), "", 'name = "data.tar.gz"') for name in names))


class TestFetching:
    def test_from_a_name_to_the_final_layout(self, facedata: Run, tmp_path: Path, server: Server) -> None:
        served = server.add("/small.tar.gz", CLUSTERING)
        clustering_set(tmp_path, server.url("/small.tar.gz"), status="withdrawn")
        ran = facedata("download", "small", "--root", "data")
        assert ran.status == 2
        assert "withdrawn by its publisher" in ran.stderr
        assert "add --accept-terms; nothing was fetched" in ran.stderr
        ran = facedata("download", "small", "--root", "data", "--dry-run")
        assert ran.status == 0
        assert f"small.tar.gz: would fetch it from {server.url('/small.tar.gz')}" in ran.stdout
        assert served.requests == 0
        assert not (tmp_path / "data").exists()

        ran = facedata("download", "small", "--root", "data", "--accept-terms")
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "data/features/f.bin").read_bytes() == FEATURES
        assert (tmp_path / "data/labels/f.meta").read_bytes() == LABELS
        assert "small: ready in data; 1 file fetched" in ran.stdout
        assert "f: 50 rows of 256 values, 7 classes: " in ran.stderr
        assert "features/f.bin: OK" in ran.stdout
        assert "labels/f.meta: OK (structure: 50 lines, 7 classes)" in ran.stdout
        assert ran.stdout.endswith("next:\n  facedata verify-md5 small --root data\n")
        assert served.bytes_served == len(CLUSTERING)
        left = sorted(path for path in tree(tmp_path / "data") if "lock" not in path)
        assert left == ["features/f.bin", "labels/f.meta", "provenance.json", "small.tar.gz"]
        record = json.loads((tmp_path / "data/provenance.json").read_text())["sets"]["small"]
        assert (record["accepted"]["how"], record["accepted"]["status"]) == ("--accept-terms", ["withdrawn"])
        assert record["downloads"]["small.tar.gz"]["from"] == server.url("/small.tar.gz")
        assert record["downloads"]["small.tar.gz"]["md5"] == md5(CLUSTERING)
        assert record["files"]["features/f.bin"] == len(FEATURES)
        assert record["checked"] == {"features/f.bin": "checksum", "labels/f.meta": "structure"}
        assert record["finished"].endswith("Z")

    def test_a_second_run_does_nothing(self, facedata: Run, tmp_path: Path, server: Server) -> None:
        served = server.add("/small.tar.gz", CLUSTERING)
        clustering_set(tmp_path, server.url("/small.tar.gz"))
        ran = facedata("download", "small", "--root", "data", "--remove-archives", "--json")
        assert json.loads(ran.stdout)["good"] is True
        assert not (tmp_path / "data/small.tar.gz").exists()
        before = tree(tmp_path / "data")
        ran = facedata("download", "small", "--root", "data")
        assert (ran.status, ran.stdout.splitlines()[0]) == (0, "small: already complete in data")
        assert served.requests == 1
        assert tree(tmp_path / "data") == before
        assert facedata("verify-md5", "small", "--root", "data").status == 0
        (tmp_path / "data/features/f.bin").unlink()
        ran = facedata("download", "small", "--root", "data")  # what was lost is fetched again
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "data/features/f.bin").read_bytes() == FEATURES

    @pytest.mark.parametrize("is_published", [False, True])
    def test_a_wrong_file_is_never_unpacked_and_a_wrong_member_is_reported(
        self, facedata: Run, tmp_path: Path, server: Server, is_published: bool
    ) -> None:
        other = tar_gz({"features/f.bin": FEATURES[::-1], "labels/f.meta": LABELS})
        server.add("/small.tar.gz", other)
        clustering_set(tmp_path, server.url("/small.tar.gz"), archive=other if is_published else CLUSTERING)
        ran = facedata("download", "small", "--root", "data")
        assert ran.status == 1
        if is_published:
            assert "features/f.bin: FAILED" in ran.stdout
            assert "some files are wrong" in ran.stdout
            assert "features/f.bin: FAILED" in facedata("download", "small", "--root", "data").stdout
        else:
            assert md5(CLUSTERING) in ran.stderr
            assert md5(other) in ran.stderr
            assert not (tmp_path / "data/features").exists()

    def test_after_a_kill_it_resumes_without_fetching_the_good_parts_again(
        self, facedata: Run, tmp_path: Path, server: Server
    ) -> None:
        whole = tar_gz({"big/train.rec": noise(4_000_000)})
        parts = parts_set(tmp_path, whole, 3, server.url("/"))
        served = [server.add(f"/big_{number:02d}", part) for number, part in enumerate(parts)]
        served[2].rate = 400_000
        process = subprocess.Popen([*FACEDATA, "download", "big", "--root", "data", "--quiet"], cwd=tmp_path)
        deadline = time.monotonic() + 30
        while served[2].bytes_served < 300_000 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.5)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "data/big").exists()
        before = sum(each.bytes_served for each in served)
        served[2].rate = None
        ran = facedata("download", "big", "--root", "data")
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "data/big/train.rec").read_bytes() == noise(4_000_000)
        assert sum(each.bytes_served for each in served) < len(whole) + 600_000
        assert sum(each.bytes_served for each in served) - before < len(parts[2])


class TestByHand:
    def test_the_steps_are_shown_and_followed(self, facedata: Run, tmp_path: Path) -> None:
        clustering_set(tmp_path, status="withdrawn")
        ran = facedata("download", "small", "--from-file", "nowhere")
        assert ran.status == 1
        assert "withdrawn" not in ran.stderr
        assert "nowhere: no such file" in ran.stderr
        clustering_set(tmp_path)
        ran = facedata("download", "small", "--root", "data")
        assert ran.status == 1
        assert f"small.tar.gz  (md5 {md5(CLUSTERING)})" in ran.stderr
        assert "sign the agreement" in facedata("download", "webface42m", "--root", "data").stderr
        assert "facedata download small --root data --from-dir" in ran.stderr
        (tmp_path / "loads").mkdir()
        ran = facedata("download", "small", "--root", "data", "--from-dir", "loads")
        assert "loads: has no file with the name of a missing one" in ran.stderr
        (tmp_path / "loads/small (1).tar.gz").write_bytes(CLUSTERING)
        ran = facedata("download", "small", "--root", "data", "--from-dir", "loads")
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "data/features/f.bin").read_bytes() == FEATURES
        assert tree(tmp_path / "loads") == {"small (1).tar.gz": CLUSTERING}
        assert os.path.samefile(tmp_path / "loads/small (1).tar.gz", tmp_path / "data/small.tar.gz")
        for name in ("provenance.json", "small.tar.gz"):
            (tmp_path / "data" / name).unlink()
        assert facedata("download", "small", "--root", "data").status == 0  # all is in its final place

    def test_a_web_page_that_the_browser_saved_instead(self, facedata: Run, tmp_path: Path) -> None:
        plain_set(tmp_path)
        (tmp_path / "a.bin").write_bytes(b"<!doctype html><html><title>Quota exceeded</title>")
        ran = facedata("download", "plain", "--root", "data", "--from-file", "a.bin")
        assert ran.status == 1
        assert "a.bin: is a web page ('Quota exceeded')" in ran.stderr

    def test_parts_good_wrong_and_of_the_first_release(
        self, facedata: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parts = parts_set(tmp_path, tar_gz({"big/train.rec": noise(100_000)}), 3)
        loads = tmp_path / "loads"
        for folder in ("loads", "root"):
            (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / "root")
        given = {"big_00": parts[0], "big01": parts[1][::-1], "big_02": parts[2][:-1]}
        for name, content in given.items():
            (loads / name).write_bytes(content)
        command = ["download", "big", "--from-dir", "../loads"]
        out = facedata(*command, "--dry-run").stdout
        assert "big: free to use\nbig_00: would use ../loads/big_00\n../loads/big01: expected md5" in out
        plan = json.loads(facedata(*command, "--dry-run", "--json").stdout)
        assert (plan["found"], plan["by_hand"]) == ({"big_00": "../loads/big_00"}, ["big_01", "big_02"])
        ran = facedata(*command)
        assert ran.status == 1
        for said in ("loads/big01: ", "the first release", "loads/big_02: ", f"big_01  (md5 {md5(parts[1])})"):
            assert said in ran.stderr
        assert "big_00  (md5" not in ran.stderr
        assert tree(loads) == given  # files of the user are neither renamed nor lost
        (loads / "big_01").write_bytes(parts[1])
        (loads / "big_02").write_bytes(parts[2])
        ran = facedata(*command)
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "root/big/train.rec").read_bytes() == noise(100_000)
        assert facedata("verify-md5", "big").status == 0
        assert facedata(*command, "--dry-run").stdout == "big: already complete in .\n"

    def test_files_are_extra_only_if_all_are_known(self, facedata: Run, tmp_path: Path) -> None:
        (part,) = parts_set(tmp_path, tar_gz({"big/train.rec": noise(1000), "big/more": b"x"}), 1)
        (tmp_path / "big_00").write_bytes(part)
        ran = facedata("download", "big", "--root", "data", "--from-file", "big_00")
        assert "big: ready in data; 1 file available and right" in ran.stdout
        assert "EXTRA" not in facedata("verify-md5", "big", "--root", "data").stdout
        (tmp_path / "all.toml").write_text("[sets.big]\ncomplete = true\n")
        ran = facedata("verify-md5", "big", "--root", "data", "--catalogue", "all.toml")
        assert "big/more: EXTRA" in ran.stdout
        assert ran.status == 0

    def test_a_member_that_would_leave_the_folder(self, facedata: Run, tmp_path: Path) -> None:
        evil = io.BytesIO()
        with zipfile.ZipFile(evil, "w") as archive:
            archive.writestr("../evil", "x")
            archive.writestr("good", "y")
        catalogue(tmp_path, a_set("z", 'layout = "folder"\nfolder = "z"', "", 'name = "z.zip"'))
        (tmp_path / "z.zip").write_bytes(evil.getvalue())
        ran = facedata("download", "z", "--root", "data", "--from-file", "z.zip")
        assert ran.status == 1
        assert "../evil: not unpacked" in ran.stdout
        assert not (tmp_path / "evil").exists()
        assert not (tmp_path / "data/evil").exists()


class TestPlainFiles:
    def test_a_password_is_neither_shown_nor_recorded(self, facedata: Run, tmp_path: Path, server: Server) -> None:
        server.add("/a.bin", b"hello")
        plain_set(tmp_path, server.url("/a.bin").replace("http://", "http://me:s3cret@"))
        for line in ("datasets plain", "datasets plain --json", "download plain --dry-run --json", "download plain"):
            ran = facedata(*line.split())
            assert ran.status == 0, ran.stderr
            assert "s3cret" not in ran.stdout + ran.stderr
        assert "s3cret" not in (tmp_path / "provenance.json").read_text()

    def test_a_partial_file_counts_as_room_that_is_taken(
        self, facedata: Run, tmp_path: Path, server: Server, small_disk: Path
    ) -> None:
        free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
        data = noise(free * 2 // 3)
        served = server.add("/a.bin", data, rate=free)
        plain_set(tmp_path, server.url("/a.bin"), more=f'bytes = {len(data)}\nmd5 = "{md5(data)}"\n')
        process = subprocess.Popen([*FACEDATA, "download", "plain", "--root", small_disk, "--quiet"], cwd=tmp_path)
        while served.bytes_served < len(data) * 3 // 4:
            time.sleep(0.01)
        process.kill()
        process.wait()
        served.rate = None
        ran = facedata("download", "plain", "--root", small_disk)
        assert ran.status == 0, ran.stderr
        assert (small_disk / "a.bin").read_bytes() == data

    def test_stopped_while_a_large_file_is_hashed(self, tmp_path: Path) -> None:
        plain_set(tmp_path)
        with open(tmp_path / "a.bin", "wb") as file:
            file.truncate(30 << 30)
        process = subprocess.Popen(
            [*FACEDATA, "download", "plain", "--root", "data", "--from-file", "a.bin"],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        while bytes_read(process.pid) < 100_000_000:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        try:
            _, said = process.communicate(timeout=8)
        finally:
            process.kill()
        assert process.returncode == 75, said


class TestFilesOfTheUser:
    """Files elsewhere, or with other names, are neither renamed nor lost."""

    def test_parts_in_the_root_under_other_names(self, facedata: Run, tmp_path: Path) -> None:
        parts = parts_set(tmp_path, tar_gz({"train.rec": noise(1000)}), 2)
        (tmp_path / "data").mkdir()
        (tmp_path / "data/x").write_bytes(parts[1])
        (tmp_path / "data/y").write_bytes(parts[0])
        ran = facedata("download", "big", "--root", "data", "--from-file", "data/x", "--from-file", "data/y")
        assert ran.status == 0, ran.stderr
        assert "not used" not in ran.stderr
        assert (tmp_path / "data/x").read_bytes() == parts[1]

    def test_on_another_disk_plain_files_are_copied_and_archives_used_where_they_are(
        self, facedata: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: object) -> None:
            raise OSError(errno.EXDEV, "another disk")

        monkeypatch.setattr(os, "link", refuse)
        plain_set(tmp_path)
        (tmp_path / "a.bin").write_bytes(b"content")
        assert facedata("download", "plain", "--root", "data", "--from-file", "a.bin").status == 0
        assert (tmp_path / "data/a.bin").read_bytes() == b"content"
        clustering_set(tmp_path)
        (tmp_path / "small.tar.gz").write_bytes(CLUSTERING)
        assert facedata("download", "small", "--root", "data", "--from-file", "small.tar.gz").status == 0
        assert (tmp_path / "data/features/f.bin").read_bytes() == FEATURES
        assert not (tmp_path / "data/small.tar.gz").exists()

    def test_symbolic_links(self, facedata: Run, tmp_path: Path) -> None:
        clustering_set(tmp_path)
        (tmp_path / "loads").mkdir()
        (tmp_path / "real").write_bytes(CLUSTERING)
        (tmp_path / "loads/small.tar.gz").symlink_to("../real")
        ran = facedata("download", "small", "--root", "deep/down/data", "--from-dir", "loads")
        assert ran.status == 0, ran.stderr
        assert not (tmp_path / "deep/down/data/small.tar.gz").is_symlink()

    def test_wrong_ones_are_kept_each_under_a_name_of_its_own(self, facedata: Run, tmp_path: Path) -> None:
        parts_set(tmp_path, tar_gz({"train.rec": noise(1000)}), 2)
        (tmp_path / "data").mkdir()
        for content in (b"one", b"two", b"three"):
            (tmp_path / "data/big_00").write_bytes(content)
            assert "big_00.wrong" in facedata("download", "big", "--root", "data").stderr
        kept = [(tmp_path / f"data/big_00.wrong{end}").read_bytes() for end in ("", "-2", "-3")]
        assert kept == [b"one", b"two", b"three"]

    def test_a_file_given_wins_over_an_old_one_with_overwrite(self, facedata: Run, tmp_path: Path) -> None:
        folder_sets(tmp_path, "a")
        (tmp_path / "data").mkdir()
        (tmp_path / "data/data.tar.gz").write_bytes(tar_gz({"x": b"old"}))
        (tmp_path / "data.tar.gz").write_bytes(tar_gz({"x": b"new"}))
        ran = facedata("download", "a", "--root", "data", "--overwrite", "--from-file", "data.tar.gz")
        assert ran.status == 0, ran.stderr
        assert (tmp_path / "data/a/x").read_bytes() == b"new"


def test_the_archive_of_another_set_with_the_same_name_is_not_taken(facedata: Run, tmp_path: Path) -> None:
    folder_sets(tmp_path, "a", "b")
    archives = {name: tar_gz({"x": name.encode()}) for name in "ab"}
    for name, archive in archives.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.tar.gz").write_bytes(archive)
    assert facedata("download", "a", "--root", "data", "--from-dir", "a").status == 0
    for how in ([], ["--from-dir", "b"]):
        ran = facedata("download", "b", "--root", "data", *how)
        assert ran.status == 1
        assert "data/data.tar.gz: is the download of a; expected that of b" in ran.stderr
    assert (tmp_path / "data/data.tar.gz").read_bytes() == archives["a"]
    (tmp_path / "data/data.tar.gz").unlink()
    assert facedata("download", "b", "--root", "data", "--from-dir", "b").status == 0
    assert (tmp_path / "data/b/x").read_bytes() == b"b"


@pytest.mark.parametrize("option", ["--remove-archives", "--overwrite"])
def test_killed_before_the_hidden_folder_was_removed(facedata: Run, tmp_path: Path, option: str) -> None:
    clustering_set(tmp_path)
    (tmp_path / "small.tar.gz").write_bytes(CLUSTERING)
    assert facedata("download", "small", "--root", "data", "--from-file", "small.tar.gz").status == 0
    work = tmp_path / "data/.facedata-download-small"
    work.mkdir()
    (work / "overwrite").touch()
    (work / "placing.json").write_text('{"moves": [], "digests": {}, "refused": {}}')
    if option == "--overwrite":
        (tmp_path / "data/features/f.bin").write_bytes(b"bad")
    ran = facedata("download", "small", "--root", "data", option)
    assert ran.status == 0, ran.stderr
    assert ran.stdout.startswith("small: already complete") == (option == "--remove-archives")
    assert not work.exists()
    assert (tmp_path / "data/small.tar.gz").exists() == (option == "--overwrite")
    assert (tmp_path / "data/features/f.bin").read_bytes() == FEATURES


def test_killed_again_and_again_it_ends_in_the_same_files(facedata: Run, tmp_path: Path, server: Server) -> None:
    files = {f"deep/big/{number % 7}/{number}.jpg": noise(3000, number) for number in range(400)}
    files["deep/big/train.rec"] = noise(2_000_000)
    placed = {name.removeprefix("deep/big/"): data for name, data in files.items()}
    parts = parts_set(tmp_path, tar_gz(files), 3, server.url("/"))
    for number, part in enumerate(parts):
        server.add(f"/big_{number:02d}", part, rate=3_000_000)
    for tenth in range(3, 12, 3):
        process = subprocess.Popen(
            [*FACEDATA, "download", "big", "--root", "data", "--quiet"], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        try:
            process.wait(tenth / 10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found = tmp_path / "data/big"
            assert not found.exists() or tree(found) == placed
    ran = facedata("download", "big", "--root", "data")
    assert ran.status == 0, ran.stderr
    assert tree(tmp_path / "data/big") == placed
    assert not (tmp_path / "data/.facedata-download-big").exists()


def test_two_at_once_are_refused_and_after_ctrl_c_it_says_how_to_resume(
    facedata: Run, tmp_path: Path, server: Server
) -> None:
    served = server.add("/small.tar.gz", CLUSTERING, rate=10_000)
    clustering_set(tmp_path, server.url("/small.tar.gz"))
    process = subprocess.Popen(
        [*FACEDATA, "download", "small", "--root", "data"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    while served.bytes_served < 5_000:
        time.sleep(0.02)
    assert "another run is writing here" in facedata("download", "small", "--root", "data").stderr
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 75
    assert "run the same command again" in said
    assert "Traceback" not in said
    served.rate = None
    assert facedata("download", "small", "--root", "data").status == 0


def test_a_disk_that_is_too_small_is_an_error_before_the_first_byte(
    facedata: Run, tmp_path: Path, server: Server, small_disk: Path
) -> None:
    served = server.add("/a.bin", b"")
    plain_set(tmp_path, server.url("/a.bin"), more="bytes = 9000000")
    ran = facedata("download", "plain", "--root", small_disk)
    assert ran.status == 1
    assert "needs 9,000,000 bytes" in ran.stderr
    assert "nothing was fetched" in ran.stderr
    assert served.requests == 0


def test_a_disk_that_fills_up_while_unpacking_can_be_made_larger(
    facedata: Run, tmp_path: Path, server: Server, small_disk: Path
) -> None:
    zeros = tar_gz({f"big/{number}": bytes(1_500_000) for number in range(6)} | {"big/train.rec": b"x"})
    (part,) = parts_set(tmp_path, zeros, 1, server.url("/"))
    server.add("/big_00", part)
    ran = facedata("download", "big", "--root", small_disk / "data")
    assert ran.status == 1
    assert "free" in ran.stderr
    assert not (small_disk / "data/big").exists()
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    ran = facedata("download", "big", "--root", small_disk / "data")
    assert ran.status == 0, ran.stderr
    assert len(tree(small_disk / "data/big")) == 7


@pytest.mark.parametrize(
    ("answer", "status", "said"), [(b"y\n", 0, "ready in"), (b"n\n", 2, "not accepted"), (b"\x03", 75, "interrupted")]
)
def test_terms_are_asked_for_on_a_terminal(
    tmp_path: Path, server: Server, answer: bytes, status: int, said: str
) -> None:
    server.add("/small.tar.gz", CLUSTERING)
    clustering_set(tmp_path, server.url("/small.tar.gz"), status="withdrawn")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
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
