"""The checks of a feature set, one module a subject; `facedata.features.check` puts them together."""
