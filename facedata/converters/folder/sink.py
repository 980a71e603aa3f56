"""`FolderSink`: writes a folder of images, one folder for each identity, or with the paths that they have."""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from facedata.converters.class_names import CLASSES, write_class_names
from facedata.converters.folder import GLINT360K, IMAGEFOLDER, NO_CLASS, SOURCE
from facedata.dataset import Publish, Sample, Sink, Source, known_extension
from facedata.errors import OptionError, OutputExistsError, RefusedSampleError, output_error
from facedata.files import atomic_writer, make_own_folder, open_own, output_errors, read_exactly, write_fully
from facedata.images import IMAGE_EXTENSIONS, image_extension, stem_of_key
from facedata.jobs.journal import FAILURES, SKIPPED
from facedata.names import Folding, folders_taken_for_one, name_folding
from facedata.text import listed

__all__ = ["FolderSink", "path_of_key"]

_log = logging.getLogger(__name__)

_TEMPLATES = {
    GLINT360K: "id_{}",
    IMAGEFOLDER: "{:08d}",
}  # labels are below 2**24 in each set: 8 digits keep their order
_FOLDER_NAMES = {GLINT360K: re.compile(r"id_\d+"), IMAGEFOLDER: re.compile(r"\d{8,}")}
_LONGEST_NAME = 255  # bytes, on all usual file systems
_BYTES_PER_LETTER = 4  # at most
_WRITTEN_EXTENSIONS = IMAGE_EXTENSIONS | {"bin"}
_FRAGMENTS = ".facedata-list"
_NUMBER = re.compile(r"(?:\d+_)?(\d+)(?:_\d+)?\.\w+")
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_REOPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True)
class FolderSink(Sink):
    """Writes ``<identity folder>/<label>_<n>.<extension>``, n counting the samples of the job from 0, or keeps paths.

    Images without a label become ``unlabelled/<n>.<extension>``.

    Attributes
    ----------
    root : str
        The folder; created if it does not exist.
    layout : str, optional
        ``"glint360k"`` names the identity folders ``id_<label>``, as the unpacking script of Glint360K does;
        ``"imagefolder"`` pads the label with zeros, so that sorted folders are in the order of the labels;
        ``"source"`` keeps the paths that the images have in the source, which are their keys. None is the first, or
        the last if the job prefers the names of the source, or no image has a label but all have paths.
    list_file : str, optional
        Also write ``relative/path label`` lines to this file, in the order of the samples; ``relative/path`` if none
        has a label.
    keep_undecodable : bool
        Write what does not begin like an image as ``.bin`` instead of refusing it.
    separator : str
        What stands between path and label in the list.
    class_names : mapping, optional
        Names of the labels, for ``classes.txt``; not sent to the workers.
    folders : frozenset of str
        In the layout ``"source"`` the folders in the root that are written; not sent to the workers either.
    images : ndarray of int64, optional
        In the layout ``"source"`` the sorted hashes of the names in the root, without extensions, of images that lie in
        no folder; not sent to the workers either.
    labelled : bool
        Whether the source has labels.
    source : Source, optional
        What is written, to name an image that is gone; not sent to the workers.
    """

    root: str
    layout: str | None = None
    list_file: str | None = None
    keep_undecodable: bool = False
    separator: str = " "
    class_names: Mapping[int, str] | None = field(default=None, compare=False, repr=False)
    folders: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    images: NDArray[np.int64] | None = field(default=None, compare=False, repr=False)
    labelled: bool = True
    source: Source | None = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        unsent = ("class_names", "folders", "images", "source")
        return {name: value for name, value in self.__dict__.items() if name not in unsent}

    @property
    def named_by_key(self) -> bool:  # type: ignore[override]
        """Whether the keys of the source are the paths of the images."""
        return self.layout == SOURCE

    def prefer(self, *, source_names: bool = False, shard_samples: int | None = None, landmarks: bool = False) -> Sink:
        """Keep the paths of the source if no layout was given."""
        return replace(self, layout=SOURCE) if source_names and not self.layout else self

    def identity(self) -> Mapping[str, Any]:
        """Layout and options, as JSON values."""
        return {
            "format": "folder",
            "layout": self.layout or GLINT360K,
            "list": self.list_file is not None and os.path.abspath(self.list_file),
            "keep undecodable": self.keep_undecodable,
            **({"separator": self.separator} if self.separator != " " else {}),
        }

    def fit(self, source: Source) -> tuple[FolderSink, None]:
        """Accept any labels; the layout ``"source"`` needs keys that are paths, all of them different.

        Raises
        ------
        OptionError
        """
        names_matter = not source.labelled and source.keys_are_paths
        layout = self.layout or (SOURCE if names_matter else GLINT360K)
        if layout != SOURCE:
            names = source.class_names()
            return replace(self, layout=layout, class_names=names, labelled=source.labelled, source=source), None
        folding = name_folding(self.root)
        _check_paths(source, self.root, folding)
        if self.list_file is not None and source.labelled:
            _check_list(source, self.list_file, self.separator)
        elif source.labelled:
            _warn_of_lost_labels(source)
        folders = frozenset(key.partition("/")[0] for key in source.keys() if "/" in key)  # noqa: SIM118, not a mapping
        loose = (stem_of_key(key, _WRITTEN_EXTENSIONS) for key in source.keys() if "/" not in key)  # noqa: SIM118
        own = {folding(name) for name in (FAILURES, SKIPPED, CLASSES)}
        if taken := sorted(folder for folder in folders if folding(folder) in own):
            raise OptionError(
                f"{self.root}: the source has folders with names of files that are written there: {listed(taken)}; "
                "rename them, or choose --layout glint360k"
            )
        names = source.class_names()
        needed = names is not None and not folders.issuperset(names.values())  # else the folders have these names
        return replace(
            self,
            layout=layout,
            folders=folders,
            images=np.sort(_hashes(loose)),
            class_names=names if needed else None,
            labelled=source.labelled,
            source=source,
        ), None

    def owns(self, name: str) -> bool:
        """Whether an entry of the root is named as this sink names what it writes, in any layout."""
        numbered = any(names.fullmatch(name) for names in _FOLDER_NAMES.values())
        return name in (_FRAGMENTS, CLASSES, NO_CLASS) or numbered or name in self.folders or self._is_image(name)

    def _is_image(self, name: str) -> bool:
        """Whether an entry of the root is named like an image of the source that lies in no folder."""
        if self.images is None or not len(self.images):
            return False
        name_hash = hash(stem_of_key(name, _WRITTEN_EXTENSIONS))
        place = min(int(np.searchsorted(self.images, name_hash)), len(self.images) - 1)
        return int(self.images[place]) == name_hash

    def named_files(self) -> list[str]:
        """The list."""
        return [] if self.list_file is None else [self.list_file]

    def final_files(self) -> list[str]:
        """The list and the file of the class names."""
        return [*self.named_files(), *([] if self.class_names is None else [os.path.join(self.root, CLASSES)])]

    def _image_folders(self) -> list[str]:
        """The folders of images that are there, of those in the root."""
        pattern = _FOLDER_NAMES.get(self.layout or GLINT360K)
        with os.scandir(self.root) as entries:
            found = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        names = (entry.name for entry in found)
        return [name for name in names if (pattern.fullmatch(name) if pattern else name in self.folders)]

    def count_images(self) -> int:
        """How many images there are; only names are read."""
        folders = [os.path.join(self.root, name) for name in self._image_folders()]
        if self.layout == SOURCE:
            loose = sum(map(self._is_image, os.listdir(self.root)))
            return loose + sum(len(files) for folder in folders for _, _, files in os.walk(folder))
        unlabelled = os.path.join(self.root, NO_CLASS)
        folders += [unlabelled] if os.path.isdir(unlabelled) else []
        return sum(len(os.listdir(folder)) for folder in folders)

    def missing_images(self, samples: int) -> Iterator[tuple[int, str]]:
        """Number and path of each image that is not there."""
        assert self.source is not None
        if self.layout == SOURCE:
            for number, key in enumerate(self.source.keys()):
                path = os.path.join(self.root, key)
                if not any(map(os.path.lexists, (path, *(f"{path}.{extension}" for extension in _WRITTEN_EXTENSIONS)))):
                    yield number, path
            return
        found = np.zeros(samples, bool)
        for folder in (*self._image_folders(), NO_CLASS):
            with suppress(FileNotFoundError):
                numbers = (
                    match[1]
                    for name in os.listdir(os.path.join(self.root, folder))
                    if (match := _NUMBER.fullmatch(name))
                )
                found[[number for number in map(int, numbers) if number < samples]] = True
        labels = self.source.labels()
        template = _TEMPLATES[self.layout or GLINT360K]
        for number in np.flatnonzero(~found).tolist():
            label = labels[number]
            name = f"{template.format(label)}/{label}_{number}" if label >= 0 else f"{NO_CLASS}/{number}"
            yield number, os.path.join(self.root, f"{name}.*")

    def files(self, shards: int) -> Iterable[str]:
        """The list and the file of the class names; the images are counted."""
        return self.final_files()

    def shard_file(self, shard: int) -> str | None:
        """The part of the list that a shard writes."""
        return None if self.list_file is None else os.path.join(self.root, _FRAGMENTS, f"{shard:08d}")

    def prepare(self) -> None:
        """Create the folder for the fragments of the list."""
        if self.list_file is not None:
            make_own_folder(os.path.join(self.root, _FRAGMENTS))

    @contextmanager
    def open_shard(self, shard: int) -> Iterator[_FolderWriter]:
        """A writer for one shard; it completes what an interrupted run left."""
        with _FolderWriter(self, self.shard_file(shard)) as writer:
            yield writer

    def finish(self, shards: int, publish: Publish) -> Mapping[str, Any]:
        """Count the identities, write the names of the classes, and join the list from the fragments of the shards."""
        facts = {"identities": len(self._image_folders())} if self.labelled else {}
        if self.class_names is not None:
            write_class_names(os.path.join(self.root, CLASSES), self.class_names, publish)
        if self.list_file is None:
            return facts
        with output_errors(self.list_file), atomic_writer(self.list_file, rename=publish) as file:
            for shard in range(shards):
                with open(self.shard_file(shard) or "", "rb") as fragment:
                    shutil.copyfileobj(fragment, file, 1 << 20)
        return {**facts, "list": self.list_file}

    def clean_up(self) -> None:
        """Remove the fragments of the list."""
        with suppress(FileNotFoundError):
            shutil.rmtree(os.path.join(self.root, _FRAGMENTS))


