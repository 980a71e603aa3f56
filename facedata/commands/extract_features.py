"""``facedata extract-features``."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from facedata.commands import options
from facedata.commands.convert import JOB, error_of, report_failures, show_outcome, time_taken
from facedata.commands.progress import human_bytes, output_name, show_progress
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.features.extraction.job import Extraction
    from facedata.jobs.job import JobSummary


class _SidesType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``112``, or ``112x96`` for height and width."""

    name = "size"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, int]:
        match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", str(value))
        if not match:
            self.fail(f"'{value}' is not a size, as 112 or 112x96 (height x width)", parameter, context)
        return int(match[1]), int(match[2] or match[1])


class _NumbersType(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``127.5``, or ``123.7,116.3,103.5`` for three channels."""

    name = "numbers"

    def convert(
        self, value: Any, parameter: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        try:
            return tuple(map(float, str(value).split(",")))
        except ValueError:
            self.fail(f"'{value}' is not a number, or three with commas between them", parameter, context)


MODEL = options.together(
    click.option("--model", required=True, type=click.Path(dir_okay=False), metavar="FILE", help="An ONNX model."),
    options.DEVICE,
    click.option(
        "--batch-size",
        type=click.IntRange(1, 4096),
        metavar="N",
        help="Images at once.  [default: the model's own, or 32; 128 with cuda]",
    ),
    options.MODEL_TIMEOUT,
    click.option("--output-name", metavar="NAME", help="Which output is the embedding, if there are several."),
    click.option(
        "--input-size", type=_SidesType(), metavar="N|HxW", help="Size of the images, if the model takes any."
    ),
    click.option(
        "--input-layout", type=click.Choice(["nchw", "nhwc"]), help="Layout of the input, if the model does not fix it."
    ),
)
"""Options of the model."""

PIXELS = options.together(
    click.option("--resize", is_flag=True, help="Scale images of another size, instead of counting them as failed."),
    click.option(
        "--mean",
        type=_NumbersType(),
        default="127.5",
        show_default=True,
        metavar="X|X,X,X",
        help="Subtracted from pixels of 0 to 255; three numbers are in the order of --color.",
    ),
    click.option(
        "--scale",
        type=_NumbersType(),
        default="127.5",
        show_default=True,
        metavar="X|X,X,X",
        help="Pixels are divided by it after that.",
    ),
    click.option(
        "--color",
        type=click.Choice(["rgb", "bgr"]),
        default="rgb",
        show_default=True,
        help="The order of the channels that the model takes.",
    ),
    click.option("--flip", is_flag=True, help="Add the embedding of the mirror image, as recognition papers do."),
    click.option("--normalize", is_flag=True, help="Scale each row to length 1."),
)
"""Options of how images become rows."""


@click.command(
    "extract-features",
    cls=options.Command,
    short_help="Embed the images of a dataset with an ONNX model: .bin, .meta and keys.",
)
@click.argument("source")
@options.output("The folder that holds features/ and labels/.", type=click.Path(file_okay=False))
@click.option("--name", required=True, help="Name of the set: features/NAME.bin, labels/NAME.meta.")
@MODEL
@PIXELS
@click.option(
    "--on-error",
    type=click.Choice(["fail", "skip", "nan"]),
    default="fail",
    show_default=True,
    help="If images fail: publish nothing and keep what is done; leave out row, label and key; or write rows of NaN.",
)
@click.option("--unlabeled", is_flag=True, help="Write -1 for each label.")
@options.LABELS_NPY
@options.LABELS
@options.SALVAGE
@options.REBUILD_INDEX
@options.COLUMNS
@options.LIMIT
@options.SHARD
@JOB
@options.runs_library
def command(source: str, output: str, **given: Any) -> int:
    """Write the embeddings of the images of SOURCE as a feature set for clustering.

    OUTPUT/features/NAME.bin is float32, row by row, without a header; OUTPUT/labels/NAME.meta has one label a line;
    OUTPUT/features/NAME.keys.txt names the image of each row. All are in the order of SOURCE, which is a path, whose
    format is found from its content, or FORMAT:PATH.

    The images must be aligned as the model expects. The defaults of --mean, --scale and --color are InsightFace's.
    Needs the extra 'features'.

    The files appear when all is done; until then `facedata status OUTPUT/features/NAME.bin` shows the progress.
    Interrupted, killed or out of disk, the job resumes when the same command is run again. Images that fail are listed
    in OUTPUT/features/NAME.bin.facedata/failures.jsonl, and the exit status is 1.

    \b
    Examples:
      facedata extract-features rec:ms1m --model r50.onnx -o data/ --name part1
      facedata extract-features aligned/ --model net.onnx -o data/ --name a --flip
      facedata extract-features faces --model a.onnx -o x/ --name b --on-error nan
    """
    from facedata.converters.convert import LabelOptions
    from facedata.features.extraction.job import ExtractionOptions, check_extraction, plan_extraction, run_extraction
    from facedata.features.extraction.model import ModelOptions, Preprocessing
    from facedata.jobs.job import JobOptions
    from facedata.jobs.plan import Part

    options.start_logging(quiet=given["quiet"])
    part = Part(*given["shard"])
    if given["max_failures"] and given["on_error"] == "fail":
        raise click.UsageError("--max-failures: if an image fails, nothing is published; give --on-error skip or nan")
    how = {name: given[name] for name in ("workers", "overwrite", "max_failures", "trust_input")}
    job = JobOptions(part=part, **how)
    model = ModelOptions(
        path=given["model"],
        device=given["device"],
        batch_size=given["batch_size"],
        input_size=given["input_size"],
        layout=given["input_layout"],
        output_name=given["output_name"],
        timeout=given["model_timeout"],
    )
    chosen = ExtractionOptions(
        model=model,
        preprocessing=Preprocessing(given["mean"], given["scale"], given["color"], given["resize"]),
        **{name: given[name] for name in ("flip", "normalize", "on_error", "unlabeled", "labels_npy", "limit")},
        labels=LabelOptions(given["labels"], given["label"], given["labels_from"]),
        opening={
            name: given[name] for name in ("salvage", "rebuild_index", "image_column", "label_column") if given[name]
        },
        command_line=options.command_line(),
    )
    planned = plan_extraction(source, output, given["name"], chosen)
    if given["dry_run"]:
        check_extraction(planned, overwrite=given["overwrite"])
        _show_plan(planned, part, as_json=given["as_json"])
        return 0
    with show_progress("images", quiet=given["quiet"]) as observer:
        summary = run_extraction(planned, replace(job, observer=observer))
    _show_summary(summary, as_json=given["as_json"])
    return report_failures(summary, _NOTES.get(summary.facts.get("on_error", ""), ""))


_NOTES = {"skip": ", their rows left out", "nan": ", their rows NaN"}


def _show_plan(planned: Extraction, part: Any, *, as_json: bool) -> None:
    plan, output = planned.plan, planned.output
    shards = part.shards(plan)
    images = sum(end - first for first, end in map(plan.bounds, shards))
    if as_json:
        value = {"dry_run": True, "output": output.target.features, "images": images, "shards": len(shards)}
        value |= {"part": str(part), "fingerprint": plan.fingerprint, "rows": output.rows}
        value |= {"dimensions": output.dimensions, "sets": plan.facts["sets"], "options": dict(plan.options)}
        options.print_json(value)
        return
    options.echo(
        f"would write {counted(images, 'row')} of {output.dimensions:,} float32 in {counted(len(shards), 'shard')} "
        f"into {output.target.features}"
    )


def _show_summary(summary: JobSummary, *, as_json: bool) -> None:
    facts, name = summary.facts, output_name(summary.output)
    if as_json:
        value = summary.to_json()
        options.print_json({"images": value.pop("samples"), **value, "output": name, **error_of(summary)})
        return
    if summary.finished and {"rows", "dimensions", "classes"} <= facts.keys():  # a damaged summary has lost them
        size = human_bytes(4 * facts["rows"] * facts["dimensions"])
        rows = f"{counted(facts['rows'], 'row')} of {facts['dimensions']:,} float32, {size}"
        options.echo(f"{name}: {rows}, {counted(facts['classes'], 'class', 'classes')}; {time_taken(summary)}")
    else:
        state = "finished" if summary.finished else "not finished"
        options.echo(f"{name}: {state}: {counted(summary.samples, 'image')} done; {time_taken(summary)}")
    show_outcome(summary)
