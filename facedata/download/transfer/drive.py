"""Find the file of a Google Drive link; gdown reads the pages that Google shows first."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from http.cookiejar import LoadError, MozillaCookieJar

from facedata.download.transfer.client import Session
from facedata.download.transfer.pages import plain_line
from facedata.download.transfer.retry import LinkError

__all__ = ["drive_url", "explain_drive_page"]

_PAGES = 3  # before the file: usually one, which asks to confirm that a large file was not checked for viruses
_LARGEST_PAGE = 1 << 20
_COOKIES = "~/.cache/gdown/cookies.txt"  # a Google login that the user gave to gdown
_BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
_NOT_PUBLIC = (
    "Google Drive gives no public link to this file: it was removed, is not shared with everyone, or was requested too "
    "often; a browser shows which"
)


def drive_url(session: Session, identity: str) -> str:
    """The URL that gives a file of Google Drive, for a while.

    Parameters
    ----------
    session : Session
    identity : str
        The id of the file, from its link.

    Raises
    ------
    LinkError
        If Google Drive does not give the file.
    TransientError
        If Google Drive does not answer.
    """
    from gdown.download import get_url_from_gdrive_confirmation
    from gdown.exceptions import FileURLRetrievalError

    if not re.fullmatch(r"[-\w]{8,200}", identity, re.ASCII):
        raise LinkError(f"'{plain_line(identity)}' is not the id of a file on Google Drive")
    session.headers["User-Agent"] = _BROWSER  # other programs get other pages
    cookies = MozillaCookieJar(os.path.expanduser(_COOKIES))
    with suppress(OSError, LoadError, UnicodeError):
        cookies.load(ignore_discard=True, ignore_expires=True)
        for cookie in cookies:
            cookie.expires = cookie.expires or None  # browsers export 0 for a cookie that lasts as long as a session
        session.cookies.update(cookies)
    url = f"https://drive.google.com/uc?id={identity}"
    for _ in range(_PAGES):
        with session.ask(url) as response:
            if response.is_attachment:
                return url
            if response.status not in (401, 403, 404):
                response.raise_for_status()
            page = response.read_all(_LARGEST_PAGE).decode(errors="replace")
        try:
            url = get_url_from_gdrive_confirmation(page)
        except FileURLRetrievalError as error:
            raise _refusal(str(error)) from error
        except (KeyError, AssertionError) as error:
            raise LinkError(f"Google Drive sent a page that gdown does not understand ({error!r})") from error
        if "confirm=" in url:
            return url
    raise LinkError("Google Drive shows one page after another instead of the file")


def _refusal(text: str) -> LinkError:
    """What an error of gdown means."""
    if "cannot retrieve the public link" in text.lower():
        return LinkError(_NOT_PUBLIC)
    return explain_drive_page(text) or LinkError(f"Google Drive refuses it: {plain_line(text)}")


def explain_drive_page(text: str) -> LinkError | None:
    """The error for a page of Google Drive that says that a quota is exceeded; None for any other page."""
    if "too many users" in text.lower() or "quota" in text.lower():
        return LinkError(
            "Google Drive's download quota for this file is exceeded; try again in 24 hours, or download it in a "
            "browser where you are signed in to Google"
        )
    return None
