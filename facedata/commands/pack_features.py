"""``facedata pack-features``."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import click

from facedata.commands import options
from facedata.commands.progress import human_bytes, show_bytes
from facedata.errors import OptionError
from facedata.text import counted

_FILES = (".npy", ".bin")


@click.command(
    "pack-features",
    cls=options.Command,
    short_help="Write arrays of features as a set for clustering, or a set as an array.",
)
@click.argument("features", type=click.Path())
@options.output("The folder of the set; without --name, a .npy or .bin file.")
@click.option("--name", help="The name of the set: writes OUTPUT/features/NAME.bin and OUTPUT/labels/NAME.meta.")
@click.option(
    "--labels",
    type=click.Path(),
    help="A label for each row: text with an integer a line (also a .meta), a .npy of integers, a list of 'path label' "
    "lines, a folder of class folders, or any dataset as FORMAT:PATH.",
)
@click.option("--unlabeled", is_flag=True, help="No labels are known: write a .meta with -1 for every row.")
@options.LABELS_NPY
@click.option("--no-meta", is_flag=True, help="Write no .meta.")
@options.DIM
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32", "float64"]),
    help="For .bin: the type of its values.  [default: float32]",
)
@click.option("--array", help="For .npz: the name of the array, if there are several.")
@click.option("--column", help="For .parquet: the column of lists, if there are several.")
@click.option("--allow-zero", is_flag=True, help="Accept rows of zeros, which become NaN if a reader normalises them.")
@click.option("--allow-nan", is_flag=True, help="Without --name: accept rows with NaN or infinity.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    features: str, output: str, name: str | None, labels: str | None, dry_run: bool, quiet: bool, **given: Any
) -> int:
    """Write the matrix in FEATURES as learn-to-cluster reads it: float32, row by row, and a label for each row.

    FEATURES is .npy, .npz, .bin (without a header), .parquet (a column of lists) or .csv. float16 and float64 become
    float32. It is read in blocks, never whole. Rows with NaN, infinity or only zeros, or too large for float32, are
    refused and their numbers shown; so are labels if there is not one for each row. A set has one of --labels,
    --unlabeled and --no-meta.

    Without --name, and with an OUTPUT that ends in .npy, it writes one array, as np.save does.

    Files appear when they are complete. If it is interrupted or killed, nothing is kept; the same command starts again.

    \b
    Examples:
      facedata pack-features x.npy --labels labels.txt -o data/ --name x
      facedata pack-features x.npz --array rows --unlabeled -o data/ --name x
      facedata pack-features data/features/x.bin --dim 256 -o x.npy
    """
    _refuse_contradictions(output, name, labels, given)
    from facedata.features.feature_set import FeatureSet
    from facedata.features.pack import (
        NO_LABELS,
        UNLABELLED_ROWS,
        PackOptions,
        open_labels,
        pack_features,
        save_features,
    )
    from facedata.features.sources import open_features
    from facedata.jobs.signals import stop_on_signals

    options.start_logging(quiet=quiet)
    source = open_features(
        features, dimensions=given["dim"], dtype=given["dtype"], array=given["array"], column=given["column"]
    )
    no_labels = UNLABELLED_ROWS if given["unlabeled"] else NO_LABELS
    opened = no_labels if labels is None else open_labels(labels)  # a folder takes its time: not under the signals
    with show_bytes("packed", quiet=quiet or dry_run) as observer, stop_on_signals() as stop:
        chosen = PackOptions(
            given["allow_zero"],
            given["allow_nan"],
            given["limit"],
            given["overwrite"],
            dry_run,
            observer,
            stop,
            given["labels_npy"],
        )
        if name is None:
            packed = save_features(source, output, chosen)
        else:
            packed = pack_features(source, FeatureSet(output, name), opened, chosen)
    if given["as_json"]:
        options.print_json({"dry_run": dry_run, **asdict(packed)})
        return 0
    verb = "would have" if dry_run else "has"
    rows, size = "all rows", ""
    if packed.rows is not None:
        rows = counted(packed.rows, "row")
        size = f" ({human_bytes(4 * packed.rows * packed.dimensions)})"
    options.echo(f"{packed.features}: {verb} {rows} of {packed.dimensions:,} float32{size}")
    if packed.labels is not None:
        classes = counted(packed.classes, "class", "classes") if packed.classes else "-1 for every row"
        options.echo(f"{packed.labels}: {verb} {classes}")
    return 0


def _refuse_contradictions(output: str, name: str | None, labels: str | None, given: dict[str, Any]) -> None:
    ways = {"--labels": labels is not None, "--unlabeled": given["unlabeled"], "--no-meta": given["no_meta"]}
    if given["labels_npy"] and (name is None or given["no_meta"]):
        raise OptionError("--labels-npy applies to a set with labels: give --name, and --labels or --unlabeled")
    chosen = [option for option, is_given in ways.items() if is_given]
    if name is None:
        if not output.endswith(_FILES):
            raise OptionError(
                f"--output {output}: for a set give --name too; a single file ends in {' or '.join(_FILES)}"
            )
        if chosen:
            raise OptionError(f"{chosen[0]} applies to a set, with a --name; {output} is one file without labels")
        return
    if os.path.splitext(output.rstrip("/"))[1] in _FILES:
        raise OptionError(f"--output {output}: with --name it is the folder of the set; for a file, leave out --name")
    if given["allow_nan"]:
        raise OptionError("--allow-nan applies to a single file: readers of sets fail on NaN; remove those rows")
    if len(chosen) != 1:
        raise OptionError(
            f"expected one of --labels FILE, --unlabeled and --no-meta, found {' and '.join(chosen) or 'none of them'}"
        )
