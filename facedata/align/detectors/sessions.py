"""ONNX Runtime sessions whose results do not depend on how many threads or processes there are."""

from __future__ import annotations

from typing import Any

from facedata.align.detectors.protocol import Device
from facedata.errors import ModelError, OptionError

__all__ = ["new_session", "one_line"]

_ERRORS, _FATAL = 3, 4  # errors are raised too; only those of CUDA's start tell more than that
_NOWHERE = "/dev/null"  # the folder of weights outside of the model: they would be of the folder one happens to be in
_LONGEST = 300
_CUDA = "CUDAExecutionProvider"
_CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",  # the default times the algorithms, and may choose another one next time
    "use_tf32": "0",
}


def new_session(model: bytes, name: str, device: Device) -> Any:
    """A session of one thread.

    Parameters
    ----------
    model : bytes
        An ONNX file.
    name : str
        Of the file, for messages.
    device : {'cpu', 'cuda'}

    Raises
    ------
    ModelError
        Where ONNX Runtime does not take the model.
    OptionError
        Where it has no such device.
    """
    import onnxruntime

    if device == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        raise OptionError(
            f"device cuda: this ONNX Runtime, {onnxruntime.__version__}, is built without CUDA: "
            "pip uninstall onnxruntime && pip install onnxruntime-gpu, or use the device cpu"
        )
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, (_CUDA, _CUDA_OPTIONS))
    try:
        session = onnxruntime.InferenceSession(model, _options(onnxruntime, device), providers=providers)
    except Exception as error:  # what it raises has no common class of its own
        if "external" in str(error).lower():
            raise ModelError(
                f"{name}: expected a model that is one file, found one whose weights lie in others: save it anew with "
                "onnx.save(onnx.load(FILE), NEW_FILE)"
            ) from error
        raise ModelError(
            f"{name}: expected an ONNX model, found what ONNX Runtime does not take: {one_line(error)}"
        ) from error
    if device == "cuda" and session.get_providers()[0] != _CUDA:
        raise OptionError(
            "device cuda: ONNX Runtime could not start CUDA and took the CPU: check the driver and the versions of "
            "CUDA and cuDNN that it needs, or use the device cpu"
        )
    return session


def one_line(error: Exception) -> str:
    """What a library said, as a part of a message."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _options(onnxruntime: Any, device: Device) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = _FATAL if device == "cpu" else _ERRORS
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NOWHERE)
    return options
