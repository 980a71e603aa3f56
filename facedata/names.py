"""Names that a file system takes for the same, because it ignores case, Unicode normalisation or final dots."""

from __future__ import annotations

import os
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from facedata.files import StrPath, nearest_existing, open_new, remove_stale_temporaries, temporary_name

__all__ = ["Folding", "folders_taken_for_one", "name_folding"]

_FEW = 1 << 17
_FINAL_DOTS = re.compile(r"\.+(?=/|$)")


class Folding(NamedTuple):
    """What a file system ignores in names."""

    case: bool = False
    form: bool = False
    dots: bool = False

    def __call__(self, path: str) -> str:
        """The same text for all names of one file, which may be paths."""
        if self.form:
            path = unicodedata.normalize("NFD", path)
        if self.case:
            path = path.casefold()
        return _FINAL_DOTS.sub("", path) if self.dots else path

    def __str__(self) -> str:
        what = ("case", "Unicode normalisation", "dots at the end")
        return " and ".join(name for name, ignored in zip(what, self, strict=True) if ignored)


def name_folding(folder: StrPath) -> Folding:
    """What the file system of `folder`, which need not exist yet, ignores in names.

    It is found with a hidden file, which is removed again. If none can be created, nothing is known to be ignored.
    """
    with suppress(OSError):
        remove_stale_temporaries(nearest_existing(folder))
    for letter in "é", "e":  # a file system with an old encoding may refuse the first
        with suppress(OSError):
            probe = temporary_name(os.path.join(nearest_existing(folder), f"names-{letter}"))
            os.close(open_new(probe, os.O_WRONLY | os.O_CREAT))
            try:
                place, name = os.path.split(probe)
                upper = re.sub("[a-z]", lambda match: match[0].upper(), name)
                forms = upper, unicodedata.normalize("NFD", name), f"{name}."
                return Folding(*(form != name and os.path.lexists(os.path.join(place, form)) for form in forms))
            finally:
                for _ in range(
                    2
                ):  # once more after an error that passes, because no later run looks for the probe here
                    with suppress(OSError):
                        os.unlink(probe)
                        break
    return Folding()


def folders_taken_for_one(paths: Callable[[], Iterable[str]], folding: Folding) -> list[str]:
    """The folders in relative paths that are different names of one folder on a file system; reads the paths twice.

    It takes 16 bytes a folder, or for each time that the folder changes if there are many.
    """
    import numpy as np

    exact, folded, known = array("q"), array("q"), set[int]()
    for folder in _folders(paths()):
        if (value := hash(folder)) not in known:
            exact.append(value)
            folded.append(hash(folding(folder)))
            if len(known) < _FEW:
                known.add(value)
    order = np.lexsort((exact, folded))
    ours, theirs = np.frombuffer(exact, np.int64)[order], np.frombuffer(folded, np.int64)[order]
    suspects = set(theirs[1:][(theirs[1:] == theirs[:-1]) & (ours[1:] != ours[:-1])].tolist())
    found = (folder for folder in _folders(paths()) if hash(folding(folder)) in suspects) if suspects else ()
    return list(dict.fromkeys(found))


def _folders(paths: Iterable[str]) -> Iterator[str]:
    """The folders of each path, if they are not those of the path before."""
    last = ""
    for path in paths:
        folder = path.rpartition("/")[0]
        if folder != last:
            last = folder
            while folder:
                yield folder
                folder = folder.rpartition("/")[0]
