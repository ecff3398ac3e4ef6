"""Graphs without weights: they point into a model's own safetensors file, which lies beside them.

The server reads that file too, so that a weight is published once. A device needs the whole file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from torch import Tensor, nn

from profiles.graph import IR, OPSET, Graph

TYPES = {"F16": TensorProto.FLOAT16, "F32": TensorProto.FLOAT}


class Pointing(Graph):
    """A graph whose weights stay in the safetensors file of ``model``."""

    def __init__(self, model: nn.Module, weights: Path) -> None:
        super().__init__()
        with weights.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._header = json.loads(file.read(length))
        self._file, self._start = weights.name, 8 + length
        self._names = {value.data_ptr(): name for name, value in model.state_dict().items()}

    def weight(self, name: str, value: Tensor) -> str:
        """A module's tensor where the file has it; as a constant if it has it in another shape."""
        key = self._names[value.data_ptr()]
        entry = self._header[key]
        if tuple(entry["shape"]) != tuple(value.shape):
            return super().weight(name, value)
        begin, end = entry["data_offsets"]
        half = entry["dtype"] == "F16"
        stored = TensorProto(name=f"{name}.half" if half else name, dims=entry["shape"])
        stored.data_type = TYPES[entry["dtype"]]
        stored.data_location = TensorProto.EXTERNAL
        place = {"location": self._file, "offset": self._start + begin, "length": end - begin}
        for field, text in place.items():
            stored.external_data.add(key=field, value=str(text))
        self.constants.append(stored)
        return self.node("Cast", [stored.name], name, to=TensorProto.FLOAT) if half else name

    def write(
        self,
        path: Path,
        sources: Sequence[onnx.ValueInfoProto],
        targets: Sequence[onnx.ValueInfoProto],
    ) -> onnx.ModelProto:
        """Check and write the graph, to the folder that the weights lie in."""
        graph = helper.make_graph(self.nodes, path.stem, sources, targets, self.constants)
        opset = helper.make_opsetid("", OPSET)
        made = helper.make_model(graph, opset_imports=[opset], ir_version=IR)
        path.write_bytes(made.SerializeToString())
        onnx.checker.check_model(str(path))
        return made
