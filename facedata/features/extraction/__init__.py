"""Images of any dataset to embeddings: a job that runs an ONNX model over them and writes a feature set."""

from facedata.features.extraction.job import (
    Extraction,
    ExtractionOptions,
    check_extraction,
    extract_features,
    plan_extraction,
    run_extraction,
)
from facedata.features.extraction.output import ON_ERROR
from facedata.features.extraction.preprocessing import Preprocessing
from facedata.features.extraction.shapes import ModelOptions

__all__ = [
    "ON_ERROR",
    "Extraction",
    "ExtractionOptions",
    "ModelOptions",
    "Preprocessing",
    "check_extraction",
    "extract_features",
    "plan_extraction",
    "run_extraction",
]
