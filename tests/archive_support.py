"""Archives made on purpose, for the tests of unpacking."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from facedata.jobs.signals import StopRequest

Content = bytes | Mapping[str, Any]
Members = Mapping[str, Content] | Sequence[tuple[str, Content]]


class StopAfter(StopRequest):
    """Asks to stop when it has been looked at more than so many times."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        self.count += 1
        return self.count > self.looks


def tar_bytes(members: Members, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar archive: bytes make a regular file, a mapping sets the fields of a `TarInfo`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            fields: Mapping[str, Any] = {"data": content} if isinstance(content, bytes) else content
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(fields.get("data", b"")), 1_500_000_000
            for key in fields.keys() - {"data"}:
                setattr(info, key, fields[key])
            archive.addfile(info, io.BytesIO(fields.get("data", b"")))
    return file.getvalue()


def write_tar(path: Path, members: Members, form: int = tarfile.GNU_FORMAT) -> Path:
    """Write a tar archive, compressed where its name says so."""
    data = tar_bytes(members, form)
    path.write_bytes(gzip.compress(data, 1, mtime=0) if path.name.endswith("gz") else data)
    return path


def zip_bytes(*members: tuple[str | zipfile.ZipInfo, bytes], form: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", form) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


def zip_with_raw_names(*names: bytes) -> bytes:
    """A zip as Windows writes it: its names have no mark of their encoding."""
    placeholders = [chr(ord("A") + number) * len(name) for number, name in enumerate(names)]
    data = zip_bytes(*((placeholder, b"") for placeholder in placeholders))
    for placeholder, name in zip(placeholders, names, strict=True):
        data = data.replace(placeholder.encode(), name)
    return data


def split(path: Path, parts: int, form: str = "{name}_{number:02d}") -> list[Path]:
    """Cut a file into parts; the file is removed."""
    data = path.read_bytes()
    size = -(-len(data) // parts)
    paths = [path.with_name(form.format(name=path.name, number=number)) for number in range(parts)]
    for number, part in enumerate(paths):
        part.write_bytes(data[number * size : (number + 1) * size])
    path.unlink()
    return paths


def visible(folder: Path) -> dict[str, bytes]:
    """Every file that a user would see, by relative path: what is hidden, and lies in hidden folders, is left out."""
    paths = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {
        str(path): (folder / path).read_bytes()
        for path in paths
        if not any(part.startswith(".f") for part in path.parts)
    }
