"""Evaluation pairs: the files of the published verification sets, read into one form, checked, and written.

Evaluations cut the pairs, in the order of the file, into folds of equal size, ten as a rule. So pairs of the same
person and of different people have to be spread evenly over the folds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from facedata.errors import (
    EmptyDatasetError,
    FormatError,
    InputError,
    InputNotFoundError,
    MissingExtraError,
    OptionError,
)
from facedata.files import read_small
from facedata.images import IMAGE_EXTENSIONS
from facedata.text import counted, listed

__all__ = ["FORMS", "Fold", "Pair", "draw_pairs", "find_images", "fold_counts", "pair_lines"]
__all__ += ["read_pairs", "spread"]

FORMS = ("ffc", "lfw", "facex")
"""The forms that are written; see `pair_lines`."""

_LARGEST = 1 << 28
_LFW_NAME = re.compile(r"(.+)/\1_(\d{4,})\.\w+")
_EXTENSIONS = tuple(sorted(IMAGE_EXTENSIONS, key=lambda extension: (extension != "jpg", extension != "png", extension)))


class Pair(NamedTuple):
    """Two images, by their paths below a root, and whether they show the same person."""

    first: str
    second: str
    same: bool


class Fold(NamedTuple):
    """How many pairs of a fold show the same person, and how many different people."""

    same: int
    different: int


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read the pairs of a published verification set, or of a pair list; the content shows the form.

    ================================  =======================================================================
    ``path path 1``, or 0, -1         FFC, InsightFace's ``pairs_label.txt``
    ``name i j``, ``name i name j``   LFW with its first line of counts, RFW without: ``name/name_%04d.jpg``
    ``path label``, two lines a pair  SLLFW, CALFW, CPLFW: any label except 0 is the same person
    a ``.mat`` with ``splits``        AgeDB-30: -1 is different people
    a folder with ``Pair_list_F.txt``  CFP: the splits ``FP``, or ``FF`` if the path ends so
    ================================  =======================================================================

    Raises
    ------
    InputError
        If the file cannot be read.
    FormatError
        If it is of no such form, or a line does not fit; the message names the line.
    EmptyDatasetError
        If the file lists no pairs.
    """
    path = os.fspath(path)
    if os.path.isdir(path):
        pairs = _read_cfp(Path(path))
    elif path.lower().endswith(".mat"):
        pairs = _read_agedb(path)
    else:
        pairs = _read_lines(path)
    if not pairs:
        raise EmptyDatasetError(f"{path}: has no pairs")
    return pairs


def _lines(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """The lines that are not blank, with their numbers."""
    try:
        text = read_small(path, _LARGEST).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(f"{os.fspath(path)}: is not text in UTF-8: {error}") from error
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]


def _read_lines(path: str) -> list[Pair]:
    lines = _lines(path)
    has_tabs = any("\t" in line for _, line in lines[:100])
    rows = [(number, line.split("\t") if has_tabs else line.split()) for number, line in lines]
    if rows and all(field.isdigit() for field in rows[0][1]) and len(rows[0][1]) <= 2:
        rows = rows[1:]  # LFW: how many folds, and how many pairs of a kind in each
    if rows and len(rows[0][1]) == 2:
        return _read_two_lines(path, rows)
    pairs = []
    for number, fields in rows:
        numbers = [field.isdigit() for field in fields]
        if len(fields) == 3 and numbers[1:] == [True, True]:
            pairs.append(Pair(_lfw_path(fields[0], fields[1]), _lfw_path(fields[0], fields[2]), True))
        elif len(fields) == 4 and numbers[1] and numbers[3]:
            pairs.append(Pair(_lfw_path(fields[0], fields[1]), _lfw_path(fields[2], fields[3]), False))
        elif len(fields) == 3 and fields[2] in ("1", "0", "-1"):
            pairs.append(Pair(fields[0], fields[1], fields[2] == "1"))
        else:
            raise FormatError(
                f"{path}: line {number}: {' '.join(fields)[:80]!r}: expected 'path path 1', 'name i j' or "
                "'name i name j'; a path with spaces needs tabs between the fields"
            )
    return pairs


def _read_two_lines(path: str, rows: Sequence[tuple[int, list[str]]]) -> list[Pair]:
    pairs = []
    if len(rows) % 2:
        raise FormatError(f"{path}: has {len(rows):,} lines of 'path label'; expected two for each pair")
    for (number, first), (_, second) in zip(rows[::2], rows[1::2], strict=True):
        if len(first) != 2 or len(second) != 2 or first[1] != second[1] or not first[1].lstrip("-").isdigit():
            raise FormatError(
                f"{path}: line {number}: expected two lines of 'path label' with one label, found "
                f"{' '.join(first)[:60]!r} and {' '.join(second)[:60]!r}"
            )
        pairs.append(Pair(first[0], second[0], int(first[1]) != 0))
    return pairs


