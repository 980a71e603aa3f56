"""The format ``evalbin``: the verification sets of InsightFace, ``lfw.bin`` and the like.

Such a file is a pickle of ``(images, same)``: two encoded images for each pair, then for each pair whether both show
the same person. The opcodes of the pickle are read one by one, only those that make lists, bytes and arrays, and
nothing that the pickle names is imported or called. The images stay in the file until they are read.
"""

from __future__ import annotations

import os
import pickletools
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from facedata.dataset import Format, Sample, Source
from facedata.errors import EmptyDatasetError, FormatError, InputError, SampleError
from facedata.files import file_identity, opened_regular, read_exactly
from facedata.images import LARGEST_IMAGE, image_extension

__all__ = ["FORMAT", "EvalBinSource", "open_source", "recognises", "write_evalbin"]

_HEAD, _IMAGE_HEAD = 4096, 64
_LONGEST_LINE = 1 << 20  # an image of a pickle of protocol 0 is one line
_LONGEST_WORD, _MOST_DIMENSIONS, _LARGEST_FLAG = 80, 32, 8
_STARTS = (b"\xff\xd8\xff", "\xff\xd8\xff".encode(), b"\x89PNG\r\n")  # of an image, perhaps as text in UTF-8
_LENGTHS = {"SHORT_BINBYTES": 1, "BINBYTES": 4, "BINBYTES8": 8, "BYTEARRAY8": 8, "SHORT_BINSTRING": 1, "BINSTRING": 4}
"""The opcodes with bytes, and how many bytes the length before them takes."""
_COLLECT: dict[str, int | None] = {"LIST": None, "TUPLE": None, "APPENDS": None, "APPEND": 1, "EMPTY_TUPLE": 0}
_COLLECT |= {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
"""The opcodes that take values from the stack, and how many; None for those since the last mark."""
_PUT, _GET = ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"), ("BINGET", "LONG_BINGET", "GET")
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_ARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_CALLABLE = {
    "numpy ndarray",
    "numpy dtype",
    "_codecs encode",
    *(f"{module} {name}" for module in _ARRAYS for name in ("_reconstruct", "scalar", "_frombuffer")),
}
_DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    UnicodeError,
    OverflowError,
    struct.error,
    RecursionError,
)


class Extent(NamedTuple):
    """Bytes of the file."""

    offset: int
    length: int
    word: str = ""
    """The bytes themselves if there are only a few: Python 2 writes the names of types so."""


class _Global(NamedTuple):
    name: str


@dataclass
class _Array:
    """An array of NumPy as the pickle has it."""

    data: Extent | bytes = b""
    itemsize: int = 1


@dataclass(frozen=True)
class EvalBinSource(Source):
    """The images of a verification set, two for each pair; their keys are ``000017_1.jpg`` and ``000017_2.jpg``.

    Attributes
    ----------
    images : sequence of Extent or bytes
        Where each image lies in the file, or the image itself if the pickle has it in another encoding.
    extensions : sequence of str
        The extension of each image in the file, with its dot; empty for data that is not an image.
    same : ndarray of shape (pairs,), bool
        Whether both images of each pair of the file show the same person.
    positions : ndarray of shape (N,), int64
        The positions in the file of the images of this source.
    """

    path: str
    images: Sequence[Extent | bytes]
    extensions: Sequence[str]
    same: NDArray[np.bool_]
    positions: NDArray[np.int64]

    keys_are_paths = True
    labelled = False

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: NDArray[np.int64]) -> EvalBinSource:
        """The images at `positions`."""
        return replace(self, positions=self.positions[positions])

    def read(self) -> Iterator[Sample | SampleError]:
        """Every image in order, or the error in its place."""
        with opened_regular(self.path) as descriptor:
            for position in range(len(self)):
                yield self._read(position, descriptor)

    def fetch(self, position: int) -> Sample | SampleError:
        """One image, or the error in its place."""
        with opened_regular(self.path) as descriptor:
            return self._read(position, descriptor)

    def _read(self, position: int, descriptor: int) -> Sample | SampleError:
        key, image = self._key(position), self.images[self.positions[position]]
        if isinstance(image, bytes):
            return Sample(key, -1, image)
        try:
            data = read_exactly(descriptor, image.length, image.offset)
        except OSError as error:
            return SampleError(self.path, key, f"cannot be read: {error.strerror}", image.offset)
        if len(data) < image.length:
            return SampleError(self.path, key, "the file ends within this image", image.offset)
        return Sample(key, -1, data)

    def _key(self, position: int) -> str:
        pair, second = divmod(int(self.positions[position]), 2)
        return f"{pair:06d}_{second + 1}{self.extensions[self.positions[position]]}"

    def keys(self) -> Iterator[str]:
        """The number of the pair, and which of its images."""
        return map(self._key, range(len(self)))

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        """No image has a label."""
        yield np.full(len(self), -1)

    def sizes(self) -> NDArray[np.int32]:
        """The size of every image."""
        found = (self.images[position] for position in self.positions)
        return np.fromiter((len(i) if isinstance(i, bytes) else i.length for i in found), np.int32, len(self))

    def identity(self) -> Mapping[str, Any]:
        """Size and sampled digest of the file."""
        return file_identity(self.path)

    def places(self) -> Mapping[str, bool]:
        """The file."""
        return {self.path: True}

    def locate(self, position: int) -> tuple[str, int | None]:
        """The file, and where the image lies in it."""
        image = self.images[self.positions[position]]
        return self.path, None if isinstance(image, bytes) else image.offset

    def describe(self) -> Mapping[str, Any]:
        """How many pairs there are, and how many of the same person."""
        return {"pairs": len(self.same), "same": int(self.same.sum())}


