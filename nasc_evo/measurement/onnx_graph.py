"""ONNX graphs of deployed pieces, written node by node."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from nasc_evo.measurement.pieces import Deployed
from nasc_evo.supernet.blocks import (
    Block,
    CellBlock,
    Classifier,
    ConvBlock,
    FoldedConv,
    GlobalPool,
    HeadBlock,
    ReductionBlock,
)

OPSET = 17
INPUT, OUTPUT = "input", "output"


def onnx_model(piece: Deployed) -> onnx.ModelProto:
    """Return a model with one input and one output that computes what the piece does."""
    return _Graph(piece).model(piece)


class _Graph:
    """Nodes and weights; each method adds what one block computes and returns its output."""

    def __init__(self, piece: Deployed) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._convs: Iterator[FoldedConv] = iter(piece.convs)
        self._writers: dict[type, Callable[[Any, str], str]] = {
            ConvBlock: self.conv_block,
            CellBlock: self.cell,
            ReductionBlock: self.reduction,
            HeadBlock: self.head,
            GlobalPool: lambda block, x: self.add("Flatten", self.add("GlobalAveragePool", x)),
            Classifier: self.classifier,
        }

    def model(self, piece: Deployed) -> onnx.ModelProto:
        name = INPUT
        for block in piece.blocks:
            name = self.block(block, name)
        self.nodes.append(helper.make_node("Identity", [name], [OUTPUT]))
        values = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape))
            for name, tensor in ((INPUT, piece.x), (OUTPUT, piece.y))
        ]
        graph = helper.make_graph(self.nodes, "piece", values[:1], values[1:], self.weights)
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opset, ir_version=8)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def weight(self, values: Tensor | np.ndarray) -> str:
        name = f"weight_{len(self.weights)}"
        array = values.detach().numpy() if isinstance(values, Tensor) else values
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def block(self, block: Block, x: str) -> str:
        return self._writers[type(block)](block, x)

    def conv(self, x: str) -> str:
        """Add the next convolution and its activation."""
        folded = next(self._convs)
        kernel, padding = folded.weight.shape[-1], folded.weight.shape[-1] // 2
        y = self.add(
            "Conv",
            x,
            self.weight(folded.weight),
            self.weight(folded.bias),
            kernel_shape=[kernel] * 2,
            strides=[folded.stride] * 2,
            pads=[padding] * 4,
            group=folded.groups,
        )
        return self.add("Relu", y) if folded.relu else y

    def conv_block(self, block: ConvBlock, x: str) -> str:
        y = x
        for _ in block.convs:
            y = self.conv(y)
        return self.add("Add", y, x) if block.residual else y

    def cell(self, block: CellBlock, x: str) -> str:
        nodes, activated = {0: x}, {}
        for node in range(1, block.n_nodes):
            values = []
            for edge in block.edges:
                if edge.target != node:
                    continue
                value = nodes[edge.source]
                if edge.conv is not None:
                    if edge.source not in activated:
                        activated[edge.source] = self.add("Relu", value)
                    value = self.conv(activated[edge.source])
                elif edge.pool:
                    value = self.add(
                        "AveragePool", value, kernel_shape=[3] * 2, strides=[1] * 2, pads=[1] * 4
                    )
                values.append(value)
            if not values:
                continue
            total = values[0]
            for value in values[1:]:
                total = self.add("Add", total, value)
            if block.mean and len(values) > 1:
                total = self.add("Mul", total, self.weight(np.array(1 / len(values), np.float32)))
            nodes[node] = total
        output = nodes.get(block.n_nodes - 1)
        return output or self.add("Mul", x, self.weight(np.array(0, np.float32)))

    def reduction(self, block: ReductionBlock, x: str) -> str:
        y = self.conv(self.conv(self.add("Relu", x)))
        pooled = self.add("AveragePool", x, kernel_shape=[2] * 2, strides=[2] * 2)
        shortcut = self.add("Conv", pooled, self.weight(block.shortcut), kernel_shape=[1] * 2)
        return self.add("Add", y, shortcut)

    def head(self, block: HeadBlock, x: str) -> str:
        for part in block.parts:
            x = self.block(part, x)
        return x

    def classifier(self, block: Classifier, x: str) -> str:
        return self.add("Gemm", x, self.weight(block.weight), self.weight(block.bias), transB=1)
