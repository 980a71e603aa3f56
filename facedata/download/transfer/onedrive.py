"""Find the file of a OneDrive share link, of an organisation or of a person."""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from facedata.download.transfer.client import Response, Session
from facedata.download.transfer.retry import LinkError

__all__ = ["onedrive_url"]

# What OneDrive's own web page uses. None of this is documented, and it has changed before: up to 2024,
# api.onedrive.com answered without a token.
_TOKENS = "https://api-badgerp.svc.ms/v1.0/token"
_SHARES = "https://my.microsoftpersonalcontent.com/_api/v2.0/shares"
_APPLICATION = "5cbed6ac-a083-4e14-b191-b4ba07653de2"
_LARGEST = 1 << 20


def onedrive_url(session: Session, address: str) -> str:
    """The URL that gives the file of a share link, for about an hour.

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
    token = _json(session.ask(_TOKENS, method="POST", json={"appId": _APPLICATION}), "a token")
    # the API names a share by its encoded link; the URL of a link that was opened in a browser contains that name
    encoded = parse_qs(parts.query).get("redeem", [""])[0] or base64.urlsafe_b64encode(address.encode()).decode()
    headers = {
        "Authorization": f"Badger {token.get('token', '')}",
        "Prefer": "autoredeem",
        "Accept": "application/json",
    }
    item = _json(session.ask(f"{_SHARES}/u!{encoded.rstrip('=')}/driveitem", headers), "the file")
    if "folder" in item:
        raise LinkError("the link leads to a folder on OneDrive, not to a file")
    url = item.get("@content.downloadUrl")
    if not isinstance(url, str) or not url.startswith("https://"):
        raise LinkError("OneDrive does not say where the file is; it may require a login, as in a browser")
    return url


def _json(response: Response, what: str) -> dict[str, Any]:
    with response:
        if response.status in (400, 401, 403):
            raise LinkError(f"OneDrive requires a login before it gives {what} ({response.status}), as in a browser")
        response.raise_for_status()
        body = response.read_all(_LARGEST)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LinkError(f"OneDrive sent an unknown answer instead of {what}")
    return value