class _FolderWriter:
    """Writes the files of one shard through a descriptor of the identity's folder, which neighbours share."""

    def __init__(self, sink: FolderSink, fragment: str | None) -> None:
        self._sink, self._fragment = sink, fragment
        self._template = None if sink.layout == SOURCE else _TEMPLATES[sink.layout or GLINT360K]
        self._folder: str | None = None
        self._root = self._descriptor = -1
        self._list: BinaryIO | None = None

    def __enter__(self) -> _FolderWriter:
        # once, so that no image goes to another folder that gets this name
        self._root = os.open(self._sink.root, _FOLDER & ~os.O_NOFOLLOW)
        if self._fragment is not None:
            self._list = open(self._fragment, "wb", opener=open_own)
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in (self._descriptor, self._root):
            if descriptor >= 0:
                os.close(descriptor)
        if self._list is not None:
            self._list.close()

    def write(self, index: int, sample: Sample, face: int = 0) -> None:
        """Write one image and its line of the list."""
        if self._sink.keep_undecodable:
            extension = image_extension(sample.image) or "bin"
        else:
            extension = known_extension(sample.image)
        if self._template is None:
            folder, name = path_of_key(sample.key, extension)
        elif sample.label < 0:
            folder, name = NO_CLASS, f"{index}_{face}.{extension}" if face else f"{index}.{extension}"
        else:
            folder = self._template.format(sample.label)
            name = f"{sample.label}_{index}_{face}.{extension}" if face else f"{sample.label}_{index}.{extension}"
        if folder != self._folder:
            self._enter_folder(folder)
        try:
            try:
                descriptor = os.open(name, _CREATE, 0o666, dir_fd=self._descriptor)
            except FileExistsError:
                descriptor = self._reopen(folder, name, sample.image)
            try:
                write_fully(descriptor, sample.image)
            finally:
                os.close(descriptor)
        except OutputExistsError:
            raise
        except OSError as error:
            raise output_error(error, os.path.join(self._sink.root, folder, name)) from error
        if self._list is not None:  # an OSError here becomes one about the whole shard
            path = f"{folder}/{name}" if folder else name
            self._list.write(
                (f"{path}{self._sink.separator}{sample.label}\n" if self._sink.labelled else f"{path}\n").encode()
            )

    def _reopen(self, folder: str, name: str, image: bytes) -> int:
        """Open an image that an interrupted run left, whole or not; refuse any other file."""
        descriptor = os.open(name, _REOPEN, dir_fd=self._descriptor)
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if is_file and image.startswith(read_exactly(descriptor, len(image) + 1, 0)):
            return descriptor
        os.close(descriptor)
        raise OutputExistsError(
            f"{os.path.join(self._sink.root, folder, name)}: appeared while this job was running or interrupted, is "
            "not the image that the job writes there, and is left as it is; move it away and run the same command again"
        )

    def _enter_folder(self, folder: str) -> None:
        """Create the folder and open it, without following a link in the place of a folder on the way."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._folder = -1, None
        path, parent = self._sink.root, self._root
        try:
            for name in folder.split("/"):
                path = os.path.join(path, name)
                with suppress(FileExistsError):
                    os.mkdir(name or ".", dir_fd=parent)
                self._descriptor, above = os.open(name or ".", _FOLDER, dir_fd=parent), self._descriptor
                parent = self._descriptor
                if above >= 0:
                    os.close(above)
        except OSError as error:
            raise output_error(error, path) from error
        self._folder = folder


def path_of_key(key: str, extension: str) -> tuple[str, str]:
    """The folder below the root and the file name of the image with this key.

    Parameters
    ----------
    key : str
        A relative path. A name that has neither `extension` nor that of another image gets it.
    extension : str
        The file extension that fits the image.

    Raises
    ------
    RefusedSampleError
        If the key is not a path below the root.
    """
    names = key.split("/")
    for name in names:
        if name.startswith(".") or not name or "\0" in name:  # a hidden name might be that of the journal
            raise RefusedSampleError(f"its key '{key}' is not a path below the output: it has the part '{name}'")
    if stem_of_key(names[-1]) == names[-1] and not names[-1].endswith(f".{extension}"):
        names[-1] += f".{extension}"
    if len(key) * _BYTES_PER_LETTER >= _LONGEST_NAME:
        try:
            longest = max(len(os.fsencode(name)) for name in names)
        except UnicodeEncodeError:
            raise RefusedSampleError("its key cannot be a file name: the file system cannot encode it") from None
        if longest > _LONGEST_NAME:
            raise RefusedSampleError(f"its key has a part of {longest} bytes; a file name may have {_LONGEST_NAME}")
    return "/".join(names[:-1]), names[-1]


def _check_paths(source: Source, root: str, folding: Folding) -> None:
    """Refuse a source whose keys are not paths, or in which two images would get the same path."""
    first = next(iter(source.keys()), None)
    if first is not None and "/" not in first and not source.keys_are_paths:
        raise OptionError(
            f"{root}: --layout source keeps the paths of a source whose keys are paths (a folder, a list), but the "
            f"keys of this source are like '{first}'. --layout glint360k names the images by label and number"
        )
    way_out = "--layout glint360k names the images by label and number"
    if any(folding) and (folders := folders_taken_for_one(source.keys, folding)):
        raise OptionError(f"{root}: its file system ignores {folding}, and takes {listed(folders)} for one; {way_out}")
    if same := _colliding_keys(source, folding):
        ignored = f", or in {folding}, which this file system ignores" if any(folding) else ""
        raise OptionError(
            f"{root}: several images would be written as {listed(same, quote='')}: they differ only in their file "
            f"extension{ignored}, or occur twice in the source. {way_out}"
        )


def _warn_of_lost_labels(source: Source) -> None:
    """Warn if the first folders of the paths, as which a reader takes the classes, are not the labels."""
    folders = (key.rpartition("/")[0].partition("/")[0] for key in source.keys())  # noqa: SIM118, not a mapping
    labels = chain.from_iterable(block.tolist() for block in source.label_blocks())
    label_of: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for folder, label in zip(folders, labels, strict=True):
        if label >= 0 and (
            label_of.setdefault(folder, label) != label or folder_of.setdefault(label, folder) != folder
        ):
            _log.warning(
                "the labels are not in the output: it keeps the paths, whose folders are not the labels; "
                "--layout imagefolder makes a folder for each label"
            )
            return


def _check_list(source: Source, path: str, separator: str) -> None:
    """Refuse paths that the readers of the list would cut, at any blank or at tabs."""
    cut, what = ("\t", "tab") if separator == "\t" else (None, "space")
    for key in source.keys():  # noqa: SIM118, not a mapping
        if len(key.split(cut)) > 1 or key != key.strip(cut):
            tab = "" if cut else "--list-separator tab, if the reader cuts at tabs, "
            raise OptionError(
                f"{path}: the path '{key}' has a {what}, and the readers of such a list cut lines at {what}s. Choose "
                f"{tab}--layout glint360k, which names images by label and number, or rename the files and folders"
            )


def _colliding_keys(source: Source, folding: Folding) -> list[str]:
    """Keys that occur twice, and those that a key without a file extension may equal, because it gets one."""

    def keys() -> Iterator[str]:
        return map(folding.__call__, source.keys()) if any(folding) else source.keys()

    hashes = np.sort(_hashes(keys()))
    suspects = set(hashes[:-1][hashes[1:] == hashes[:-1]].tolist())
    stem = partial(stem_of_key, extensions=_WRITTEN_EXTENSIONS)  # without any extension that an image may be given
    without = _hashes(key for key in keys() if stem_of_key(key) == key)
    if len(without):
        stems = _hashes(stem(key) for key in keys() if stem(key) != key)
        suspects |= set(np.intersect1d(without, stems).tolist())
    if not suspects:
        return []
    counts = Counter(key for key in keys() if hash(key) in suspects)
    same = (
        key
        for key, k in zip(source.keys(), keys(), strict=True)
        if counts[k] > 1 or (stem(k) != k and stem(k) in counts)
    )
    return list(dict.fromkeys(same))


def _hashes(keys: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, keys), np.int64)
