"""A limit on memory: it is kept, the highest of several holds, and nothing of it is left."""

from __future__ import annotations

import resource
import threading

import numpy as np
import pytest

from facedata.jobs.machine import limited_memory


@pytest.mark.skipif("not __import__('os').path.exists('/proc/self/statm')", reason="this system has no such limit")
def test_memory_is_refused_above_the_highest_limit_in_force() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with limited_memory(1 << 26):
        with pytest.raises(MemoryError):
            np.ones(1 << 28, np.uint8)
        inside, leave = threading.Event(), threading.Event()

        def other() -> None:
            with limited_memory(1 << 30):
                inside.set()
                leave.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(10)
        np.ones(1 << 28, np.uint8)
        leave.set()
        thread.join()
        with pytest.raises(MemoryError):
            np.ones(1 << 28, np.uint8)
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    np.ones(1 << 28, np.uint8)
