"""One module per format, and `convert` that moves samples from any source to any sink."""
