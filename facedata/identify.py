"""What a file is, told from its content, and which command takes it; for the messages about files that do not fit."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

from facedata.errors import InputError
from facedata.files import opened_regular
from facedata.images import image_extension
from facedata.text import LFS_POINTER, plain_line, saved_instead

__all__ = ["Identified", "identify", "identify_bytes"]

_HEAD = 1 << 13
_ENTRIES = 256
_EXTRACT = "unpack it first: facedata extract {path} --output FOLDER"
_FEATURES = "facedata pack-features {path} takes it"
_RECORDS = "name the .rec beside it, or their folder, as rec:FOLDER"


_POINTER = (saved_instead(LFS_POINTER) or "").partition(";")[0]


class Identified(NamedTuple):
    """What a file is.

    Attributes
    ----------
    kind : str
        With its article: ``"a zip archive"``.
    advice : str
        What to do with it; may be empty.
    """

    kind: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.kind}; {self.advice}" if self.advice else self.kind


_SIGNATURES: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"PK\x03\x04", "a zip archive", _EXTRACT),
    (0, b"PK\x05\x06", "an empty zip archive", ""),
    (0, b"\x1f\x8b", "a gzip file", _EXTRACT),
    (0, b"BZh", "a bzip2 file", "unpack it first, with tar -xf or bunzip2"),
    (0, b"\xfd7zXZ\0", "an xz file", "unpack it first, with tar -xf or unxz"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", "unpack it first, with tar -xf or unzstd"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first, with 7z x"),
    (0, b"Rar!\x1a\x07", "a RAR archive", "unpack it first, with unrar x"),
    (
        257,
        b"ustar",
        "a tar",
        "if it holds a dataset of samples, name it webdataset:{path}; else facedata extract {path}",
    ),
    (0, struct.pack("<I", 0xCED7230A), "an MXNet record file", "name it rec:{path}"),
    (16, struct.pack("<I", 0xBEEFC0DE), "an LMDB database", "name it lmdb:{path}"),
    (0, b"PAR1", "a Parquet file", "name it parquet:{path}"),
    (0, b"ARROW1", "an Arrow file", "write it as Parquet: datasets.load_dataset('arrow', ...).to_parquet(...)"),
    (0, b"\x93NUMPY", "a NumPy array", _FEATURES),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "write its images as files, or its features as .npy"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file", "read it with scipy.io.loadmat, and write a list or a .npy"),
    (0, b"SQLite format 3\0", "an SQLite database", ""),
    (0, b"%PDF-", "a PDF", ""),
)


def identify(path: str | os.PathLike[str]) -> Identified | None:
    """What the file or folder at `path` is; None if it is not known, or cannot be read."""
    path = os.fspath(path)
    if os.path.isdir(path):
        return _identify_folder(path)
    with suppress(OSError, InputError), opened_regular(path) as descriptor:
        head, size = os.read(descriptor, _HEAD), os.fstat(descriptor).st_size
        found = identify_bytes(head, os.path.basename(path), size)
        return None if found is None else Identified(found.kind, found.advice.format(path=path))
    return None


def identify_bytes(head: bytes, name: str = "", size: int | None = None) -> Identified | None:
    """What a file with these first bytes is; `advice` has ``{path}`` in the place of its path.

    Parameters
    ----------
    head : bytes
        The first 8 KiB are enough.
    name : str
        The name of the file, which decides where the content does not.
    size : int, optional
        The size of the whole file in bytes, if `head` is not all of it.
    """
    size = len(head) if size is None else size
    extension = os.path.splitext(name)[1].lower()
    if not head:
        return Identified("an empty file")
    instead = saved_instead(head)
    if instead is not None:
        return Identified(*instead.split("; ", 1))
    for offset, signature, kind, advice in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            if extension == ".npz":
                return Identified("a NumPy archive", "if it holds neighbours, facedata check-features takes it")
            if extension in (".pth", ".pt") and signature == b"PK\x03\x04":
                return Identified("a PyTorch checkpoint", "facedata takes models as ONNX")
            return Identified(kind, advice)
    image = image_extension(head)
    if image is not None:
        return Identified(f"an image ({image})")
    if head[:1] == b"\x80" and 2 <= head[1] <= 5:
        what = "a pickle, as verification sets of InsightFace are" if extension == ".bin" else "a Python pickle"
        return Identified(what, "facedata does not load pickles here, since they can run code")
    if head[:1] == b"\x08" and extension == ".onnx":
        return Identified("an ONNX model", "give it with --model")
    if head[:1] in (b"\x08", b"\x0a") and any(image_extension(head[place:]) for place in range(2, 32)):
        return Identified("a single Caffe Datum", "facedata takes the LMDB that it comes from")
    text = _identify_text(head)
    if text is not None:
        return text
    if extension == ".bin" and size % 4 == 0 and _are_floats(head):
        return Identified("a matrix of float32 without a header, as features are", _FEATURES)
    return None


_LINES: tuple[tuple[str, str, str], ...] = (
    (r"\d+\t\d+", "the index of a record file", _RECORDS),
    (r"\d+,\d+,\d+", "the property file of a record set", _RECORDS),
    (r"-?\d+", "a file of labels, one a line", "give it with --labels-from"),
    (r"\S+ \S+\.[A-Za-z]{3,4} [01]", "a list of pairs", ""),
    (r"[^\t]+(\t[^\t]+)*\t[A-Za-z0-9+/=]{200,}", "a TSV of MS-Celeb-1M with images in base64", ""),
    (
        r"\S+( \S+)*[ \t,;]\d+",
        "a list of paths or keys and labels",
        "name it list:{path}@FOLDER, with the images' folder",
    ),
    (r"[\[{].*", "JSON", ""),
)


def _identify_text(head: bytes) -> Identified | None:
    if b"\0" in head:
        return None
    try:
        lines = head.decode("utf-8-sig", "strict" if len(head) < _HEAD else "replace").splitlines()[:20]
    except UnicodeDecodeError:
        return None
    lines = lines[:-1] if len(lines) > 1 and len(head) == _HEAD else lines
    for pattern, kind, advice in _LINES:
        if lines and all(re.fullmatch(pattern, line) for line in lines):
            return Identified(kind, advice)
    return Identified(f"a text file that begins {plain_line(lines[0], 40)!r}") if lines else None


def _are_floats(head: bytes) -> bool:
    """Whether the bytes are float32 of a size that features have."""
    numbers = struct.unpack_from(f"<{len(head) // 4}f", head)
    return bool(numbers) and all(abs(number) < 1e4 for number in numbers) and any(abs(n) > 1e-6 for n in numbers)


def _identify_folder(path: str) -> Identified | None:
    """What a folder holds, from the first files in it and in its folders."""
    found: Counter[Identified] = Counter()
    with suppress(OSError):
        for folder, folders, names in islice(os.walk(path), 8):
            folders.sort()
            for name in islice((name for name in sorted(names) if not name.startswith(".")), _ENTRIES):
                if (what := identify(os.path.join(folder, name))) is not None:
                    found[what._replace(advice=what.advice.replace(os.path.join(folder, name), "FILE"))] += 1
    if not found:
        return None
    pointer = next((what for what in found if what.kind == _POINTER), None)
    if pointer is not None:
        return Identified("a folder with Git LFS pointers, not the files themselves", pointer.advice)
    what = found.most_common(1)[0][0]
    return Identified(f"a folder that holds {what.kind}", what.advice)
