"""Run a function in a subprocess of its own, for code that starts threads or may crash the process.

The parent forks workers later, so it must not start the threads of a library such as ONNX Runtime; and a corrupt or
hostile file can crash the process that loads it, or keep it busy forever.
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
from typing import Any

from facedata.errors import FacedataError, InputError, InterruptedJobError, ModelError, OptionError
from facedata.jobs.signals import StopRequest

__all__ = ["run_isolated", "serve"]

Function = Callable[[dict[str, Any]], dict[str, Any]]

_ERRORS = {kind.__name__: kind for kind in (ModelError, OptionError, InputError)}
_LONGEST_MESSAGE = 500  # characters of the last line that a crashed process wrote
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1


def run_isolated(
    function: Function,
    request: Mapping[str, Any],
    *,
    path: str,
    seconds: float,
    memory: int | None = None,
    stop: StopRequest,
) -> dict[str, Any]:
    """Call ``function(request)`` in a subprocess and return what it returns.

    Parameters
    ----------
    function, request
        A function at the top level of a module, which takes and returns a dictionary of JSON values.
    path : str
        The model file that the call is about, for messages.
    seconds : float
        How long the call may take.
    memory : int, optional
        Bytes of address space that the subprocess may use.
    stop : StopRequest
        Ends the call early.

    Raises
    ------
    ModelError
        If the subprocess crashes or takes too long.
    ModelError, OptionError, InputError, ImportError
        If the function raises it.
    InterruptedJobError
        If a stop was requested.
    """
    program = (
        f"from {function.__module__} import {function.__name__} as function\n"
        "from facedata.jobs.isolated import serve\n"
        "serve(function)"
    )
    modules = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
    environment = {**os.environ, "PYTHONPATH": modules, "PYTHONSAFEPATH": "1", "OPENBLAS_NUM_THREADS": "1"}
    call = {"request": dict(request), "path": path, "seconds": seconds, "memory": memory}
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent only, which ends the call in its own way
        )
    except OSError as error:
        raise InputError(f"{path}: cannot start a subprocess to try it: {error.strerror}") from error

    deadline = time.monotonic() + seconds
    unsent: bytes | None = json.dumps(call).encode()
    with process:
        try:
            while True:
                try:
                    stdout, stderr = process.communicate(unsent, timeout=_POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    unsent = None  # communicate() keeps what it has not sent yet
                if stop:
                    name = stop.signal_name or "request"
                    raise InterruptedJobError(f"stopped by {name}; run the same command again to resume")
                if time.monotonic() > deadline:
                    raise ModelError(f"{path}: is not ready after {seconds:.0f} seconds; stopped trying it")
        finally:
            process.kill()

    answer: Any = None
    with contextlib.suppress(ValueError, IndexError):
        answer = json.loads(stdout.splitlines()[-1])
    if process.returncode != 0 or not isinstance(answer, dict):
        ending = f"status {process.returncode}"
        if process.returncode < 0:
            ending = f"the signal {signal.Signals(-process.returncode).name}"
        lines = stderr.decode(errors="replace").strip().splitlines()
        said = f" ({lines[-1][:_LONGEST_MESSAGE]})" if lines else ""
        raise ModelError(f"{path}: cannot be used: the process that tried it ended with {ending}{said}")
    if "missing" in answer:
        raise ImportError(str(answer["missing"])[:_LONGEST_MESSAGE])
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["message"])
    return dict(answer["result"])


def serve(function: Function) -> None:
    """Answer one call of `run_isolated`: read it from stdin, write the answer as the last line of stdout."""
    call = json.load(sys.stdin)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # end when the parent is killed
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        seconds = math.ceil(call["seconds"]) + 1  # in case the parent cannot enforce the time limit
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        if call["memory"] is not None:
            _, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (call["memory"], most))
    answer: dict[str, Any]
    try:
        answer = {"result": function(call["request"])}
    except FacedataError as error:
        kind = next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), InputError.__name__)
        answer = {"error": kind, "message": str(error)}
    except ImportError as error:
        answer = {"missing": str(error)}
    except MemoryError:
        answer = {"error": ModelError.__name__, "message": f"{call['path']}: needs more memory than is available"}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
