"""Lines are found wherever the blocks that they are read in end."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st
from support import file_of

from facedata.align.landmark_files.lines import LineReader, open_regular, read_lines

LINES = st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"").replace(b"\r", b"")), min_size=1)


@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 40), st.data())
def test_lines_and_their_places(lines: list[bytes], end: bytes, closed: bool, size: int, data: st.DataObject) -> None:
    text = b"k" + end.join(lines) + (end if closed else b".")
    expected = text.replace(b"\r\n", b"\n").split(b"\n")
    expected = expected[:-1] if closed else expected
    with (
        file_of(text) as path,
        patch.multiple("facedata.align.landmark_files.lines", _BLOCK=size, _AHEAD=64, _NEAR=40),
        open_regular(str(path)) as descriptor,
    ):
        blocks = list(read_lines(descriptor, str(path)))
        found = [line for block in blocks for line in block.texts]
        left_out = expected[len(found) :]
        assert (found, b"".join(left_out).strip(b" \t")) == (expected[: len(found)], b"")
        assert found[-1].strip(b" \t") or size < len(text)  # blank lines at the end, but not more than a block of them
        expected = found
        assert [block.number for block in blocks] == [
            1 + sum(len(before.texts) for before in blocks[:place]) for place in range(len(blocks))
        ]
        begins = [begin for block in blocks for begin in block.begins.tolist()]
        reader = LineReader(descriptor, str(path))
        order = data.draw(st.lists(st.integers(0, len(expected) - 1)))
        assert [reader.line(begins[place]) for place in order] == [expected[place] for place in order]
        assert list(map(reader.line, begins)) == expected
