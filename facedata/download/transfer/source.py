"""Where the bytes behind a link are."""

from __future__ import annotations

import base64
import json
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from facedata.download.links import Link
from facedata.download.transfer.http import Answer, Session
from facedata.download.transfer.retry import LinkError

__all__ = ["ONEDRIVE", "OneDriveService", "Source"]

_GOOD_FOR = 600.0
_LARGEST = 1 << 20


@dataclass(frozen=True)
class OneDriveService:
    """Where OneDrive's own web page gets a shared file from.

    None of this is documented, and it has changed before: up to 2024 ``api.onedrive.com`` answered without a token.

    Attributes
    ----------
    tokens : str
        Gives a token to anybody; good for links that are shared with everyone.
    shares : str
        Knows, for a token, where the file of a share is.
    application : str
        What the web page calls itself.
    """

    tokens: str = "https://api-badgerp.svc.ms/v1.0/token"
    shares: str = "https://my.microsoftpersonalcontent.com/_api/v2.0/shares"
    application: str = "5cbed6ac-a083-4e14-b191-b4ba07653de2"


ONEDRIVE = OneDriveService()


class Source:
    """The URL to ask for the bytes behind a link, the same for a while where it has to be asked for.

    Parameters
    ----------
    link : Link
    """

    def __init__(self, link: Link) -> None:
        self._link, self._lock = link, threading.Lock()
        self._known, self._until = "", 0.0

    def url(self, session: Session) -> str:
        """The URL, good for a request that is made now.

        Raises
        ------
        LinkError
            Where OneDrive does not say it.
        PassingError
            Where it does not answer.
        """
        if self._link.kind != "onedrive":
            return self._link.address
        host = (urlsplit(self._link.address).hostname or "").lower()
        if host.endswith("sharepoint.com"):
            return _with_download(self._link.address)
        with self._lock:
            if time.monotonic() >= self._until:
                self._known = _personal_url(session, self._link.address)
                self._until = time.monotonic() + _GOOD_FOR
            return self._known


def _with_download(address: str) -> str:
    """A share link of an organisation, so that it gives the file instead of a page about it."""
    parts = urlsplit(address)
    query = [(name, value) for name, value in parse_qsl(parts.query) if name != "download"]
    return urlunsplit(parts._replace(query=urlencode([*query, ("download", "1")])))


def _personal_url(session: Session, address: str) -> str:
    token = _json(session.ask(ONEDRIVE.tokens, method="POST", json={"appId": ONEDRIVE.application}), "a token")
    headers = {
        "Authorization": f"Badger {token.get('token', '')}",
        "Prefer": "autoredeem",
        "Accept": "application/json",
    }
    item = _json(session.ask(f"{ONEDRIVE.shares}/{_share_id(address)}/driveitem", headers), "the file")
    url = item.get("@content.downloadUrl")
    if "folder" in item:
        raise LinkError("the link is of a folder on OneDrive, not of a file")
    if not isinstance(url, str) or not url.startswith("https://"):
        raise LinkError("OneDrive does not say where the file is; it may want a login, which a browser has")
    return url


def _share_id(address: str) -> str:
    """What the API calls a share: an encoding of its link, or what a link that was opened has in it."""
    redeem = parse_qs(urlsplit(address).query).get("redeem", [""])[0]
    encoded = redeem or base64.urlsafe_b64encode(address.encode()).decode()
    return f"u!{encoded.rstrip('=')}"


def _json(answer: Answer, what: str) -> dict[str, Any]:
    with answer:
        if answer.status in (400, 401, 403):
            raise LinkError(f"OneDrive wants a login before it gives {what} ({answer.status}); a browser has one")
        answer.refuse_errors()
        body = answer.read_all(_LARGEST)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LinkError(f"OneDrive answers in a way that is not known when asked for {what}")
    return value
