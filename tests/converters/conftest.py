"""Hypothesis without a time limit for one example: other work on the machine must not fail a test."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("facedata", deadline=None)
settings.load_profile("facedata")
