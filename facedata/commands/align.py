"""``facedata align``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.convert import JOB, TARGET, named_target, report_failures, show_conversion_plan, show_summary
from facedata.commands.progress import show_progress
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.align.detectors import DetectorOptions
    from facedata.jobs.job import JobSummary

FACES = options.together(
    click.option(
        "--landmarks",
        type=click.Path(),
        metavar="FILE",
        help="Landmarks of the faces: a list or CSV as of VGGFace2, CelebA, LFW or IJB-C, FaceX-Zoo info or landmark "
        "files, CVLFace's ldmk_5points.csv, an InsightFace .lst, JSON lines; 5, 25, 68, 98 or 106 points a face.",
    ),
    click.option(
        "--detector",
        type=click.Choice(
            ["scrfd", "retinaface", "yunet", "mtcnn", "centerface", "yolov5face", "yolov8face"], case_sensitive=False
        ),
        help="Find the faces; with --landmarks, only in images without landmarks there. Needs the extra 'detect'.",
    ),
    click.option(
        "--model", type=click.Path(dir_okay=False), help="The detector's ONNX file, instead of its default one."
    ),
    click.option("--model-checksum", metavar="SHA256", help="Fail unless the model has this SHA-256."),
    options.MODEL_TIMEOUT,
    options.DEVICE,
    click.option(
        "--detector-size",
        type=click.IntRange(64, 2048),
        metavar="N",
        help="Detect in images scaled to N pixels on the longer side.  [default: the detector's own]",
    ),
    click.option(
        "--min-score",
        type=click.FloatRange(0.0, 1.0),
        help="Leave out faces with a lower score.  [default: the detector's own]",
    ),
    click.option(
        "--min-size", type=click.FloatRange(0.0), metavar="N", help="Leave out faces smaller than N x N pixels."
    ),
    click.option(
        "--faces",
        type=click.Choice(["largest", "central", "all", "one"]),
        default="central",
        show_default=True,
        help="Which of several faces in an image: the largest; the large and central one, as InsightFace chooses; "
        "all; or one, which skips images with more.",
    ),
)
"""Options that say where the faces are, and which are wanted."""

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
        help="Image format of the faces.",
    ),
    click.option("--quality", type=click.IntRange(1, 100), help="Of jpg and webp.  [default: 95]"),
    click.option(
        "--max-pixels",
        type=click.IntRange(1),
        metavar="N",
        help="Refuse larger images.  [default: 100,000,000]",
    ),
    click.option(
        "--assume-aligned", is_flag=True, help="Copy images that have the output's size and no landmarks, unchanged."
    ),
    click.option("--keep-landmarks", is_flag=True, help="Store the landmarks, moved into the crop, with each face."),
)
"""Options that decide the pixels and the bytes of the crops."""


@click.command(
    "align", cls=options.Command, short_help="Cut out faces and align them to a template, from any dataset to any."
)
@click.argument("source")
@options.output("What to write: a folder, or any other format by name.", metavar="FOLDER|FORMAT:PATH")
@FACES
@PIXELS
@click.option(
    "--write-landmarks",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Save the landmarks of all faces, as .csv or JSON lines; --landmarks then repeats the run.",
)
@click.option(
    "--preview",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Draw some images with their points, and the crops beside them (.jpg, .png).",
)
@TARGET
@options.LABELS
@options.LIMIT
@options.SHARD
@JOB
@options.runs_library
def command(source: str, output: str, **given: Any) -> int:
    """Align the faces of SOURCE to a template, by the similarity transform of their landmarks.

    These are the pixels of InsightFace's norm_crop and of FaceX-Zoo's cropper. A SOURCE is a path, its format found
    from its content, or FORMAT:PATH, or - for a list of paths from stdin; the output a folder, or FORMAT:PATH. From
    folder to folder names are kept.

    An image without a face, or whose faces are left out by --min-score, --min-size or --faces one, is listed in
    skipped.jsonl in the output. Every other face that cannot be written is listed in failures.jsonl, with the reason,
    and the exit status is 1. After an interruption, a kill or a full disk, the same command resumes.

    \b
    Examples:
      facedata align raw/ --landmarks lfw_face_info.txt -o lfw-112/
      facedata align raw/ --detector scrfd -o aligned/ --workers 8
      facedata align rec:raw --detector mtcnn -o webdataset:aligned/%06d.tar
      facedata align raw/ --landmarks lfw.txt -o big/ --size 224 --preview a.jpg
    """
    from facedata.align.codec import Encoding
    from facedata.align.job import AlignOptions, plan_alignment, run_alignment
    from facedata.converters.convert import LabelOptions, check_conversion
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=given["quiet"])
    part = Part(*given["shard"])
    how = {name: given[name] for name in ("workers", "overwrite", "max_failures", "trust_input")}
    job = JobOptions(part=part, **how)
    chosen = {name: given[name] for name in _SAME if given[name] is not None}
    aligning = AlignOptions(
        **chosen,
        detector=_detector_options(given),
        encoding=Encoding(given["image_format"], given["quality"]),
        labels=LabelOptions(given["labels"], given["label"], given["labels_from"]),
        writing={name: given[name] for name in _WRITING if given[name] not in (None, False)},
        command_line=options.command_line(),
    )
    with named_target(output) as target:
        planned = plan_alignment(source, target, aligning)
        if given["dry_run"]:
            check_conversion(planned, overwrite=given["overwrite"])
            show_conversion_plan(planned, part, as_json=given["as_json"])
            return 0
        with show_progress("images", quiet=given["quiet"]) as observer:
            summary = run_alignment(planned, replace(job, observer=observer))
        images = planned.plan.samples if given["faces"] == "all" else None
        show_summary(summary, as_json=given["as_json"], faces_of=images)
        if not given["as_json"]:
            _show_beside(summary, given)
        return report_failures(summary)


_SAME = (
    "landmarks",
    "template",
    "size",
    "crop",
    "faces",
    "min_size",
    "min_score",
    "max_pixels",
    "assume_aligned",
    "keep_landmarks",
    "write_landmarks",
    "preview",
    "limit",
)
"""Options that `AlignOptions` has under the same name."""

_WRITING = ("layout", "shard_size", "shard_samples", "style", "datum", "keys", "kv", "single_file", "build_dir")
"""Options of the formats that can be written."""


def _detector_options(given: dict[str, Any]) -> DetectorOptions | None:
    if given["detector"] is None:
        for name in ("model", "model_checksum", "model_timeout", "detector_size"):
            if given[name] is not None:
                option = "--" + name.replace("_", "-")
                raise click.UsageError(f"{option}: needs a --detector; `facedata align --help` lists them")
        return None
    from facedata.align.detectors import DetectorOptions

    return DetectorOptions(
        name=given["detector"],
        model=given["model"],
        model_checksum=given["model_checksum"],
        device=given["device"],
        size=given["detector_size"],
        min_score=given["min_score"],
        timeout=given["model_timeout"],
    )


def _show_beside(summary: JobSummary, given: dict[str, Any]) -> None:
    """Report the files beside the dataset."""
    facts = summary.facts
    if facts.get("unused_landmarks"):
        entries = counted(facts["unused_landmarks"], "entry", "entries")
        unused = os.path.join(summary.output, "unused-landmarks.txt")
        options.echo(f"  {entries} of {given['landmarks']} without an image: {unused}")
    if summary.finished and given["write_landmarks"]:
        options.echo(f"  landmarks: {given['write_landmarks']}")
    if facts.get("preview"):
        options.echo(f"  preview: {facts['preview']}")
