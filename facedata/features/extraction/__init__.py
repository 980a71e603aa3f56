"""Extract features: a job that runs an ONNX model over the images of any dataset and writes a feature set."""

from facedata.features.extraction.inputs import ModelOptions, Preprocessing
from facedata.features.extraction.job import (
    Extraction,
    ExtractionOptions,
    check_extraction,
    extract_features,
    plan_extraction,
    run_extraction,
)
from facedata.features.extraction.output import ON_ERROR

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
