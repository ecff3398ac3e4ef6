"""A model file as one callable, whichever runtime reads it. Runtimes are imported on first use.

A model takes an array and gives another, both with a first axis of one that callers never see. The
local model maps "frame" uint8 [H, W, 3] to "probabilities" float32 [classes].
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError

F32 = npt.NDArray[np.float32]
Model = Callable[[npt.NDArray[Any]], F32]
THREADS = 1
"""A device has few cores and other work; one thread also makes its CPU time easy to account."""


def load(path: Path, source: str = "frame", target: str = "probabilities") -> Model:
    """The model in `path` that maps `source` to `target`.

    Raises ConfigError: no runtime, unknown kind, not such a model.
    """
    if path.suffix == ".onnx":
        return _onnx(path, source, target)
    if path.suffix == ".tflite":
        return _litert(path)
    raise ConfigError(f"{path.name}: a local model is an .onnx or a .tflite file")


def session(path: Path) -> Any:
    """An ONNX Runtime session of one thread. Raises ConfigError: no runtime, no such model."""
    # Since 1.29 its Linux wheels report models and sessions to their maker, unless told not to.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "the local model needs ONNX Runtime: pip install 'offboard[device-onnx]' "
            "(or pip install onnxruntime)"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.inter_op_num_threads = THREADS
    # Every session would keep its own: the blocks of a ViT-B 100 MB together, and save no time.
    options.enable_cpu_mem_arena = False
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own classes share no public root
        raise ConfigError(f"{path.name} cannot be loaded by ONNX Runtime: {error}") from None


def _onnx(path: Path, source: str, target: str) -> Model:
    opened = session(path)
    inputs = [each.name for each in opened.get_inputs()]
    outputs = [each.name for each in opened.get_outputs()]
    if inputs != [source] or target not in outputs:
        raise ConfigError(f"{path.name} maps {inputs} to {outputs}, not {source!r} to {target!r}")

    def model(array: npt.NDArray[Any]) -> F32:
        (output,) = opened.run([target], {source: array[None]})
        return np.asarray(output[0], dtype=np.float32)

    return model


def _litert(path: Path) -> Model:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError:
            raise ConfigError(
                "the local model needs LiteRT: pip install 'offboard[device-tflite]' "
                "(or pip install ai-edge-litert)"
            ) from None
    try:
        interpreter: Any = Interpreter(model_path=str(path), num_threads=THREADS)
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{path.name} cannot be loaded by LiteRT: {error}") from None
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    # Converters rename tensors, so here it is the types that tell.
    kinds = [each["dtype"] for each in inputs + outputs]
    if kinds not in ([np.uint8, np.float32], [np.float32, np.float32]):
        raise ConfigError(f"{path.name} does not map one uint8 or float32 array to float32 values")
    source, target = inputs[0]["index"], outputs[0]["index"]

    def model(array: npt.NDArray[Any]) -> F32:
        interpreter.set_tensor(source, array[None])
        interpreter.invoke()
        return np.array(interpreter.get_tensor(target)[0], dtype=np.float32)

    return model
