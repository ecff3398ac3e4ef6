"""A model file as one callable, whichever runtime reads it. Runtimes are imported on first use.

A model takes an array and gives another, both with a first axis of one that callers never see. The
local model maps "frame" uint8 [H, W, 3] to "probabilities" float32 [classes].
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import ConfigError
from device import heap

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
    _share_memory(onnxruntime)
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Weights, which stay, would leave holes in it; and a plan of its own takes the most for each.
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        opened = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own classes share no public root
        raise ConfigError(f"{path.name} cannot be loaded by ONNX Runtime: {error}") from None
    heap.give_back()
    return opened


@cache
def _share_memory(onnxruntime: Any) -> None:
    """One arena for the tensors of all sessions: as much as the largest needs, and no more.

    Without any, malloc's heap keeps several times that; with one for each, they keep the sum.
    """
    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    place = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    # No limit, as much as is asked for at a time, the runtime's own chunks.
    with contextlib.suppress(Exception):  # one is registered: the program's that we are part of
        onnxruntime.create_and_register_allocator(place, onnxruntime.OrtArenaCfg(0, 1, -1, -1))


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
