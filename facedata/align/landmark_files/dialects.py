"""The dialects of landmark files, each told from the first lines of a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from facedata.align.landmark_files.csv_table import CsvTable
from facedata.align.landmark_files.cvlface import CvlfaceTable
from facedata.align.landmark_files.facexzoo import ImageInfo, PlainNumbers
from facedata.align.landmark_files.insightface import InsightFaceList
from facedata.align.landmark_files.json_lines import JsonLines
from facedata.align.landmark_files.parsing import Dialect, LineError, shown

__all__ = ["DIALECTS", "find_dialect"]

Recognise = Callable[[Sequence[bytes]], Dialect | None]

DIALECTS: tuple[Recognise, ...] = (
    JsonLines.recognise,
    CvlfaceTable.recognise,
    CsvTable.recognise,
    InsightFaceList.recognise,
    PlainNumbers.recognise,
    ImageInfo.recognise,
)
"""Each looks at the first lines of a file; the first that knows them has it. No two know the same lines."""


def find_dialect(lines: Sequence[bytes]) -> Dialect:
    """The dialect of a file.

    Parameters
    ----------
    lines : sequence of bytes
        The first ones, a hundred or so, without their ends.

    Raises
    ------
    LineError
        Where no dialect has such a first line.
    """
    for recognise in DIALECTS:
        dialect = recognise(lines)
        if dialect is not None:
            return dialect
    raise LineError(
        f"is of no kind of landmark file that is known: {shown(lines[0])}; expected a FaceX-Zoo image info file or "
        "landmark file, CVLFace's ldmk_5points.csv, an InsightFace .lst, a CSV whose header is key,x1,y1,x2,y2,... or "
        'JSON lines with "key" and "landmarks"'
    )
