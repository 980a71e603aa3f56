"""A picture of a feature set: its norms, the sizes of its classes, and how well similarity tells labels apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from facedata.errors import MissingExtraError, OptionError, OutputExistsError, output_error
from facedata.features.checks.findings import counted
from facedata.files import atomic_writer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from facedata.features.checking import SetReport

__all__ = ["check_plot_name", "plot_report"]

_SAME, _OTHER = "#2a6fbb", "#d9762b"  # told apart by all kinds of colour vision, and in grey
_PLAIN = "#4a6b85"
_INK, _FAINT = "#333333", "#dddddd"
_BINS = 61  # odd: the middle of the axis is the middle of a bar
_CLASS_BINS = 24
_NARROWEST = 0.02  # of an axis of norms: rounding must not fill the picture
_WITHOUT_TIME: dict[str, dict[str, Any]] = {
    ".png": {"Software": None},
    ".pdf": {"Creator": None, "Producer": None, "CreationDate": None},
    ".svg": {"Creator": None, "Date": None},
}
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "svg.hashsalt": "facedata",  # else ids in an SVG are random
}


def check_plot_name(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a plot that could not be written, before there is something to draw.

    Raises
    ------
    OptionError
        Where the name ends in none of ``.png``, ``.pdf`` and ``.svg``.
    OutputExistsError
        Where the file is there, and `overwrite` is false.
    MissingExtraError
        Where matplotlib is not installed.
    OutputError
        Where its folder is not there.
    """
    name = os.fspath(path)
    if os.path.splitext(name)[1].lower() not in _WITHOUT_TIME:
        raise OptionError(f"--plot {name}: expected a name that ends in {', '.join(_WITHOUT_TIME)}")
    if os.path.lexists(name) and not overwrite:
        raise OutputExistsError(f"{name}: is there already; name another, or add --overwrite")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise output_error(FileNotFoundError(2, "there is no such folder"), folder)
    _import_figure()


def plot_report(path: str | os.PathLike[str], report: SetReport, *, overwrite: bool = False) -> bool:
    """Draw a set as PNG, PDF or SVG, told from the name; the same set gives the same bytes.

    Parameters
    ----------
    path : path
    report : SetReport
        With what can be drawn in it.
    overwrite : bool
        Whether a file of this name may be replaced.

    Returns
    -------
    bool
        Whether there was something to draw; else nothing is written.

    Raises
    ------
    OptionError, OutputExistsError, MissingExtraError, OutputError
        As `check_plot_name`.
    """
    check_plot_name(path, overwrite=overwrite)
    panels = _panels(report)
    if not panels:
        return False
    from matplotlib import style

    name = os.fspath(path)
    ending = os.path.splitext(name)[1].lower()
    with style.context(["default", _STYLE]):
        figure = _figure(report, panels)
        try:
            with atomic_writer(name) as file:
                figure.savefig(file, format=ending[1:], metadata=_WITHOUT_TIME[ending])
        except OSError as error:
            raise output_error(error, name) from error
    return True


def _import_figure() -> type[Figure]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("--plot", "report", "it draws with matplotlib") from error
    return Figure


def _panels(report: SetReport) -> list[Callable[[Axes, SetReport], None]]:
    """What there is to draw."""
    drawable = report.drawable
    if drawable is None:
        return []
    panels: list[Callable[[Axes, SetReport], None]] = []
    if len(drawable.norms):
        panels.append(_norms)
    if len(drawable.class_sizes):
        panels.append(_class_sizes)
    if drawable.pairs is not None and len(drawable.pairs.same) + len(drawable.pairs.other):
        panels.append(_similarity)
    return panels


def _figure(report: SetReport, panels: list[Callable[[Axes, SetReport], None]]) -> Figure:
    """Figures know nothing of windows: without pyplot they are drawn in memory."""
    figure = _import_figure()(figsize=(4.4 * len(panels), 3.8), dpi=120, layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for one, panel in zip(axes, panels, strict=True):
        one.grid(axis="y", color=_FAINT, linewidth=0.6)
        one.set_axisbelow(True)
        one.tick_params(colors=_INK)
        panel(one, report)
    name = "".join(letter if " " <= letter <= "~" else "?" for letter in report.name[:60])  # fonts lack many
    figure.suptitle(_summary(name, report), parse_math=False, fontsize=10.5, color=_INK)
    return figure


def _summary(name: str, report: SetReport) -> str:
    words = f"{name}: {counted(report.rows or 0, 'row')} of {report.dimensions or 0:,} values"
    share = report.same_label
    if share is None:
        return words
    return (
        f"{words}; {100 * share.all:.1f} % of {counted(share.neighbours, 'neighbour')} have the same label, "
        f"{100 * share.nearest:.1f} % of the nearest"
    )


def _norms(axes: Axes, report: SetReport) -> None:
    assert report.drawable is not None
    norms = report.drawable.norms
    low, high = float(norms.min()), float(norms.max())
    if high - low < _NARROWEST * high:
        middle = (low + high) / 2
        low, high = middle - _NARROWEST * high, middle + _NARROWEST * high
    axes.hist(norms, bins=_BINS, range=(low, high), color=_PLAIN)
    axes.set(xlabel="length of a row", ylabel="rows")
    _finish(axes, "Norms", "" if report.norms is None else f"{100 * report.norms.unit:.1f} % of unit length")


def _class_sizes(axes: Axes, report: SetReport) -> None:
    assert report.drawable is not None
    sizes = report.drawable.class_sizes
    most = int(sizes.max())
    wide = most > 20
    edges = np.unique(np.round(np.geomspace(1, most + 1, _CLASS_BINS))) if wide else np.arange(1, most + 2)
    axes.hist(sizes, bins=(edges - 0.5).tolist(), color=_PLAIN)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xticks(range(1, most + 1, -(-most // 10)))
    axes.set(xlabel="rows of a class", ylabel="classes")
    axes.set_xlim(0.5, most + 0.5)
    words = f"{counted(len(sizes), 'class', 'classes')}, median {np.median(sizes):,.0f}, largest {most:,}"
    _finish(axes, "Class sizes", words)


def _similarity(axes: Axes, report: SetReport) -> None:
    assert report.drawable is not None
    assert report.drawable.pairs is not None
    pairs = report.drawable.pairs
    both = np.concatenate([pairs.same, pairs.other])
    low, high = min(float(both.min()), 0.0), 1.0
    for label, cosines, colour in (("same label", pairs.same, _SAME), ("other labels", pairs.other, _OTHER)):
        if len(cosines):
            weights = np.full(len(cosines), 100 / len(cosines))
            drawn: dict[str, Any] = {"bins": _BINS, "range": (low, high), "weights": weights, "color": colour}
            axes.hist(cosines, histtype="stepfilled", alpha=0.35, label=label, **drawn)
            axes.hist(cosines, histtype="step", linewidth=1.3, **drawn)
    axes.set(xlabel="cosine", ylabel="% of pairs")
    axes.legend(frameon=False, loc="best")
    _finish(axes, "Similarity of pairs", f"{counted(len(pairs.same), 'pair')} and {len(pairs.other):,}")


def _finish(axes: Axes, title: str, words: str) -> None:
    """Titles, and whole numbers on the vertical axis."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    axes.set_title(words, loc="right", fontsize=8, color=_INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
