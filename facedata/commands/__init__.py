"""One module per command: options in, one call of the library, a summary out."""
