"""Archives, whole or in parts: found by name and content, unpacked as a stream, proven before they get their names."""

from __future__ import annotations

from facedata.download.archives.extract import extract_archive, extracted_before
from facedata.download.archives.parts import Archive, group_archives
from facedata.download.archives.record import Extraction
from facedata.download.archives.safety import MAX_RATIO

__all__ = ["MAX_RATIO", "Archive", "Extraction", "extract_archive", "extracted_before", "group_archives"]
