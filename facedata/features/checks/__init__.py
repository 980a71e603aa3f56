"""The checks of a feature set, one module a subject; `facedata.features.checking` puts them together."""
