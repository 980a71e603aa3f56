"""One module per command: options in, one call of the library, a summary out."""

INTERRUPTED = 75
"""The exit status of a run that was interrupted: run again to resume (EX_TEMPFAIL of sysexits.h)."""
