"""The FBNet space as HW-NAS-Bench defines it (Li et al., ICLR 2021; Wu et al., CVPR 2019).

Twenty-two layers in seven stages, each with one of nine operations, between a fixed stem and a
fixed head: 24 blocks, cuts 0..24.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace, IntArray, Position

OPS = (
    "k3_e1",
    "k3_e1_g2",
    "k3_e3",
    "k3_e6",
    "k5_e1",
    "k5_e1_g2",
    "k5_e3",
    "k5_e6",
    "skip",
)
SKIP = OPS.index("skip")
_CODES = {name: code for code, name in enumerate(OPS)}

STAGE_LAYERS = (1, 4, 4, 4, 4, 4, 1)
STAGE_CHANNELS = (16, 24, 32, 64, 112, 184, 352)
STAGE_STRIDES = {32: (1, 1, 2, 2, 1, 2, 1), 224: (1, 2, 2, 2, 1, 2, 1)}
STEM_CHANNELS = 16
STEM_STRIDE = {32: 1, 224: 2}
HEAD_CHANNELS = {32: 1504, 224: 1984}


class ConvOp(NamedTuple):
    """Kernel size, expansion and groups of the pointwise convolutions of an operation."""

    kernel: int
    expansion: int
    groups: int


def conv_op(name: str) -> ConvOp:
    """Return the numbers in an operation's name, such as `k5_e1_g2`; not for `skip`."""
    parts = {part[0]: int(part[1:]) for part in name.split("_")}
    return ConvOp(kernel=parts["k"], expansion=parts["e"], groups=parts.get("g", 1))


class LayerGeometry(NamedTuple):
    """Shapes of one of the 22 layers; `size_in` and `size_out` are pixels a side."""

    channels_in: int
    channels_out: int
    stride: int
    size_in: int
    size_out: int

    @property
    def identity(self) -> bool:
        """Whether input and output have one shape (`skip` is then the identity)."""
        return self.stride == 1 and self.channels_in == self.channels_out


