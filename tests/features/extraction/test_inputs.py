"""What a network takes, and how images become it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from features.extraction.conftest import cv2
from hypothesis import given, settings
from hypothesis import strategies as st

from facedata.errors import FacedataError, OptionError, RefusedSampleError
from facedata.features.extraction.inputs import Layout, ModelOptions, Preprocessing, input_shape

NUMBERS = st.floats(-300, 300, width=32).filter(lambda number: abs(number) > 0.01)
THREE = st.tuples(NUMBERS) | st.tuples(NUMBERS, NUMBERS, NUMBERS)


@settings(max_examples=25)
@given(THREE, THREE, st.sampled_from(["rgb", "bgr"]), st.sampled_from(["nchw", "nhwc"]), st.integers(0, 99))
def test_pixels_are_what_the_formula_says(
    mean: tuple[float, ...], scale: tuple[float, ...], color: str, layout: Layout, seed: int
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), np.uint8)
    into = np.empty((3, 5, 4) if layout == "nchw" else (5, 4, 3), np.float32)
    Preprocessing(mean, scale, color).fill(image, layout, into)
    channels = cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if color == "rgb" else image
    expected = (channels.astype(np.float32) - np.array(mean, np.float32)) / np.array(scale, np.float32)
    np.testing.assert_array_equal(into, expected.transpose(2, 0, 1) if layout == "nchw" else expected)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (Preprocessing, {"mean": (1.0, 2.0)}, "--mean 1,2: expected a number, or three"),
        (Preprocessing, {"mean": (float("nan"),)}, "--mean nan"),
        (Preprocessing, {"scale": (1.0, 0.0, 1.0)}, "cannot be 0"),
        (Preprocessing, {"color": "grb"}, "--color grb: expected rgb or bgr"),
        (ModelOptions, {"batch_size": 0}, "--batch-size 0: expected 1 to 4,096"),
        (ModelOptions, {"layout": "chwn"}, "--input-layout chwn: expected nchw or nhwc"),
        (ModelOptions, {"input_size": (0, 5)}, "--input-size 0x5: expected 1 to 4,096"),
        (ModelOptions, {"device": "tpu"}, "--device tpu: expected cpu or cuda"),
    ],
)
def test_invalid_options_are_refused(make: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make(**options, **({"path": "m.onnx"} if make is ModelOptions else {}))


def test_enlarging_is_bilinear_and_shrinking_takes_the_mean() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 10, 3), np.uint8)
    data = cv2.imencode(".png", image)[1].tobytes()
    scaling = Preprocessing(resize=True)
    np.testing.assert_array_equal(scaling.decode(data, 10, 5), cv2.resize(image, (5, 10), interpolation=cv2.INTER_AREA))
    np.testing.assert_array_equal(scaling.decode(data, 10, 30), cv2.resize(image, (30, 10)))
    with pytest.raises(RefusedSampleError, match="expected 5 x 10 pixels, found 10 x 20"):
        Preprocessing().decode(data, 10, 5)


def listed(*shape: Any, kind: str = "tensor(float)") -> SimpleNamespace:
    return SimpleNamespace(name="data", shape=list(shape), type=kind)


@pytest.mark.parametrize(
    ("inputs", "options", "said"),
    [
        ([], {}, "expected one input, the images; found none"),
        ([listed(1, 3, 8, 8), listed(2)], {}, r"found 2: 'data' of float, shape \(1, 3, 8, 8\), 'data' of float"),
        ([listed(1, 3, 8, 8, kind="tensor(uint8)")], {}, "float32 or float16, found 'data' of uint8"),
        ([listed(1, 3, 64)], {}, r"\(N, 3, H, W\) or \(N, H, W, 3\), found 'data' of float, shape \(1, 3, 64\)"),
        ([listed(1, 1, 8, 8)], {}, r"three channels.*shape \(1, 1, 8, 8\)"),
        ([listed("N", None, 8, "W")], {}, "give --input-layout"),
        ([listed(1, 3, 8, 3)], {}, "give --input-layout"),
        ([listed(1, 3, 8, 8)], {"layout": "nhwc"}, "--input-layout nhwc: does not fit"),
        ([listed(1, 3, "H", "W")], {}, "give --input-size"),
        ([listed(1, 3, 112, 96)], {"input_size": (96, 112)}, "--input-size 96x112: m.onnx takes 112x96"),
        ([listed(1, 3, 9000, 9000)], {}, "at most 4,096 pixels a side, found 9000x9000"),
        ([listed(8, 3, 8, 8)], {"batch_size": 4}, "--batch-size 4: m.onnx takes exactly 8 images at once"),
        ([listed(100000, 3, 8, 8)], {}, "at most 4,096 images at once"),
        ([listed("N", 3, 2000, 2000)], {"batch_size": 64}, "give a smaller --batch-size"),
    ],
)
def test_inputs_that_do_not_take_images(inputs: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(FacedataError, match=said):
        input_shape(inputs, ModelOptions("m.onnx", **options))


@pytest.mark.parametrize(
    ("described", "options", "found"),
    [
        (listed("N", 3, 112, 112), {}, ("nchw", 112, 112, 32, False)),
        (listed(None, 112, 96, 3), {"batch_size": 5}, ("nhwc", 112, 96, 5, False)),
        (listed(16, 3, -1, 0), {"input_size": (112, 96)}, ("nchw", 112, 96, 16, True)),
        (listed("N", "C", "H", 3), {"layout": "nchw", "input_size": (7, 3)}, ("nchw", 7, 3, 32, False)),
        (listed(1, 3, 3, 3), {"layout": "nhwc"}, ("nhwc", 3, 3, 1, True)),
    ],
)
def test_inputs_that_take_images(described: Any, options: dict[str, Any], found: tuple[Any, ...]) -> None:
    shape = input_shape([described], ModelOptions("m.onnx", **options))
    assert (shape.layout, shape.height, shape.width, shape.batch, shape.fixed) == found
