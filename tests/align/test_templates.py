"""Templates: the built-in ones at every size, and the user's own files, right and wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from align_support import ARCFACE, insightface_template
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import file_of

from facedata.align.templates import LARGEST_SIZE, MOST_POSES, TEMPLATES, load_template
from facedata.errors import FormatError, InputError, OptionError

POINTS = ARCFACE.tolist()
LINES = "".join(f"{x} {y}\n" for x, y in POINTS)


@pytest.mark.parametrize("size", [112, 128, 224, 256, 336, 384, 512, 896, 3584])
def test_arcface_is_insightfaces_at_every_size(size: int) -> None:
    template = load_template("arcface", size)
    assert (template.name, template.size, template.points.shape) == ("arcface", size, (1, 5, 2))
    np.testing.assert_allclose(template.points[0], insightface_template(size), rtol=1e-14)


def test_the_five_poses_at_twice_the_size_are_doubled() -> None:
    small, large = (load_template("facexzoo-5pose", size).points for size in (112, 224))
    np.testing.assert_array_equal(large, 2.0 * small)
    np.testing.assert_array_equal(small[2, 0], [39.730, 51.138])  # the frontal one is in the middle
    assert (np.diff(small[:, 2, 0]) > 0.0).all()  # the nose, from the left profile to the right one


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        ("arcface", 113, "multiples of 112 or 128; the nearest: 112 and 128$"),
        ("arcface", 200, "the nearest: 128 and 224$"),
        ("arcface", 64, "the nearest: 112$"),
        ("facexzoo-5pose", 4096, "the nearest: 4032$"),
        *((name, 0, "expected 1 to 4096 pixels") for name in (*TEMPLATES, "own.txt")),
        ("arcface", LARGEST_SIZE + 112, "expected 1 to 4096 pixels"),
        ("arcfase", 112, "'arcfase': expected arcface, facexzoo-5pose or a file, found no such file"),
    ],
)
def test_another_size_or_name_is_refused_with_the_known_ones(name: str, size: int, message: str) -> None:
    with pytest.raises(OptionError, match=message) as raised:
        load_template(name, size)
    assert str(raised.value).startswith((f"size {size}: ", "template"))


def test_a_name_has_precedence_over_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "arcface").write_text(LINES.replace("56.0252", "50"))
    monkeypatch.chdir(tmp_path)
    assert load_template("arcface", 112).points[0, 2, 0] == 56.0252
    assert "for the file, write ./arcface" in caplog.text
    assert load_template("./arcface", 112).points[0, 2, 0] == 50.0


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        LINES.replace(" ", ","),
        LINES.replace(" ", " , "),
        LINES.replace("\n", "\r\n"),
        "\ufeff" + LINES,
        "# size: 112\n\n  # mine\n" + LINES.replace("\n", "  # a point\n\n"),
        json.dumps({"size": 112, "points": POINTS}),
        json.dumps({"points": POINTS}),
        "#Size = 224\n" + "".join(f"{2 * x!r} {2 * y!r}\n" for x, y in POINTS),
        json.dumps({"size": 224, "poses": [(2 * ARCFACE).tolist()]}, indent=2),
    ],
)
def test_every_way_to_write_a_template(text: str) -> None:
    with file_of(text.encode(), "mine.template") as path:
        for size in (112, 100, 224):
            template = load_template(path, size)
            assert template.name == "mine.template"
            np.testing.assert_allclose(template.points, ARCFACE[None] * (size / 112.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected five lines of 'x y', or a multiple of five, found 0"),
        (LINES + "1 2\n", "found 6"),
        ("1 2\n\n3\n", "line 3: expected a point 'x y', two numbers, found '3'"),
        ("1,,2\n" + LINES, "line 1: expected a point"),
        *((LINES.replace("71.7366", bad), "line 3: expected a") for bad in ("nan", "1e999", "7_1", "\u0667\u0661")),
        ("# size: 224 px\n" + LINES, "line 1: the size: expected a number of pixels from 1 to 4096"),
        ("# size: 112\n# size: 224\n" + LINES, "line 2: gives the size a second time"),
        (LINES * (MOST_POSES + 1), f"expected at most {MOST_POSES} poses, found {MOST_POSES + 1}"),
        ("5 5\n" * 5, "pose 1 of 1: its points are equal, on a line"),
        (LINES + "".join(f"{n} {n}\n" for n in range(5)), "pose 2 of 2: its points are equal, on a line"),
        ('{"size": 112,\n"points": [}', "line 2: is not JSON"),
        (json.dumps(POINTS), 'expected an object of "size" and either "points" or "poses", found list'),
        (json.dumps({"size": 112}), "found the keys size"),
        (json.dumps({"size": 112, "points": POINTS, "poses": [POINTS]}), "found the keys size, points, poses"),
        *((f'{{"size": {bad}, "points": []}}', "the size: expected a number") for bad in ('"112"', "true", "NaN", -1)),
        (json.dumps({"points": POINTS[:4]}), r"expected five points \[x, y\], each two finite numbers"),
        (json.dumps({"points": [[1, 2, 3]] * 5}), "expected five points"),
        (json.dumps({"points": [["1", "2"]] * 5}), "expected five points"),
        (json.dumps({"points": [*POINTS[:4], [10**400, 0]]}), "expected five points"),
        ('{"points": [[' + "9" * 5000 + ", 1]]}", "is JSON of excessive size"),
        ('{"points": ' + "[" * 30000, "is JSON of excessive size|is not JSON"),
        (json.dumps({"poses": [POINTS, POINTS[:3]]}), "pose 2: expected five points"),
        (json.dumps({"poses": {"a": 1}}), '"poses" to be a list'),
        (LINES + "\udcff", "line 6: is not text"),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(text: str, message: str) -> None:
    with file_of(text.encode(errors="surrogateescape"), "mine.txt") as path:
        with pytest.raises(FormatError, match=message) as raised:
            load_template(path, 112)
        assert str(raised.value).startswith(str(path))


@given(st.binary(max_size=300) | st.text(alphabet='0123456789 ,.\n#-e{}[]":sizepo', max_size=300).map(str.encode))
@settings(deadline=None, max_examples=25)
def test_any_other_content_raises_nothing_else(data: bytes) -> None:
    with file_of(data) as path:
        try:
            template = load_template(path, 112)
        except FormatError:
            return
        assert np.isfinite(template.points).all()


def test_only_small_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is a named pipe, not a file"):
        load_template(tmp_path / "pipe", 112)
    with file_of(LINES.encode()) as path:
        os.truncate(path, 1 << 40)
        with pytest.raises(FormatError, match="is larger than 65,536 bytes"):
            load_template(path, 112)


@pytest.mark.parametrize(
    ("poses", "warning"),
    [
        (ARCFACE[None, [1, 0, 2, 4, 3]], "looks mirrored"),
        (ARCFACE[None] * 2.0, "has points outside a crop of 112 pixels"),
        (load_template("facexzoo-5pose", 112).points, ""),
    ],
)
def test_doubtful_files_warn(poses: NDArray[np.float64], warning: str, caplog: pytest.LogCaptureFixture) -> None:
    with file_of(json.dumps({"poses": poses.tolist()}).encode()) as path:
        load_template(path, 112)
    assert warning in caplog.text if warning else not caplog.text


def test_the_identity_distinguishes_templates_but_not_folders(tmp_path: Path) -> None:
    own, changed = tmp_path / "own.txt", tmp_path / "b" / "own.txt"
    changed.parent.mkdir()
    own.write_text(LINES)
    changed.write_text(LINES.replace("56.0252", "56.0253"))
    tried: list[tuple[str | Path, int]] = [("arcface", 112), ("facexzoo-5pose", 112), (own, 112), (own, 100)]
    identities = [load_template(name, size).identity() for name, size in [*tried, (changed, 112)]]
    assert len(set(map(str, identities))) == 5
    own.rename(changed)
    assert load_template(changed, 112).identity() == identities[2]
