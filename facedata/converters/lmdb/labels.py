"""Counting the labels in a key-label file that this package has written itself, in little memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from facedata.errors import input_error

__all__ = ["different_labels"]

_BLOCK = 1 << 22
_MOST_WAITING = 1 << 22
_SPACE, _NEWLINE, _ZERO = b" \n0"


def different_labels(kv: str) -> NDArray[np.int64]:
    """The different labels, ascending.

    Parameters
    ----------
    kv : str
        A file whose every line is a key, a space, a label and a newline.

    Raises
    ------
    InputError
        Where it cannot be read.
    """
    found = [np.empty(0, np.int64)]
    try:
        with open(kv, "rb") as file:
            rest = b""
            while block := file.read(_BLOCK):
                lines, newline, rest = (rest + block).rpartition(b"\n")
                found.append(_different(_labels(np.frombuffer(lines + newline, np.uint8))))
                if sum(map(len, found)) > max(_MOST_WAITING, 2 * len(found[0])):
                    found = [_different(np.concatenate(found))]
    except OSError as error:
        raise input_error(error, kv) from error
    return _different(np.concatenate(found))


def _different(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    ordered = np.sort(labels)
    different: NDArray[np.int64] = ordered[np.append([True], np.diff(ordered) != 0)[: len(ordered)]]
    return different


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
