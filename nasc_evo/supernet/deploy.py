"""A chosen design as it runs: a part for each node, what is sent between them, and its files.

    network = DeployedNetwork.load("final")
    x = network.inputs(images)                        # uint8 [N, H, W, C]
    sent = network.senders[0].encode(network.head(x)[0])   # bytes of the first image
    logits = network.tail(network.senders[0].decode(sent)[None])

Batch norm is folded into the convolutions. Operations of FBNet with two groups are stored as dense
convolutions with zeros off their diagonal blocks, as they run in the supernet.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from nasc_evo import __version__
from nasc_evo.data.images import CALIBRATION_IMAGES, ImageDataset, Images
from nasc_evo.errors import UserError, brief, one_line
from nasc_evo.files import check_regular, read_json
from nasc_evo.space import SPACES, ArchitectureSpace, Design, SplitSpace
from nasc_evo.supernet.blocks import (
    Block,
    Calibration,
    Folded,
    FoldedConv,
    HeadBlock,
    ReductionBlock,
)
from nasc_evo.supernet.evaluation import transmissions
from nasc_evo.supernet.inputs import to_input
from nasc_evo.supernet.model import Supernet, build_supernet, run_blocks
from nasc_evo.supernet.score import Score
from nasc_evo.supernet.transmission import (
    channel_mask,
    encode,
    reconstruct,
    to_half,
    transmit,
)
from nasc_evo.supernet.weights import MAX_BYTES, file_sha256, read_tensors

FORMAT = "nasc_evo network 1"
MANIFEST = "network.json"
OWN_WEIGHTS: dict[type, tuple[str, ...]] = {
    HeadBlock: ("weight", "bias"),
    ReductionBlock: ("shortcut",),
}
"""Weights of blocks that are in none of their convolutions."""
CHUNK = 128
MAX_CLASSES = 100_000
MAX_LINKS = 8


class Conv(nn.Module):
    """A convolution with its batch norm folded in."""

    def __init__(self, conv: FoldedConv) -> None:
        super().__init__()
        self.weight, self.bias = _fixed(conv.weight), _fixed(conv.bias)
        self._plain = (conv.stride, conv.groups, conv.relu)

    def folded(self) -> FoldedConv:
        """Return it as what a unit runs."""
        return FoldedConv(self.weight, self.bias, *self._plain)


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float().clone().contiguous(), requires_grad=False)


class Part(nn.Module):
    """The blocks that one node runs; none at all where it only passes on what it got.

    Args:
        blocks: The blocks.
        convs: Their convolutions, in the order in which they run.
    """

    def __init__(self, blocks: Sequence[Block], convs: Sequence[FoldedConv]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(Conv(conv) for conv in convs)
        self.blocks: list[Block] = []
        for index, block in enumerate(blocks):
            own = {name: _fixed(getattr(block, name)) for name in OWN_WEIGHTS.get(type(block), ())}
            for name, weight in own.items():
                self.register_parameter(f"block_{index}_{name}", weight)
            self.blocks.append(replace(cast(Any, block), **own) if own else block)

    @property
    def folded(self) -> list[FoldedConv]:
        """The convolutions."""
        return [cast(Conv, conv).folded() for conv in self.convs]

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on `[N, C, H, W]`; the last part returns logits `[N, classes]`."""
        return run_blocks(self.blocks, x, Folded(self.folded))


