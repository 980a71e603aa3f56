"""Whether an answer is what was asked for: the beginning of the file, or the rest of the very same one."""

from __future__ import annotations

from facedata.download.transfer.encoding import Decoded, find_encoding, gunzipped_start
from facedata.download.transfer.http import Answer
from facedata.download.transfer.job import FileJob
from facedata.download.transfer.pages import page_instead_of_file
from facedata.download.transfer.retry import LinkError, PassingError, StartOverError
from facedata.download.transfer.state import State

__all__ = ["accept_beginning", "accept_rest", "page_trouble"]

_HEAD = 4096


def accept_beginning(answer: Answer, job: FileJob) -> tuple[Answer | Decoded, int | None]:
    """Begin the half anew with an answer to a request for all of the file.

    Returns
    -------
    body : Answer or Decoded
    total : int or None
        Its size, where the server says it.

    Raises
    ------
    LinkError
        Where the answer is something else.
    DiskFullError
    """
    total = _whole_size(answer, job.request.size)
    if total == 0:
        head = b""
    else:
        head = answer.read_all(_HEAD)
        answer.push_back(head)
        if not head and not answer.delimited and job.request.size is None and job.request.digest is None:
            raise PassingError("the server sends nothing")  # the connection may have been cut within the head
    encoding = find_encoding(answer, head, job.request.path.name, job.request.size, other=job.other_encoding)
    body: Answer | Decoded = answer
    if encoding == "decode":
        body, total = Decoded(answer), None
        head = body.read(_HEAD)
        body.push_back(head)
    _refuse_page(answer, head, job)
    _refuse_size(total, job)
    _record(answer, job, total, encoding)
    return body, total


def _whole_size(answer: Answer, size: int | None) -> int | None:
    """The size of the file that the answer claims to hold whole; `size` is the published one."""
    if answer.status == 206:
        if answer.range is None or answer.range.first != 0:
            raise LinkError(f"the server sends {_shown_range(answer)} where all of the file was asked for")
        return answer.range.last + 1 if answer.range.total is None else answer.range.total
    if answer.status == 416 and (answer.unsatisfied_total == 0 or (answer.unsatisfied_total is None and size == 0)):
        return 0  # of an empty file no byte can be asked for
    if answer.status != 200:
        raise LinkError(f"the server answers {answer.status}, which holds no file")
    return answer.length


def _refuse_page(answer: Answer, head: bytes, job: FileJob) -> None:
    for beginning in (head, gunzipped_start(head) if answer.encoding else head):
        title = page_instead_of_file(job.request.path.name, answer.content_type, beginning)
        if title is not None:
            raise page_trouble(title)


def page_trouble(title: str) -> LinkError:
    """What to say where a web page came."""
    called = f', "{title}"' if title else ""
    return LinkError(f"the server gives a web page instead of the file{called}; nothing of it was kept", page=True)


def _refuse_size(total: int | None, job: FileJob) -> None:
    size = job.request.size
    if total is not None and size is not None and total != size:
        raise LinkError(f"the file there has {total:,} bytes, not the {size:,} that were published")


def _record(answer: Answer, job: FileJob, total: int | None, encoding: str) -> None:
    size = job.request.size if total is None else total
    if size is not None:
        job.around.disk.expect({job.request.path: size})
    provable = answer.etag or answer.last_modified or job.request.digest
    state = State(
        link=job.link_name,
        etag=answer.etag,
        last_modified=answer.last_modified,
        total=total,
        resumable=bool(provable and total is not None and answer.offers_ranges and encoding != "decode"),
        encoding="kept" if encoding == "kept" else None,
    )
    job.part.restart(state)


def accept_rest(answer: Answer, job: FileJob, position: int) -> None:
    """Accept an answer to a request for the bytes from `position` on.

    Raises
    ------
    StartOverError
        Where the file is not the one that the half is of, or the server gives no rest of it.
    LinkError
        Where it gives something else.
    """
    state = job.part.state
    if answer.status == 416:
        raise StartOverError(f"the file on the server has no byte {position:,} any more")
    if answer.status == 200:
        changed = _differs(answer, state)
        raise StartOverError(changed or "the server gives the file only from its beginning")
    if answer.status != 206 or answer.range is None or answer.range.first != position:
        raise LinkError(f"the server sends {_shown_range(answer)} where those from {position:,} on were asked for")
    changed = _differs(answer, state) if state.link == job.link_name else _other_size(answer, state)
    if changed:
        raise StartOverError(changed)
    if answer.encoding not in ("", "identity") and state.encoding != "kept":
        raise LinkError(f"the server sends the rest of the file encoded ({answer.encoding[:20]!r})")
    if state.link != job.link_name:
        job.part.adopt(job.link_name, answer.etag, answer.last_modified)


def _differs(answer: Answer, state: State) -> str:
    """How the file that is there now differs from the one that the half is of."""
    if answer.etag and state.etag and answer.etag != state.etag:
        return f"the file on the server has changed (its ETag was {state.etag}, and is {answer.etag})"
    if answer.last_modified and state.last_modified and answer.last_modified != state.last_modified:
        return f"the file on the server has changed ({state.last_modified} before, {answer.last_modified} now)"
    return _other_size(answer, state)


def _other_size(answer: Answer, state: State) -> str:
    total = answer.range.total if answer.range else answer.length
    if total is not None and state.total is not None and total != state.total:
        return f"the file on the server has changed (it had {state.total:,} bytes, and has {total:,})"
    return ""


def _shown_range(answer: Answer) -> str:
    if answer.status != 206:
        return f"an answer {answer.status}"
    return f"bytes {answer.range.first:,} to {answer.range.last:,}" if answer.range else "no valid Content-Range"
