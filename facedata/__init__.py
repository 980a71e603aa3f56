"""facedata: face-recognition and metric-learning datasets, from a link in a README to what training code opens."""

from __future__ import annotations

from facedata._version import __version__
from facedata.dataset import Sample, Sink, Source, create_dataset, open_dataset
from facedata.errors import FacedataError, SampleError

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
