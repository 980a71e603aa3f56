"""Templates: those built in at every size, and files of one's own, right and wrong."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support import file_of, raised_without_root

from facedata.align.templates import LARGEST_SIZE, MOST_POSES, TEMPLATES, load_template
from facedata.errors import FormatError, InputError, OptionError

ARCFACE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)
LINES = "".join(f"{x} {y}\n" for x, y in ARCFACE)
POINTS = ARCFACE.tolist()


def insightface(size: int) -> NDArray[np.float64]:
    """Its own way of writing the rule."""
    if size % 112 == 0:
        ratio, right = float(size) / 112.0, 0.0
    else:
        ratio = float(size) / 128.0
        right = 8.0 * ratio
    template = ARCFACE * ratio
    template[:, 0] += right
    return template


# --- built in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [112, 128, 224, 256, 336, 384, 512, 896, 3584])
def test_arcface_is_insightfaces_at_every_size(size: int) -> None:
    template = load_template("arcface", size)
    assert (template.name, template.size, template.points.shape) == ("arcface", size, (1, 5, 2))
    np.testing.assert_allclose(template.points[0], insightface(size), rtol=1e-14)


def test_the_five_poses_at_twice_the_size_are_doubled() -> None:
    small, large = (load_template("facexzoo-5pose", size).points for size in (112, 224))
    assert small.shape == (5, 5, 2)
    np.testing.assert_array_equal(large, 2.0 * small)
    np.testing.assert_array_equal(small[2, 0], [39.730, 51.138])  # the frontal one is in the middle
    nose = small[:, 2, 0]
    assert (np.diff(nose) > 0.0).all()  # from the left profile to the right one


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("arcface", 113, "multiples of 112 or 128; the nearest: 112 and 128"),
        ("arcface", 200, "the nearest: 128 and 224"),
        ("arcface", 64, "the nearest: 112"),
        ("arcface", 4095, "the nearest: 4032 and 4096"),
        ("facexzoo-5pose", 128, "multiples of 112; the nearest: 112 and 224"),
        ("facexzoo-5pose", 4096, "the nearest: 4032"),
    ],
)
def test_another_size_is_refused_with_the_nearest(name: str, size: int, nearest: str) -> None:
    with pytest.raises(OptionError, match=f"size {size}: .*{nearest}$"):
        load_template(name, size)


@pytest.mark.parametrize("size", [0, -112, LARGEST_SIZE + 112, 1 << 40])
def test_a_size_that_no_image_has_is_refused(size: int, tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(LINES)
    for name in (*TEMPLATES, str(own)):
        with pytest.raises(OptionError, match=f"size {size}: expected 1 to 4096 pixels"):
            load_template(name, size)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="'arcfase': expected arcface, facexzoo-5pose or a file, found no such file"):
        load_template("arcfase", 112)


def test_a_name_goes_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "arcface").write_text(LINES.replace("56.0252", "50"))
    monkeypatch.chdir(tmp_path)
    assert load_template("arcface", 112).points[0, 2, 0] == 56.0252
    assert "for the file, write ./arcface" in caplog.text
    assert load_template("./arcface", 112).points[0, 2, 0] == 50.0


# --- files -------------------------------------------------------------------------------------------------------


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
        json.dumps({"size": 112.0, "poses": [POINTS]}, indent=2),
    ],
)
def test_every_way_to_write_a_template(text: str) -> None:
    with file_of(text.encode(), "mine.template") as path:
        for size in (112, 100, 224):
            template = load_template(path, size)
            assert template.name == "mine.template"
            np.testing.assert_allclose(template.points, ARCFACE[None] * (size / 112.0))


@pytest.mark.parametrize(
    "text", ["#Size = 224\n" + LINES + LINES, json.dumps({"size": 224, "poses": [POINTS, POINTS]})]
)
def test_several_poses_at_a_size_of_their_own(text: str) -> None:
    with file_of(text.encode()) as path:
        template = load_template(path, 112)
    np.testing.assert_allclose(template.points, np.stack([ARCFACE, ARCFACE]) / 2.0)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.tuples(st.floats(0.0, 30.0), st.floats(0.0, 30.0)), min_size=5, max_size=5),
    st.sampled_from([" ", "\t", ",", ", "]),
    st.booleans(),
)
def test_what_is_written_is_read(shakes: list[tuple[float, float]], between: str, as_json: bool) -> None:
    points = (ARCFACE + np.array(shakes) / 10.0).tolist()
    text = json.dumps({"points": points}) if as_json else "\n".join(f"{x!r}{between}{y!r}" for x, y in points)
    with file_of(text.encode()) as path:
        assert load_template(path, 112).points[0].tolist() == points


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected five lines of 'x y', or a multiple of five, found 0"),
        ("# nothing\n\n", "found 0"),
        (LINES + "1 2\n", "found 6"),
        ("1 2\n\n3\n", "line 3: expected a point 'x y', two numbers, found '3'"),
        ("1 2 3\n" + LINES, "line 1: expected a point"),
        ("1,,2\n" + LINES, "line 1: expected a point"),
        (LINES.replace("71.7366", "nan"), "line 3: expected a point"),
        (LINES.replace("71.7366", "-inf"), "line 3: expected a point"),
        (LINES.replace("71.7366", "1e999"), "line 3: expected a point"),
        (LINES.replace("71.7366", "7_1"), "line 3: expected a point"),
        (LINES.replace("71.7366", "\u0667\u0661"), "line 3: expected a point"),
        ("# size: 224 px\n" + LINES, "line 1: the size: expected a number of pixels from 1 to 4096"),
        ("# size: 0\n" + LINES, "line 1: the size"),
        ("# size: nan\n" + LINES, "line 1: the size"),
        ("# size: 112\n# size: 224\n" + LINES, "line 2: gives the size a second time"),
        (LINES * (MOST_POSES + 1), f"expected at most {MOST_POSES} poses, found {MOST_POSES + 1}"),
        ("5 5\n" * 5, "pose 1 of 1: its points are equal, on a line"),
        (LINES + "".join(f"{n} {n}\n" for n in range(5)), "pose 2 of 2: its points are equal, on a line"),
        ("{", "line 1: is not JSON"),
        ('{"size": 112,\n"points": [}', "line 2: is not JSON"),
        (json.dumps(POINTS), 'expected an object of "size" and either "points" or "poses", found list'),
        (json.dumps({"size": 112}), "found the keys size"),
        (json.dumps({"size": 112, "points": POINTS, "poses": [POINTS]}), "found the keys size, points, poses"),
        (json.dumps({"size": 112, "pionts": POINTS}), "found the keys size, pionts"),
        ("{}", "found the keys none"),
        (json.dumps({"size": "112", "points": POINTS}), "the size: expected a number"),
        (json.dumps({"size": True, "points": POINTS}), "the size: expected a number"),
        ('{"size": NaN, "points": []}', "the size: expected a number"),
        (json.dumps({"size": -1, "points": POINTS}), "the size: expected a number"),
        (json.dumps({"points": POINTS[:4]}), r"expected five points \[x, y\], each two finite numbers"),
        (json.dumps({"points": [POINTS]}), "expected five points"),
        (json.dumps({"points": None}), "expected five points"),
        (json.dumps({"points": [[1, 2, 3]] * 5}), "expected five points"),
        (json.dumps({"points": [["1", "2"]] * 5}), "expected five points"),
        (json.dumps({"points": [[True, False]] * 5}), "expected five points"),
        (json.dumps({"points": [*POINTS[:4], [float("nan"), 0]]}), "expected five points"),
        (json.dumps({"points": [*POINTS[:4], [10**400, 0]]}), "expected five points"),
        ('{"points": [[' + "9" * 5000 + ", 1]]}", "is JSON of excessive size"),
        ('{"points": ' + "[" * 30000, "is JSON of excessive size|is not JSON"),
        (json.dumps({"poses": [POINTS, POINTS[:3]]}), "pose 2: expected five points"),
        (json.dumps({"poses": []}), '"poses" to be a list'),
        (json.dumps({"poses": {"a": 1}}), '"poses" to be a list'),
        (json.dumps({"poses": [POINTS] * 17}), "expected at most 16 poses"),
    ],
)
def test_a_wrong_file_is_refused_by_line(text: str, message: str) -> None:
    with file_of(text.encode(), "mine.txt") as path, pytest.raises(FormatError, match=message) as raised:
        load_template(path, 112)
    assert str(raised.value).startswith(str(path))


@given(st.binary(max_size=300) | st.text(alphabet='0123456789 ,.\n#-e{}[]":sizepo', max_size=300).map(str.encode))
@settings(deadline=None, max_examples=100)
def test_whatever_is_in_the_file_nothing_else_is_raised(data: bytes) -> None:
    with file_of(data) as path:
        try:
            template = load_template(path, 112)
        except FormatError:
            return
        assert np.isfinite(template.points).all()


def test_bytes_that_are_no_text_are_refused() -> None:
    with file_of(LINES.encode() + b"\xff\xfe") as path, pytest.raises(FormatError, match="line 6: is not text"):
        load_template(path, 112)


def test_a_file_too_large_for_a_template_is_not_read() -> None:
    with file_of(b"") as path:
        os.truncate(path, 1 << 40)
        with pytest.raises(FormatError, match="is larger than 65,536 bytes"):
            load_template(path, 112)


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, found in ((tmp_path / "pipe", "a named pipe"), (tmp_path, "a folder"), (Path("/dev/zero"), "a device")):
        with pytest.raises(InputError, match=f"is {found}, not a file"):
            load_template(path, 112)


def test_a_file_that_may_not_be_read_is_named() -> None:
    with file_of(LINES.encode()) as path:
        path.parent.chmod(0o755)
        path.chmod(0)
        assert "InputPermissionError" in raised_without_root(lambda: load_template(path, 112))


def test_points_in_the_persons_order_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    swapped = ARCFACE[[1, 0, 2, 4, 3]].tolist()
    with file_of(json.dumps({"points": swapped}).encode()) as path:
        load_template(path, 112)
    assert "looks mirrored" in caplog.text


def test_points_beyond_the_crop_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with file_of(json.dumps({"points": (ARCFACE * 2.0).tolist()}).encode()) as path:
        load_template(path, 224)
    assert "has points outside a crop of 112 pixels" in caplog.text


def test_a_right_file_is_warned_of_in_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    poses = load_template("facexzoo-5pose", 112).points.tolist()
    with file_of(json.dumps({"poses": poses}).encode()) as path:
        load_template(path, 112)
    assert caplog.text == ""


# --- what goes into a plan ---------------------------------------------------------------------------------------


def test_the_identity_is_json_and_tells_templates_apart(tmp_path: Path) -> None:
    own, other = tmp_path / "own.txt", tmp_path / "other"
    own.write_text(LINES)
    other.mkdir()
    (other / "own.txt").write_text(LINES)
    identities = [
        load_template("arcface", 112).identity(),
        load_template("arcface", 224).identity(),
        load_template("facexzoo-5pose", 112).identity(),
        load_template(own, 112).identity(),
        load_template(own, 100).identity(),
    ]
    texts = [json.dumps(identity, sort_keys=True) for identity in identities]
    assert len(set(texts)) == len(texts)
    assert [json.loads(text) for text in texts] == identities
    assert load_template(other / "own.txt", 112).identity() == identities[3]
    own.write_text(LINES.replace("56.0252", "56.0253"))
    assert load_template(own, 112).identity() != identities[3]
