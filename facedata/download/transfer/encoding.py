"""Answers that a server calls encoded although nobody asked for that."""

from __future__ import annotations

import zlib
from typing import Literal

from facedata.download.transfer.http import Answer
from facedata.download.transfer.retry import LinkError, PassingError

__all__ = ["Decoded", "Encoding", "find_encoding", "gunzipped_start"]

Encoding = Literal["none", "kept", "decode"]
_GZIP, _GZIP_NAMES = b"\x1f\x8b", (".gz", ".tgz")
_PIECE = 1 << 18


def find_encoding(answer: Answer, head: bytes, name: str, size: int | None, *, other: bool = False) -> Encoding:
    """Whether the body is the file itself, whatever the server calls it, or has to be decoded.

    Servers with a rule for ``.gz`` names call a ``.tar.gz`` an encoding of a ``.tar``, and send it as it is; others
    compress any file on its way. The beginning tells them apart: what was compressed on its way is a ``.gz`` within
    a gzip stream.

    Parameters
    ----------
    answer : Answer
    head : bytes
        The beginning of its body.
    name : str
        The name of the file that is wanted.
    size : int, optional
        Its published size.
    other : bool
        The first choice has turned out wrong.
    """
    if answer.encoding in ("", "identity"):
        return "none"
    if answer.encoding not in ("gzip", "x-gzip"):
        raise LinkError(f"the server sends the file in an encoding that nobody asked for ({answer.encoding[:20]!r})")
    if not head.startswith(_GZIP) or (size is not None and answer.length == size):
        return "kept"
    kept = name.lower().endswith(_GZIP_NAMES) and not gunzipped_start(head).startswith(_GZIP)
    return "kept" if kept != other else "decode"


class Decoded:
    """The decoded body of an answer, in pieces of bounded size.

    Parameters
    ----------
    answer : Answer
    """

    def __init__(self, answer: Answer) -> None:
        self._answer, self._gunzip = answer, zlib.decompressobj(31)
        self._pushed_back = b""

    def read(self, most: int) -> bytes:
        """The next decoded bytes; nothing at the end."""
        most = min(most, _PIECE)
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back[:most], self._pushed_back[most:]
            return data
        while True:
            raw = self._gunzip.unconsumed_tail or self._gunzip.unused_data or self._answer.read(_PIECE)
            if not raw:
                if not self._gunzip.eof:
                    raise PassingError("the compressed answer ends too early")
                return b""
            if self._gunzip.eof:
                self._gunzip = zlib.decompressobj(31)
            try:
                if data := self._gunzip.decompress(raw, most):
                    return data
            except zlib.error as error:
                raise PassingError(f"the compressed answer is damaged ({error})") from error

    def push_back(self, data: bytes) -> None:
        """Let `read` give these bytes once more."""
        self._pushed_back = data + self._pushed_back


def gunzipped_start(head: bytes) -> bytes:
    """The first decoded bytes of what begins like a gzip stream; nothing of anything else."""
    try:
        return zlib.decompressobj(31).decompress(head, 1024)
    except zlib.error:
        return b""