def _lfw_path(name: str, number: str) -> str:
    return f"{name}/{name}_{int(number):04d}.jpg"


def _read_cfp(folder: Path) -> list[Pair]:
    """CFP: two numbered lists of paths, and for each fold files of pairs of numbers."""
    kind = folder.name if folder.name in ("FP", "FF") else "FP"
    above = next((place for place in (folder, *folder.parents[:2], folder / "Protocol") if _has_lists(place)), None)
    if above is None:
        raise FormatError(f"{folder}: expected a pair file, or CFP's folder Protocol with Pair_list_F.txt and Split")
    images = {}
    for letter in "FP":
        images[letter] = [line.split()[1] for _, line in _lines(above / f"Pair_list_{letter}.txt")]
    pairs = []
    for split in sorted((above / "Split" / kind).glob("*")):
        for name in ("same.txt", "diff.txt"):
            for number, line in _lines(split / name):
                try:
                    first, second = (int(field) - 1 for field in line.split(","))
                    found = images[kind[0]][first], images[kind[1]][second]
                except (ValueError, IndexError) as error:
                    raise FormatError(f"{split / name}: line {number}: {line[:60]!r} names no two images") from error
                if min(first, second) < 0:
                    raise FormatError(f"{split / name}: line {number}: images are counted from 1")
                pairs.append(Pair(_below(found[0]), _below(found[1]), name == "same.txt"))
    return pairs


def _has_lists(folder: Path) -> bool:
    return all((folder / name).exists() for name in ("Pair_list_F.txt", "Pair_list_P.txt", "Split"))


def _below(path: str) -> str:
    """CFP's paths start from its folder Protocol; ours from the folder above it."""
    return path.replace("\\", "/").removeprefix("../")


