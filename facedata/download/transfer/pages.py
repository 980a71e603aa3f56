"""Telling a web page from the file that was asked for."""

from __future__ import annotations

import html
import re
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

__all__ = ["is_page_name", "page_instead_of_file", "plain_line", "shown_url", "web_page_title"]

_LOOK_AT = 1 << 16
_LONGEST = 120
_PREAMBLE = re.compile(rb"(?:\s+|\xef\xbb\xbf|<!--.*?-->|<\?xml[^>]*\?>)+", re.DOTALL)
_OPENING = re.compile(rb"<(?:!doctype\s+html|html|head|title|meta|script|body)[\s>/]", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]{0,200}>(.*?)(?:</title|\Z)", re.IGNORECASE | re.DOTALL)


def web_page_title(head: bytes) -> str | None:
    """The title of the web page that begins with these bytes; empty where it has none, None where it is no web page.

    Parameters
    ----------
    head : bytes
        The beginning of a file; a few KB are enough, and no more than 64 KiB are looked at.
    """
    head = head[:_LOOK_AT]
    preamble = _PREAMBLE.match(head)
    if not _OPENING.match(head, preamble.end() if preamble else 0):
        return None
    return _title(head)


def page_instead_of_file(name: str, content_type: str, head: bytes) -> str | None:
    """The title of the web page that came instead of the file `name`, or None where none did.

    A file with NUL bytes at its beginning is none, whatever the server calls it.
    """
    if is_page_name(name):
        return None
    title = web_page_title(head)
    if title is None and content_type.partition(";")[0].strip().lower() == "text/html" and b"\0" not in head[:1024]:
        return _title(head[:_LOOK_AT])
    return title


def is_page_name(name: str) -> bool:
    """Whether a file of this name should be a web page."""
    return name.lower().endswith((".html", ".htm", ".xhtml"))


def plain_line(text: str, longest: int = _LONGEST) -> str:
    """What a stranger wrote, as one line that is safe on a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def shown_url(url: str) -> str:
    """A URL as it may be shown and recorded: without a password in it."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain_line(url, 500)


def _title(head: bytes) -> str:
    match = _TITLE.search(head)
    return plain_line(html.unescape(match[1].decode(errors="replace"))) if match else ""
