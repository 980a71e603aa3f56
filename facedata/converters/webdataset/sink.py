"""`WebDatasetSink`: samples as tars, one for each shard of the job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np

from facedata.columns import UNLABELLED
from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.webdataset.source import COMPRESSED, NumberedNames, parse_numbered
from facedata.dataset import Publish, Sample, Sink, Source, known_extension
from facedata.errors import OptionError
from facedata.files import atomic_writer, remove_stale_temporaries
from facedata.images import LARGEST_IMAGE, image_extension
from facedata.jobs.plan import cut_by_size
from facedata.tar_format import BLOCK, end_of_archive, member_header, padded, padding

__all__ = ["WebDatasetSink", "create_sink"]

_SHARD_SIZE = 10**9
_IN_FOLDER = NumberedNames("shard-", 6, ".tar")
_DIGITS = 9
_AT_ONCE = 1 << 20
_SAMPLED = 64
_SMALL_MEMBER = 2 * BLOCK  # a header, and data of at most one block


@dataclass(frozen=True)
class WebDatasetSink(Sink):
    """Writes numbered tars, each sample as ``<number>.jpg``, ``<number>.cls`` and, if needed, ``<number>.json``.

    Attributes
    ----------
    root, names : str, NumberedNames
        The folder of the tars, and their names; the numbers count from 0.
    shard_size, shard_samples : int, optional
        Bytes of a tar, about (the size of its ``.json`` members is not known in advance), and samples in it.
    keep_undecodable : bool
        Write bytes that do not begin like an image as ``.bin`` instead of refusing them.
    digits : int
        Digits of the number of a sample, which counts over the whole job from 0.
    class_names : mapping, optional
        Names of the labels, for `finish`; not sent to workers.
    """

    root: str
    names: NumberedNames
    shard_size: int | None = None
    shard_samples: int | None = None
    keep_undecodable: bool = False
    digits: int = _DIGITS
    class_names: Mapping[int, str] | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "class_names"}

    def prefer(self, *, source_names: bool = False, shard_samples: int | None = None, landmarks: bool = False) -> Sink:
        """Write smaller tars if no size was asked for."""
        given = self.shard_size is not None or self.shard_samples is not None
        return self if given or shard_samples is None else replace(self, shard_samples=shard_samples)

    def identity(self) -> Mapping[str, Any]:
        """The pattern of the names and the options, as JSON values."""
        return {
            "format": "webdataset",
            "names": str(self.names),
            "shard size": self.shard_size,
            "shard samples": self.shard_samples,
            "keep undecodable": self.keep_undecodable,
        }

    def fit(self, source: Source) -> tuple[WebDatasetSink, tuple[int, ...]]:
        """Cut the samples into tars, by their sizes as the source knows them."""
        digits = max(_DIGITS, len(str(len(source))))
        fitted = replace(self, digits=digits, class_names=source.class_names())
        if self.shard_size is None and self.shard_samples is not None:
            return fitted, (*range(self.shard_samples, len(source), self.shard_samples), len(source))
        # about how many bytes each sample takes in a tar: its members with their headers, padded
        some = np.unique(np.linspace(0, max(len(source) - 1, 0), _SAMPLED).astype(np.int64))[: len(source)]
        # no source says in advance whether it has landmarks
        others = 1 if all(map(_is_number, source.take(some).keys())) else 2
        sizes = np.minimum(source.sizes(), LARGEST_IMAGE).astype(np.int32, copy=False)
        sizes += BLOCK - 1
        sizes &= -BLOCK
        sizes += BLOCK + others * _SMALL_MEMBER
        limit = max((self.shard_size or _SHARD_SIZE) - len(end_of_archive(0)), 1)
        return fitted, cut_by_size(sizes, limit, self.shard_samples)

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as its tars, or is the file of the class names."""
        return name == CLASSES or self.names.number(name) is not None

    def final_files(self) -> list[str]:
        """The file of the class names."""
        return [] if self.class_names is None else [os.path.join(self.root, CLASSES)]

    def shard_file(self, shard: int) -> str:
        """The tar of a shard."""
        return os.path.join(self.root, self.names.name(shard))

    def prepare(self) -> None:
        """Remove the unfinished tars of killed workers, which are large."""
        remove_stale_temporaries(self.root)

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[_TarWriter]:
        """A writer for one tar, which appears when it is complete."""
        with atomic_writer(self.shard_file(shard), replace=False) as file:
            writer = _TarWriter(self, file)
            yield writer
            writer.close()

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Write the names of the classes."""
        if self.class_names is not None:
            write_class_names(os.path.join(self.root, CLASSES), self.class_names, publish)
        return {"tars": shards}


class _TarWriter:
    """Writes the members of one tar, in large pieces, because many small writes are slow."""

    def __init__(self, sink: WebDatasetSink, file: BinaryIO) -> None:
        self._sink, self._file = sink, file
        self._pieces: list[bytes] = []
        self._gathered = self._written = 0

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        image = sample.image
        extension = image_extension(image) or "bin" if self._sink.keep_undecodable else known_extension(image)
        name = f"{index:0{self._sink.digits}d}"
        if face:
            name += f"_{face}"
        self._add(f"{name}.{extension}", image)
        if sample.label != UNLABELLED:
            self._add(f"{name}.cls", b"%d" % sample.label)
        if sample.landmarks is not None or not _is_number(sample.key):
            value: dict[str, Any] = {"key": sample.key}
            if sample.landmarks is not None and np.isfinite(sample.landmarks).all():
                value["landmarks"] = sample.landmarks.tolist()
            text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
            self._add(f"{name}.json", text.encode())
        if self._gathered >= _AT_ONCE:
            self._flush()

    def _add(self, name: str, data: bytes) -> None:
        size = len(data)
        self._pieces += (member_header(name.encode(), size), data, padding(size))
        self._gathered += BLOCK + padded(size)

    def _flush(self) -> None:
        self._file.write(b"".join(self._pieces))
        self._written += self._gathered
        self._pieces, self._gathered = [], 0

    def close(self) -> None:
        self._flush()
        self._file.write(end_of_archive(self._written))


def _is_number(key: str) -> bool:
    return key.isascii() and key.isdigit()


def create_sink(
    path: str, *, shard_size: int | None = None, shard_samples: int | None = None, keep_undecodable: bool = False
) -> WebDatasetSink:
    """A sink that writes tars named by the pattern `path` (``shards/glint-%06d.tar``), or into the folder `path`.

    The other parameters are those of `WebDatasetSink`: a tar has 10**9 bytes if neither size nor samples are given;
    whichever is reached first counts if both are. Raises `OptionError` if numbered tars cannot have such names.
    """
    for option, value in (("--shard-size", shard_size), ("--shard-samples", shard_samples)):
        if value is not None and value < 1:
            raise OptionError(f"{option} {value}: must be at least 1")
    folder, base = os.path.split(path)
    names = parse_numbered(base)
    if names is None:
        if base.endswith((".tar", *COMPRESSED)) or "{" in base:
            stem = base.split("{")[0].split(".")[0].rstrip("-")
            instead = os.path.join(folder, f"{stem}-%06d.tar")
            raise OptionError(f"{path}: this writes many tars: say where their number goes, as in {instead}")
        folder, names = path, _IN_FOLDER
    elif not base.endswith(".tar") or base.startswith("."):
        raise OptionError(f"{path}: expected names that end in .tar and are not hidden, as in shard-%06d.tar")
    return WebDatasetSink(folder or ".", names, shard_size, shard_samples, keep_undecodable)
