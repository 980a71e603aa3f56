"""`LandmarkFile`: a file of landmarks, or a folder of such files, scanned once and then matched to images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, Protocol
from unicodedata import is_normalized

import numpy as np
from numpy.typing import NDArray

from facedata.align.landmark_files.keys import EXACT, KeyForm, plain_key, text_of_key
from facedata.align.landmark_files.matched import EntryReader, MatchedLandmarks
from facedata.align.landmark_files.matching import (
    Matches,
    build_table,
    choose_form,
    match_keys,
    refuse_merged_entries,
    refuse_shared_entries,
)
from facedata.align.landmark_files.table import EntryTable
from facedata.errors import EmptyDatasetError, FormatError

__all__ = ["EntryStore", "LandmarkFile", "UnusedEntries"]


class EntryStore(Protocol):
    """Where entries lie: one text file, or a folder of small ones."""

    @property
    def path(self) -> str:
        """Of the file or folder."""
        ...

    @property
    def format(self) -> str:
        """What such a file is called."""
        ...

    @property
    def keyed(self) -> bool:
        """Whether entries say which image they belong to."""
        ...

    @property
    def numbered(self) -> bool:
        """Whether they do so by its position in the source."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells this input from another, as JSON values."""
        ...

    def blocks(self) -> Iterator[tuple[Sequence[bytes], NDArray[np.int64]]]:
        """Plain keys and references of all entries, in order, block by block."""
        ...

    def key_at(self, reference: int) -> str:
        """The key of an entry as the file has it."""
        ...

    def keys_at(self, references: NDArray[np.int64]) -> Iterator[str]:
        """The keys of several."""
        ...

    def reader(self, form: KeyForm) -> EntryReader:
        """What reads entries, and knows their keys in this form."""
        ...


class LandmarkFile:
    """The landmarks of many images, by the images' keys; 16 bytes an entry.

    Parameters
    ----------
    store : EntryStore

    Raises
    ------
    EmptyDatasetError
        Where there is no entry.
    FormatError
        Where an entry names no image.
    """

    def __init__(self, store: EntryStore) -> None:
        self._store = store
        self._form, self._table = EXACT, build_table(store)
        if not len(self._table):
            raise EmptyDatasetError(f"{store.path}: has no landmarks in it")

    def __len__(self) -> int:
        """Entries, that is faces: an image may have several."""
        return len(self._table)

    @property
    def path(self) -> str:
        """Of the file or folder."""
        return self._store.path

    @property
    def format(self) -> str:
        """What such a file is called."""
        return self._store.format

    @property
    def numbered(self) -> bool:
        """Whether its entries say to which image they belong by the image's position in its dataset."""
        return self._store.numbered

    def identity(self) -> dict[str, Any]:
        """What tells this input from another, as JSON values; independent of where it lies."""
        return {"format": self.format, **self._store.identity()}

    def match(self, keys: Iterable[str], count: int) -> MatchedLandmarks:
        """Find the landmarks of every image of a source.

        Keys fit as they are; or, where nearly none does, without some leading folders of the file's paths, or of the
        source's, or without the extensions of image files. How they fit is looked for among the first 16,384 images.

        Parameters
        ----------
        keys : iterable of str
            Of all images, in order; iterated once.
        count : int
            How many.

        Raises
        ------
        FormatError
            Where no key fits, or two fit the same; or where the file has an entry for each position, and more or
            fewer than there are images.
        """
        if self._form != EXACT:
            self._form, self._table = EXACT, build_table(self._store)
        matches = self._match_positions(keys, count) if self._store.numbered else self._match_keys(keys, count)
        return MatchedLandmarks(self._store.reader(self._form), *matches)

    def _match_keys(self, keys: Iterable[str], count: int) -> Matches:
        plainly = _Plainly(keys)
        form, plain = choose_form(self._store, self._table, plainly)
        if form != EXACT:
            different, self._table = self._table.keys(), EntryTable()  # two tables at once would take twice the memory
            self._form, self._table = form, build_table(self._store, form)
            refuse_merged_entries(self._store, form, different, self._table)
        first = list(islice(plain, 1))
        matches = match_keys(self._table, form, chain(first, plain), count)
        if not np.any(matches.first >= 0):
            self._refuse_strangers(first)
        refuse_shared_entries(self._store, form, matches, plainly.backslashes)
        return matches

    def _refuse_strangers(self, first: Sequence[bytes]) -> None:
        for key in map(text_of_key, first):
            entry = self._store.key_at(int(self._table.references()[0]))
            composed = {is_normalized("NFC", key), is_normalized("NFC", entry)}
            accents = "; accents are of other bytes in the two, Unicode's NFC and NFD" if len(composed) == 2 else ""
            raise FormatError(
                f"{self.path}: belongs to other images: none of their keys is in it. The first image is "
                f"'{key}', the first entry '{entry}'; these must be alike, but for leading folders and "
                f"the file extension{accents}"
            )

    def _match_positions(self, keys: Iterable[str], count: int) -> Matches:
        """Entries that are numbered as the images of the source are, whatever their keys."""
        if not self._store.keyed and len(self) != count:
            raise FormatError(
                f"{self.path}: its lines name no images, so that the first belongs to the first image and so on; but "
                f"it has {len(self):,} lines and there are {count:,} images; is it of another dataset?"
            )
        named = next((key for key in keys if not (key.isascii() and key.isdigit())), None)
        if named is not None:
            advice = (
                "give the record set that it lies beside, or write the keys into its first column"
                if self._store.keyed
                else "give the record set, or a folder with a landmark file for each image, or a CSV with their keys"
            )
            raise FormatError(
                f"{self.path}: tells the images by their positions in a record set, and here they have keys such as "
                f"'{named}', whose order is not told; {advice}"
            )
        matches = match_keys(self._table, EXACT, (b"%d" % position for position in range(count)), count)
        beyond = len(self) - int(np.count_nonzero(matches.first >= 0)) - len(matches.further)
        if beyond:
            raise FormatError(
                f"{self.path}: {beyond:,} of its {len(self):,} entries have a position of {count:,} or more, and there "
                f"are {count:,} images; it belongs to another dataset, or to all of one of which this is a part"
            )
        return matches

    def unused(self, matched: MatchedLandmarks) -> UnusedEntries:
        """The entries that belong to none of the images.

        Parameters
        ----------
        matched : MatchedLandmarks
            What `match` gave last: whole, not a slice of it.
        """
        used = np.concatenate([matched.first[matched.first >= 0], matched.further])
        used.sort()
        references = self._table.references()
        places = np.minimum(np.searchsorted(used, references), max(len(used) - 1, 0))
        unused = used[places] != references if len(used) else np.ones(len(references), np.bool_)
        return UnusedEntries(self._store, references[unused])


class _Plainly:
    """The plain keys of a source, iterated once, and whether a backslash stood in one of them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = keys
        self.backslashes = False

    def __iter__(self) -> Iterator[bytes]:
        for key in self._keys:
            if "\\" in key:
                self.backslashes = True
            yield plain_key(key)


class UnusedEntries:
    """Entries that belong to no image: sized, and iterated as their keys, in the order of the file."""

    def __init__(self, store: EntryStore, references: NDArray[np.int64]) -> None:
        self._store, self._references = store, references

    def __len__(self) -> int:
        return len(self._references)

    def __iter__(self) -> Iterator[str]:
        return self._store.keys_at(self._references)
