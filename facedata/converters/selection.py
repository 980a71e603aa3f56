"""What a conversion does to samples on their way: joining several sources, selecting, renumbering, and reordering."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from facedata.columns import LARGEST_LABEL
from facedata.dataset import Sample, Source, WrappedSource
from facedata.errors import EmptyDatasetError, OptionError, SampleError

__all__ = ["MAPPING_HEADER", "LabelOrigin", "Selection", "all_labels", "join_sources", "label_origins", "old_labels"]
__all__ += ["select"]

_T = TypeVar("_T")
_BLOCK = 1 << 20
_POSITION = np.uint32  # 4 bytes a sample: no dataset has 4 thousand million images

_log = logging.getLogger(__name__)


def join_sources(sources: Sequence[Source], *, shift: bool) -> tuple[Source, list[tuple[int, int | None]]]:
    """Join sources, one after the other.

    Parameters
    ----------
    sources : sequence of Source
    shift : bool
        Shift the labels of each past those of the sources before it, so that people stay apart. If a source does not
        declare its number of classes, its labels are read to count them.

    Returns
    -------
    Source
    list of tuple
        By how much the labels of each source are shifted, and how many classes it has, if that is known.

    Raises
    ------
    OptionError
        If a shifted label would be too large.
    """
    joined: list[Source] = []
    labels: list[tuple[int, int | None]] = []
    first = 0
    if not shift:
        _warn_of_names([source.class_names() or {} for source in sources])
    for number, source in enumerate(sources, 1):
        classes = source.declared_classes() if source.labelled else 0
        followed = shift and number < len(sources)  # by a source whose labels begin after these
        if followed and classes is None:
            place = next(iter(source.places()), "a set")
            _log.info("%s: declares no number of classes; reading its labels to count them", place)
            classes = max((int(block.max(initial=-1)) for block in source.label_blocks()), default=-1) + 1
        if first + (classes or 1) - 1 > LARGEST_LABEL:
            raise _too_large(first + (classes or 1) - 1)
        joined.append(_ShiftedSource(source, first, classes if followed else None) if first or followed else source)
        labels.append((first, classes))
        first += classes or 0 if shift else 0
    return (joined[0] if len(joined) == 1 else _JoinedSource(joined)), labels


def _warn_of_names(sets: Sequence[Mapping[int, str]]) -> None:
    """Report a label that has different names in different sets."""
    names: dict[int, str] = {}
    for label, name in (pair for known in sets for pair in known.items()):
        if names.setdefault(label, name) != name:
            both = names[label], name
            _log.warning("label %d is '%s' in one set, '%s' in another; with --labels keep they are one", label, *both)
            return


def _too_large(label: int) -> OptionError:
    return OptionError(
        f"the largest label would be {label}, and labels end at {LARGEST_LABEL}; close the gaps in the labels of each "
        "set first (facedata convert ... --relabel), or keep them as they are with --labels keep"
    )


class _ShiftedSource(WrappedSource):
    """A source whose labels are shifted.

    They must stay below `classes`, if that is given, because the labels of another source follow.
    """

    def __init__(self, source: Source, shift: int, classes: int | None = None) -> None:
        super().__init__(source)
        self._shift, self._classes = shift, classes

    def sliced(self, part: slice) -> _ShiftedSource:
        return _ShiftedSource(self._source[part], self._shift, self._classes)

    def take(self, positions: NDArray[np.int64]) -> _ShiftedSource:
        return _ShiftedSource(self._source.take(positions), self._shift, self._classes)

    def read(self) -> Iterator[Sample | SampleError]:
        for position, item in enumerate(self._source.read()):
            if isinstance(item, SampleError):
                yield item
            elif self._classes is not None and item.label >= self._classes:
                dataset, offset = self._source.locate(position)
                reason = (
                    f"label {item.label} is out of range: the dataset declares {self._classes} classes (0 to "
                    f"{self._classes - 1})"
                )
                yield SampleError(dataset, item.key, reason, offset)
            elif item.label < 0:
                yield item
            else:
                yield item._replace(label=item.label + self._shift)

    def identity(self) -> Mapping[str, Any]:
        return {**self._source.identity(), "label shift": self._shift}

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        end = np.iinfo(np.int64).max if self._classes is None else self._classes
        for block in self._source.label_blocks():
            yield np.where((block >= 0) & (block < end), block + self._shift, -1)

    def class_names(self) -> Mapping[int, str] | None:
        names = self._source.class_names()
        return None if names is None else {label + self._shift: name for label, name in names.items()}

    def declared_classes(self) -> int | None:
        classes = self._source.declared_classes()
        return None if classes is None else classes + self._shift


class _JoinedSource(Source):
    """The samples of several sources, one after the other; or, with the number of the source of each, in any order."""

    def __init__(self, sources: Sequence[Source], which: NDArray[np.int32] | None = None) -> None:
        self._sources, self._which = list(sources), which
        self.labelled = all(source.labelled for source in sources)
        self.may_have_values = any(source.may_have_values for source in sources)

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    def sliced(self, part: slice) -> Source:
        start, stop, step = part.indices(len(self))
        if self._which is not None or step != 1:
            return super().sliced(part)
        kept, first = [], 0
        for source in self._sources:
            inner = slice(max(start - first, 0), max(min(stop - first, len(source)), 0))
            if inner.start < inner.stop:
                kept.append(source[inner])
            first += len(source)
        return _JoinedSource(kept)

    def take(self, positions: NDArray[np.int64]) -> _JoinedSource:
        which, ranks = self._find(positions)
        sources = [source.take(ranks[which == number]) for number, source in enumerate(self._sources)]
        return _JoinedSource(sources, None if bool((which[1:] >= which[:-1]).all()) else which)

    def _find(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        if self._which is None:
            ends = np.cumsum([0, *map(len, self._sources)])
            found = np.searchsorted(ends[1:], positions, side="right").astype(np.int32)
            return found, positions - ends[found]
        ranks = np.empty(len(self), np.int64)
        ranks[np.argsort(self._which, kind="stable")] = np.concatenate([np.arange(len(s)) for s in self._sources])
        return self._which[positions], ranks[positions]

    def read(self) -> Iterator[Sample | SampleError]:
        return self._merge([source.read() for source in self._sources])

    def keys(self) -> Iterator[str]:
        return self._merge([source.keys() for source in self._sources])

    def _merge(self, parts: Sequence[Iterator[_T]]) -> Iterator[_T]:
        if self._which is None:
            return chain.from_iterable(parts)
        return (next(parts[number]) for number in self._which.tolist())

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        if self._which is None:
            return chain.from_iterable(source.label_blocks() for source in self._sources)
        return iter([self._merge_arrays([all_labels(source) for source in self._sources]).astype(np.int64)])

    def sizes(self) -> NDArray[np.int32]:
        return self._merge_arrays([source.sizes() for source in self._sources])

    def _merge_arrays(self, arrays: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
        joined = np.concatenate([np.empty(0, np.int32), *arrays])
        if self._which is None:
            return joined
        merged = np.empty(len(self), np.int32)
        merged[np.argsort(self._which, kind="stable")] = joined
        return merged

    def size(self) -> int:
        return sum(source.size() for source in self._sources)

    def identity(self) -> Mapping[str, Any]:
        return {"sets": [dict(source.identity()) for source in self._sources]}

    def locate(self, position: int) -> tuple[str, int | None]:
        which, ranks = self._find(np.array([position]))
        return self._sources[int(which[0])].locate(int(ranks[0]))

    def places(self) -> Mapping[str, bool]:
        return {path: whole for source in self._sources for path, whole in source.places().items()}

    def class_names(self) -> Mapping[int, str] | None:
        names: dict[int, str] = {}
        for source in self._sources:
            names = {**(source.class_names() or {}), **names}
        return names or None

    def declared_classes(self) -> int | None:
        declared = [source.declared_classes() for source in self._sources]
        known = [classes for classes in declared if classes is not None]
        return max(known) if known and len(known) == len(declared) else None


class LabelOrigin(NamedTuple):
    """What a label that is written stands for: a label of one of the sets, and its name there."""

    label: int
    set: str
    old_label: int
    name: str


MAPPING_HEADER = "label\tset\told label\tname"


def label_origins(
    labels: Iterable[tuple[int, int]], sets: Sequence[tuple[str, int]], names: Mapping[int, str]
) -> Iterator[LabelOrigin]:
    """What each label stands for.

    Parameters
    ----------
    labels : iterable of (int, int)
        The label that is written, and the label in the joined sets.
    sets : sequence of (str, int)
        Each set, and the first of its labels in the joined sets; one pair if labels were not shifted.
    names : mapping
        The names of the labels that are written.
    """
    firsts = [first for _, first in sets]
    for label, joined in labels:
        place = max(bisect_right(firsts, joined) - 1, 0)
        own = joined - firsts[place]
        yield LabelOrigin(label, sets[place][0], own, names.get(label, str(own)))


def old_labels(source: Source) -> Mapping[int, int]:
    """For each label of a selection that was renumbered, the label before; empty if it was not."""
    if isinstance(source, _SelectedSource) and source.renumbering is not None:
        old, new = source.renumbering
        return dict(zip(new.tolist(), old.tolist(), strict=True))
    return {}


def all_labels(source: Source) -> NDArray[np.int32]:
    """Every label at once, shape (N,), 4 bytes each; -1 for one that cannot be read.

    Raises
    ------
    OptionError
        If a label does not fit into 4 bytes.
    """
    labels = np.empty(len(source), np.int32)
    filled = 0
    for block in source.label_blocks():
        if int(block.max(initial=-1)) > LARGEST_LABEL:
            raise _too_large(int(block.max()))
        labels[filled : filled + len(block)] = block
        filled += len(block)
    return labels


@dataclass(frozen=True)
class Selection:
    """Which samples, with which labels, in which order.

    Attributes
    ----------
    min_images : int, optional
        Leave out classes with fewer images.
    max_images : int, optional
        Of each class only the first so many images, or so many at random.
    random : bool
        Choose the images of each class at random, by `seed`; they stay in their order.
    sample : int, optional
        Only so many of the remaining samples, chosen at random by `seed`, in their order.
    relabel : bool
        Renumber the remaining labels from 0 without gaps, in the same order.
    group : bool
        Sort by label; within a class the order stays.
    shuffle : bool
        Put the samples into a random order that depends on `seed` alone.
    seed : int
        From 0 to 2**32 - 1.
    """

    min_images: int | None = None
    max_images: int | None = None
    relabel: bool = False
    group: bool = False
    shuffle: bool = False
    seed: int = 0
    random: bool = False
    sample: int | None = None

    def __post_init__(self) -> None:
        if self.group and self.shuffle:
            raise OptionError(
                "shuffled samples cannot be grouped by label: choose --style plain, or leave out --shuffle"
            )

    def options(self) -> dict[str, Any]:
        """What differs from taking all samples as they come, as JSON values; for a plan."""
        chosen = {
            "min images": self.min_images,
            "max images": self.max_images,
            "relabel": self.relabel,
            "grouped by label": self.group,
            "shuffle seed": self.seed if self.shuffle else None,
            "random images by seed": self.seed if self.random else None,
            "random samples": self.sample and [self.sample, self.seed],
        }
        return {name: value for name, value in chosen.items() if value not in (None, False)}


def _labels_left(labels: NDArray[Any]) -> NDArray[np.int64]:
    if not len(labels):
        _log.warning("--relabel changes nothing: no sample has a label")
    return np.unique(labels).astype(np.int64)


def select(source: Source, selection: Selection) -> Source:
    """Apply a selection; returns the source itself if there is nothing to apply.

    The labels of all samples are read first, and kept in 4 bytes each; positions take 4 more.

    Raises
    ------
    EmptyDatasetError
        If no sample is left.
    OptionError
        If the format of the source cannot be read in the order that is asked for.
    """
    if selection == Selection(seed=selection.seed):
        return source
    labels = positions = kept_labels = None
    if selection.min_images or selection.max_images or selection.relabel or selection.group or selection.sample:
        labels = all_labels(source)
        classes = _Classes(labels)
        wanted = None
        if selection.min_images or selection.max_images:
            if not len(classes.labels):
                raise EmptyDatasetError("no sample has a label that can be read, so no class can be chosen by its size")
            large = classes.counts >= (selection.min_images or 0)
            if not large[:-1].any():
                raise EmptyDatasetError(
                    f"no class has {selection.min_images} images: the largest has "
                    f"{classes.counts[:-1].max(initial=0)}; lower --min-images"
                )
            most = np.full(len(large), selection.max_images or np.iinfo(np.int64).max)
            large[-1], most[-1] = True, np.iinfo(np.int64).max  # samples without a label belong to no class
            ranked = classes.ranked_at_random(selection.seed) if selection.random else classes.ranked()
            chosen = np.concatenate([large[codes] & (ranks < most[codes]) for _, codes, ranks in ranked])
            wanted = None if chosen.all() else chosen
            small = int(np.count_nonzero(~large & (classes.counts > 0)))
            if small:
                _log.info("%d classes with fewer than %d images are left out", small, selection.min_images)
        if selection.group and not classes.grouped:
            positions = classes.grouped_positions()
            positions = positions if wanted is None else positions[wanted[positions]]
        elif wanted is not None:
            positions = np.flatnonzero(wanted).astype(_POSITION)
        if selection.sample is not None:
            positions = _sampled(source, positions, selection)
            wanted = np.zeros(len(source), bool)
            wanted[positions] = True
        if selection.relabel:
            kept_labels = _labels_left(classes.labels if wanted is None else labels[wanted & (labels >= 0)])
    if selection.shuffle:
        if positions is None:
            positions = np.arange(len(source), dtype=_POSITION)
        # the stream of RandomState never changes; that of Generator may change with NumPy's version
        np.random.RandomState(selection.seed).shuffle(positions)
    if positions is None and kept_labels is None:
        return source
    new_labels = None if kept_labels is None else (kept_labels, np.arange(len(kept_labels)))
    selected = _SelectedSource(source, positions, new_labels, labels)
    if positions is not None:
        selected[:_BLOCK].size()  # a format that cannot be read in this order raises now
    return selected


def _sampled(source: Source, positions: NDArray[np.uint32] | None, selection: Selection) -> NDArray[np.uint32]:
    """So many of the positions, at random, in their order."""
    if positions is None:
        positions = np.arange(len(source), dtype=_POSITION)
    places = np.arange(len(positions), dtype=_POSITION)
    np.random.RandomState(selection.seed).shuffle(places)
    return positions[np.sort(places[: selection.sample])]


class _Classes:
    """Counts the labels of all samples, block by block, so that no second array of their length is needed.

    Samples without a label, -1, make up a class of their own after all others.
    """

    def __init__(self, labels: NDArray[np.int32]) -> None:
        self._all = labels
        blocks = [np.unique(block) for _, block in self._blocks()]
        known = np.unique(np.concatenate([np.empty(0, np.int32), *blocks]))
        self.labels: NDArray[np.int64] = known[known >= 0].astype(np.int64)
        self.counts = np.zeros(len(self.labels) + 1, np.int64)
        self.grouped = True
        last = 0
        for _, block in self._blocks():
            codes = self._codes(block)
            self.counts += np.bincount(codes, minlength=len(self.counts))
            self.grouped &= bool((codes[1:] >= codes[:-1]).all()) and int(codes[0]) >= last
            last = int(codes[-1])

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        for begin in range(0, len(self._all), _BLOCK):
            yield begin, self._all[begin : begin + _BLOCK]

    def _codes(self, block: NDArray[np.int32]) -> NDArray[np.int64]:
        """The rank of each label among the labels that occur."""
        return np.where(block < 0, len(self.labels), np.searchsorted(self.labels, block))

    def ranked(self) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """Block by block: where it begins, the class of each sample, and how many of that class came before it."""
        before = np.zeros_like(self.counts)
        for begin, block in self._blocks():
            codes = self._codes(block)
            order = np.argsort(codes, kind="stable")
            here = np.bincount(codes, minlength=len(before))
            ranks = np.empty(len(codes), np.int64)
            ranks[order] = np.arange(len(codes)) - np.repeat(np.cumsum(here) - here, here)
            yield begin, codes, ranks + before[codes]
            before += here

    def ranked_at_random(self, seed: int) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """As `ranked`, but the samples of each class are counted in a random order."""
        order = np.arange(len(self._all), dtype=_POSITION)
        np.random.RandomState(seed).shuffle(order)
        order = order[np.argsort(self._all[order], kind="stable")]  # by label; -1, of no class, comes first
        starts = np.concatenate([[0], np.cumsum(self.counts[:-1])]) + self.counts[-1]
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        for begin, block in self._blocks():
            codes = self._codes(block)
            yield begin, codes, np.where(block < 0, 0, ranks[begin : begin + len(block)] - starts[codes])

    def grouped_positions(self) -> NDArray[np.uint32]:
        """Positions in the order of the labels; within a class the order stays."""
        positions = np.empty(len(self._all), _POSITION)
        firsts = np.cumsum(self.counts) - self.counts
        for begin, codes, ranks in self.ranked():
            positions[firsts[codes] + ranks] = np.arange(begin, begin + len(codes))
        return positions


class _SelectedSource(WrappedSource):
    """Some samples of a source, in an order of their own, perhaps with new labels.

    Parameters
    ----------
    positions : ndarray of shape (N,), uint32, optional
        None for all as they come.
    new_labels : pair of ndarray of shape (C,), int64, optional
        The old labels, ascending, and the new label of each.
    known_labels : ndarray of shape (len(source),), int32, optional
        The labels of all samples of the source, if they have been read already.
    """

    def __init__(
        self,
        source: Source,
        positions: NDArray[np.uint32] | None = None,
        new_labels: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        known_labels: NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__(source)
        self._positions, self._new_labels, self._known_labels = positions, new_labels, known_labels

    def __len__(self) -> int:
        return len(self._source if self._positions is None else self._positions)

    @property
    def renumbering(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The old labels, ascending, and the new label of each; None if they stay."""
        return self._new_labels

    def sliced(self, part: slice) -> _SelectedSource:
        if self._positions is None:
            return self._part(self._source[part], part)
        chosen = self._positions[part]
        return self._part(self._source.take(chosen.astype(np.int64)), chosen)

    def take(self, positions: NDArray[np.int64]) -> _SelectedSource:
        chosen = positions if self._positions is None else self._positions[positions].astype(np.int64)
        return self._part(self._source.take(chosen), chosen)

    def _part(self, source: Source, chosen: slice | NDArray[Any]) -> _SelectedSource:
        """A part with the new labels that occur in it: that is what a worker gets, not those of the whole source."""
        new_labels = self._new_labels
        if new_labels is not None and self._known_labels is not None:
            old, new = new_labels
            places = np.searchsorted(old, np.unique(self._known_labels[chosen]))
            places = np.unique(places[places < len(old)])
            new_labels = old[places], new[places]
        return _SelectedSource(source, None, new_labels)

    def _parts(self) -> Iterator[Source]:
        """The source's samples in the order of the selection, a bounded number of them at a time."""
        if self._positions is None:
            yield self._source
            return
        for begin in range(0, len(self._positions), _BLOCK):
            yield self._source.take(self._positions[begin : begin + _BLOCK].astype(np.int64))

    def read(self) -> Iterator[Sample | SampleError]:
        if self._new_labels is None:
            yield from chain.from_iterable(part.read() for part in self._parts())
            return
        old, new = self._new_labels
        renumbered = dict(zip(old.tolist(), new.tolist(), strict=True))
        for part in self._parts():
            for position, item in enumerate(part.read()):
                if isinstance(item, SampleError) or item.label < 0:
                    yield item
                elif item.label in renumbered:
                    yield item._replace(label=renumbered[item.label])
                else:  # its label could not be read when the labels were counted
                    dataset, offset = part.locate(position)
                    reason = f"label {item.label} did not occur when the labels were counted"
                    yield SampleError(dataset, item.key, reason, offset)

    def keys(self) -> Iterator[str]:
        return chain.from_iterable(part.keys() for part in self._parts())

    def label_blocks(self) -> Iterator[NDArray[np.int64]]:
        for block in self._old_labels():
            if self._new_labels is None:
                yield block
                continue
            old, new = self._new_labels
            places = np.searchsorted(old, block)
            places[places == len(old)] = 0
            yield np.where(old[places] == block, new[places], -1) if len(old) else np.full(len(block), -1)

    def _old_labels(self) -> Iterator[NDArray[np.int64]]:
        if self._known_labels is None:
            yield from chain.from_iterable(part.label_blocks() for part in self._parts())
            return
        known = self._known_labels
        for begin in range(0, len(self), _BLOCK):
            some = slice(begin, begin + _BLOCK)
            yield (known[some] if self._positions is None else known[self._positions[some]]).astype(np.int64)

    def sizes(self) -> NDArray[np.int32]:
        sizes = self._source.sizes()
        return sizes if self._positions is None else sizes[self._positions]

    def locate(self, position: int) -> tuple[str, int | None]:
        return self._source.locate(position if self._positions is None else int(self._positions[position]))

    def class_names(self) -> Mapping[int, str] | None:
        names = self._source.class_names()
        if self._new_labels is None:
            return names
        pairs = zip(*(labels.tolist() for labels in self._new_labels), strict=True)
        return {new: (names or {}).get(old, str(old)) for old, new in pairs}

    def declared_classes(self) -> int | None:
        if self._new_labels is None:
            return self._source.declared_classes()
        return int(self._new_labels[1].max(initial=-1)) + 1