class Sender(nn.Module):
    """What happens to a tensor on a link: some channels are sent, quantised, the others are zero.

    Called on `[N, C, H, W]` it returns what the next part sees, of the same shape.

    Args:
        mask: A string of 0/1, one a channel group.
        bits: Width of a value; 16 and 32 are half and float precision.
        shape: Of the tensor, `(C, H, W)`.
    """

    kept: Tensor

    def __init__(self, mask: str, bits: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.mask, self.bits, self.shape = mask, bits, shape
        self.register_buffer("kept", channel_mask(mask, shape[0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return what arrives."""
        return transmit(x, self.kept, self.bits)

    @property
    def _header(self) -> bytes:
        return np.packbits([character == "1" for character in self.mask]).tobytes()

    @property
    def _n_values(self) -> int:
        return int(self.kept.sum()) * self.shape[1] * self.shape[2]

    @property
    def payload_bytes(self) -> int:
        """Length of what :meth:`encode` returns, the payload of the costs without overhead."""
        quantizer = 4 * int(self.kept.sum()) if self.bits < 16 else 0
        return len(self._header) + quantizer + -(-self._n_values * self.bits // 8)

    def encode(self, x: Tensor) -> bytes:
        """Return the message for one image.

        The mask, one bit a group; below 16 bits the minimum and the maximum of each kept channel in
        half precision, little-endian; then the values, channel by channel, most significant bit
        first, or as half or float precision.

        Args:
            x: Tensor at the cut, `[C, H, W]`.
        """
        values = x[self.kept].float().cpu()
        if self.bits == 32:
            return self._header + values.numpy().astype("<f4").tobytes()
        if self.bits == 16:
            return self._header + to_half(values).numpy().astype("<f2").tobytes()
        low = to_half(values.amin(dim=(1, 2), keepdim=True))
        high = to_half(values.amax(dim=(1, 2), keepdim=True))
        codes = encode(values, low, high, self.bits).to(torch.uint8).numpy()
        ranges = torch.stack([low.flatten(), high.flatten()]).numpy().astype("<f2")
        digits = np.unpackbits(codes.reshape(-1, 1), axis=1)[:, 8 - self.bits :]
        return self._header + ranges.tobytes() + np.packbits(digits).tobytes()

    def decode(self, message: bytes) -> Tensor:
        """Return the tensor `[C, H, W]` that the next part sees.

        Raises:
            ValueError: If the message is none of this sender.
        """
        header = self._header
        if len(message) != self.payload_bytes or not message.startswith(header):
            raise ValueError(
                f"a message has {self.payload_bytes} bytes and begins with {header.hex()}, got "
                f"{len(message)} bytes that begin with {message[: len(header)].hex()}"
            )
        body = message[len(header) :]
        n = int(self.kept.sum())
        if self.bits >= 16:
            values = np.frombuffer(body, "<f4" if self.bits == 32 else "<f2").astype(np.float32)
            received = torch.from_numpy(values)
        else:
            ranges = np.frombuffer(body[: 4 * n], "<f2").astype(np.float32).reshape(2, n, 1)
            low, high = torch.from_numpy(ranges)
            digits = np.unpackbits(np.frombuffer(body[4 * n :], np.uint8))
            by_value = digits[: self._n_values * self.bits].reshape(-1, self.bits)
            codes = by_value @ (1 << np.arange(self.bits)[::-1])
            whole = torch.from_numpy(codes.astype(np.float32)).view(n, -1)
            received = reconstruct(whole, low, high, self.bits)
        x = torch.zeros(self.shape)
        x[self.kept.cpu()] = received.view(n, *self.shape[1:])
        return x.to(self.kept.device)


@dataclass
class Pixels:
    """How stored images become inputs, see :class:`nasc_evo.supernet.inputs.InputFormat`."""

    geometry: int
    padding: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class DeployedNetwork(nn.Module):
    """A design with weights of its own; called on inputs it returns logits `[N, classes]`.

    Attributes:
        space: The space of architectures.
        design: The design.
        parts: A :class:`Part` for each node.
        senders: A :class:`Sender` for each link, None where no tensor is quantised: the stored
            image or nothing is sent, or a node relays.
        pixels: How images become inputs.
        class_names: Names of the classes.
        manifest: Of the files, empty before they are written.
    """

    def __init__(
        self,
        space: ArchitectureSpace,
        design: Design,
        parts: Sequence[Part],
        pixels: Pixels,
        class_names: Sequence[str],
    ) -> None:
        super().__init__()
        self.space, self.design = space, design
        self.parts = nn.ModuleList(parts)
        self.links = nn.ModuleList(sender or nn.Identity() for sender in senders(space, design))
        self.pixels, self.class_names = pixels, tuple(class_names)
        self.manifest: dict[str, Any] = {}

    @property
    def senders(self) -> list[Sender | None]:
        """What is sent on each link."""
        return [link if isinstance(link, Sender) else None for link in self.links]

    @property
    def head(self) -> Part:
        """What the first node runs."""
        return cast(Part, self.parts[0])

    @property
    def tail(self) -> Part:
        """What the last node runs."""
        return cast(Part, self.parts[-1])

    def forward(self, x: Tensor) -> Tensor:
        """Run all nodes and links on inputs `[N, 3, geometry, geometry]`."""
        for part, link in zip(self.parts, [*self.links, nn.Identity()], strict=True):
            x = link(part(x))
        return x

    def inputs(self, images: NDArray[np.uint8]) -> Tensor:
        """Return what networks see of stored images, uint8 `[N, H, W, C]`."""
        return to_input(images, self.pixels, next(self.parameters()).device, torch.float32)

    @torch.no_grad()
    def score(self, images: Images) -> Score:
        """Return how many images are classified correctly."""
        correct = 0
        for start in range(0, len(images), CHUNK):
            chunk = slice(start, start + CHUNK)
            answers = self(self.inputs(images.x[chunk])).argmax(dim=1).cpu().numpy()
            correct += int((answers == images.y[chunk]).sum())
        return Score(correct, len(images))

    @property
    def names(self) -> list[str]:
        """Names of the parts, from head to tail."""
        middle = [f"middle_{i + 1}" for i in range(len(self.parts) - 2)]
        return ["head", *middle, "tail"]

    def save(self, folder: Path, mask_groups: int | str, details: Mapping[str, Any]) -> Path:
        """Write a file a part and the manifest `network.json`; return the manifest.

        Args:
            folder: Where they go.
            mask_groups: Channel groups at a cut, or `"channels"`.
            details: What else the manifest states.
        """
        folder.mkdir(parents=True, exist_ok=True)
        bounds = [0, *self.design.cuts, self.space.n_blocks]
        parts = []
        for index, (name, part) in enumerate(zip(self.names, self.parts, strict=True)):
            path = folder / f"{name}.safetensors"
            temporary = path.with_suffix(".tmp")
            state = {key: value.cpu() for key, value in part.state_dict().items()}
            save_file(state, temporary)
            os.replace(temporary, path)
            parts.append(
                {
                    "file": path.name,
                    "blocks": bounds[index : index + 2],
                    "values": sum(value.numel() for value in state.values()),
                    "sha256": file_sha256(path),
                }
            )
        self.manifest = {
            "format": FORMAT,
            "space": self.space.name,
            "geometry": self.space.geometry,
            "n_classes": self.space.n_classes,
            "class_names": list(self.class_names),
            "input": {
                "padding": self.pixels.padding,
                "mean": list(self.pixels.mean),
                "std": list(self.pixels.std),
            },
            "design": {
                "arch": self.design.arch,
                "cuts": list(self.design.cuts),
                "masks": list(self.design.masks),
                "bits": list(self.design.bits),
                "mask_groups": mask_groups,
            },
            "parts": parts,
            "links": [
                None
                if sender is None
                else {
                    "shape": list(sender.shape),
                    "kept_channels": int(sender.kept.sum()),
                    "bits": sender.bits,
                    "quantizer": "none"
                    if sender.bits >= 16
                    else "uniform between minimum and maximum of each channel of each image",
                    "payload_bytes": sender.payload_bytes,
                }
                for sender in self.senders
            ],
            **details,
            "versions": {"nasc_evo": __version__, "torch": str(torch.__version__)},
        }
        path = folder / MANIFEST
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.manifest, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "DeployedNetwork":
        """Return the network of a folder that `python -m nasc_evo.finetune` wrote.

        Raises:
            UserError: If a file is missing, damaged or another one than the manifest says.
        """
        path = Path(folder) / MANIFEST
        try:
            manifest = read_json(path)
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {brief(manifest['format'])}, not '{FORMAT}'")
            return _load(Path(folder), manifest)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise UserError(
                f"The network {path} cannot be read ({type(error).__name__}: {one_line(error)}); "
                "write it with `python -m nasc_evo.finetune`."
            ) from error


def _load(folder: Path, manifest: dict[str, Any]) -> DeployedNetwork:
    """Return a network; raises whatever a wrong manifest leads to."""
    if manifest["space"] not in tuple(SPACES):
        raise ValueError(f"there is no space {brief(manifest['space'])}")
    n_classes, names = manifest["n_classes"], manifest["class_names"]
    if type(n_classes) is not int or not 2 <= n_classes <= MAX_CLASSES:
        raise ValueError(f"{brief(n_classes)} classes")
    if not all(isinstance(name, str) for name in names) or len(names) != n_classes:
        raise ValueError(f"it does not name its {n_classes} classes")
    space = SPACES[manifest["space"]](manifest["geometry"], n_classes)
    given, values = manifest["design"], manifest["input"]
    arch, (cuts, masks, bits) = given["arch"], (given[k] for k in ("cuts", "masks", "bits"))
    if len(cuts) > MAX_LINKS:
        raise ValueError(f"{len(cuts)} cuts, more than {MAX_LINKS}")
    whole = [*cuts, *bits, values["padding"]]
    if not all(type(number) is int for number in whole) or not 0 <= values["padding"] <= 1024:
        raise ValueError("cuts, bits and padding are whole numbers")
    mean, std = (tuple(map(float, values[name])) for name in ("mean", "std"))
    if not len(mean) == len(std) == 3 or not np.isfinite([*mean, *std]).all() or min(std) <= 0:
        raise ValueError("mean and std are three numbers each")
    ops = tuple(space.parse(arch).tolist())
    design = Design(space.format(np.array(ops)), ops, tuple(cuts), tuple(masks), tuple(bits))
    SplitSpace(space, n_links=len(cuts), mask_groups=given["mask_groups"]).batch([design])
    if list(cuts) != sorted(cuts):
        raise ValueError(f"cuts that decrease: {cuts}")
    pixels = Pixels(space.geometry, values["padding"], mean, std)
    parts = skeleton(space, design)
    network = DeployedNetwork(space, design, parts, pixels, names)
    listed = manifest["parts"]
    for name, part, entry in zip(network.names, parts, listed, strict=True):
        path = folder / f"{name}.safetensors"
        check_regular(path)
        if path.stat().st_size > MAX_BYTES or file_sha256(path) != entry["sha256"]:
            raise UserError(
                f"{path} does not have the sha256 of its manifest; it is damaged or was changed: "
                "replace both by an intact copy."
            )
        state = read_tensors(path, "torch", lambda tensor: True)
        expected = {key: (value.shape, value.dtype) for key, value in part.state_dict().items()}
        if {key: (value.shape, value.dtype) for key, value in state.items()} != expected:
            raise UserError(f"{path} does not hold the weights of the design in {MANIFEST}.")
        part.load_state_dict(state)
    network.manifest = manifest
    return network.eval()


def senders(space: ArchitectureSpace, design: Design) -> list[Sender | None]:
    """Return what a design sends over each link."""
    sent = transmissions(design)
    return [
        Sender(*sent.pop(cut), space.cut_shapes[cut]) if cut in sent else None
        for cut in design.cuts
    ]


def skeleton(space: ArchitectureSpace, design: Design) -> list[Part]:
    """Return the parts of a design with weights without meaning."""
    blocks = build_supernet(space).requires_grad_(False).blocks(design.ops)
    bounds = [0, *design.cuts, space.n_blocks]
    parts = []
    for start, end in pairwise(bounds):
        unit = Calibration()
        if start < end:
            run_blocks(blocks[start:end], torch.zeros(2, *space.cut_shapes[start]), unit)
        parts.append(Part(blocks[start:end], unit.convs))
    return parts


@torch.no_grad()
def deploy(
    supernet: Supernet, design: Design, dataset: ImageDataset, calibration_images: int | None = None
) -> DeployedNetwork:
    """Return a design with the weights that it has in a supernet.

    Args:
        supernet: The supernet.
        design: The design.
        dataset: Its calibration split gives batch norm its statistics.
        calibration_images: How many of these images; all if None.
    """
    device = next(supernet.parameters()).device
    images = dataset.split("calibration").first(calibration_images or CALIBRATION_IMAGES)
    x = to_input(images.x, dataset, device, torch.float32)
    space = supernet.space
    blocks = supernet.blocks(design.ops)
    bounds = [0, *design.cuts, space.n_blocks]
    unit, parts = Calibration(), []
    links = [sender and sender.to(device) for sender in senders(space, design)]
    for start, end, link in zip(bounds, bounds[1:], [*links, None], strict=False):
        first = len(unit.convs)
        x = run_blocks(blocks[start:end], x, unit)
        parts.append(Part(blocks[start:end], unit.convs[first:]))
        x = x if link is None else link(x)
    pixels = Pixels(dataset.geometry, dataset.padding, dataset.mean, dataset.std)
    return DeployedNetwork(space, design, parts, pixels, dataset.class_names).to(device).eval()