def open_source(path: str) -> EvalBinSource:
    """Open a verification set.

    Raises
    ------
    FormatError
        If the pickle has anything but lists, bytes, arrays and flags, is cut short, or has another number of flags than
        of pairs.
    EmptyDatasetError
        If it has no pairs.
    """
    with opened_regular(path) as descriptor, open(os.dup(descriptor), "rb") as file:
        size = os.fstat(descriptor).st_size
        try:
            value = _scan(_BoundedFile(file, size))
            images, flags = value
            found = [_image(each) for each in images]
            same = _flags(flags, descriptor)
            extensions = [_extension(each, descriptor) for each in found]
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from error
        except _DAMAGE as error:
            raise FormatError(
                f"{path}: is not a verification set, or is cut short: expected a pickle of (images, flags): {error}"
            ) from error
    if len(found) != 2 * len(same):
        raise FormatError(
            f"{path}: has {len(found):,} images and {len(same):,} flags; expected two images for each flag"
        )
    if not found:
        raise EmptyDatasetError(f"{path}: has no pairs")
    for number, image in enumerate(found):
        length = len(image) if isinstance(image, bytes) else image.length
        if length > LARGEST_IMAGE:
            raise FormatError(f"{path}: image {number} has {length:,} bytes; an image may have {LARGEST_IMAGE:,}")
    return EvalBinSource(path, found, extensions, same, np.arange(len(found)))


class _BoundedFile:
    """A file for `pickletools.genops`, which would allocate whatever length an opcode announces."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self.tell = file.tell

    def read(self, length: int) -> bytes:
        return self._file.read(min(length, self.size - self._file.tell()))

    def readline(self) -> bytes:
        return self._file.readline(_LONGEST_LINE)


def _scan(file: _BoundedFile) -> Any:
    """The value of a pickle, with an `Extent` in the place of bytes."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    encoded = 0
    for code, argument, position in pickletools.genops(cast(Any, file)):
        name = code.name
        if name == "STOP":
            break
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUT:
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in _GET:
            stack.append(memo[argument])
        elif name in _COLLECT:
            count = _COLLECT[name]
            start = marks.pop() if count is None else len(stack) - count
            items = stack[start:]
            del stack[start:]
            if name.startswith("APPEND"):
                list.extend(stack[-1], items)
            else:
                stack.append(items if name == "LIST" else tuple(items))
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = str(argument) if name == "GLOBAL" else " ".join(map(_word, (stack.pop(-2), stack.pop())))
            if words not in _CALLABLE:
                shown = words[:_LONGEST_WORD].replace(" ", ".")
                raise FormatError(f"is a pickle that would run {shown!a}; nothing was run")
            stack.append(_Global(words))
        elif name == "REDUCE":
            arguments = stack.pop()
            stack[-1] = _made(stack[-1].name.rpartition(" ")[2], arguments)
            encoded += len(stack[-1]) if isinstance(stack[-1], bytes) else 0
            if encoded > file.size:  # the same text over and over would fill the memory
                raise FormatError("is a pickle whose bytes are larger than the file")
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Array):
                _, shape, stack[-1].itemsize, _, stack[-1].data = state
                _check_length(stack[-1], shape)
        elif name not in ("PROTO", "FRAME"):
            stack.append(_pushed(name, argument, int(position or 0)))
    return stack.pop()


