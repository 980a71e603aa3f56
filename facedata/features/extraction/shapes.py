"""What a model takes and gives, told from what ONNX Runtime says of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from facedata.errors import ModelError, OptionError
from facedata.features.extraction.preprocessing import NCHW, NHWC, Layout

__all__ = ["InputShape", "ModelOptions", "input_shape", "output_name"]

_CHANNELS = 3
_LARGEST_SIDE = 4096  # pixels
_LARGEST_BATCH = 4096
_LARGEST_INPUT = 1 << 30  # bytes of one batch
_FLOATS = {"tensor(float)": False, "tensor(float16)": True}


@dataclass(frozen=True)
class ModelOptions:
    """A model file, and what a user says of it.

    Attributes
    ----------
    path : str
        An ONNX file.
    device : {'cpu', 'cuda'}
    batch_size : int, optional
        Images at once; by default what the model was made for, or 32 (128 on a GPU).
    input_size : tuple of int, optional
        Height and width, where the model takes any.
    layout : {'nchw', 'nhwc'}, optional
        Where the model does not tell.
    output_name : str, optional
        Which output is the embedding, where there are several.
    """

    path: str
    device: str = "cpu"
    batch_size: int | None = None
    input_size: tuple[int, int] | None = None
    layout: str | None = None
    output_name: str | None = None

    def __post_init__(self) -> None:
        if self.device not in ("cpu", "cuda"):
            raise OptionError(f"'{self.device}' is no device: expected cpu or cuda")
        if self.batch_size is not None and not 1 <= self.batch_size <= _LARGEST_BATCH:
            raise OptionError(f"--batch-size {self.batch_size}: expected 1 to {_LARGEST_BATCH:,}")
        if self.layout not in (None, NCHW, NHWC):
            raise OptionError(f"--input-layout {self.layout}: there are nchw, nhwc")
        if self.input_size is not None and not all(1 <= side <= _LARGEST_SIDE for side in self.input_size):
            raise OptionError(f"--input-size {_shown(self.input_size)}: expected 1 to {_LARGEST_SIDE:,} pixels a side")


@dataclass(frozen=True)
class InputShape:
    """What a model takes.

    Attributes
    ----------
    name : str
        Of the input.
    layout : {'nchw', 'nhwc'}
    height, width : int
    batch : int
        Images at once.
    fixed : bool
        Whether it must be just as many each time.
    half : bool
        Whether it takes float16.
    """

    name: str
    layout: Layout
    height: int
    width: int
    batch: int
    fixed: bool
    half: bool

    def shape(self, images: int) -> tuple[int, int, int, int]:
        """Of an input of so many images."""
        if self.layout == NCHW:
            return images, _CHANNELS, self.height, self.width
        return images, self.height, self.width, _CHANNELS


def input_shape(inputs: Sequence[Any], options: ModelOptions, usual_batch: int) -> InputShape:
    """What the model takes, from its inputs as ONNX Runtime lists them and from what the user says.

    Raises
    ------
    ModelError
        Where images cannot be given to it; says what was found.
    OptionError
        Where the user says something else than the model, or has to say more.
    """
    path = options.path
    if len(inputs) != 1:
        raise ModelError(f"{path}: expected one input, the images; found {_listed(inputs) or 'none'}")
    one = inputs[0]
    if one.type not in _FLOATS:
        raise ModelError(f"{path}: expected an input of float32 or float16, found {_told(one)}")
    if len(one.shape) != 4:
        raise ModelError(f"{path}: expected an input of shape (N, 3, H, W) or (N, H, W, 3), found {_told(one)}")
    layout = _layout(one, options)
    sides = tuple(one.shape[2:4]) if layout == NCHW else tuple(one.shape[1:3])
    height, width = _size(sides, options)
    batch, fixed = _batch(one.shape[0], options, usual_batch)
    if 4 * _CHANNELS * batch * height * width > _LARGEST_INPUT:
        raise OptionError(f"{batch} images of {width} x {height} at once: give a smaller --batch-size")
    return InputShape(one.name, layout, height, width, batch, fixed, _FLOATS[one.type])


def _layout(one: Any, options: ModelOptions) -> Layout:
    """Where the three channels are."""
    places: tuple[tuple[Layout, int], ...] = ((NCHW, 1), (NHWC, 3))
    sure = [layout for layout, place in places if one.shape[place] == _CHANNELS]
    possible = [layout for layout, place in places if not _is_fixed(one.shape[place])]
    if options.layout is not None:
        fitting = [layout for layout in (*sure, *possible) if layout == options.layout]
    else:
        fitting = sure
    if len(fitting) == 1:
        return fitting[0]
    if not sure and not possible:
        raise ModelError(f"{options.path}: expected three channels, (N, 3, H, W) or (N, H, W, 3); found {_told(one)}")
    if options.layout is not None:
        raise OptionError(f"--input-layout {options.layout}: does not fit {options.path}, whose input is {_told(one)}")
    raise OptionError(
        f"{options.path}: {_told(one)} does not tell where the channels are; say --input-layout nchw or nhwc"
    )


def _size(sides: tuple[Any, ...], options: ModelOptions) -> tuple[int, int]:
    asked: Sequence[int | None] = options.input_size or (None, None)
    found = []
    for side, wanted in zip(sides, asked, strict=True):
        if not _is_fixed(side) and wanted is None:
            raise OptionError(f"{options.path}: takes images of any size; say --input-size, as 112, or 112x96 (H x W)")
        if _is_fixed(side) and wanted not in (None, side):
            raise OptionError(f"--input-size {_shown(asked)}: {options.path} takes {_shown(sides)}")
        found.append(side if wanted is None else wanted)
    height, width = found
    if max(height, width) > _LARGEST_SIDE:
        raise ModelError(f"{options.path}: expected at most {_LARGEST_SIDE:,} pixels a side, found {_shown(sides)}")
    return height, width


def _batch(found: Any, options: ModelOptions, usual: int) -> tuple[int, bool]:
    if not _is_fixed(found):
        return options.batch_size or usual, False
    if options.batch_size not in (None, found):
        raise OptionError(f"--batch-size {options.batch_size}: {options.path} takes {found} images at once, no other")
    if found > _LARGEST_BATCH:
        raise ModelError(f"{options.path}: expected at most {_LARGEST_BATCH:,} images at once, found {found:,}")
    return int(found), True


def output_name(outputs: Sequence[Any], options: ModelOptions) -> str:
    """The name of the output with the embeddings.

    Raises
    ------
    ModelError
        Where it has no output.
    OptionError
        Where there are several and the user did not choose, or chose none of them.
    """
    names = [one.name for one in outputs]
    if not names:
        raise ModelError(f"{options.path}: has no output")
    if options.output_name is None and len(names) == 1:
        return str(names[0])
    if options.output_name in names:
        return str(options.output_name)
    if options.output_name is None:
        raise OptionError(f"{options.path}: has several outputs, {_listed(outputs)}; say --output-name")
    raise OptionError(f"--output-name {options.output_name}: {options.path} has {_listed(outputs)}")


def _is_fixed(side: Any) -> bool:
    """Whether a dimension is a number; others have names, or nothing."""
    return isinstance(side, int) and side > 0


def _listed(ones: Sequence[Any]) -> str:
    shown = ", ".join(map(_told, ones[:8]))
    return f"{len(ones)}: {shown}" if len(ones) > 1 else shown


def _told(one: Any) -> str:
    kind = str(one.type).removeprefix("tensor(").removesuffix(")")
    shape = ", ".join("?" if side is None else str(side) for side in one.shape)
    return f"'{str(one.name)[:80]}' of {kind}, shape ({shape})"


def _shown(sides: Sequence[Any]) -> str:
    return "x".join("?" if side is None else str(side) for side in sides)
