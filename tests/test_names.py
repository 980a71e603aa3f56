"""What a file system ignores in names, and names that are the same to it."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from facedata.names import Folding, folders_taken_for_one, name_folding


@pytest.mark.parametrize("known", [Folding(), Folding(case=True), Folding(case=True, form=True), Folding(dots=True)])
def test_one_hidden_file_shows_what_a_file_system_ignores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Folding
) -> None:
    def exists(path: str) -> bool:
        (name,) = os.listdir(tmp_path)
        assert name.startswith(".facedata-")
        return known(os.path.basename(path)) == known(name)

    with monkeypatch.context() as patched:
        patched.setattr(os.path, "lexists", exists)
        assert name_folding(tmp_path / "not" / "yet") == known
    assert os.listdir(tmp_path) == []
    assert name_folding("/proc") == Folding()


@pytest.mark.parametrize(
    ("folding", "paths", "folders"),
    [
        (Folding(case=True), ["Al/1", "Bo/1", "al/2", "al/3", "4"], ["Al", "al"]),
        (Folding(case=True), ["a/B/1", "a/C/1", "a/b/1"], ["a/B", "a/b"]),
        (Folding(case=True), ["Al/1", "Al/2", "x", "Al/3", "Al./1", "é/1", unicodedata.normalize("NFD", "é/1")], []),
        (Folding(form=True), ["é/1", "É/1", unicodedata.normalize("NFD", "é/2")], ["é", "e\u0301"]),
        (Folding(dots=True), ["a./1", "a../2", "b.c/3"], ["a.", "a.."]),
    ],
)
def test_folders_that_are_one_to_a_file_system(folding: Folding, paths: list[str], folders: list[str]) -> None:
    assert folders_taken_for_one(lambda: paths, folding) == folders
