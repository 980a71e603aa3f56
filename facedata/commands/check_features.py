"""``facedata check-features``."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from facedata.commands import options
from facedata.commands.progress import counted, show_bytes, shown_path
from facedata.errors import OptionError

if TYPE_CHECKING:
    from facedata.features.checks.report import SetReport

_log = logging.getLogger("facedata")


class _Options(NamedTuple):
    path: str
    name: str | None
    dim: int | None
    k: int | None
    sample: int
    plot: str | None
    strict: bool
    overwrite: bool
    as_json: bool
    quiet: bool


@click.command("check-features", short_help="Check feature sets: sizes, labels, values, neighbours, and their quality.")
@click.argument("path", type=click.Path())
@click.option("--name", help="The set: features/NAME.bin, labels/NAME.meta, knns/NAME/.  [default: all in the folder]")
@options.DIM
@click.option(
    "--k",
    type=click.IntRange(1),
    help="Neighbours of a row, itself counted: check only the files of this k, search so many where there is none.  "
    "[default: all files; 80]",
)
@click.option(
    "--sample",
    type=click.IntRange(0, 100_000),
    default=2_000,
    show_default=True,
    help="Without a file of neighbours: of how many rows to search them. 0: say nothing of quality.",
)
@click.option(
    "--plot", type=click.Path(dir_okay=False), help="Draw norms, class sizes and similarity: .png, .pdf, .svg."
)
@click.option("--strict", is_flag=True, help="Exit with 1 on notes, too: duplicate rows, say.")
@options.OVERWRITE
@options.JSON
@options.QUIET
@options.runs_library
def command(**given: Any) -> int:
    """Check that the feature sets in the folder PATH are what they say they are, or one matrix, a .bin with --dim.

    What is wrong has a line of its own, with what was expected, what was found and what to do; the exit status is 1
    then. Notes are to be known and not wrong. The share of nearest neighbours with the same label says how good the
    features are: it is read from the files of neighbours, or found by searching those of a sample of rows.

    \b
    Examples:
      facedata check-features data/ --name part1_test
      facedata check-features data/ --name part1_test --dim 256 --k 80 --plot part1.png
      facedata check-features features.bin --dim 512
    """
    chosen = _Options(**given)
    options.start_logging(quiet=chosen.quiet)
    alone = os.path.exists(chosen.path) and not os.path.isdir(chosen.path)
    if alone and chosen.name is not None:
        raise OptionError(f"--name means nothing with a matrix: leave it out, or give the folder above {chosen.path}")
    names = [None] if alone else _names(chosen)
    if chosen.plot is not None:
        from facedata.features.plots import check_plot_name

        check_plot_name(chosen.plot, overwrite=chosen.overwrite)
    reports = []
    for name in names:
        report = _check(chosen, name)
        reports.append(report)
        if not chosen.as_json:
            _show(report)
    drawn = _draw(chosen, reports[0])
    return _end(chosen, reports, drawn)


def _names(chosen: _Options) -> list[str | None]:
    from facedata.features.check import set_names

    if chosen.name is not None:
        return [chosen.name]
    names = set_names(chosen.path)
    if chosen.plot is not None and len(names) > 1:
        raise OptionError(f"--plot draws one set: say which with --name, one of {', '.join(names[:20])}")
    return list(names)


def _check(chosen: _Options, name: str | None) -> SetReport:
    from facedata.features.check import CheckOptions, check_feature_set, check_matrix

    how = CheckOptions(chosen.dim, chosen.k, chosen.sample)
    title = name or os.path.basename(chosen.path)

    def watch(what: str) -> Any:
        return show_bytes(f"{title}: {what}", quiet=chosen.quiet)

    if name is None:
        return check_matrix(chosen.path, how, watch=watch)
    return check_feature_set(chosen.path, name, how, watch=watch)


def _draw(chosen: _Options, report: SetReport) -> bool:
    if chosen.plot is None:
        return False
    from facedata.features.plots import plot_report

    drawn = plot_report(chosen.plot, report, overwrite=chosen.overwrite)
    if not drawn:
        _log.warning("%s: not written: of %s there is nothing to draw", chosen.plot, report.name)
    return drawn


def _end(chosen: _Options, reports: list[SetReport], drawn: bool) -> int:
    good = all(report.good and not (chosen.strict and report.findings) for report in reports)
    if chosen.as_json:
        facts = [report.facts() for report in reports]
        options.print_json({"good": good, "plot": chosen.plot if drawn else None, "sets": facts})
    elif drawn and chosen.plot is not None:
        click.echo(f"plot: {shown_path(chosen.plot)}")
    return 0 if good else 1


def _show(report: SetReport) -> None:
    wrong = sum(finding.wrong for finding in report.findings)
    notes = len(report.findings) - wrong
    verdict = "good" if not wrong else f"{counted(wrong, 'thing')} wrong"
    verdict += f", {counted(notes, 'note')}" if notes else ""
    click.echo(f"{report.name}: {verdict}")
    for line in _figures(report):
        click.echo(f"  {line}")
    for finding in report.findings:
        click.echo(finding.line())


def _figures(report: SetReport) -> list[str]:
    lines = []
    if report.rows is not None and report.dimensions is not None:
        lines.append(f"{counted(report.rows, 'row')} of {counted(report.dimensions, 'value')}")
    if report.norms is not None:
        norms = report.norms
        lines.append(
            f"norms: {norms.smallest:.4g} to {norms.largest:.4g}, mean {norms.mean:.4g}; "
            f"{100 * norms.unit:.1f} % of unit length"
        )
    if report.classes is not None:
        lines.append(_classes(report))
    lines += [
        f"neighbours: {shown_path(one.path)}: k {one.k:,}, {one.dtype}, layout of {one.layout}"
        for one in report.neighbours
        if one.layout
    ]
    return lines + _quality(report)


def _classes(report: SetReport) -> str:
    sizes = report.classes
    assert sizes is not None
    if not sizes.classes:
        return f"labels: none; {counted(sizes.unlabelled, 'row')} unlabelled"
    spread = f"{sizes.smallest:,} to {sizes.largest:,} rows, median {sizes.median:,.0f}, {sizes.singletons:,} of one"
    unlabelled = f"; {counted(sizes.unlabelled, 'row')} unlabelled" if sizes.unlabelled else ""
    return f"labels: {counted(sizes.classes, 'class', 'classes')} of {spread}{unlabelled}"


def _quality(report: SetReport) -> list[str]:
    lines = []
    share = report.same_label
    if share is not None:
        lines.append(
            f"same label: {100 * share.all:.1f} % of {counted(share.neighbours, 'neighbour')} (at most "
            f"{100 * share.possible:.1f} % with these classes), {100 * share.nearest:.1f} % of the nearest; "
            f"from {shown_path(share.source) if os.sep in share.source else share.source}"
        )
    for words, one in (("the same label", report.same), ("different labels", report.other)):
        if one is not None:
            lines.append(
                f"similarity: {one.mean:.3f} with {words} (90 % lie from {one.low:.3f} to {one.high:.3f}; "
                f"{counted(one.pairs, 'pair')})"
            )
    return lines
