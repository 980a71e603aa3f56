"""How the help of a command looks: its options in sections, with headings and names in colour on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import click

__all__ = ["SECTIONS", "section_of", "write_options", "write_sections"]

SECTIONS = {
    "Options": "",
    "Labels and selection": "labels label labels-from min-images max-images relabel limit shuffle seed "
    "keep-undecodable unlabeled no-meta",
    "Where the faces are": "landmarks detector detector-size min-score min-size faces",
    "Pixels of the faces": "template size crop format quality max-pixels assume-aligned keep-landmarks",
    "Model": "model model-checksum device batch-size output-name input-size input-layout resize "
    "mean scale color flip normalize",
    "Search": "k method nlist nprobe ef memory",
    "Folders and lists": "layout list-separator",
    "Record sets": "style list label-array salvage rebuild-index backend",
    "LMDB": "datum keys kv single-file build-dir",
    "WebDataset and Parquet": "shard-size shard-samples landmark-column image-column label-column",
    "Files fetched by hand": "from-dir from-file",
    "Network": "connections timeout",
    "Job": "workers max-failures shard overwrite trust-input dry-run json quiet verbose",
}
"""Sections in the order of the help, and their options; all others are under "Options"."""

_WIDEST_NAME = 28


def write_options(context: click.Context, formatter: click.HelpFormatter) -> None:
    """Write the options of a command in their sections."""
    sections: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and isinstance(parameter, click.Option):
            name = record[0].replace("INTEGER RANGE", "N").replace("FLOAT RANGE", "X").replace("INTEGER", "N")
            sections[section_of(parameter)].append((name, record[1]))
    write_sections(formatter, sections)


def section_of(parameter: click.Parameter) -> str:
    """The section of an option."""
    long = next((name[2:] for name in parameter.opts if name.startswith("--")), "")
    return next((title for title, names in SECTIONS.items() if long in names.split()), "Options")


def write_sections(formatter: click.HelpFormatter, sections: Mapping[str, Sequence[tuple[str, str]]]) -> None:
    """Write sections of names and their descriptions, in columns that are aligned over all sections."""
    names = [name for records in sections.values() for name, _ in records]
    width = max((len(name) for name in names if len(name) <= _WIDEST_NAME), default=0)
    for title, records in sections.items():
        if records:
            with formatter.section(click.style(title, bold=True)):
                formatter.write_dl([(click.style(name.ljust(width), fg="cyan"), text) for name, text in records], width)
