"""Find the file of a share link: of Google Drive, whose pages gdown reads, or of OneDrive."""

from __future__ import annotations

import base64
import json
import os
import re
from contextlib import suppress
from http.cookiejar import LoadError, MozillaCookieJar
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from facedata.download.transfer.client import Response, Session
from facedata.download.transfer.options import LinkError
from facedata.text import plain_line

__all__ = ["drive_url", "onedrive_url", "quota_error"]

_LARGEST_ANSWER = 1 << 20
_DRIVE_PAGES = 3  # before the file: usually one, which asks to confirm that a large file was not checked for viruses
_DRIVE_COOKIES = "~/.cache/gdown/cookies.txt"  # a Google login that the user gave to gdown
_BROWSER = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"

# What OneDrive's own web page uses. None of this is documented, and it has changed before: up to 2024,
# api.onedrive.com answered without a token.
_ONEDRIVE_TOKENS = "https://api-badgerp.svc.ms/v1.0/token"
_ONEDRIVE_SHARES = "https://my.microsoftpersonalcontent.com/_api/v2.0/shares"
_ONEDRIVE_APPLICATION = "5cbed6ac-a083-4e14-b191-b4ba07653de2"


def drive_url(session: Session, identity: str) -> str:
    """The URL that gives the file of Google Drive with this id, for a while.

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
    cookies = MozillaCookieJar(os.path.expanduser(_DRIVE_COOKIES))
    with suppress(OSError, LoadError, UnicodeError):
        cookies.load(ignore_discard=True, ignore_expires=True)
        for cookie in cookies:
            cookie.expires = cookie.expires or None  # browsers export 0 for a cookie that lasts as long as a session
        session.cookies.update(cookies)
    url = f"https://drive.google.com/uc?id={identity}"
    for _ in range(_DRIVE_PAGES):
        with session.ask(url) as response:
            if response.is_attachment:
                return url
            if response.status not in (401, 403, 404):
                response.raise_for_status()
            page = response.read_all(_LARGEST_ANSWER).decode(errors="replace")
        try:
            url = get_url_from_gdrive_confirmation(page)
        except FileURLRetrievalError as error:
            if "cannot retrieve the public link" in str(error).lower():
                raise LinkError(
                    "Google Drive gives no public link to this file: it was removed, is not shared with everyone, or "
                    "was requested too often; a browser shows which"
                ) from error
            refusal = LinkError(f"Google Drive refuses it: {plain_line(str(error))}")
            raise quota_error(str(error)) or refusal from error
        except (KeyError, AssertionError) as error:
            raise LinkError(f"Google Drive sent a page that gdown does not understand ({error!r})") from error
        if "confirm=" in url:
            return url
    raise LinkError("Google Drive shows one page after another instead of the file")


def quota_error(text: str) -> LinkError | None:
    """The error for a page of Google Drive that says that a quota is exceeded; None for any other page."""
    if "too many users" in text.lower() or "quota" in text.lower():
        return LinkError(
            "Google Drive's download quota for this file is exceeded; try again in 24 hours, or download it in a "
            "browser where you are signed in to Google"
        )
    return None


def onedrive_url(session: Session, address: str) -> str:
    """The URL that gives the file of a share link of an organisation or a person, for about an hour.

    Raises
    ------
    LinkError
        If OneDrive does not give the URL.
    TransientError
        If OneDrive does not answer.
    """
    parts = urlsplit(address)
    if (parts.hostname or "").lower().endswith("sharepoint.com"):
        # an organisation: with this option the link gives the file instead of a page about it
        query = [(name, value) for name, value in parse_qsl(parts.query) if name != "download"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("download", "1")])))
    answer = session.ask(_ONEDRIVE_TOKENS, method="POST", json={"appId": _ONEDRIVE_APPLICATION})
    token = _read_json(answer, "a token").get("token", "")
    # the API names a share by its encoded link; the URL of a link that was opened in a browser contains that name
    encoded = parse_qs(parts.query).get("redeem", [""])[0] or base64.urlsafe_b64encode(address.encode()).decode()
    headers = {"Authorization": f"Badger {token}", "Prefer": "autoredeem", "Accept": "application/json"}
    answer = session.ask(f"{_ONEDRIVE_SHARES}/u!{encoded.rstrip('=')}/driveitem", headers)
    item = _read_json(answer, "the file")
    if "folder" in item:
        raise LinkError("the link leads to a folder on OneDrive, not to a file")
    url = item.get("@content.downloadUrl")
    if not isinstance(url, str) or not url.startswith("https://"):
        raise LinkError("OneDrive does not say where the file is; it may require a login, as in a browser")
    return url


def _read_json(response: Response, what: str) -> dict[str, Any]:
    with response:
        if response.status in (400, 401, 403):
            raise LinkError(f"OneDrive requires a login before it gives {what} ({response.status}), as in a browser")
        response.raise_for_status()
        body = response.read_all(_LARGEST_ANSWER)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LinkError(f"OneDrive sent an unknown answer instead of {what}")
    return value
