"""A plot of a feature set: its norms, the sizes of its classes, and how well similarity separates labels."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from facedata.errors import MissingExtraError, OptionError, OutputExistsError, output_error
from facedata.files import StrPath, atomic_writer
from facedata.text import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from facedata.features.checks.report import SetReport

__all__ = ["check_plot_name", "plot_report"]

_SAME, _OTHER = "#2a6fbb", "#d9762b"  # distinct with all kinds of colour vision, and in grey
_PLAIN = "#4a6b85"
_INK, _FAINT = "#333333", "#dddddd"
_BINS = 61  # odd: the middle of the axis is the middle of a bar
_CLASS_BINS = 24
_NARROWEST = 0.02  # of an axis of norms: rounding errors must not fill the plot
_METADATA: dict[str, dict[str, Any]] = {  # without times and versions
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
    "svg.hashsalt": "facedata",  # otherwise the ids in an SVG are random
}


def check_plot_name(path: StrPath, *, overwrite: bool = False) -> None:
    """Refuse a plot that could not be written, before the work that it shows is done.

    Raises `OptionError` if the name does not end in ``.png``, ``.pdf`` or ``.svg``; `OutputExistsError` if the file
    exists, and `overwrite` is false; `MissingExtraError` if matplotlib is not installed; `OutputError` if its folder
    does not exist.
    """
    name = os.fspath(path)
    if os.path.splitext(name)[1].lower() not in _METADATA:
        raise OptionError(f"--plot {name}: expected a name that ends in {', '.join(_METADATA)}")
    if os.path.lexists(name) and not overwrite:
        raise OutputExistsError(f"{name}: already exists; choose another name, or add --overwrite")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise output_error(FileNotFoundError(2, "no such folder"), folder)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("--plot", "report", "it draws with matplotlib") from error


def plot_report(path: StrPath, report: SetReport, *, overwrite: bool = False) -> bool:
    """Draw a set as PNG, PDF or SVG, according to the name; the same set gives the same bytes.

    Returns whether there was something to draw; if not, nothing is written. Raises as `check_plot_name`.
    """
    check_plot_name(path, overwrite=overwrite)
    has_pairs = len(report.same_cosines) + len(report.other_cosines) > 0
    panels = [len(report.row_norms) > 0, len(report.class_sizes) > 0, has_pairs]
    if report.duplicates is None or not any(panels):  # without duplicates, the rows were not read
        return False
    from matplotlib import style
    from matplotlib.figure import Figure  # without pyplot, figures are drawn in memory, with no window

    name = os.fspath(path)
    extension = os.path.splitext(name)[1].lower()
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(4.4 * sum(panels), 3.8), dpi=120, layout="constrained")
        axes = iter(figure.subplots(1, sum(panels), squeeze=False)[0])
        if panels[0]:
            _draw_norms(next(axes), report)
        if panels[1]:
            _draw_class_sizes(next(axes), report)
        if panels[2]:
            _draw_similarity(next(axes), report)
        title = "".join(letter if " " <= letter <= "~" else "?" for letter in report.name[:60])  # fonts lack many
        title += f": {counted(report.rows or 0, 'row')} of {report.dimensions or 0:,} values"
        if (share := report.same_label) is not None:
            title += (
                f"; {100 * share.all:.1f} % of {counted(share.neighbours, 'neighbour')} have the same label, "
                f"{100 * share.nearest:.1f} % of the nearest"
            )
        figure.suptitle(title, parse_math=False, fontsize=10.5, color=_INK)
        try:
            with atomic_writer(name, tidy=True) as file:
                figure.savefig(file, format=extension[1:], metadata=_METADATA[extension])
        except OSError as error:
            raise output_error(error, name) from error
    return True


def _draw_norms(axes: Axes, report: SetReport) -> None:
    norms = report.row_norms
    low, high = float(norms.min()), float(norms.max())
    if high - low < _NARROWEST * high:
        middle = (low + high) / 2
        low, high = middle - _NARROWEST * high, middle + _NARROWEST * high
    axes.hist(norms, bins=_BINS, range=(low, high), color=_PLAIN)
    axes.set(xlabel="length of a row", ylabel="rows")
    _finish(axes, "Norms", "" if report.norms is None else f"{100 * report.norms.unit:.1f} % of unit length")


def _draw_class_sizes(axes: Axes, report: SetReport) -> None:
    sizes = report.class_sizes
    largest = int(sizes.max())
    wide = largest > 20
    edges = np.unique(np.round(np.geomspace(1, largest + 1, _CLASS_BINS))) if wide else np.arange(1, largest + 2)
    axes.hist(sizes, bins=(edges - 0.5).tolist(), color=_PLAIN)
    if wide:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    else:
        axes.set_xticks(range(1, largest + 1, -(-largest // 10)))
    axes.set(xlabel="rows of a class", ylabel="classes")
    axes.set_xlim(0.5, largest + 0.5)
    words = f"{counted(len(sizes), 'class', 'classes')}, median {np.median(sizes):,.0f}, largest {largest:,}"
    _finish(axes, "Class sizes", words)


def _draw_similarity(axes: Axes, report: SetReport) -> None:
    same, other = report.same_cosines, report.other_cosines
    low = min(float(np.concatenate([same, other]).min()), 0.0)
    for label, cosines, colour in (("same label", same, _SAME), ("other labels", other, _OTHER)):
        if len(cosines):
            weights = np.full(len(cosines), 100 / len(cosines))
            drawn: dict[str, Any] = {"bins": _BINS, "range": (low, 1.0), "weights": weights, "color": colour}
            axes.hist(cosines, histtype="stepfilled", alpha=0.35, label=label, **drawn)
            axes.hist(cosines, histtype="step", linewidth=1.3, **drawn)
    axes.set(xlabel="cosine", ylabel="% of pairs")
    axes.legend(frameon=False, loc="best")
    _finish(axes, "Similarity of pairs", f"{counted(len(same), 'pair')} and {len(other):,}")


def _finish(axes: Axes, title: str, words: str) -> None:
    """Add titles, a grid, and whole numbers on the vertical axis."""
    from matplotlib.ticker import MaxNLocator

    axes.grid(axis="y", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold", color=_INK)
    axes.set_title(words, loc="right", fontsize=8, color=_INK)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
