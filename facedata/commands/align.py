"""``facedata align``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.conversion import JOB, TARGET, show_conversion_plan, show_summary
from facedata.commands.progress import counted, show_progress

if TYPE_CHECKING:
    from facedata.align.detectors import DetectorOptions
    from facedata.align.job import AlignOptions
    from facedata.jobs.job import JobSummary

FACES = options.together(
    click.option(
        "--landmarks",
        type=click.Path(),
        metavar="FILE",
        help="Where the faces are: FaceX-Zoo info or landmark files, CVLFace's ldmk_5points.csv, an InsightFace .lst, "
        "a CSV or JSON lines of ours; 5, 25, 68, 98 or 106 points a face.",
    ),
    click.option(
        "--detector",
        type=click.Choice(
            ["scrfd", "retinaface", "yunet", "mtcnn", "centerface", "yolov5face", "yolov8face"], case_sensitive=False
        ),
        help="Find the faces; with --landmarks, in the images that the file does not know. Needs facedata[detect].",
    ),
    click.option(
        "--model", type=click.Path(dir_okay=False), help="The detector's ONNX file, instead of its usual one."
    ),
    click.option("--model-checksum", metavar="SHA256", help="Refuse the model where it is another file."),
    options.DEVICE,
    click.option(
        "--detector-size",
        type=click.IntRange(64, 2048),
        metavar="N",
        help="To find faces, images are scaled to N pixels on the longer side.  [default: the detector's own]",
    ),
    click.option(
        "--min-score",
        type=click.FloatRange(0.0, 1.0),
        help="Leave out faces of which the detector is less sure.  [default: the detector's own]",
    ),
    click.option(
        "--min-size", type=click.FloatRange(0.0), metavar="N", help="Leave out faces smaller than N x N pixels."
    ),
    click.option(
        "--faces",
        type=click.Choice(["largest", "central", "all", "one"]),
        default="central",
        show_default=True,
        help="Of several in an image: the largest; the one large and central, as InsightFace chooses; all; or there "
        "must be one alone.",
    ),
)
"""Options of where the faces are, and which."""

PIXELS = options.together(
    click.option(
        "--template",
        default="arcface",
        show_default=True,
        metavar="NAME|FILE",
        help="arcface, facexzoo-5pose, or a file with five points for a size.",
    ),
    click.option(
        "--size",
        type=click.IntRange(1, 4096),
        default=112,
        show_default=True,
        metavar="N",
        help="Side of the crop; a multiple of 112 or 128 for arcface.",
    ),
    click.option(
        "--crop",
        type=click.Choice(["full", "upper"]),
        default="full",
        show_default=True,
        help="upper: the first 60 of 112 rows, for FaceX-Zoo's model of masked faces.",
    ),
    click.option(
        "--format",
        "image_format",
        type=click.Choice(["jpg", "png", "webp"]),
        default="jpg",
        show_default=True,
        help="How the faces are encoded.",
    ),
    click.option("--quality", type=click.IntRange(1, 100), help="Of jpg and webp."),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        metavar="N",
        help="Refuse larger images.  [default: 100,000,000]",
    ),
    click.option(
        "--assume-aligned", is_flag=True, help="Copy images that have the size asked for and no landmarks, as they are."
    ),
    click.option(
        "--keep-landmarks", is_flag=True, help="Let the landmarks, moved into the crop, travel with each face."
    ),
)
"""Options of what becomes of them."""


@click.command("align", short_help="Cut out faces and align them to a template, from any dataset to any.")
@click.argument("source")
@click.option(
    "--output",
    required=True,
    metavar="FOLDER|FORMAT:PATH",
    help="What to write: a folder, or any other format by name.",
)
@FACES
@PIXELS
@click.option(
    "--write-landmarks",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Save the landmarks of all faces, as JSON lines or .csv, so that --landmarks can repeat the run.",
)
@click.option(
    "--preview",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw some images with their points, and the crops beside them (.jpg, .png).",
)
@TARGET
@options.LIMIT
@options.SHARD
@JOB
@options.runs_library
def command(source: str, output: str, **given: Any) -> int:
    """Align the faces of SOURCE to a template, by the similarity transform of their landmarks.

    These are the pixels of InsightFace's norm_crop and of FaceX-Zoo's cropper. A SOURCE is a path, its format found
    from its content, or FORMAT:PATH; the output a folder, or FORMAT:PATH. From folder to folder names are kept.

    Every face that is not delivered is named in failures.jsonl in the output, with the reason, and the exit status is
    1. Interrupted, killed or out of disk: the same command goes on where it was.

    \b
    Examples:
      facedata align raw/ --landmarks lfw_face_info.txt --output lfw-112/
      facedata align raw/ --detector scrfd --output aligned/ --workers 8
      facedata align rec:raw --detector mtcnn --output webdataset:aligned/%06d.tar
      facedata align raw/ --landmarks points.csv --output big/ --size 224 --preview preview.jpg
    """
    from facedata.align.job import plan_alignment, run_alignment
    from facedata.converters.conversion import check_conversion
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=given["quiet"])
    part = Part(*given["shard"])
    job = JobOptions(given["workers"], part, given["overwrite"])
    planned = plan_alignment(source, output, _align_options(given))
    if given["dry_run"]:
        check_conversion(planned, overwrite=given["overwrite"])
        show_conversion_plan(planned, part, as_json=given["as_json"])
        return 0
    with show_progress("images", quiet=given["quiet"]) as observer:
        summary = run_alignment(planned, replace(job, observer=observer))
    show_summary(summary, as_json=given["as_json"])
    if not given["as_json"]:
        _show_beside(summary, given)
    return 0 if summary.good else 1


_TARGET = (
    "layout",
    "shard_size",
    "shard_samples",
    "style",
    "datum",
    "keys",
    "kv",
    "single_file",
    "build_dir",
)


def _align_options(given: dict[str, Any]) -> AlignOptions:
    from facedata.align.encoding import Encoding
    from facedata.align.job import AlignOptions

    same = ("landmarks", "template", "size", "crop", "faces", "min_score", "assume_aligned", "keep_landmarks")
    chosen = {name: given[name] for name in (*same, "write_landmarks", "preview", "limit")}
    for name in ("min_size", "max_pixels"):
        if given[name] is not None:
            chosen[name] = given[name]
    return AlignOptions(
        **chosen,
        detector=_detector_options(given),
        encoding=Encoding(given["image_format"], given["quality"]),
        writing={name: given[name] for name in _TARGET if given[name] not in (None, False)},
        command_line=options.command_line(),
    )


def _detector_options(given: dict[str, Any]) -> DetectorOptions | None:
    only = {"model": "--model", "model_checksum": "--model-checksum", "detector_size": "--detector-size"}
    if given["detector"] is None:
        for name, option in only.items():
            if given[name] is not None:
                raise click.UsageError(f"{option}: is for a --detector; `facedata align --help` says which there are")
        return None
    from facedata.align.detectors import DetectorOptions

    return DetectorOptions(
        name=given["detector"],
        model=given["model"],
        model_checksum=given["model_checksum"],
        device=given["device"],
        size=given["detector_size"],
        min_score=given["min_score"],
    )


def _show_beside(summary: JobSummary, given: dict[str, Any]) -> None:
    facts = summary.facts
    for cause, count in facts.get("causes", {}).items():
        click.echo(f"    {count:,} {cause}")
    if facts.get("unused_landmarks"):
        entries = counted(facts["unused_landmarks"], "entry", "entries")
        unused = os.path.join(summary.output, "unused-landmarks.txt")
        click.echo(f"  {entries} of {given['landmarks']} without an image: {unused}")
    if summary.finished and given["write_landmarks"]:
        click.echo(f"  landmarks: {given['write_landmarks']}")
    if facts.get("preview"):
        click.echo(f"  preview: {facts['preview']}")
