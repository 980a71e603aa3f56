"""``facedata check-features``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import click

from facedata.commands import options
from facedata.commands.progress import show_bytes, shown_path
from facedata.errors import OptionError
from facedata.text import counted

if TYPE_CHECKING:
    from facedata.features.checks.report import Observer, SetReport

_log = logging.getLogger("facedata")


@click.command(
    "check-features",
    cls=options.Command,
    short_help="Check feature sets: sizes, labels, values, neighbours, and their quality.",
)
@click.argument("path", type=click.Path())
@click.option("--name", help="The set: features/NAME.bin, labels/NAME.meta, knns/NAME/.  [default: all in the folder]")
@options.DIM
@click.option(
    "--k",
    type=click.IntRange(1),
    help="Neighbours of a row, itself included: check only the files of this k; search this many if there is none.  "
    "[default: all files; 80]",
)
@click.option(
    "--sample",
    type=click.IntRange(0, 100_000),
    default=2_000,
    show_default=True,
    help="Without a file of neighbours: the number of rows whose neighbours are searched. 0: do not measure quality.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Draw norms, class sizes and similarity: .png, .pdf, .svg."
)
@click.option("--strict", is_flag=True, help="Exit with 1 on notes too, such as duplicate rows.")
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.runs_library
def command(
    path: str,
    name: str | None,
    dim: int | None,
    k: int | None,
    sample: int,
    plot: str | None,
    strict: bool,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Check that the feature sets in the folder PATH are what they say they are, or one matrix, a .bin with --dim.

    Each error has a line of its own, with what was expected, what was found and what to do; the exit status is then 1.
    Notes are worth knowing, but not wrong. The share of nearest neighbours with the same label shows how good the
    features are: it is read from the files of neighbours, or measured by searching those of a sample of rows.

    \b
    Examples:
      facedata check-features data/ --name part1_test
      facedata check-features data/ --name part1_test --k 80 --plot part1.png
      facedata check-features features.bin --dim 512
    """
    from facedata.features.checks import CheckOptions, check_feature_set, check_matrix, set_names

    options.start_logging(quiet=quiet)
    alone = os.path.exists(path) and not os.path.isdir(path)
    if alone and name is not None:
        raise OptionError(f"--name does not apply to a matrix: leave it out, or give the folder above {path}")
    names = [] if alone else [name] if name is not None else set_names(path)
    if plot is not None:
        from facedata.features.plots import check_plot_name

        if len(names) > 1:
            raise OptionError(f"--plot draws one set: choose it with --name, one of {', '.join(names[:20])}")
        check_plot_name(plot, overwrite=overwrite)
    how, reports = CheckOptions(dim, k, sample), []
    for title in names or [os.path.basename(path)]:

        def watch(step: str, title: str = title) -> AbstractContextManager[Observer | None]:
            return show_bytes(f"{title}: {step}", quiet=quiet)

        report = check_matrix(path, how, watch=watch) if alone else check_feature_set(path, title, how, watch=watch)
        reports.append(report)
        if not as_json:
            _show(report)
    drawn = False
    if plot is not None:
        from facedata.features.plots import plot_report

        drawn = plot_report(plot, reports[0], overwrite=overwrite)
        if not drawn:
            _log.warning("%s: not written: there is nothing to draw of %s", plot, reports[0].name)
    good = all(report.good and not (strict and report.findings) for report in reports)
    if as_json:
        facts = [report.facts() for report in reports]
        options.print_json({"good": good, "plot": plot if drawn else None, "sets": facts})
    elif drawn and plot is not None:
        options.echo(f"plot: {shown_path(plot)}")
    return 0 if good else 1


def _show(report: SetReport) -> None:
    wrong = sum(finding.wrong for finding in report.findings)
    notes = len(report.findings) - wrong
    verdict = "good" if not wrong else counted(wrong, "error")
    verdict += f", {counted(notes, 'note')}" if notes else ""
    options.echo(f"{report.name}: {verdict}")
    for line in _figures(report):
        options.echo(f"  {line}")
    for finding in report.findings:
        options.echo(finding.line())


def _figures(report: SetReport) -> Iterator[str]:
    if report.rows is not None and report.dimensions is not None:
        yield f"{counted(report.rows, 'row')} of {counted(report.dimensions, 'value')}"
    if (norms := report.norms) is not None:
        spread = f"{norms.smallest:.4g} to {norms.largest:.4g}, mean {norms.mean:.4g}"
        yield f"norms: {spread}; {100 * norms.unit:.1f} % of unit length"
    if (sizes := report.classes) is not None:
        missing = f"; {counted(sizes.unlabelled, 'row')} unlabelled" if sizes.unlabelled else ""
        spread = f" of {sizes.smallest:,} to {sizes.largest:,} rows, median {sizes.median:,.0f}"
        classes = f"{counted(sizes.classes, 'class', 'classes')}{spread}, {sizes.singletons:,} of one"
        yield f"labels: {classes if sizes.classes else 'none'}{missing}"
    for file in report.neighbours:
        if file.layout:
            yield f"neighbours: {shown_path(file.path)}: k {file.k:,}, {file.dtype}, layout of {file.layout}"
    if (share := report.same_label) is not None:
        yield (
            f"same label: {100 * share.all:.1f} % of {counted(share.neighbours, 'neighbour')} (at most "
            f"{100 * share.possible:.1f} % with these classes), {100 * share.nearest:.1f} % of the nearest; "
            f"from {shown_path(share.source) if os.sep in share.source else share.source}"
        )
    for words, pairs in (("the same label", report.same), ("different labels", report.other)):
        if pairs is not None:
            yield (
                f"similarity: {pairs.mean:.3f} with {words} (90 % lie from {pairs.low:.3f} to {pairs.high:.3f}; "
                f"{counted(pairs.pairs, 'pair')})"
            )
