"""Recognise a web page that was saved instead of a file, and show text of unknown origin safely."""

from __future__ import annotations

import html
import re
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

__all__ = ["page_instead_of_file", "plain_line", "shown_url", "web_page_title"]

_LARGEST_HEAD = 1 << 16
_PREAMBLE = re.compile(rb"(?:\s+|\xef\xbb\xbf|<!--.*?-->|<\?xml[^>]*\?>)*", re.DOTALL)
_OPENING = re.compile(rb"<(?:!doctype\s+html|html|head|title|meta|script|body)[\s>/]", re.IGNORECASE)
_TITLE = re.compile(rb"<title[^>]{0,200}>(.*?)(?:</title|\Z)", re.IGNORECASE | re.DOTALL)
_PAGE_NAMES = (".html", ".htm", ".xhtml")


def web_page_title(head: bytes) -> str | None:
    """The title of the web page that starts with these bytes; empty if it has none, None if this is not a web page.

    Parameters
    ----------
    head : bytes
        The first bytes of a file: a few KB are enough, and at most 64 KiB are read.
    """
    head = head[:_LARGEST_HEAD]
    preamble = _PREAMBLE.match(head)
    return _title(head) if preamble and _OPENING.match(head, preamble.end()) else None


def page_instead_of_file(name: str, content_type: str, head: bytes) -> str | None:
    """The title of a web page that the server sends instead of the file `name`, or None if it sends a file.

    If the first bytes contain NUL, it is a file, whatever the server's ``Content-Type`` says.
    """
    if name.lower().endswith(_PAGE_NAMES):
        return None
    title = web_page_title(head)
    if title is None and content_type.partition(";")[0].strip().lower() == "text/html" and b"\0" not in head[:1024]:
        return _title(head[:_LARGEST_HEAD])
    return title


def _title(head: bytes) -> str:
    match = _TITLE.search(head)
    return plain_line(html.unescape(match[1].decode(errors="replace"))) if match else ""


def plain_line(text: str, longest: int = 120) -> str:
    """Text of unknown origin as one line that is safe to print on a terminal."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


def shown_url(url: str) -> str:
    """A URL without user name and password, as it may be shown and recorded."""
    with suppress(ValueError):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return plain_line(url, 500)
