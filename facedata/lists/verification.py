"""Verification sets of InsightFace: packed from pairs of image files, and unpacked into such."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from facedata.converters.convert import Conversion, ConversionOptions, plan_dataset
from facedata.converters.evalbin import EvalBinSource, open_source, write_evalbin
from facedata.converters.folder.sink import FolderSink
from facedata.dataset import Publish
from facedata.errors import FormatError, OutputExistsError
from facedata.files import StrPath, atomic_writer, output_errors, read_small
from facedata.identify import not_an_image
from facedata.images import LARGEST_IMAGE, image_extension, image_size
from facedata.lists.pairs import Pair, pair_lines

__all__ = ["PAIRS", "pack_pairs", "pairs_of", "plan_unpacking"]

PAIRS = "pairs.txt"
"""The name of the list beside the images of a verification set that was unpacked."""

_SIDE = 112


def pack_pairs(pairs: Sequence[Pair], root: StrPath, output: StrPath, *, overwrite: bool = False) -> list[str]:
    """Write the images of pairs, byte for byte, as a verification set.

    Returns the paths of the images that are not 112 x 112, as InsightFace's evaluation expects them.

    Raises
    ------
    InputError
        If an image cannot be read, or is not one.
    OutputExistsError
        If the output exists, unless `overwrite`.
    """
    others: dict[str, None] = {}

    def images() -> Iterator[bytes]:
        for path in (path for pair in pairs for path in pair[:2]):
            whole = os.path.join(root, path)
            data = read_small(whole, LARGEST_IMAGE)
            if image_extension(data) is None:
                raise FormatError(f"{whole}: {not_an_image(data)}")
            if (image_size(data) or ())[:2] != (_SIDE, _SIDE):
                others[path] = None
            yield data

    if os.path.lexists(output) and not overwrite:
        raise OutputExistsError(f"{os.fspath(output)}: already exists; choose another name, or --overwrite")
    with output_errors(output), atomic_writer(output, replace=overwrite, tidy=True) as file:
        write_evalbin(file, images(), [pair.same for pair in pairs])
    return list(others)


def pairs_of(source: EvalBinSource) -> list[Pair]:
    """The pairs of a verification set, with the names that its images get when they are unpacked."""
    keys = list(source.keys())
    return list(map(Pair, keys[::2], keys[1::2], source.same.tolist()))


@dataclass(frozen=True)
class _PairsSink(FolderSink):
    """The images of a verification set, and their list."""

    path: str = ""

    def owns(self, name: str) -> bool:
        return name == PAIRS or super().owns(name)

    def final_files(self) -> list[str]:
        return [*super().final_files(), os.path.join(self.root, PAIRS)]

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        target = os.path.join(self.root, PAIRS)
        with output_errors(target), atomic_writer(target, rename=publish) as file:
            file.writelines(f"{line}\n".encode() for line in pair_lines(pairs_of(open_source(self.path)), "ffc"))
        return super().finish(shards, publish)


def plan_unpacking(path: str, folder: str, command_line: str) -> Conversion:
    """Plan to write the images of a verification set, byte for byte, and ``pairs.txt`` into a folder."""
    sink = _PairsSink(folder, "source", path=path)
    return plan_dataset([f"evalbin:{path}"], sink, ConversionOptions(command="unpack-pairs", command_line=command_line))
