"""What a file is, told from its first bytes and its name, and the command that takes it, for messages."""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import NamedTuple

from facedata.errors import EmptyDatasetError, FormatError, InputError, InputNotFoundError
from facedata.files import StrPath, opened_regular
from facedata.images import IMAGE_EXTENSIONS, image_extension
from facedata.text import plain_line

__all__ = ["Identified", "explained", "identify", "identify_bytes", "not_an_image"]
__all__ += ["page_instead_of_file", "web_page_title"]

_HEAD = 1 << 12
_ENTRIES = 256  # of a folder and the folders in it
_LINES = 20
_NUMBER = re.compile(r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?", re.IGNORECASE)
_ARRAY = re.compile(rb"'descr': *'.([a-z])\d+'.*'shape': *\(([\d, ]{1,40})\)")

_LARGEST_HEAD = 1 << 16
_PREAMBLE = re.compile(rb"(?:\s+|\xef\xbb\xbf|<!--.*?-->|<\?xml[^>]*\?>)*", re.DOTALL)
_OPENING = re.compile(rb"<(?:!doctype\s+html|html|head|title|meta|script|body)[\s>/]", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]{0,200}>(.*?)(?:</title|\Z)", re.IGNORECASE | re.DOTALL)
_PAGE_NAMES = (".html", ".htm", ".xhtml")

_EXTRACT = "unpack it first: facedata extract {path} --output FOLDER"
_READ = "to read it: facedata convert"
_PACK = "to use it: facedata pack-features {path} --unlabeled --output FOLDER --name NAME"
_LABELS = "to use them as labels: facedata convert DATASET folder:OUTPUT --labels-from {path}"
_PICKLE = "facedata never loads pickles, since they can run any program"
_TEXT = "checksums features labels landmarks list"
_KINDS: dict[str, tuple[str, str]] = {
    "a Git LFS pointer, not the file itself": ("fetch the files with: git lfs pull", ""),
    "an empty file": ("copy or download it again", ""),
    "a web page": ("it was saved in the place of the file: see what it says, and download the file again", ""),
    "an image": (f"{_READ} {{path}} folder:OUTPUT", "folder"),
    "an MXNet record file": ("to read it: facedata unpack-rec {path} --output FOLDER", "rec"),
    "a record file without the ending .rec": ("rename it to end in .rec, and its index in .idx", ""),
    "the index of a record file": ("name the .rec that it belongs to, or their folder", ""),
    "the property file of a record set": ("name the .rec beside it, or their folder", ""),
    "an LMDB database": (f"{_READ} lmdb:{{path}} folder:OUTPUT", "lmdb"),
    "a single Datum of an LMDB": ("facedata reads the LMDB that it comes from", ""),
    "a Parquet file": (f"{_READ} parquet:{{path}} folder:OUTPUT", "parquet features"),
    "a tar archive": (f"{_READ} webdataset:{{path}} folder:OUTPUT; or {_EXTRACT}", "webdataset archive"),
    "a tar.gz archive": (_EXTRACT, "archive webdataset"),
    "a zip archive": (_EXTRACT, "archive"),
    "a part of a zip archive": (_EXTRACT, "archive"),
    "a gzip file": ("unpack it first: gzip -dc {path} > FILE", "webdataset"),
    "a bzip2 file": ("unpack it first: bzip2 -dc {path} > FILE", ""),
    "an xz file": ("unpack it first: xz -dc {path} > FILE", ""),
    "a Zstandard file": ("unpack it first: zstd -dc {path} > FILE", ""),
    "a 7z archive": ("unpack it first: 7z x {path}", ""),
    "a RAR archive": ("unpack it first: unrar x {path}", ""),
    "an array of numbers (.npy)": (_PACK, "features labels"),
    "an array of integers (.npy)": (_LABELS, "labels features"),
    "arrays (.npz)": (f"{_PACK}; facedata check-features reads the neighbours of a set", "features neighbours"),
    "a matrix of float32, as features are": (f"{_PACK} --dim D", "features"),
    "a file of labels, one a line": (_LABELS, "labels features"),
    "an ONNX model": ("to use it: facedata extract-features DATASET --model {path} -o FOLDER --name NAME", "model"),
    "a PyTorch file": (f"{_PICKLE}; save models with torch.onnx.export, features with numpy.save", "features"),
    "a verification set of InsightFace": (f"{_READ} evalbin:{{path}} folder:OUTPUT", "evalbin"),
    "a pickle": (_PICKLE, "features"),
    "an HDF5 file": ("read it with h5py, and write its arrays with numpy.save", ""),
    "a MATLAB file": ("read it with scipy.io.loadmat, and write a list or an array", ""),
    "a video": ("write its frames as images: ffmpeg -i {path} FOLDER/%06d.png", ""),
    "a TSV of MS-Celeb-1M": ("its images are in base64, in the last field of each line: write them as files", ""),
    "a list of images": (f"{_READ} list:{{path}}@IMAGES folder:OUTPUT, with their folder as IMAGES", "list labels"),
    "a list of keys and labels": ("name the LMDB that it belongs to, or give it with --labels-from", "list labels"),
    "a list of pairs of images": ("", ""),
    "a list of checksums": ("to use it: facedata verify-md5 --manifest {path}", "checksums"),
    "a landmark file": ("to use it: facedata align DATASET --landmarks {path} --output FOLDER", "landmarks list"),
}
"""What is done with a file of each kind, and as what it can be read: a format, or what `explained` is given."""

_SIGNATURES = (
    (0, b"version https://git-lfs.github.com/spec/", "a Git LFS pointer, not the file itself"),
    (0, struct.pack("<I", 0xCED7230A), "an MXNet record file"),
    (16, struct.pack("<I", 0xBEEFC0DE), "an LMDB database"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"PK\x05\x06", "a zip archive"),
    (0, b"PK\x07\x08PK", "a part of a zip archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x93NUMPY", "an array of numbers (.npy)"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    (4, b"ftyp", "a video"),
)


class Identified(NamedTuple):
    """What a file is.

    Attributes
    ----------
    kind : str
        With its article.
    advice : str
        What to do with it; may be empty.
    uses : tuple of str
        As what it can be read, or its reader says better what is wrong: the name of a format, or what `explained` gets.
    sure : bool
        Whether its first bytes can be nothing else.
    """

    kind: str
    advice: str = ""
    uses: tuple[str, ...] = ()
    sure: bool = True

    def __str__(self) -> str:
        return f"{self.kind}; {self.advice}" if self.advice else self.kind


def identify(path: StrPath) -> Identified | None:
    """What the file or folder at `path` is; None if it is not known, or cannot be read."""
    import shlex  # only for a message

    path = os.fspath(path)
    with suppress(OSError, InputError, ValueError):
        what = _identify_folder(path) if os.path.isdir(path) else _identify_file(path)
        return None if what is None else what._replace(advice=what.advice.replace("{path}", shlex.quote(path)))
    return None


@contextmanager
def explained(path: StrPath, use: str, expected: str) -> Iterator[None]:
    """Let an error about the file or folder at `path` say what that is, if it cannot be read as `use`."""
    try:
        yield
    except (FormatError, EmptyDatasetError, InputNotFoundError) as error:
        what = identify(path)
        if what is None or use in what.uses or what.kind == "an empty file":
            raise
        found = (
            f"{os.fspath(path)}: expected {expected}, found {what}"
            if what.sure
            else f"{error}; it looks like {what.kind}"
        )
        raise type(error)(found) from error


def not_an_image(data: bytes) -> str:
    """The reason why bytes that do not begin like an image are refused."""
    if not data:
        return "not an image: it is empty"
    what = identify_bytes(data)
    found = what and (what.kind if "{path}" in what.advice else str(what))
    return f"not an image: its bytes begin {data[:8].hex(' ')}" + (f": {found}" if found else "")


def identify_bytes(head: bytes, name: str = "", size: int | None = None) -> Identified | None:
    """What a file with these first 4 KiB is; ``{path}`` stands for its path in the advice.

    Its name and its whole size decide what its content does not.
    """
    extension, size = os.path.splitext(name)[1].lower(), len(head) if size is None else size
    kind = sure = _kind_of(head[:_HEAD], extension) if size else "an empty file"
    kind = kind or _kind_of_text(head[:_HEAD])
    if kind is None and extension == ".bin" and size % 4 == 0 and _are_floats(head[:_HEAD]):
        kind = "a matrix of float32, as features are"
    if kind is None:
        return None
    known = _KINDS.get(kind) or _KINDS.get(kind.partition(" (")[0])  # as in "an image (jpg)"
    advice, uses = known or ("", _TEXT if kind.startswith("a text") else "")
    return Identified(kind, advice, tuple(uses.split()), sure is not None)


def _kind_of(head: bytes, extension: str) -> str | None:
    if (title := web_page_title(head)) is not None:
        return f"a web page ({title!r})" if title else "a web page"
    if (image := image_extension(head)) is not None:
        return f"an image ({image})"
    for offset, signature, kind in _SIGNATURES:
        if head.startswith(signature, offset):
            return _refined(kind, head, extension)
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        if extension in (".pt", ".pth", ".ckpt"):
            return "a PyTorch file"
        images = any(mark in head for mark in (b"\xff\xd8\xff", b"JFIF", b"PNG\r\n", b"numpy"))
        return "a verification set of InsightFace" if extension == ".bin" and images else "a pickle"
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42"):
        return "an ONNX model"
    if head[:1] in (b"\x08", b"\x0a") and any(image_extension(head[place:]) for place in range(2, 32)):
        return "a single Datum of an LMDB"
    return None


def _refined(kind: str, head: bytes, extension: str) -> str:
    """The kind of a file by what comes after its signature."""
    if kind == "a zip archive":
        member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if member.endswith((b"/data.pkl", b"/version", b"/byteorder")):
            return "a PyTorch file"
        return "arrays (.npz)" if member.endswith(b".npy") or extension == ".npz" else kind
    if kind == "a gzip file":
        with suppress(zlib.error):
            return "a tar.gz archive" if zlib.decompressobj(31).decompress(head, 512)[257:262] == b"ustar" else kind
    if kind == "an array of numbers (.npy)" and (array := _ARRAY.search(head)) and array[1] in b"iu":
        return "an array of integers (.npy)"
    return "a record file without the ending .rec" if kind == "an MXNet record file" and extension != ".rec" else kind


def _are_floats(head: bytes) -> bool:
    numbers = struct.unpack_from(f"<{len(head) // 4}f", head)
    return all(abs(number) < 1e4 for number in numbers) and any(numbers)


def _kind_of_text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig", "strict" if len(head) < _HEAD else "ignore")
    except UnicodeDecodeError:
        return None
    lines = [line for line in text.splitlines() if line.strip()]
    lines = (lines[:-1] if len(lines) > 1 and len(head) == _HEAD else lines)[:_LINES]
    if not lines or not all(character.isprintable() or character.isspace() for character in text):
        return None
    for header in range(min(3, len(lines))):  # a count, the names of the columns
        kinds = set(map(_kind_of_line, lines[header:]))
        if len(kinds) == 1 and (kind := kinds.pop()) is not None:
            return kind
    return f"a text file that begins {plain_line(lines[0], 40)!r}"


def _kind_of_line(line: str) -> str | None:
    fields = re.split(r"[\s,;]+", line.strip())
    numbers = next((at for at, field in enumerate(reversed(fields)) if not _NUMBER.fullmatch(field)), len(fields))
    images = [field for field in fields if field.rpartition(".")[2].lower() in IMAGE_EXTENSIONS or "/" in field]
    if "\t/9j/" in line:  # a JPEG in base64
        return "a TSV of MS-Celeb-1M"
    if re.fullmatch(r"\d+\t\d+", line):
        return "the index of a record file"
    if re.fullmatch(r"\d+,\d+,\d+", line):
        return "the property file of a record set"
    if numbers == len(fields) == 1 and "." not in line:
        return "a file of labels, one a line"
    if re.match(r"\\?[0-9a-f]{32,128} [ *]|(?:MD5|SHA\d+) \(", line, re.IGNORECASE):
        return "a list of checksums"
    if numbers >= 10:
        return "a landmark file" if numbers < len(fields) else None
    if images:
        return "a list of pairs of images" if len(images) == 2 else "a list of images"
    return "a list of keys and labels" if len(fields) == 2 and numbers == 1 else None


def _identify_file(path: str) -> Identified | None:
    with opened_regular(path) as descriptor:
        return identify_bytes(os.read(descriptor, _HEAD), path, os.fstat(descriptor).st_size)


def _identify_folder(path: str) -> Identified | None:
    """What a folder holds: the first file that stands in the place of another one, else the kind found most often."""
    import shlex  # only for a message

    found: dict[str, list[tuple[str, Identified]]] = {}
    folders, left = deque([path]), _ENTRIES
    while folders and left > 0:
        with suppress(OSError), os.scandir(folders.popleft()) as scan:
            entries = sorted(islice(scan, left), key=lambda entry: entry.name)
            left -= len(entries)
            folders.extend(entry.path for entry in entries if entry.is_dir())
            for entry in entries:
                if not entry.name.startswith(".") and not entry.name.endswith(_PAGE_NAMES) and entry.is_file():
                    with suppress(InputError):
                        if (what := _identify_file(entry.path)) is not None and what.kind != "an empty file":
                            found.setdefault(what.kind, []).append((entry.path, what))
    if not found:
        return None
    replaced = [kind for kind in found if kind.startswith(("a Git LFS", "a web page"))]
    readable = {kind for kind, files in found.items() if files[0][1].uses and not kind.startswith("a text")}
    kind = replaced[0] if replaced else max(found, key=lambda kind: (kind in readable, len(found[kind])))
    file, what = found[kind][0]
    uses = () if replaced else tuple(use for files in found.values() for use in files[0][1].uses)
    advice = what.advice
    if what.uses[:1] in (("rec",), ("lmdb",), ("parquet",), ("folder",)):  # a folder is read as a whole
        inside = os.path.dirname(os.path.dirname(file) if what.uses[0] == "folder" else file)  # of the class folders
        advice = f"did you mean {inside}?" if len(inside) > len(path.rstrip("/")) else advice
    else:
        advice = advice.replace("{path}", shlex.quote(file))
    others = f" (and {len(found[kind]) - 1:,} more)" if found[kind][1:] else ""
    return Identified(f"a folder in which {os.path.relpath(file, path)} is {kind}{others}", advice, uses, what.sure)


def web_page_title(head: bytes) -> str | None:
    """The title of the web page that starts with these bytes; empty if it has none, None if this is not a web page.

    Parameters
    ----------
    head : bytes
        The first bytes of a file: a few KB are enough, and at most 64 KiB are read.
    """
    head = head[:_LARGEST_HEAD]
    preamble = _PREAMBLE.match(head)
    return _title(head) if preamble and _OPENING.match(head, preamble.end()) else None


def page_instead_of_file(name: str, content_type: str, head: bytes) -> str | None:
    """The title of a web page that the server sends instead of the file `name`, or None if it sends a file.

    If the first bytes contain NUL, it is a file, whatever the server's ``Content-Type`` says.
    """
    if name.lower().endswith(_PAGE_NAMES):
        return None
    title = web_page_title(head)
    if title is None and content_type.partition(";")[0].strip().lower() == "text/html" and b"\0" not in head[:1024]:
        return _title(head[:_LARGEST_HEAD])
    return title


def _title(head: bytes) -> str:
    import html  # only if there is a page

    match = _TITLE.search(head)
    return plain_line(html.unescape(match[1].decode(errors="replace"))) if match else ""
