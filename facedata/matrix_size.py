"""Whether a file has the size of a matrix of float32 without a header, and what it may be if it has another."""

from __future__ import annotations

__all__ = ["NPY_MAGIC", "VALUE_BYTES", "size_problem"]

VALUE_BYTES = 4
NPY_MAGIC = b"\x93NUMPY"
"""What a file written by ``np.save`` begins with."""

_USUAL_DIMENSIONS = (64, 128, 256, 512, 1024, 2048)
_NPY_HEADERS = (64, 80, 96, 112, 128)  # bytes; 128 since NumPy 1.14


def size_problem(size: int, dimensions: int, rows: int | None, head: bytes = b"") -> str | None:
    """What is wrong with the size of a matrix file, with a guess at the reason; None if it fits.

    Parameters
    ----------
    size : int
        Bytes.
    dimensions, rows : int
        Values in a row, and rows, if they are known.
    head : bytes
        The first 16 bytes of the file.
    """
    row = dimensions * VALUE_BYTES
    if head.startswith(NPY_MAGIC):
        return "begins with a NumPy header: it was saved by np.save; facedata pack-features removes the header"
    if rows is None:
        if size and size % row == 0:
            return None
        usual = [str(d) for d in _USUAL_DIMENSIONS if size and size % (d * VALUE_BYTES) == 0]
        guess = f"; it would fit with {' or '.join(usual[-2:])} dimensions" if usual else "; was it cut short?"
        guess = guess if size else ": the file is empty"
        return f"{size:,} bytes are not a whole number of rows of {dimensions:,} float32{guess}"
    expected = rows * row
    if size == expected:
        return None
    if size == 2 * expected:
        guess = ": twice that: is it float64?"
    elif 2 * size == expected:
        guess = ": half of that: is it float16?"
    elif size and rows and size % (rows * VALUE_BYTES) == 0 and abs(size - expected) != row:
        guess = f": it would fit with {size // (rows * VALUE_BYTES):,} dimensions"
    elif size - expected in _NPY_HEADERS and size - expected != row:
        guess = f": {size - expected} bytes too long: was it saved by np.save?"
    elif size % row == 0:
        found = size // row
        guess = f": it has {found:,} rows, {abs(found - rows):,} {'more' if found > rows else 'fewer'}"
    else:
        guess = ": was it cut short?" if size < expected else ": does it belong to another set?"
    return f"expected {expected:,} bytes for {rows:,} rows of {dimensions:,} float32, found {size:,}{guess}"