def _pushed(name: str, argument: Any, position: int) -> Any:
    """The value that an opcode pushes."""
    if name in _LENGTHS:
        word = argument if name == "SHORT_BINSTRING" and len(argument) <= _LARGEST_FLAG else ""
        return Extent(position + 1 + _LENGTHS[name], len(argument), word)
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    if name == "EMPTY_LIST":
        return []
    if name == "STRING":
        return argument.encode("latin1")
    if isinstance(argument, int | str):  # numbers, flags of protocol 0, texts
        return argument
    raise FormatError(f"is a pickle with {name} at byte {position}, which no verification set has")


def _made(function: str, arguments: Any) -> Any:
    """What a call of the pickle makes: an array, the size of its type, or bytes."""
    if function == "encode":  # bytes, as Python 3 writes them for Python 2
        text, encoding = arguments
        if encoding != "latin1":
            raise FormatError(f"has bytes in the encoding {_word(encoding)[:_LONGEST_WORD]!a}; expected 'latin1'")
        return text.encode("latin1")
    if function == "dtype":
        kind = _word(arguments[0])
        if kind[:1] not in tuple("ubi") or not kind[1:].isdigit():
            raise FormatError(f"has an array of {kind[:_LONGEST_WORD]!a}; expected bytes or flags")
        return int(kind[1:])
    if function == "scalar":
        return _Array(arguments[1], arguments[0])
    if function == "_frombuffer":
        array = _Array(arguments[0], arguments[1])
        _check_length(array, arguments[2])
        return array
    return _Array()


def _word(value: Any) -> str:
    """A name that the pickle has as text or, from Python 2, as bytes; never the words for a nested list."""
    if isinstance(value, Extent):
        value = value.word
    return value.decode("latin1") if isinstance(value, bytes) else value if isinstance(value, str) else "?"


def _check_length(array: _Array, shape: Sequence[int]) -> None:
    length = len(array.data) if isinstance(array.data, bytes) else array.data.length
    numbers = [*shape[: _MOST_DIMENSIONS + 1], array.itemsize]
    if len(shape) > _MOST_DIMENSIONS or any(type(n) is not int or not 0 <= n < 1 << 62 for n in numbers):
        raise FormatError("has an array of an impossible shape")
    if length != prod(shape) * array.itemsize:
        raise FormatError(f"has an array of the shape {tuple(shape)} with {length:,} bytes")


def _image(value: Any) -> Extent | bytes:
    if isinstance(value, _Array) and value.itemsize == 1:
        value = value.data
    if not isinstance(value, Extent | bytes):
        kind = "an array of numbers" if isinstance(value, _Array) else f"a value of the type {type(value).__name__}"
        raise FormatError(f"has {kind} in the place of an image; expected bytes, or an array of uint8")
    return value


def _extension(image: Extent | bytes, descriptor: int) -> str:
    head = image[:_IMAGE_HEAD] if isinstance(image, bytes) else os.pread(descriptor, _IMAGE_HEAD, image.offset)
    extension = image_extension(head)
    return f".{extension}" if extension else ""


def _flags(value: Any, descriptor: int) -> NDArray[np.bool_]:
    def data(array: _Array) -> bytes:
        length = len(array.data) if isinstance(array.data, bytes) else array.data.length
        if array is not value and length > _LARGEST_FLAG:
            raise FormatError(f"has an array of {length:,} bytes in the place of a flag")
        if isinstance(array.data, Extent):
            return read_exactly(descriptor, array.data.length, array.data.offset)
        return array.data

    if isinstance(value, _Array):
        numbers = np.frombuffer(data(value), np.uint8).reshape(-1, value.itemsize)
        return np.asarray(numbers.any(axis=1), np.bool_)
    if not isinstance(value, list | tuple) or isinstance(value, Extent):
        raise FormatError("has no list of flags behind its images")
    return np.array([any(data(each)) if isinstance(each, _Array) else int(each) != 0 for each in value], bool)


def recognises(path: str) -> bool:
    """Whether `path` is a pickle named ``.bin`` whose first bytes hold an image."""
    with suppress(OSError, InputError):
        if path.lower().endswith(".bin") and os.path.isfile(path):
            with opened_regular(path) as descriptor:
                head = os.read(descriptor, _HEAD)
            return head[:1] in (b"\x80", b"(", b"]") and any(start in head for start in _STARTS)
    return False


def write_evalbin(file: BinaryIO, images: Iterable[bytes], same: Sequence[bool]) -> None:
    """Write a verification set: two `images` for each flag of `same`.

    As a pickle of protocol 3 with bytes, which every reader of such files takes, image by image.
    """
    file.write(b"\x80\x03](")
    for image in images:
        file.write(b"B" + struct.pack("<I", len(image)) + image)
    file.write(b"e](" + b"".join(b"\x88" if flag else b"\x89" for flag in same) + b"e\x86.")


FORMAT = Format("evalbin", open_source=open_source, recognises=recognises)