class FBNetSpace(ArchitectureSpace):
    """FBNet at 32x32 (the CIFAR networks of HW-NAS-Bench) or 224x224 (its ImageNet networks).

    Args:
        geometry: 32 or 224 pixels a side.
        n_classes: Outputs of the classifier.

    Raises:
        UserError: If the geometry is neither 32 nor 224, or there are fewer than two classes.
    """

    name = "fbnet"

    def __init__(self, geometry: int = 32, n_classes: int = 100) -> None:
        if geometry not in STAGE_STRIDES:
            raise UserError(f"The FBNet space exists at geometry 32 and 224, got {geometry}.")
        if n_classes < 2:
            raise UserError(f"A classifier needs at least 2 classes, got {n_classes}.")
        self.geometry = geometry
        self.n_classes = n_classes
        self.stem_stride = STEM_STRIDE[geometry]
        self.head_channels = HEAD_CHANNELS[geometry]
        self.layers = self._layer_geometries()
        n_layers = len(self.layers)
        self.gene_ops = (OPS,) * n_layers
        self.block_names = ("stem", *(f"layer_{i + 1}" for i in range(n_layers)), "head")
        self.cut_shapes = (
            (3, geometry, geometry),
            *((g.channels_in, g.size_in, g.size_in) for g in self.layers),
            (self.layers[-1].channels_out, self.layers[-1].size_out, self.layers[-1].size_out),
        )
        fixed = ("-",)
        self.positions = (
            Position("stem", fixed),
            *(Position(f"layer_{i + 1}", OPS) for i in range(n_layers)),
            Position("head", fixed),
            Position("avgpool", fixed),
            Position("fc", fixed),
        )
        self.block_start = np.array([*range(n_layers + 2), len(self.positions)])
        self._layer_macs, self._layer_params = self._count_layers()

    def _layer_geometries(self) -> tuple[LayerGeometry, ...]:
        layers = []
        channels, size = STEM_CHANNELS, self.geometry // self.stem_stride
        stages = zip(STAGE_LAYERS, STAGE_CHANNELS, STAGE_STRIDES[self.geometry], strict=True)
        for n_layers, channels_out, first_stride in stages:
            for i in range(n_layers):
                stride = first_stride if i == 0 else 1
                layers.append(LayerGeometry(channels, channels_out, stride, size, size // stride))
                channels, size = channels_out, size // stride
        return tuple(layers)

    def _count_layers(self) -> tuple[IntArray, IntArray]:
        macs = np.zeros((len(self.layers), len(OPS)), dtype=np.int64)
        params = np.zeros_like(macs)
        for i, g in enumerate(self.layers):
            for j, name in enumerate(OPS):
                if name == "skip":
                    if not g.identity:
                        params[i, j] = g.channels_in * g.channels_out + 2 * g.channels_out
                        macs[i, j] = g.channels_in * g.channels_out * g.size_out**2
                    continue
                op = conv_op(name)
                hidden = op.expansion * g.channels_in
                expand = hidden * g.channels_in // op.groups
                depthwise = hidden * op.kernel**2
                project = hidden * g.channels_out // op.groups
                norms = 2 * (hidden + hidden + g.channels_out)
                params[i, j] = expand + depthwise + project + norms
                macs[i, j] = expand * g.size_in**2 + (depthwise + project) * g.size_out**2
        return macs, params

    def position_codes(self, ops: IntArray, pruned: Sequence[str] = ()) -> IntArray:
        """Return the index into each position's ops: 0 for the fixed ones, the gene for a layer."""
        codes = np.zeros((len(ops), len(self.positions)), dtype=np.int64)
        codes[:, 1 : 1 + self.n_genes] = ops
        return codes

    def descriptors(self, ops: IntArray) -> NDArray[np.float64]:
        """Return for each stage the share of its layers and of their expansion that are there."""
        widths = np.array([0 if name == "skip" else conv_op(name).expansion for name in OPS])
        expansion = widths[np.asarray(ops)]
        starts = np.cumsum((0, *STAGE_LAYERS[:-1]))
        layers = np.array(STAGE_LAYERS)
        depth = np.add.reduceat(expansion > 0, starts, axis=1) / layers
        width = np.add.reduceat(expansion, starts, axis=1) / (widths.max() * layers)
        return np.column_stack([depth, width])

    @property
    def hand_designed(self) -> IntArray:
        """Return MobileNetV2-like blocks: kernel 3 and expansion 6 everywhere."""
        return np.full(self.n_genes, OPS.index("k3_e6"))

    def format(self, ops: IntArray) -> str:
        """Return the operations joined by `|`, such as `k3_e6|skip|...`."""
        return "|".join(OPS[int(op)] for op in ops)

    def parse(self, text: str) -> IntArray:
        """Return the 22 genes of operations joined by `|`."""
        tokens = text.split("|")
        if len(tokens) != self.n_genes:
            raise UserError(
                f"An FBNet architecture has {self.n_genes} operations joined by '|', "
                f"got {len(tokens)} in '{text}'."
            )
        for i, token in enumerate(tokens):
            if token not in _CODES:
                raise UserError(
                    f"Operation {i + 1} of the FBNet architecture is '{token}'; "
                    f"allowed are {', '.join(OPS)}."
                )
        return np.array([_CODES[token] for token in tokens])

    def macs(self, ops: IntArray) -> IntArray:
        """Multiply-accumulates of convolutions and classifier for one image, `[P]`."""
        stem = 27 * STEM_CHANNELS * (self.geometry // self.stem_stride) ** 2
        last = self.layers[-1]
        head = last.channels_out * self.head_channels * last.size_out**2
        fixed = stem + head + self.head_channels * self.n_classes
        return fixed + self._layer_macs[np.arange(self.n_genes), ops].sum(axis=-1)

    def params(self, ops: IntArray) -> IntArray:
        """Parameters of one stand-alone network (batch norm's scale and shift included), `[P]`."""
        stem = 27 * STEM_CHANNELS + 2 * STEM_CHANNELS
        head = self.layers[-1].channels_out * self.head_channels + 2 * self.head_channels
        fixed = stem + head + (self.head_channels + 1) * self.n_classes
        return fixed + self._layer_params[np.arange(self.n_genes), ops].sum(axis=-1)
