from __future__ import annotations

import threading
from typing import Any

import pytest
from job_tasks import answer

from facedata.errors import InterruptedJobError, ModelError
from facedata.jobs.isolated import run_isolated
from facedata.jobs.signals import StopRequest


def run(kind: str, *, seconds: float = 60.0, memory: int | None = None, stop: StopRequest | None = None) -> Any:
    stop = StopRequest() if stop is None else stop
    return run_isolated(answer, {"kind": kind}, path="net.onnx", seconds=seconds, memory=memory, stop=stop)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("abort", "cannot be used: the process that tried it ended with the signal SIGABRT"),
        ("exit", r"cannot be used: the process that tried it ended with status 3 \(out of cheese\)"),
        ("allocate", "needs more memory than is available"),
        ("refuse", "is not a model"),
        ("sleep", "is not ready after 0 seconds"),
    ],
)
def test_failures_name_the_file(kind: str, reason: str) -> None:
    with pytest.raises(ModelError, match=f"net.onnx: {reason}"):
        run(kind, seconds=0.3 if kind == "sleep" else 60.0, memory=8 << 30)


def test_the_result_or_a_missing_library_comes_back() -> None:
    assert run("nothing") == {"kind": "nothing"}
    with pytest.raises(ImportError, match=r"libcudart\.so is missing"):
        run("import")


def test_a_stop_ends_the_call() -> None:
    stop = StopRequest()
    stop.signal_name = "SIGTERM"
    timer = threading.Timer(0.3, lambda: setattr(stop, "count", 1))
    timer.start()
    with pytest.raises(InterruptedJobError, match="stopped by SIGTERM; run the same command again"):
        run("sleep", stop=stop)
    timer.join()
