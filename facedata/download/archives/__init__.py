"""Archives, whole or in parts: found by name and content, unpacked as a stream, checked before they are published."""

from __future__ import annotations

from facedata.download.archives.extract import Extraction, extract_archive, extracted_before
from facedata.download.archives.parts import Archive, group_archives
from facedata.download.archives.reading import MAX_RATIO

__all__ = ["MAX_RATIO", "Archive", "Extraction", "extract_archive", "extracted_before", "group_archives"]