def _read_agedb(path: str) -> list[Pair]:
    """AgeDB-30, as its protocol has it: ten splits, each with cells of names and a row of labels."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"{path}: reading a .mat", "lists", str(error)) from error
    read_small(path, _LARGEST)  # bounded, and readable
    try:
        pairs = []
        for split in loadmat(path)["splits"][:, 0]:
            images, labels = split[0, 0][0], split[0, 0][1].ravel()
            for first, second, label in zip(images[0], images[1], labels, strict=True):
                names = [str(np.ravel(cell[0, 0][0])[0]) for cell in (first, second)]
                pairs.append(Pair(f"{names[0]}.jpg", f"{names[1]}.jpg", int(label) == 1))
    except Exception as error:  # whatever a damaged file does to the parser
        raise FormatError(f"{path}: is not the protocol of AgeDB-30, a .mat with 'splits': {error}") from error
    return pairs


def find_images(pairs: Sequence[Pair], root: str | os.PathLike[str]) -> list[Pair]:
    """The pairs with the paths that their images have below `root`, whose extension may be another one.

    Raises
    ------
    InputNotFoundError
        If images are missing; the message counts them and names the first ones.
    InputError
        If a path leads out of the root.
    """
    found: dict[str, str] = {}
    missing = []
    for path in dict.fromkeys(path for pair in pairs for path in pair[:2]):
        if path.startswith("/") or ".." in path.split("/") or "\0" in path:
            raise InputError(f"{path!a}: leads out of {os.fspath(root)}; expected a path below it")
        stem = path.rpartition(".")[0] or path
        names = [path, *(f"{stem}.{extension}" for extension in _EXTENSIONS)]
        name = next((name for name in names if os.path.isfile(os.path.join(root, name))), None)
        if name is None:
            missing.append(path)
        else:
            found[path] = name
    if missing:
        raise InputNotFoundError(
            f"{os.fspath(root)}: {counted(len(missing), 'image')} of the pairs of {len(found) + len(missing):,} not "
            f"found: {listed(missing)}; name the folder that the paths start from with --root"
        )
    return [Pair(found[pair.first], found[pair.second], pair.same) for pair in pairs]


def fold_counts(pairs: Sequence[Pair], folds: int) -> list[Fold]:
    """How many pairs of each kind are in each of the consecutive folds.

    Raises
    ------
    OptionError
        If there are fewer pairs than folds.
    """
    if len(pairs) < folds:
        raise OptionError(f"{counted(len(pairs), 'pair')} cannot be cut into {folds} folds; give fewer --folds")
    ends = np.linspace(0, len(pairs), folds + 1).astype(int).tolist()
    cut = [[pair.same for pair in pairs[first:end]] for first, end in pairwise(ends)]
    return [Fold(sum(same), len(same) - sum(same)) for same in cut]


def spread(pairs: Sequence[Pair], folds: int) -> list[Pair]:
    """The same pairs in an order that gives each fold its share of both kinds; unchanged if each has it already."""
    counts = fold_counts(pairs, folds)
    if max(fold.same for fold in counts) - min(fold.same for fold in counts) <= 1:
        return list(pairs)
    kinds = [[pair for pair in pairs if pair.same is kind] for kind in (True, False)]
    ordered = []
    for fold in range(folds):
        for kind in kinds:
            first, end = (len(kind) * place // folds for place in (fold, fold + 1))
            ordered += kind[first:end]
    return ordered


def draw_pairs(keys: Sequence[str], labels: NDArray[np.int64], count: int, folds: int, seed: int) -> list[Pair]:
    """Draw random pairs of a labelled dataset, half of them of the same person, spread over the folds; none twice.

    Parameters
    ----------
    keys : sequence of str, length N
    labels : ndarray of shape (N,), int64
        -1 for an image without a label, which is in no pair.
    count : int
        An even number of pairs for each fold: a multiple of twice the number of `folds`.
    seed : int
        The same seed draws the same pairs.

    Raises
    ------
    OptionError
        If the count does not fit the folds, or there are not so many different pairs.
    """
    if count < folds or count % (2 * folds):
        raise OptionError(f"--count {count}: expected a multiple of {2 * folds}, so that each of {folds} folds is even")
    known = np.flatnonzero(labels >= 0)
    order = known[np.argsort(labels[known], kind="stable")]
    _, firsts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ends = np.cumsum(sizes * (sizes - 1) // 2)
    possible = int(ends[-1]) if len(ends) else 0
    others = len(order) * (len(order) - 1) // 2 - possible
    for kind, there in (("the same person", possible), ("different people", others)):
        if there < count // 2:
            raise OptionError(f"--count {count}: there are {there:,} pairs of {kind}, expected {count // 2:,} or more")
    random = np.random.RandomState(seed)
    chosen: dict[bool, dict[tuple[int, int], None]] = {True: {}, False: {}}
    while len(chosen[True]) < count // 2:
        number = random.randint(possible)
        person = int(np.searchsorted(ends, number, side="right"))
        first, second = random.choice(sizes[person], 2, replace=False) + firsts[person]
        chosen[True][min(first, second), max(first, second)] = None
    person_of = np.repeat(np.arange(len(sizes)), sizes)
    while len(chosen[False]) < count // 2:
        first, second = sorted(random.randint(len(order), size=2).tolist())
        if person_of[first] != person_of[second]:
            chosen[False][first, second] = None
    pairs = [Pair(keys[order[a]], keys[order[b]], kind) for kind, drawn in chosen.items() for a, b in drawn]
    return spread(pairs, folds)


def pair_lines(pairs: Sequence[Pair], form: str, folds: int = 10) -> Iterator[str]:
    """The lines of a pair file.

    ``ffc`` has lines of ``path path 1`` or 0; ``lfw`` those of LFW, with its first line; ``facex`` two lines of ``path
    label`` a pair, as FaceX-Zoo reads CPLFW: first all of the same person, then all of different people.

    Raises
    ------
    OptionError
        If the form is unknown, or cannot hold a path; the message names it.
    """
    for path in (path for pair in pairs for path in pair[:2]):
        if form != "lfw" and (" " in path or "\t" in path):
            raise OptionError(f"{path!r}: has a blank, and the readers of this list split its lines there; rename it")
    if form == "ffc":
        return (f"{first} {second} {int(same)}" for first, second, same in pairs)
    if form == "lfw":
        return _lfw_lines(pairs, folds)
    if form == "facex":
        ordered = sorted(pairs, key=lambda pair: not pair.same)
        return (f"{path} {int(pair.same)}" for pair in ordered for path in pair[:2])
    raise OptionError(f"--format {form}: expected one of {', '.join(FORMS)}")


def _lfw_lines(pairs: Sequence[Pair], folds: int) -> Iterator[str]:
    if len(pairs) % (2 * folds):
        raise OptionError(f"{len(pairs):,} pairs: LFW's form needs {folds} equal folds of both kinds")
    rows = []
    for pair in pairs:
        matches = [_LFW_NAME.fullmatch(path) for path in pair[:2]]
        if not all(matches):
            raise OptionError(f"{pair.first!r}, {pair.second!r}: LFW's form needs paths NAME/NAME_0001.jpg; use ffc")
        (first, i), (second, j) = ((match[1], int(match[2])) for match in matches if match)
        if pair.same != (first == second):
            raise OptionError(
                f"{pair.first!r}, {pair.second!r}: LFW's form tells by the name whether they are the same"
            )
        rows.append(f"{first}\t{i}\t{j}" if pair.same else f"{first}\t{i}\t{second}\t{j}")
    return iter([f"{folds}\t{len(pairs) // folds // 2}", *rows])
