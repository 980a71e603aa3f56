"""Asking a process of its own: for what starts threads, or may end the process that does it.

The parent goes on to fork workers, so it must not start the threads of a library; and a file made to do harm, or merely
broken, can end the process that loads it, or never let it go.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from facedata.errors import FacedataError, InputError, InterruptedJobError, ModelError, OptionError
from facedata.jobs.signals import StopRequest

__all__ = ["Limits", "answer", "ask"]

Question = Mapping[str, Any]
Answer = dict[str, Any]

_ERRORS: Mapping[str, type[FacedataError]] = {kind.__name__: kind for kind in (ModelError, OptionError, InputError)}
_SHOWN = 500  # characters of what a process said last
_TICK = 0.1
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Limits:
    """What the process may take.

    Attributes
    ----------
    seconds : float
    memory : int, optional
        Bytes of address space; None for no limit: CUDA reserves addresses without end.
    """

    seconds: float
    memory: int | None = None


def ask(program: str, question: Question, *, path: str, seconds: float, stop: StopRequest) -> Answer:
    """What a Python program says that calls `answer`.

    Parameters
    ----------
    program : str
        Its text.
    question : mapping
        JSON values.
    path : str
        The model file that this is about, for messages.
    seconds : float
        How long it may take.
    stop : StopRequest
        Ends it.

    Raises
    ------
    ModelError
        Where it does not answer; and whatever error of facedata it met.
    ImportError
        Where it lacks a library.
    InterruptedJobError
        Where it was asked to stop.
    """
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is for us
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be tried: {error.strerror}") from error
    with process:
        try:
            stdout, stderr = _conversation(process, json.dumps(question).encode(), path, seconds, stop)
        finally:
            process.kill()
    return _checked(_parsed(process.returncode, stdout, stderr, path))


def _conversation(
    process: subprocess.Popen[bytes], question: bytes, path: str, seconds: float, stop: StopRequest
) -> tuple[bytes, bytes]:
    """What the process says in the end, if it is not given up before."""
    deadline = time.monotonic() + seconds
    told: bytes | None = question
    while True:
        try:
            return process.communicate(told, timeout=_TICK)
        except subprocess.TimeoutExpired:
            told = None  # what was not taken yet is still sent
            if stop:
                name = stop.signal_name or "request"
                raise InterruptedJobError(f"stopped by {name}: run the same command again to go on") from None
            if time.monotonic() > deadline:
                raise ModelError(f"{path}: not ready after {seconds:.0f} seconds: it was given up") from None


def _parsed(status: int, stdout: bytes, stderr: bytes, path: str) -> Answer:
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(stdout.splitlines()[-1])
        if status == 0 and isinstance(found, dict):
            return found
    end = _ending(status) + _last_words(stderr)
    raise ModelError(f"{path}: cannot be used: the process that tried it ended with {end}")


def _checked(found: Answer) -> Answer:
    if "missing" in found:
        raise ImportError(str(found["missing"])[:_SHOWN])
    if "error" in found:
        raise _ERRORS.get(found["error"], InputError)(str(found["message"]))
    return found


def _ending(status: int) -> str:
    if status >= 0:
        return f"status {status}"
    with contextlib.suppress(ValueError):
        return f"the signal {signal.Signals(-status).name}"
    return f"the signal {-status}"


def _last_words(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return f" ({lines[-1][:_SHOWN]})" if lines else ""


def _environment() -> dict[str, str]:
    """The same modules from the same places, and no threads that are not needed."""
    paths = [path or os.getcwd() for path in sys.path]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}


def answer(reply: Callable[[Question], Answer], limits: Callable[[Question], Limits]) -> None:
    """What the process does: a question on its stdin, the answer as the last line of its stdout.

    Parameters
    ----------
    reply : callable
    limits : callable
        What the process may take for a question.
    """
    question = json.load(sys.stdin)
    _limit(limits(question))
    sys.stdout.write(f"\n{json.dumps(_reply(reply, question))}\n")


def _limit(limits: Limits) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # not to go on where the parent is killed
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = math.ceil(limits.seconds) + 1  # should nobody be left to give it up
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if limits.memory is not None:
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (limits.memory, most))


def _reply(reply: Callable[[Question], Answer], question: Question) -> Answer:
    try:
        return reply(question)
    except FacedataError as error:
        kind = next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), InputError.__name__)
        return {"error": kind, "message": str(error)}
    except ImportError as error:
        return {"missing": str(error)}
    except MemoryError:
        return {"error": ModelError.__name__, "message": f"{question['path']}: needs more memory than there is"}
