"""``facedata pack-features``."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from facedata.commands import options
from facedata.commands.progress import counted, human_bytes, show_bytes
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.features.pack import Packed

_FILES = (".npy", ".bin")
_FLOAT_BYTES = 4


class _Chosen(NamedTuple):
    """What is to be written, and where."""

    output: str
    name: str | None
    labels: str | None
    unlabeled: bool
    no_meta: bool
    allow_zero: bool
    allow_nan: bool
    limit: int | None
    overwrite: bool
    dry_run: bool

    @property
    def to_file(self) -> bool:
        return self.name is None


@click.command("pack-features", short_help="Write arrays of features as a set for clustering, or a set as an array.")
@click.argument("features", type=click.Path())
@click.option(
    "--output", required=True, type=click.Path(), help="The folder of the set; or, without --name, a .npy or .bin file."
)
@click.option("--name", help="Of the set: writes OUTPUT/features/NAME.bin and OUTPUT/labels/NAME.meta.")
@click.option(
    "--labels",
    type=click.Path(),
    help="A label for each row: text with an integer a line (also a .meta), a .npy of integers, a list of 'path label' "
    "lines, a folder of class folders, or any dataset as FORMAT:PATH.",
)
@click.option("--unlabeled", is_flag=True, help="No labels are known: a .meta with -1 for every row.")
@click.option("--no-meta", is_flag=True, help="Write no .meta.")
@options.DIM
@click.option(
    "--dtype", type=click.Choice(["float16", "float32", "float64"]), help="For .bin: what it holds.  [default: float32]"
)
@click.option("--array", help="For .npz: the name of the array, where there are several.")
@click.option("--column", help="For .parquet: the column of lists, where there are several.")
@click.option("--allow-zero", is_flag=True, help="Take rows of zeros, which become NaN where a reader normalises them.")
@click.option("--allow-nan", is_flag=True, help="Without --name: take rows with NaN or infinity in them too.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows.")
@options.OVERWRITE
@options.DRY_RUN
@options.JSON
@options.QUIET
@options.runs_library
def command(
    features: str,
    dim: int | None,
    dtype: str | None,
    array: str | None,
    column: str | None,
    as_json: bool,
    quiet: bool,
    **given: Any,
) -> int:
    """Write the matrix in FEATURES as learn-to-cluster reads it: float32, row by row, and a label for each row.

    FEATURES is .npy, .npz, .bin (without a header), .parquet (a column of lists) or .csv. float16 and float64 become
    float32. It is read in blocks, never whole. Rows with NaN, infinity or nothing but zeros, or too large for float32,
    are refused by number; so are labels that are not as many as the rows. A set has one of --labels, --unlabeled and
    --no-meta.

    Without --name, and with an OUTPUT that ends in .npy, the way goes back: one array, as np.save writes it.

    Files appear when they are whole. Interrupted or killed, nothing is kept; the same command starts again.

    \b
    Examples:
      facedata pack-features feats.npy --labels labels.txt --output data/ --name my_set
      facedata pack-features feats.npz --array embeddings --unlabeled --output data/ --name my_set
      facedata pack-features data/features/my_set.bin --dim 256 --output my_set.npy
    """
    chosen = _Chosen(**given)
    _refuse_contradictions(chosen)
    from facedata.features.sources import open_features

    options.start_logging(quiet=quiet)
    source = open_features(features, dimensions=dim, dtype=dtype, array=array, column=column)
    with show_bytes("packed", quiet=quiet or chosen.dry_run) as observer:
        packed = _write(chosen, source, observer)
    if as_json:
        options.print_json({"dry_run": chosen.dry_run, **asdict(packed)})
    else:
        _tell(packed, dry_run=chosen.dry_run)
    return 0


def _refuse_contradictions(chosen: _Chosen) -> None:
    ways = {"--labels": chosen.labels is not None, "--unlabeled": chosen.unlabeled, "--no-meta": chosen.no_meta}
    given = [option for option, there in ways.items() if there]
    if chosen.to_file:
        if not chosen.output.endswith(_FILES):
            raise OptionError(
                f"--output {chosen.output}: for a set say --name too; a single file ends in {' or '.join(_FILES)}"
            )
        if given:
            raise OptionError(
                f"{given[0]} is for a set, which has a --name; {chosen.output} is one file without labels"
            )
        return
    if os.path.splitext(chosen.output.rstrip("/"))[1] in _FILES:
        raise OptionError(
            f"--output {chosen.output}: with --name it is the folder of the set; leave --name out for a file"
        )
    if chosen.allow_nan:
        raise OptionError("--allow-nan is for a single file: no reader of a set copes with NaN; leave those rows out")
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them"
        raise OptionError(f"expected one of --labels FILE, --unlabeled and --no-meta, found {said}")


def _write(chosen: _Chosen, source: Any, observer: Any) -> Packed:
    from facedata.features.feature_set import FeatureSet
    from facedata.features.labels import open_labels
    from facedata.features.pack import NO_LABELS, UNLABELLED_ROWS, Allowed, pack_features, save_features
    from facedata.jobs.signals import stop_on_signals

    how: dict[str, Any] = {
        "allowed": Allowed(chosen.allow_zero, chosen.allow_nan),
        "limit": chosen.limit,
        "overwrite": chosen.overwrite,
        "dry_run": chosen.dry_run,
        "observer": observer,
    }
    absent = UNLABELLED_ROWS if chosen.unlabeled else NO_LABELS
    labels = absent if chosen.labels is None else open_labels(chosen.labels)  # a folder may take its time: not below
    with stop_on_signals() as stop:
        if chosen.name is None:
            return save_features(source, chosen.output, stop=stop, **how)
        return pack_features(source, FeatureSet(chosen.output, chosen.name), labels, stop=stop, **how)


def _tell(packed: Packed, *, dry_run: bool) -> None:
    verb = "would have" if dry_run else "has"
    rows = "as many rows as are read" if packed.rows is None else counted(packed.rows, "row")
    size = "" if packed.rows is None else f" ({human_bytes(packed.rows * packed.dimensions * _FLOAT_BYTES)})"
    click.echo(f"{packed.features}: {verb} {rows} of {packed.dimensions:,} float32{size}")
    if packed.labels is not None:
        what = counted(packed.classes, "class", "classes") if packed.classes else "-1 for every row"
        click.echo(f"{packed.labels}: {verb} {what}")
