"""Purging: a dataset without the images of some people or keys, and a proof that they are gone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from facedata.converters.convert import Conversion, open_inputs, plan_conversion
from facedata.converters.ids import IdOptions
from facedata.converters.selection import Selection, select
from facedata.dataset import Sample, Source, WrappedSource, create_dataset, open_dataset
from facedata.errors import ChecksumError
from facedata.files import atomic_writer, output_errors

__all__ = ["Purge", "plan_purge", "write_proof"]


class _Numbered(WrappedSource):
    """A source that knows the position of each of its samples in the whole."""

    def __init__(self, source: Source, positions: NDArray[np.int64]) -> None:
        super().__init__(source)
        self.positions = positions

    def take(self, positions: NDArray[np.int64]) -> _Numbered:
        return _Numbered(self._source.take(positions), self.positions[positions])


@dataclass(frozen=True)
class Purge:
    """A planned purge: run its `conversion`, then call `prove`.

    Attributes
    ----------
    digests : dict of str to str
        SHA-256 of each image that is left out, by its key; of all copies of it too.
    unreadable : int
        Images that are left out and cannot be read.
    copies : int
        Images of other people that are left out because they have the same bytes.
    """

    conversion: Conversion
    source: str
    target: str
    digests: Mapping[str, str]
    unreadable: int
    copies: int

    def prove(self) -> dict[str, Any]:
        """Read every image of the output, and compare it with those that were left out.

        Returns the proof as JSON values.

        Raises
        ------
        ChecksumError
            If an image that was to be purged is there.
        """
        gone = set(self.digests.values())
        count, whole = 0, 0
        for item in open_dataset(self.target).read():
            if not isinstance(item, Sample):
                raise ChecksumError(f"{self.target}: {item.key}: cannot be read: {item.reason}; so nothing is proven")
            digest = _digest(item.image)
            if digest in gone:
                raise ChecksumError(f"{self.target}: {item.key}: is an image that was to be purged")
            count += 1
            whole ^= int(digest, 16)
        return {
            "input": self.source,
            "input_identity": dict(self.conversion.plan.inputs),
            "output": self.target,
            "purged": len(self.digests) + self.unreadable,
            "purged_unreadable": self.unreadable,
            "purged_copies": self.copies,
            "purged_sha256": dict(self.digests),
            "images_in_output": count,
            "output_digest": f"{whole:064x}",
            "checked": "every image of the output was read back, and none has the bytes of a purged image",
        }


def write_proof(path: str, proof: Mapping[str, Any], *, overwrite: bool) -> None:
    """Write a proof as JSON; a file that is there with the same content stays.

    Raises
    ------
    OutputExistsError
        If another file is there, unless `overwrite`.
    """
    with output_errors(path), atomic_writer(path, replace=overwrite, tidy=True) as file:
        file.write(json.dumps(proof, indent=2, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")


def plan_purge(source: str, target: str, ids: IdOptions, command_line: str, *, relabel: bool = False) -> Purge:
    """Find the images to leave out, and plan to write all others; writes nothing.

    An image of another person that has the same bytes is left out too: else the bytes would remain.

    Raises
    ------
    InputError
        If the dataset or a list cannot be read.
    EmptyDatasetError
        If nothing is to be purged, or nothing would be left.
    """
    sink = create_dataset(target)
    [item] = open_inputs([source], None, sink)
    kept_source = ids.apply([_Numbered(item.source, np.arange(len(item.source)))])[0]
    assert isinstance(kept_source, _Numbered)
    dropped = np.ones(len(item.source), bool)
    dropped[kept_source.positions] = False
    digests: dict[str, str] = {}
    sizes: set[int] = set()
    unreadable = copies = 0
    for sample in item.source.take(np.flatnonzero(dropped)).read():
        if isinstance(sample, Sample):
            digests[sample.key] = _digest(sample.image)
            sizes.add(len(sample.image))
        else:
            unreadable += 1
    gone = set(digests.values())
    for position, sample in enumerate(item.source.read()):
        if not dropped[position] and isinstance(sample, Sample) and len(sample.image) in sizes:
            digest = _digest(sample.image)
            if digest in gone:
                digests[sample.key], dropped[position] = digest, True
                copies += 1
    kept = select(item.source.take(np.flatnonzero(~dropped)), selection := Selection(relabel=relabel))
    conversion = plan_conversion(
        "purge",
        kept,
        sink,
        options={**ids.options(), **selection.options(), "copies": copies},
        facts={"command_line": command_line, "sets": [], "labels_shifted": False},
    )
    return Purge(conversion, source, target, digests, unreadable, copies)


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()
