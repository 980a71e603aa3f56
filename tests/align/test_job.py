"""The job behind ``facedata align``: the pixels of norm_crop, for every source, sink and number of workers."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from align_support import Photo, decoded, draw_photo, draw_photos, norm_crop, write_csv, write_photos
from skimage.data import astronaut
from support import MemorySource, tree

from facedata.align.aligner import Aligner
from facedata.align.codec import Encoding
from facedata.align.detectors import DetectorOptions
from facedata.align.job import AlignOptions, align_dataset
from facedata.converters.convert import ConversionOptions, convert_dataset, plan_conversion, run_conversion
from facedata.dataset import Sample, create_dataset, open_dataset
from facedata.errors import OptionError, OutputError, OutputMismatchError
from facedata.jobs.job import JobOptions, JobSummary
from facedata.jobs.plan import Part

PHOTOS = draw_photos()
PNG = Encoding("png")


def run(source: object, target: object, landmarks: Path | None = None, workers: int = 1, **options: Any) -> JobSummary:
    job = options.pop("job", JobOptions(workers))
    given = None if landmarks is None else str(landmarks)
    return align_dataset(str(source), str(target), AlignOptions(landmarks=given, **options), job)


def failures(output: Path, name: str = "failures.jsonl") -> dict[str, str]:
    lines = map(json.loads, (output / name).read_text().splitlines())
    return {line["key"]: line["reason"] for line in lines}


def images(output: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(output).items() if "/" in name and not name.startswith(".")}


def encoded(image: Any) -> bytes:
    return bytes(cv2.imencode(".png", image)[1])


def are_crops(images: Sequence[bytes], photos: Sequence[Photo] = PHOTOS, size: int = 112) -> bool:
    """Whether the images are the crops of the photos, one for each."""
    crops = list(map(decoded, images))
    assert [crop.shape for crop in crops] == [(size, size, 3)] * len(photos)
    return all(np.abs(crop - norm_crop(photo, size)).max() <= 1 for crop, photo in zip(crops, photos, strict=True))


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the photos, beside which are their landmarks; not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    write_csv(folder / "points.csv", PHOTOS)
    return write_photos(folder / "raw", PHOTOS)


@pytest.fixture
def points(raw: Path) -> Path:
    return raw.parent / "points.csv"


@pytest.mark.parametrize("size", [112, 224, 128, 256])
def test_folder_to_folder_pixels_are_those_of_norm_crop(tmp_path: Path, raw: Path, points: Path, size: int) -> None:
    summary = run(raw, tmp_path / "out", points, size=size, encoding=PNG)
    assert (summary.good, summary.samples, summary.facts["identities"]) == (True, 12, 3)
    written = images(tmp_path / "out")
    assert list(written) == sorted(photo.key.replace(".jpg", ".png") for photo in PHOTOS)
    assert are_crops(list(written.values()), size=size)


FORMATS = ["lmdb:{}/a.lmdb", "rec:{}/rec", "webdataset:{}/tars", "parquet:{}/parquet"]


@pytest.mark.parametrize("target", [*FORMATS, "folder:{}/folder"])
def test_every_sink_gets_the_same_faces_and_labels(tmp_path: Path, raw: Path, points: Path, target: str) -> None:
    spec = target.format(tmp_path)
    landmarks = {"keep_landmarks": True} if target.startswith("webdataset") else {}
    assert run(raw, spec, points, workers=2, encoding=PNG, **landmarks).good
    samples = list(open_dataset(spec))
    assert [sample.label for sample in samples] == [0] * 4 + [1] * 4 + [2] * 4
    assert are_crops([sample.image for sample in samples])
    for sample in samples:
        assert (sample.landmarks is not None) == bool(landmarks)
        if sample.landmarks is not None:
            assert np.abs(sample.landmarks - [[38, 52], [74, 52], [56, 72], [42, 92], [71, 92]]).max() < 8.0


@pytest.mark.parametrize(
    ("source", "own"), [(name, own) for name in FORMATS for own in (False, True) if not (own and "rec:" in name)]
)
def test_every_source_gives_the_same_faces(tmp_path: Path, points: Path, source: str, own: bool) -> None:
    spec = source.format(tmp_path)
    photos = [Sample(photo.key, 0, photo.data, photo.landmarks.astype(np.float32) if own else None) for photo in PHOTOS]
    sink = create_dataset(spec, **({"keys": "path"} if "lmdb" in source else {}))
    run_conversion(plan_conversion("test", MemorySource(photos), sink), JobOptions(1))
    if "rec" in source:  # its keys are numbers
        numbered = [replace(photo, key=str(number)) for number, photo in enumerate(PHOTOS, 1)]
        points = write_csv(tmp_path / "numbered.csv", numbered)
    assert run(spec, tmp_path / "out", None if own else points, encoding=PNG).good
    assert are_crops([sample.image for sample in open_dataset(str(tmp_path / "out"))])


@pytest.mark.parametrize("sink", ["folder", "lmdb", "rec"])
def test_the_bytes_do_not_depend_on_workers_or_parts(
    tmp_path: Path, raw: Path, points: Path, sink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aligner, "samples_per_shard", 5)
    made = []
    parts = [JobOptions(1, Part(number, 3)) for number in (3, 1, 2)]
    for way, jobs in enumerate([[JobOptions(1)], [JobOptions(3)], parts][: 3 if sink == "folder" else 2]):
        output = tmp_path / str(way)
        output.mkdir()
        for job in jobs:
            summary = run(raw, f"{sink}:{output}/out", points, job=job, write_landmarks=str(output / "found.jsonl"))
            assert summary.finished == (job is jobs[-1])
        assert not (output / "out" / ".facedata-landmarks").exists()
        made.append({name: data for name, data in tree(output).items() if "lock.mdb" not in name})
    assert "found.jsonl" in made[0]
    assert all(files == made[0] for files in made)


def several_faces(key: str) -> list[Photo]:
    """A large face at the left, and a small one in the middle, in one photo."""
    left, middle = draw_photo(key, 1, scale=1.0, extension=".png"), draw_photo(key, 2, scale=0.5, extension=".png")
    image = np.zeros((200, 500, 3), np.uint8)
    image[:180, :200] = decoded(left.data)
    image[10:190, 150:350] = decoded(middle.data)
    return [Photo(key, encoded(image), left.landmarks), Photo(key, encoded(image), middle.landmarks + (150, 10))]


def test_the_faces_that_are_wanted_are_taken(tmp_path: Path) -> None:
    both = several_faces("a/b.png")
    raw, points = write_photos(tmp_path / "raw", both[:1]), write_csv(tmp_path / "points.csv", both)
    for faces, expected in (("largest", both[:1]), ("central", both[1:]), ("all", both[::-1])):
        assert run(raw, tmp_path / faces, points, faces=faces, encoding=PNG).good
        written = images(tmp_path / faces)
        assert list(written) == ["a/b-face2.png", "a/b.png"][-len(expected) :]
        assert are_crops(list(written.values()), expected)
    assert run(raw, tmp_path / "one", points, faces="one").skipped_causes == {"several faces": 1}
    summary = run(raw, tmp_path / "large", points, faces="all", min_size=80.0)  # one of the two is
    assert (summary.samples, summary.failures, summary.skipped) == (1, 0, 1)
    reason = failures(tmp_path / "large", "skipped.jsonl")["a/b-face2.jpg"]
    assert reason.startswith("too small: the crop covers 5")
    assert reason.endswith("--min-size 80")


@pytest.mark.parametrize(("target", "writing"), [("folder:{}/out", {}), ("lmdb:{}/out.lmdb", {"keys": "path"})])
def test_no_face_is_lost_to_an_image_of_its_name(tmp_path: Path, target: str, writing: dict[str, Any]) -> None:
    photos = [*PHOTOS[:2], replace(PHOTOS[5], key="person_0/p0_0-face2.jpg")]
    raw, points = write_photos(tmp_path / "raw", photos), write_csv(tmp_path / "points.csv", [*photos, photos[0]])
    spec = target.format(tmp_path)
    with pytest.raises(OptionError, match=r"may get the name of the image person_0/p0_0-face2\.jpg"):
        run(raw, spec, points, faces="all", writing=writing)
    assert run(raw, spec, points, writing=writing).samples == 3
    numbered = run(raw, tmp_path / "numbered", points, faces="all", writing={"layout": "glint360k"})
    assert (numbered.samples, len(images(tmp_path / "numbered"))) == (4, 4)
    (raw / "person_0" / "p0_0.jpg").unlink()  # without it the name is one like any other
    assert run(raw, tmp_path / "alone", points, faces="all").samples == 2


def wrong_photos() -> dict[str, tuple[Photo, str]]:
    """Photos with something wrong, and how their failure begins."""
    photo = PHOTOS[0]
    line = np.linspace((10.0, 10.0), (90.0, 90.0), 5)
    huge = np.zeros((900, 1200, 3), np.uint8)
    return {
        "x/nan.jpg": (replace(photo, landmarks=np.full((5, 2), np.nan)), "degenerate landmarks: a coordinate is not"),
        "x/same.jpg": (replace(photo, landmarks=np.full((5, 2), 7.0)), "degenerate landmarks: all five points"),
        "x/line.jpg": (replace(photo, landmarks=line), "degenerate landmarks: the five points are on a line"),
        "x/far.jpg": (replace(photo, landmarks=photo.landmarks + 1e4), "outside the image"),
        "x/pixel.jpg": (replace(photo, data=encoded(huge[:1, :1])), "outside the image"),
        "x/cut.jpg": (replace(photo, data=photo.data[:-2000]), "undecodable: "),
        "x/text.jpg": (replace(photo, data=b"no image"), "undecodable: not an image"),
        "x/empty.jpg": (replace(photo, data=b""), "cannot be read: it is empty"),
        "x/huge.jpg": (replace(photo, data=encoded(huge)), "too large: 1,200 x 900 pixels"),
        "x/many.jpg": (replace(photo, landmarks=np.ones((6, 2))), "bad landmarks"),
        "x/aligned.jpg": (replace(photo, data=encoded(norm_crop(photo))), "aligned already"),
        "x/unknown.jpg": (photo, "no landmarks"),
    }


def test_each_wrong_image_fails_alone_with_its_reason(tmp_path: Path) -> None:
    cases = wrong_photos()
    photos = [*PHOTOS[:3], *(replace(photo, key=key) for key, (photo, _) in cases.items())]
    raw = write_photos(tmp_path / "raw", photos)
    others = [replace(photo, key=f"person_9/other_{number}.jpg") for number, photo in enumerate(PHOTOS[:2])]
    points = write_csv(tmp_path / "points.csv", [others[0], *photos[:-2], others[1]])
    summary = run(raw, tmp_path / "out", points, max_pixels=1_000_000)
    assert (summary.samples, summary.failures) == (3, len(cases))
    reasons = failures(tmp_path / "out")
    assert {key: reasons[key].startswith(begin) for key, (_, begin) in cases.items()} == dict.fromkeys(cases, True)
    causes = dict(Counter(begin.partition(":")[0] for _, begin in cases.values()))
    assert summary.causes == causes
    assert summary.facts["unused_landmarks"] == 2
    assert (tmp_path / "out" / "unused-landmarks.txt").read_text().splitlines() == [photo.key for photo in others]
    copied = run(raw, tmp_path / "copied", points, assume_aligned=True, max_pixels=1_080_000)
    assert copied.samples == 5
    assert (tmp_path / "copied" / "x" / "aligned.png").read_bytes() == cases["x/aligned.jpg"][0].data


def test_aligned_images_and_images_without_landmarks_are_refused(tmp_path: Path, raw: Path, points: Path) -> None:
    full, upper = tmp_path / "in" / "full", tmp_path / "in" / "upper"
    for crop in (full, upper):
        run(raw, tmp_path / crop.name, points, crop=crop.name, encoding=PNG)
        shutil.copytree(tmp_path / crop.name, crop, ignore=shutil.ignore_patterns(".*"))
    for name, data in images(upper).items():
        np.testing.assert_array_equal(decoded(data), decoded(images(full)[name])[:60])
    for source, crop_option, message in (
        (full, "full", r"look aligned already \(112 x 112.*--assume-aligned copies"),
        (full, "upper", r"112 x 112.*--crop upper needs the photos"),
        (upper, "upper", r"112 x 60.*--assume-aligned"),
        (raw, "full", r"nothing says where the faces are.*--landmarks FILE or --detector"),
    ):
        with pytest.raises(OptionError, match=message):
            run(source, tmp_path / "out", crop=crop_option)
    assert not (tmp_path / "out").exists()
    assert run(full, tmp_path / "none", crop="upper", assume_aligned=True).causes == {"aligned already": 12}
    for crop in (full, upper):
        copy = tmp_path / f"copy of {crop.name}"
        assert run(crop, copy, crop=crop.name, assume_aligned=True).good
        assert images(copy) == images(crop)


def test_mirrored_points_give_a_warning(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    mirrored = [replace(photo, landmarks=photo.landmarks[[1, 0, 2, 4, 3]]) for photo in PHOTOS]
    run(raw, tmp_path / "out", write_csv(tmp_path / "points.csv", mirrored), preview=str(tmp_path / "sheet.png"))
    assert "fit the mirror image of a face better" in caplog.text


def test_positions_need_the_order_of_the_record_set(tmp_path: Path, raw: Path) -> None:
    spec = f"rec:{tmp_path}/rec"
    convert_dataset([str(raw)], spec, ConversionOptions(limit=4))
    rows = [" ".join(f"{value:.3f}" for value in photo.landmarks.ravel()) for photo in PHOTOS[:4]]
    (tmp_path / "points.txt").write_text("\n".join(rows) + "\n")
    assert run(spec, tmp_path / "out", tmp_path / "points.txt", encoding=PNG).good
    assert are_crops([sample.image for sample in open_dataset(str(tmp_path / "out"))], PHOTOS[:4])


def test_equal_names_with_other_extensions_are_refused(tmp_path: Path) -> None:
    both = [draw_photo("a/1.jpg"), draw_photo("a/1.png", extension=".png")]
    raw, points = write_photos(tmp_path / "raw", both), write_csv(tmp_path / "points.csv", both)
    with pytest.raises(OptionError, match=r"several images would be written as a/1\.jpg"):
        run(raw, tmp_path / "out", points)
    assert run(raw, tmp_path / "out", points, writing={"layout": "glint360k"}).samples == 2


def test_another_processor_is_another_job(
    tmp_path: Path, raw: Path, points: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "getCPUFeaturesLine", lambda: "SSE SSE2 *AVX2 *AVX512-SKX?")
    assert run(raw, tmp_path / "out", points).good
    monkeypatch.setattr(cv2, "getCPUFeaturesLine", lambda: "SSE SSE2 *AVX2? *AVX512-SKX?")
    with pytest.raises(OutputMismatchError, match=r"processor features in OpenCV, AVX2 was yes, is now none\."):
        run(raw, tmp_path / "out", points, job=JobOptions(1, Part(1, 2)))


def test_another_option_is_another_job(tmp_path: Path, raw: Path, points: Path) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(raw, tmp_path / "out", points, preview=str(sheet)).good
    assert min(decoded(sheet.read_bytes()).shape[:2]) > 200
    others: list[dict[str, Any]] = [{"size": 224}, {"encoding": Encoding("jpg", 80)}, {"faces": "largest"}]
    for other in [*others, {"template": "facexzoo-5pose"}, {"detector": MTCNN}]:
        with pytest.raises(OutputMismatchError):
            run(raw, tmp_path / "out", points, preview=str(sheet), **other)
    with pytest.raises(OutputMismatchError):
        run(raw, tmp_path / "out", write_csv(tmp_path / "other.csv", PHOTOS[1:]), preview=str(sheet))
    assert run(raw, tmp_path / "out", write_csv(tmp_path / "same.csv", PHOTOS), preview=str(sheet)).nothing_to_do
    other_sheet, before = tmp_path / "other.png", sheet.read_bytes()
    summary = run(raw, tmp_path / "out", points, preview=str(other_sheet))  # a preview only looks at the result
    assert (summary.nothing_to_do, summary.facts["preview"]) == (True, str(other_sheet))
    assert other_sheet.read_bytes() == sheet.read_bytes() == before


@pytest.mark.parametrize(
    ("target", "name", "error"),
    [
        ("{}/out", "out/failures.jsonl", "choose another"),
        ("{}/out", "out/classes.txt", "choose another"),
        ("{}/out", "out/person_0/found.csv", "choose another"),
        ("{}/out", "sheet.jpg", "choose another"),
        ("lmdb:{}/a.lmdb", "a_kv.txt", "choose another"),
        ("webdataset:{}/tars", "tars/shard-000000.tar", "choose another"),
        ("{}/out", "out", "choose another|is a folder"),
        ("{}/raw/out", "found.csv", "input"),
        ("{}/out", "points.csv", "over, or into, the input"),
        ("{}/out", "template.json", "over, or into, the input"),
        ("{}/faces.lmdb", "found.csv", "name the format to write"),
    ],
)
def test_no_output_replaces_another_or_an_input(tmp_path: Path, raw: Path, target: str, name: str, error: str) -> None:
    shutil.copytree(raw.parent, tmp_path, dirs_exist_ok=True)
    template = tmp_path / "template.json"
    template.write_text('{"size": 112, "points": [[38, 51], [73, 51], [56, 71], [41, 92], [70, 92]]}')
    before = tree(tmp_path)
    files = {"template": template, "write_landmarks": tmp_path / name, "preview": tmp_path / "sheet.jpg"}
    options: dict[str, Any] = {option: str(path) for option, path in files.items()}
    job = JobOptions(1, overwrite=True)
    with pytest.raises((OptionError, OutputError), match=error):
        run(tmp_path / "raw", target.format(tmp_path), tmp_path / "points.csv", job=job, **options)
    assert tree(tmp_path) == before


def test_landmarks_may_be_written_into_the_output(tmp_path: Path, raw: Path, points: Path) -> None:
    found = tmp_path / "out" / "found.csv"
    for overwrite in (False, True):
        job = JobOptions(1, overwrite=overwrite)
        assert run(raw, tmp_path / "out", points, job=job, write_landmarks=str(found)).good
        assert len(found.read_text().splitlines()) == 13


MTCNN = DetectorOptions("mtcnn")


@pytest.fixture(scope="module")
def detected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``photos``: a face, a face turned a little, two faces beside each other, none; and all faces in ``out``."""
    folder = tmp_path_factory.mktemp("detected")
    picture: Any = astronaut()  # type: ignore[no-untyped-call]
    photo = np.ascontiguousarray(picture[:300, 80:380, ::-1])
    turned = cv2.warpAffine(photo, cv2.getRotationMatrix2D((145, 110), 12, 1.0), (300, 300))
    pictures = [photo, turned, np.hstack([photo, photo[:, ::-1]]), np.full_like(photo, 90)]
    photos = [replace(PHOTOS[0], key=f"eileen/{n}.png", data=encoded(each)) for n, each in enumerate(pictures, 1)]
    write_photos(folder / "photos", photos)
    options: dict[str, Any] = {"detector": MTCNN, "write_landmarks": str(folder / "found.jsonl")}
    summary = run(folder / "photos", folder / "out", workers=2, faces="all", encoding=PNG, **options)
    assert (summary.samples, summary.failures, summary.skipped_causes) == (4, 0, {"no face": 1})
    return folder


