"""facedata: face-recognition and metric-learning datasets, from a link in a README to what training code opens."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from facedata.dataset import Sample, Sink, Source, create_dataset, open_dataset
    from facedata.errors import FacedataError, SampleError

__version__ = "0.1.0"

__all__ = [
    "FacedataError",
    "Sample",
    "SampleError",
    "Sink",
    "Source",
    "__version__",
    "create_dataset",
    "open_dataset",
]

_MODULES = {"FacedataError": "errors", "SampleError": "errors"}


def __getattr__(name: str) -> Any:
    """The library's names, imported when they are asked for: commands that need none of them start sooner."""
    if name not in __all__:
        raise AttributeError(f"module 'facedata' has no attribute '{name}'")
    return getattr(importlib.import_module(f"facedata.{_MODULES.get(name, 'dataset')}"), name)


def __dir__() -> list[str]:
    return __all__
