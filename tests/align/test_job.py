"""The job behind ``facedata align``: the pixels of norm_crop, whatever the source, the sink and the workers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from align_support import Photo, decoded, draw_photo, draw_photos, norm_crop, write_csv, write_photos
from support import tree

from facedata.align.aligner import Aligner
from facedata.align.codec import Encoding
from facedata.align.job import AlignOptions, align_dataset
from facedata.converters.convert import ConversionOptions, convert_dataset
from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import FormatError, OptionError, OutputError, OutputMismatchError
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

PNG = Encoding("png")


@pytest.fixture(scope="module")
def photos() -> list[Photo]:
    return draw_photos()


@pytest.fixture
def raw(tmp_path: Path, photos: list[Photo]) -> Path:
    return write_photos(tmp_path / "raw", photos)


@pytest.fixture
def points(tmp_path: Path, photos: list[Photo]) -> Path:
    return write_csv(tmp_path / "points.csv", photos)


def run(source: object, target: object, job: JobOptions | None = None, **options: Any) -> JobSummary:
    return align_dataset(str(source), str(target), AlignOptions(**options), job or JobOptions(1))


def failures(output: Path) -> list[tuple[str, str]]:
    path = output / "failures.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line["key"], line["reason"]) for line in map(json.loads, lines)]


def images(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(output).items() if "/" in name and not name.startswith(".")}


@pytest.mark.parametrize("size", [112, 224, 128, 256])
def test_from_folder_to_folder_these_are_the_pixels_of_norm_crop(
    tmp_path: Path, raw: Path, points: Path, photos: list[Photo], size: int
) -> None:
    summary = run(raw, tmp_path / "out", landmarks=str(points), size=size, encoding=PNG)
    assert (summary.good, summary.samples, summary.facts["identities"]) == (True, 12, 3)
    written = images(tmp_path / "out")
    assert list(written) == sorted(photo.key.replace(".jpg", ".png") for photo in photos)
    for photo in photos:
        crop = decoded(written[photo.key.replace(".jpg", ".png")])
        assert crop.shape == (size, size, 3)
        assert np.abs(crop - norm_crop(photo, size)).max() <= 1


def test_upper_is_the_first_rows_of_the_full_crop(tmp_path: Path, raw: Path, points: Path) -> None:
    run(raw, tmp_path / "full", landmarks=str(points), encoding=PNG)
    run(raw, tmp_path / "upper", landmarks=str(points), encoding=PNG, crop="upper")
    full, upper = images(tmp_path / "full"), images(tmp_path / "upper")
    assert list(full) == list(upper)
    for name, data in upper.items():
        np.testing.assert_array_equal(decoded(data), decoded(full[name])[:60])


@pytest.mark.parametrize(
    "target",
    ["lmdb:{}/a.lmdb", "rec:{}/rec", "webdataset:{}/tars/f-%06d.tar", "parquet:{}/parquet", "folder:{}/folder"],
)
def test_every_sink_gets_the_same_faces_and_labels(tmp_path: Path, raw: Path, points: Path, target: str) -> None:
    run(raw, tmp_path / "out", landmarks=str(points))
    expected = [(sample.label, sample.image) for sample in open_dataset(str(tmp_path / "out"))]
    spec = target.format(tmp_path)
    summary = run(raw, spec, JobOptions(2), landmarks=str(points))
    assert summary.good
    spec = spec.partition("/f-")[0]
    assert [(sample.label, sample.image) for sample in open_dataset(spec)] == expected


@pytest.mark.parametrize("target", ["lmdb:{}/a.lmdb", "rec:{}/rec", "webdataset:{}/tars", "parquet:{}/parquet"])
def test_every_source_gives_the_same_faces(
    tmp_path: Path, raw: Path, points: Path, photos: list[Photo], target: str
) -> None:
    source = target.format(tmp_path)
    assert convert_dataset(
        [str(raw)], source, ConversionOptions(writing={"keys": "path"} if "lmdb" in target else {})
    ).good
    landmarks = points
    if "rec" in target:  # its keys are numbers
        numbered = [replace(photo, key=str(number)) for number, photo in enumerate(photos, 1)]
        landmarks = write_csv(tmp_path / "numbered.csv", numbered)
    assert run(source, tmp_path / "out", landmarks=str(landmarks), encoding=PNG).good
    faces = [decoded(sample.image) for sample in open_dataset(str(tmp_path / "out"))]
    for photo, face in zip(photos, faces, strict=True):
        assert np.abs(face - norm_crop(photo)).max() <= 1


@pytest.mark.parametrize("source", ["webdataset:{}/tars", "lmdb:{}/own.lmdb", "parquet:{}/parquet"])
def test_landmarks_that_travel_with_the_source_are_used(tmp_path: Path, photos: list[Photo], source: str) -> None:
    from support import MemorySource

    from facedata.converters.convert import plan_conversion, run_conversion

    spec = source.format(tmp_path)
    memory = MemorySource([Sample(photo.key, 0, photo.data, photo.landmarks.astype(np.float32)) for photo in photos])
    run_conversion(plan_conversion("test", memory, create_dataset(spec)), JobOptions(1))
    assert run(spec, tmp_path / "out", encoding=PNG).good
    for photo, sample in zip(photos, open_dataset(str(tmp_path / "out")), strict=True):
        assert np.abs(decoded(sample.image) - norm_crop(photo)).max() <= 1


def test_kept_landmarks_lie_near_the_template_and_are_not_kept_unasked(tmp_path: Path, raw: Path, points: Path) -> None:
    for keep in (False, True):
        spec = f"webdataset:{tmp_path}/{keep}"
        run(raw, spec, landmarks=str(points), keep_landmarks=keep)
        for sample in open_dataset(spec):
            assert (sample.landmarks is not None) == keep
            if sample.landmarks is not None:
                assert np.abs(sample.landmarks - [[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]]).max() < 8.0


@pytest.mark.parametrize("sink", ["folder", "lmdb", "rec"])
def test_the_bytes_do_not_depend_on_workers_or_interruptions(
    tmp_path: Path, raw: Path, points: Path, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aligner, "samples_per_shard", 5)
    targets = {}
    for workers in (1, 3):
        folder = tmp_path / str(workers)
        folder.mkdir()
        found = folder / "found.jsonl"
        run(raw, f"{sink}:{folder}/out", JobOptions(workers), landmarks=str(points), write_landmarks=str(found))
        targets[workers] = {
            name: data for name, data in tree(folder).items() if ".facedata-" not in name and "lock.mdb" not in name
        }
    assert targets[1] == targets[3]
    assert "found.jsonl" in targets[1]


def test_parts_of_an_array_make_what_one_run_makes(
    tmp_path: Path, raw: Path, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aligner, "samples_per_shard", 5)
    run(raw, tmp_path / "whole", landmarks=str(points), write_landmarks=str(tmp_path / "whole.jsonl"))
    options = {"landmarks": str(points), "write_landmarks": str(tmp_path / "parts.jsonl")}
    states = [run(raw, tmp_path / "parts", JobOptions(1, Part(n, 3)), **options).finished for n in (3, 1, 2)]
    assert states == [False, False, True]
    assert images(tmp_path / "whole") == images(tmp_path / "parts")
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "parts.jsonl").read_bytes()
    assert not (tmp_path / "parts" / ".facedata-landmarks").exists()


@pytest.mark.parametrize("name", ["found.jsonl", "found.csv"])
def test_landmarks_that_were_written_repeat_the_run_to_the_bit(
    tmp_path: Path, raw: Path, points: Path, name: str
) -> None:
    run(raw, tmp_path / "first", landmarks=str(points), write_landmarks=str(tmp_path / name), encoding=PNG)
    run(raw, tmp_path / "second", landmarks=str(tmp_path / name), encoding=PNG)
    assert images(tmp_path / "first") == images(tmp_path / "second")


def test_images_and_landmarks_that_miss_each_other_are_named_both_ways(
    tmp_path: Path, raw: Path, photos: list[Photo]
) -> None:
    others = [replace(photo, key=f"person_9/other_{n}.jpg") for n, photo in enumerate(photos[:5])]
    points = write_csv(tmp_path / "points.csv", [*others[:2], *photos[:9], *others[2:]])
    summary = run(raw, tmp_path / "out", landmarks=str(points))
    assert (summary.samples, summary.failures) == (9, 3)
    assert summary.facts["causes"] == {"no landmarks": 3}
    assert summary.facts["unused_landmarks"] == 5
    assert [key for key, _ in failures(tmp_path / "out")] == [photo.key for photo in photos[9:]]
    assert (tmp_path / "out" / "unused-landmarks.txt").read_text().splitlines() == [photo.key for photo in others]


def several_faces(key: str) -> list[Photo]:
    """A large face at the left, and a small one in the middle, in one photo."""
    left, middle = draw_photo(key, 1, scale=1.0, extension=".png"), draw_photo(key, 2, scale=0.5, extension=".png")
    image = np.zeros((200, 500, 3), np.uint8)
    image[:180, :200] = decoded(left.data)
    image[10:190, 150:350] = decoded(middle.data)
    data = cv2.imencode(".png", image)[1].tobytes()
    return [Photo(key, data, left.landmarks), Photo(key, data, middle.landmarks + (150, 10))]


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        ("largest", {"a/b.png": 0}),
        ("central", {"a/b.png": 1}),
        ("all", {"a/b.png": 0, "a/b-face2.png": 1}),
    ],
)
def test_of_several_faces_those_are_taken_that_are_asked_for(
    tmp_path: Path, faces: str, expected: dict[str, int]
) -> None:
    both = several_faces("a/b.png")
    raw = write_photos(tmp_path / "raw", both[:1])
    points = write_csv(tmp_path / "points.csv", both)
    assert run(raw, tmp_path / "out", landmarks=str(points), faces=faces, encoding=PNG).good
    written = images(tmp_path / "out")
    assert set(written) == set(expected)
    for name, place in expected.items():
        assert np.abs(decoded(written[name]) - norm_crop(both[place])).max() <= 1
    assert run(raw, tmp_path / "one", landmarks=str(points), faces="one").facts["causes"] == {"several faces": 1}


def test_a_face_of_several_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    both = several_faces("a/b.png")
    raw, points = write_photos(tmp_path / "raw", both[:1]), write_csv(tmp_path / "points.csv", both)
    summary = run(raw, tmp_path / "out", landmarks=str(points), faces="all", min_size=80.0)
    assert (summary.samples, summary.failures) == (1, 1)
    ((key, reason),) = failures(tmp_path / "out")
    assert key == "a/b-face2.jpg"
    assert reason.startswith("too small: the crop covers 5")
    assert reason.endswith("--min-size 80")


def broken(photos: Sequence[Photo]) -> dict[str, tuple[Photo, str]]:
    """Photos with something wrong, and how their failure begins."""
    one = photos[0]
    line = np.linspace((10.0, 10.0), (90.0, 90.0), 5)
    tiny = cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes()
    return {
        "x/nan.jpg": (replace(one, landmarks=np.full((5, 2), np.nan)), "degenerate landmarks: a coordinate is not"),
        "x/same.jpg": (replace(one, landmarks=np.full((5, 2), 7.0)), "degenerate landmarks: all five points"),
        "x/line.jpg": (replace(one, landmarks=line), "degenerate landmarks: the five points are on a line"),
        "x/far.jpg": (replace(one, landmarks=one.landmarks + 1e4), "outside the image"),
        "x/pixel.jpg": (replace(one, data=tiny), "outside the image"),
        "x/cut.jpg": (replace(one, data=one.data[:-2000]), "undecodable: "),
        "x/text.jpg": (replace(one, data=b"no image"), "undecodable: not an image"),
        "x/empty.jpg": (replace(one, data=b""), "cannot be read: it is empty"),
    }


def test_everything_that_is_wrong_fails_alone_and_by_its_name(tmp_path: Path, photos: list[Photo]) -> None:
    cases = broken(photos)
    wrong = [replace(photo, key=key) for key, (photo, _) in cases.items()]
    raw = write_photos(tmp_path / "raw", [*photos, *wrong])
    points = write_csv(tmp_path / "points.csv", [*photos, *wrong])
    points.write_text(points.read_text() + "x/many.jpg" + ",1" * 12 + "\n")
    (raw / "x" / "many.jpg").write_bytes(photos[0].data)
    summary = run(raw, tmp_path / "out", landmarks=str(points))
    assert (summary.samples, summary.failures) == (len(photos), len(cases) + 1)
    told = dict(failures(tmp_path / "out"))
    for key, (_, begin) in cases.items():
        assert told[key].startswith(begin), told[key]
    assert told["x/many.jpg"].startswith("bad landmarks")
    assert summary.facts["causes"] == {
        "degenerate landmarks": 3,
        "outside the image": 2,
        "undecodable": 2,
        "bad landmarks": 1,
        "unreadable": 1,
    }


def test_a_huge_image_is_refused_unless_it_is_asked_for(tmp_path: Path, photos: list[Photo]) -> None:
    image = np.zeros((3000, 4000, 3), np.uint8)
    image[:180, :200] = decoded(photos[0].data)
    data = cv2.imencode(".png", image)[1].tobytes()
    raw = write_photos(tmp_path / "raw", [replace(photos[0], data=data)])
    points = write_csv(tmp_path / "points.csv", photos[:1])
    summary = run(raw, tmp_path / "small", landmarks=str(points), max_pixels=10_000_000)
    assert summary.facts["causes"] == {"too large": 1}
    assert run(raw, tmp_path / "large", landmarks=str(points), max_pixels=12_000_000).good


def aligned_set(folder: Path, photos: Sequence[Photo]) -> Path:
    crops = [
        replace(photo, data=cv2.imencode(".jpg", norm_crop(photo))[1].tobytes(), key=f"{photo.key[:-4]}.jpg")
        for photo in photos
    ]
    return write_photos(folder, crops)


def test_what_is_aligned_already_is_refused_or_copied(tmp_path: Path, photos: list[Photo]) -> None:
    raw = aligned_set(tmp_path / "raw", photos)
    with pytest.raises(OptionError, match=r"look aligned already \(112 x 112.*--assume-aligned copies"):
        run(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert run(raw, tmp_path / "out", assume_aligned=True).good
    assert images(tmp_path / "out") == images(raw)


def test_one_aligned_image_among_others_fails_alone(tmp_path: Path, photos: list[Photo]) -> None:
    raw = write_photos(tmp_path / "raw", photos[1:])
    aligned_set(raw, photos[:1])
    points = write_csv(tmp_path / "points.csv", photos[1:])
    summary = run(raw, tmp_path / "out", landmarks=str(points))
    assert summary.facts["causes"] == {"aligned already": 1}
    assert run(raw, tmp_path / "copied", landmarks=str(points), assume_aligned=True).samples == 12


def test_without_landmarks_or_detector_nothing_is_begun(tmp_path: Path, raw: Path) -> None:
    with pytest.raises(OptionError, match=r"nothing says where the faces are.*--landmarks FILE or --detector"):
        run(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_landmarks_of_other_images_altogether_are_refused(tmp_path: Path, raw: Path, photos: list[Photo]) -> None:
    points = write_csv(tmp_path / "points.csv", [replace(photo, key=f"else/{n}.jpg") for n, photo in enumerate(photos)])
    with pytest.raises(FormatError, match="else/0"):
        run(raw, tmp_path / "out", landmarks=str(points))


def test_mirrored_points_are_warned_of(
    tmp_path: Path, raw: Path, photos: list[Photo], caplog: pytest.LogCaptureFixture
) -> None:
    order = [1, 0, 2, 4, 3]
    points = write_csv(tmp_path / "points.csv", [replace(photo, landmarks=photo.landmarks[order]) for photo in photos])
    run(raw, tmp_path / "out", landmarks=str(points))
    assert "fit the mirror image of a face better" in caplog.text


def test_equal_names_with_other_extensions_would_collide_and_are_refused(tmp_path: Path) -> None:
    both = [draw_photo("a/1.jpg"), draw_photo("a/1.png", extension=".png")]
    raw = write_photos(tmp_path / "raw", both)
    points = write_csv(tmp_path / "points.csv", both)
    with pytest.raises(OptionError, match=r"several images would be written as a/1\.jpg"):
        run(raw, tmp_path / "out", landmarks=str(points))
    assert run(raw, tmp_path / "out", landmarks=str(points), writing={"layout": "glint360k"}).samples == 2


def test_another_option_is_another_job(tmp_path: Path, raw: Path, points: Path) -> None:
    run(raw, tmp_path / "out", landmarks=str(points))
    for options in (
        {"size": 224},
        {"encoding": Encoding("jpg", 80)},
        {"faces": "largest"},
        {"template": "facexzoo-5pose"},
    ):
        with pytest.raises(OutputMismatchError):
            run(raw, tmp_path / "out", landmarks=str(points), **options)
    assert run(raw, tmp_path / "out", landmarks=str(points)).nothing_to_do


def test_the_journal_says_what_the_pixels_depend_on(tmp_path: Path, raw: Path, points: Path) -> None:
    run(raw, tmp_path / "out", landmarks=str(points))
    options = json.loads((tmp_path / "out" / ".facedata-plan.json").read_text())["options"]
    assert options["OpenCV"] == cv2.__version__
    assert options["template"]["name"] == "arcface"
    assert options["interpolation"] == "bilinear, black border"
    assert options["encoding"]["chroma_subsampling"] == "4:4:4"


def test_the_input_is_never_written_over(tmp_path: Path, raw: Path, points: Path) -> None:
    with pytest.raises(OutputError, match="input"):
        run(raw, raw / "out", landmarks=str(points))
    with pytest.raises(OutputError, match="input"):
        run(raw, tmp_path / "out", JobOptions(1, overwrite=True), landmarks=str(points), write_landmarks=str(points))


@pytest.mark.parametrize("name", ["faces.lmdb", "faces.tar", "faces.rec"])
def test_a_name_that_looks_like_another_format_is_no_folder(tmp_path: Path, raw: Path, points: Path, name: str) -> None:
    with pytest.raises(OptionError, match="name the format to write"):
        run(raw, tmp_path / name, landmarks=str(points))


def test_the_preview_shows_sources_and_crops(tmp_path: Path, raw: Path, points: Path) -> None:
    sheet = tmp_path / "sheet.png"
    summary = run(raw, tmp_path / "out", landmarks=str(points), preview=str(sheet))
    assert summary.facts["preview"] == str(sheet)
    image = cv2.imread(str(sheet))
    assert image is not None
    assert min(image.shape[:2]) > 200


@pytest.mark.parametrize(
    ("target", "writing"), [("folder:{}/out", {}), ("lmdb:{}/out.lmdb", {"keys": "path"})], ids=["folder", "lmdb"]
)
def test_no_face_is_lost_to_an_image_that_is_called_as_a_second_face(
    tmp_path: Path, raw: Path, photos: list[Photo], target: str, writing: dict[str, Any]
) -> None:
    taken = replace(photos[5], key="person_0/p0_0-face2.jpg")
    write_photos(raw, [taken])
    points = write_csv(tmp_path / "points.csv", [*photos, taken, photos[0]])
    spec = target.format(tmp_path)
    with pytest.raises(OptionError, match=r"may get the name of the image person_0/p0_0-face2\.jpg"):
        run(raw, spec, landmarks=str(points), faces="all", writing=writing)
    assert run(raw, spec, landmarks=str(points), writing=writing).samples == 13
    numbered = run(raw, tmp_path / "numbered", landmarks=str(points), faces="all", writing={"layout": "glint360k"})
    assert (numbered.samples, len(images(tmp_path / "numbered"))) == (14, 14)


def test_a_name_that_only_looks_like_that_of_a_second_face_is_taken(tmp_path: Path, photos: list[Photo]) -> None:
    named = [replace(photos[0], key="a/1-face2.jpg"), replace(photos[1], key="a/1-face.jpg"), photos[2]]
    points = write_csv(tmp_path / "points.csv", [*named, named[0]])
    summary = run(write_photos(tmp_path / "in", named), tmp_path / "out", landmarks=str(points), faces="all")
    assert summary.samples == 4
    assert len(images(tmp_path / "out")) == 4


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("{}/out", "out/failures.jsonl"),
        ("{}/out", "out/unused-landmarks.txt"),
        ("{}/out", "out/classes.txt"),
        ("{}/out", "out/person_0"),
        ("{}/out", "out/person_0/found.csv"),
        ("{}/out", "sheet.jpg"),
        ("lmdb:{}/a.lmdb", "a.lmdb/data.mdb"),
        ("lmdb:{}/a.lmdb", "a_kv.txt"),
        ("webdataset:{}/tars", "tars/shard-000000.tar"),
        ("{}/out", "out"),
    ],
)
def test_what_is_written_beside_the_faces_does_not_take_their_place(
    tmp_path: Path, raw: Path, points: Path, target: str, name: str
) -> None:
    options: dict[str, Any] = {"landmarks": str(points), "preview": str(tmp_path / "sheet.jpg")}
    expected = "choose another|is a folder"
    with pytest.raises((OptionError, OutputError), match=expected):
        run(raw, target.format(tmp_path), write_landmarks=str(tmp_path / name), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["points.csv", "raw"]


def test_landmarks_may_be_written_into_the_output(tmp_path: Path, raw: Path, points: Path) -> None:
    found = tmp_path / "out" / "found.csv"
    for overwrite in (False, True):
        job = JobOptions(1, overwrite=overwrite)
        assert run(raw, tmp_path / "out", job, landmarks=str(points), write_landmarks=str(found)).good
        assert len(found.read_text().splitlines()) == 13


def test_the_template_is_not_written_over(tmp_path: Path, raw: Path, points: Path) -> None:
    template = tmp_path / "template.json"
    template.write_text('{"size": 112, "points": [[38, 51], [73, 51], [56, 71], [41, 92], [70, 92]]}')
    before = template.read_text()
    job = JobOptions(1, overwrite=True)
    files = {"landmarks": str(points), "template": str(template), "write_landmarks": str(template)}
    with pytest.raises(OutputError, match="over, or into, the input"):
        run(raw, tmp_path / "out", job, **files)
    assert template.read_text() == before


def test_the_upper_part_is_not_taken_from_what_is_aligned(tmp_path: Path, raw: Path, points: Path) -> None:
    run(raw, tmp_path / "full", landmarks=str(points))
    run(raw, tmp_path / "upper", landmarks=str(points), crop="upper")
    for name in ("full", "upper"):
        shutil.copytree(tmp_path / name, tmp_path / "in" / name, ignore=shutil.ignore_patterns(".*"))
    full, upper = tmp_path / "in" / "full", tmp_path / "in" / "upper"
    with pytest.raises(OptionError, match=r"112 x 112.*--crop upper needs the photos"):
        run(full, tmp_path / "out", crop="upper")
    with pytest.raises(OptionError, match=r"112 x 60.*--assume-aligned"):
        run(upper, tmp_path / "out", crop="upper")
    assert run(full, tmp_path / "none", crop="upper", assume_aligned=True).facts["causes"] == {"aligned already": 12}
    assert run(upper, tmp_path / "copied", crop="upper", assume_aligned=True).good
    assert images(tmp_path / "copied") == images(tmp_path / "upper")
