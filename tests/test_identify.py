from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import pickle
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from archive_support import tar_bytes, zip_bytes
from hypothesis import given
from hypothesis import strategies as st
from lmdb_support import encode_datum
from support import Ran, RecordSetMaker, write_tree

from facedata.dataset import Sample
from facedata.identify import identify, identify_bytes, page_instead_of_file, web_page_title

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
PAGE = b"<!DOCTYPE html><html><title>Google Drive - Quota exceeded</title></html>"
JPEG = cv2.imencode(".jpg", np.zeros((16, 16, 3), np.uint8))[1].tobytes()
TAR = tar_bytes([("0.jpg", JPEG), ("0.cls", b"0")])
ONNX = b"\x08\x07\x12\x07pytorch\x1a\x031.9:\x10graph"
ROWS = np.random.default_rng(0).normal(size=(6, 16)).astype(np.float32)
CHECKSUMS = b"d41d8cd98f00b204e9800998ecf8427e  empty.txt\n"


def saved(write: Callable[..., None], *arrays: Any, **named: Any) -> bytes:
    stream = io.BytesIO()
    write(stream, *arrays, **named)
    return stream.getvalue()


def encoded(extension: str) -> bytes:
    return cv2.imencode(f".{extension}", np.zeros((8, 8, 3), np.uint8))[1].tobytes()