def test_faces_are_found_and_the_run_can_be_repeated_without_the_detector(detected: Path, tmp_path: Path) -> None:
    written = images(detected / "out")
    assert list(written) == ["eileen/1.png", "eileen/2.png", "eileen/3-face2.png", "eileen/3.png"]
    pictures = list(map(decoded, written.values()))
    apart = [np.abs(pictures[0] - other)[30:100, 20:92].mean() for other in pictures[1:]]
    assert apart[0] < 12.0
    assert min(apart[1:]) < 6.0  # the other of these two is the mirror image
    lines = [json.loads(line) for line in (detected / "found.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == ["eileen/1.png", "eileen/2.png", "eileen/3.png", "eileen/3.png"]
    assert all(line["score"] > 0.7 for line in lines)
    run(detected / "photos", tmp_path / "again", detected / "found.jsonl", faces="all", encoding=PNG)
    run(detected / "photos", tmp_path / "one", workers=1, detector=MTCNN, faces="all", encoding=PNG)
    assert images(tmp_path / "again") == images(tmp_path / "one") == written
    with pytest.raises(OptionError, match="look aligned already"):
        run(detected / "out", tmp_path / "twice", detector=MTCNN)


def test_the_detector_fills_the_gaps_of_a_landmark_file(detected: Path, tmp_path: Path) -> None:
    points, found = tmp_path / "points.jsonl", tmp_path / "all.jsonl"
    first = {"key": "eileen/1.png", "landmarks": [[123, 100], [166, 102], [144, 128], [122, 139], [165, 141]]}
    points.write_text(json.dumps(first) + "\n")
    detector = DetectorOptions("mtcnn", min_score=1.0)
    options: dict[str, Any] = {"detector": detector, "min_score": 1.0, "write_landmarks": str(found)}
    summary = run(detected / "photos", tmp_path / "out", points, **options)
    assert (summary.samples, summary.skipped_causes) == (1, {"low score": 2, "no face": 1})
    assert json.loads(found.read_text()) == first
