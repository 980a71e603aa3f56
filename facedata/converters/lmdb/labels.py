"""The labels in a key-label file that this package has written itself, in little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from facedata.errors import input_error

__all__ = ["written_labels"]

_BLOCK = 1 << 22
_SPACE, _NEWLINE, _ZERO = b" \n0"


def written_labels(kv: str) -> Iterator[NDArray[np.int64]]:
    """The labels of all lines, a block at a time.

    Parameters
    ----------
    kv : str
        A file whose every line is a key, a space, a label and a newline.

    Raises
    ------
    InputError
        Where it cannot be read.
    """
    rest = b""
    try:
        with open(kv, "rb") as file:
            while block := file.read(_BLOCK):
                lines, newline, rest = (rest + block).rpartition(b"\n")
                yield _labels(np.frombuffer(lines + newline, np.uint8))
    except OSError as error:
        raise input_error(error, kv) from error


def _labels(text: NDArray[np.uint8]) -> NDArray[np.int64]:
    places = np.flatnonzero(text == _NEWLINE) - 1
    labels, worth = np.zeros(len(places), np.int64), 1
    inside = text[places] != _SPACE
    while inside.any():  # a digit of all labels at a time, the last one first
        labels += np.where(inside, (text[places].astype(np.int64) - _ZERO) * worth, 0)
        places -= inside
        inside &= text[places] != _SPACE
        worth *= 10
    return labels