FILES = {
    "faces.record": (b"\x0a\x23\xd7\xce" + bytes(60), "a record file without the ending .rec; rename it"),
    "train.idx": (b"1\t0\n2\t60\n", "the index of a record file; name the .rec"),
    "a.rec": (PAGE, "a web page ('Google Drive - Quota exceeded'); "),
    "b.rec": (POINTER, "a Git LFS pointer, not the file itself; fetch the files with: git lfs pull"),
    "value": (encode_datum(Sample("a", 3, JPEG)), "a single Datum of an LMDB"),
    "small": (encode_datum(Sample("a", 3, JPEG), "minimal"), "a single Datum of an LMDB"),
    "my tar.tar": (TAR, "a tar archive; to read it: facedata convert webdataset:'my tar.tar' folder:OUTPUT"),
    "a.tgz": (gzip.compress(TAR), "a tar.gz archive; unpack it first: facedata extract a.tgz --output FOLDER"),
    "a.zip": (zip_bytes(("0.jpg", JPEG)), "a zip archive; unpack it first: facedata extract a.zip --output FOLDER"),
    "a.gz": (gzip.compress(b"text"), "a gzip file; unpack it first: gzip -dc a.gz > FILE"),
    "a.bz2": (bz2.compress(b"text"), "a bzip2 file; unpack it first: bzip2 -dc a.bz2 > FILE"),
    "a.xz": (lzma.compress(b"text"), "an xz file; unpack it first: xz -dc a.xz > FILE"),
    "a.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(30), "a 7z archive; unpack it first: 7z x a.7z"),
    "a.rar": (b"Rar!\x1a\x07\x01\0" + bytes(30), "a RAR archive; unpack it first: unrar x a.rar"),
    "a.bin": (ROWS.tobytes(), "a matrix of float32, as features are; to use it: facedata pack-features a.bin "),
    "a.npy": (saved(np.save, ROWS), "an array of numbers (.npy); to use it: facedata pack-features a.npy "),
    "ids.npy": (saved(np.save, np.arange(3)), "an array of integers (.npy); to use them as labels: facedata convert "),
    "a.npz": (saved(np.savez, ROWS), "arrays (.npz); to use it: facedata pack-features a.npz "),
    "labels.meta": (b"0\n1\n-1\n", "a file of labels, one a line; to use them as labels: facedata convert DATASET "),
    "lfw.bin": (pickle.dumps(([JPEG, JPEG], [True]), 2), "a verification set of InsightFace; to read it: facedata "),
    "a.pkl": (pickle.dumps({"a": 1}), "a pickle; facedata never loads pickles, since they can run any program"),
    "a.pth": (zip_bytes(("archive/data.pkl", b"")), "a PyTorch file; facedata never loads pickles"),
    "b.pth": (pickle.dumps({"a": 1}, 2), "a PyTorch file; facedata never loads pickles"),
    "a.onnx": (ONNX, "an ONNX model; to use it: facedata extract-features DATASET --model a.onnx "),
    "a.h5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "an HDF5 file; read it with h5py"),
    "a.mp4": (b"\0\0\0\x18ftypisom" + bytes(20), "a video; write its frames as images: ffmpeg -i a.mp4 "),
    "celeb.tsv": (b"m.01\tname\t0\t" + base64.b64encode(JPEG * 20) + b"\n", "a TSV of MS-Celeb-1M"),
    "a.txt": ("f/ä b.jpg 0\nf/c.jpg 1\n".encode(), "a list of images; to read it: facedata convert list:a.txt@IMAGES "),
    "my_kv.txt": (b"a_0_0 0\na_0_1 0\n", "a list of keys and labels; name the LMDB"),
    "pairs.txt": (b"a/1.jpg a/2.jpg 1\n", "a list of pairs of images"),
    "MD5SUMS": (CHECKSUMS, "a list of checksums; to use it: facedata verify-md5 --manifest MD5SUMS"),
    "points.txt": (
        b"key x1 y1 x2 y2 x3 y3 x4 y4 x5 y5\n" + b"0.jpg 3 3 9 3 6 6 3 9 9 9\n" * 2,
        "a landmark file; to use it: ",
    ),
    "notes.txt": (b"bring milk\nand bread\n", "a text file that begins 'bring milk'"),
    "empty.txt": (b"", "an empty file; copy or download it again"),
    "noise": (b"\x01\x02\xff\0" * 20, "None"),
    **{f"a.{kind}": (encoded(kind), f"an image ({kind})") for kind in ("jpg", "png", "webp", "bmp")},
    "a.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "an image (heic); to read it: facedata convert a.heic folder:"),
}
RUN = ["my tar.tar", "a.tgz", "a.zip", "a.bin", "a.npy", "ids.npy", "a.npz", "labels.meta", "a.txt", "MD5SUMS"]
RUN += ["points.txt", "a.jpg", "set/train.rec", "a.lmdb", "part.parquet"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_from_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    content, expected = FILES[name]
    monkeypatch.chdir(write_tree(tmp_path, {name: content}))
    assert str(identify(name)).startswith(expected)


@pytest.mark.parametrize("name", RUN)
def test_the_command_that_is_named_works(
    tmp_path: Path, inline_facedata: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_tree(tmp_path, {file: content for file, (content, _) in FILES.items()})
    write_tree(tmp_path / "images" / "f", {"ä b.jpg": JPEG, "c.jpg": JPEG, "0.jpg": JPEG})
    write_tree(tmp_path / "photo", {"0.jpg": JPEG})
    maker = RecordSetMaker(tmp_path / "set")
    for key in range(3):
        maker.add(key, float(key), JPEG)
    maker.write()
    monkeypatch.chdir(tmp_path)
    if name in ("a.lmdb", "part.parquet"):
        target = f"lmdb:{name}" if name == "a.lmdb" else "parquet:parts"
        assert inline_facedata("convert", "set", target, "--quiet").status == 0
    name = {"a.lmdb": "a.lmdb/data.mdb", "part.parquet": "parts"}.get(name, name)
    what = identify(next(Path(name).glob("*.parquet")) if name == "parts" else name)
    assert what is not None
    command = what.advice[what.advice.index("facedata ") :].partition(",")[0].partition(";")[0]
    words = [word.replace("IMAGES", "images").replace("OUTPUT", "out") for word in shlex.split(command)[1:]]
    named = {"DATASET": "photo" if name == "points.txt" else "set", "FOLDER": "out", "NAME": "n", "D": "16"}
    ran = inline_facedata(*(named.get(word, word) for word in words))
    assert ran.status == 0, (command, ran.stderr)


@pytest.mark.parametrize("content", [POINTER, PAGE], ids=["pointer", "page"])
@pytest.mark.parametrize(
    "command",
    [
        "unpack-rec r --output out",
        "convert folder:x.zip folder:out",
        "convert webdataset:w folder:out",
        "convert lmdb:l.lmdb folder:out",
        "convert parquet:q folder:out",
        "convert list:x.txt folder:out",
        "convert x.dat folder:out",
        "convert images folder:out --labels-from x.npy",
        "extract x.zip --output out",
        "pack-features x.npy --unlabeled --output out --name a",
        "pack-features x.bin --unlabeled --dim 16 --output out --name a",
        "extract-features images --model x.onnx --output out --name a",
        "align images --landmarks x.txt --output out",
        "verify-md5 --manifest x.txt",
    ],
)
def test_a_file_that_another_one_was_saved_for_is_named(
    tmp_path: Path, inline_facedata: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str, content: bytes
) -> None:
    names = "r/train.rec r/train.idx w/0.tar l.lmdb/data.mdb q/0.parquet x.zip x.txt x.npy x.bin x.onnx x.dat"
    write_tree(tmp_path, dict.fromkeys(names.split(), content))
    write_tree(tmp_path, {"images/a/0.jpg": JPEG, "images/b/1.jpg": JPEG})
    monkeypatch.chdir(tmp_path)
    ran = inline_facedata(*command.split())
    assert ran.status == 1
    assert ("git lfs pull" if content == POINTER else "Quota exceeded") in ran.stderr


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "unpack-rec a.zip --output out",
            "expected a dataset of the format rec, found a zip archive; unpack it first: ",
        ),
        (
            "convert archives folder:out",
            "a folder in which a.zip is a zip archive (and 1 more); unpack it first: ",
        ),
        (
            "convert above folder:out",
            "glint/train.rec is an MXNet record file; did you mean above/glint?",
        ),
        ("convert faces.record folder:out", "a record file without the ending .rec; rename it to end in .rec"),
        ("pack-features a.tgz --unlabeled --output out --name a", "expected features, found a tar.gz archive; unpack"),
        ("align images --landmarks a.tgz --output out", "expected landmarks, found a tar.gz archive; unpack"),
        ("align images --landmarks a.txt --output out", "it looks like a list of images"),
        ("convert rec:points.txt folder:out", "is neither a set folder nor a .rec file; it looks like a landmark file"),
        ("verify-md5 --manifest a.zip", "expected a list of checksums, found a zip archive"),
        ("index-rec a.zip", "expected a record file, found a zip archive"),
        ("convert folder:above/glint folder:out", "an MXNet record file; to read it: facedata unpack-rec above/glint "),
        ("check-features a.png --dim 16", "expected features, found an image (png)"),
        ("extract a.7z --output out", "found a 7z archive; unpack it first: 7z x a.7z"),
        ("extract-features images --model a.pth --output out --name a", "expected an ONNX model, found a PyTorch file"),
        ("convert images folder:out --labels-from a.png", "expected labels, found an image (png)"),
    ],
)
def test_a_wrong_file_is_named(
    tmp_path: Path, inline_facedata: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    write_tree(tmp_path, {file: content for file, (content, _) in FILES.items()})
    write_tree(tmp_path, {"archives/a.zip": FILES["a.zip"][0], "archives/b.zip": FILES["a.zip"][0]})
    write_tree(tmp_path, {"images/a/0.jpg": JPEG, "images/b/1.jpg": JPEG})
    RecordSetMaker(tmp_path / "above" / "glint").plain([0, 1])
    monkeypatch.chdir(tmp_path)
    ran = inline_facedata(*command.split())
    assert ran.status == 1
    assert message in ran.stdout + ran.stderr


@given(st.binary(max_size=200) | st.sampled_from([content for content, _ in FILES.values()]), st.sampled_from([*FILES]))
def test_any_bytes_are_handled(data: bytes, name: str) -> None:
    for size in (len(data), max(len(data) - 1, 0), 20):
        assert str(identify_bytes(data[:size], name)).isprintable()


@pytest.mark.parametrize(
    ("head", "title"),
    [
        (b"<!DOCTYPE html><html><head><title>Quota</title>", "Quota"),
        (b"\xef\xbb\xbf \r\n<!-- x -->\n<HTML lang='de'><TITLE class=x>\n  A &lt; B \n</TITLE>", "A < B"),
        (b"<?xml version='1.0'?><!doctype   HTML PUBLIC '-//W3C//DTD'><html>", ""),
        (b"<html><title>cut off in the mid", "cut off in the mid"),
        (b"<html><title>\x1b[2J\x07bell</title>", "[2J bell"),
        (b"<html><title>" + b"long " * 100 + b"</title>", "long " * 23 + "lo..."),
        (b"<head><meta charset=utf-8><title>\xc3\xbc</title>", "ü"),
        *((head, None) for head in (b"", b"\x1f\x8b\x08", b"PK\x03\x04<html>", b"text <html>", b"<htmlish>", b"<svg>")),
    ],
)
def test_a_web_page_is_recognised_by_its_beginning(head: bytes, title: str | None) -> None:
    assert web_page_title(head) == title


@given(st.binary(max_size=200) | st.text("<>!-/tile hm?x", max_size=60).map(str.encode))
def test_any_beginning_is_handled(head: bytes) -> None:
    title = web_page_title(head)
    assert title is None or title.isprintable()


def test_hostile_beginnings_are_quick() -> None:
    begin = time.monotonic()
    for head in (b"<html>" + b"<title" * 200_000, b"<!--" * 200_000, b" " * 1_000_000, b"<!-- --> " * 100_000):
        web_page_title(head)
    assert time.monotonic() - begin < 20


def test_a_text_that_the_server_calls_a_page_is_one() -> None:
    assert page_instead_of_file("a.zip", "text/html; charset=utf-8", b"please log in") == ""
    assert page_instead_of_file("a.zip", "text/plain", b"please log in") is None
    assert page_instead_of_file("index.html", "text/html", b"<html>") is None
