"""Faces aligned to a template: landmarks, the similarity transform, cropping, detectors."""
