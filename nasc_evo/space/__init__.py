"""Search spaces: architectures, cuts, channel masks, and the genome that encodes them."""

from nasc_evo.space.architecture import ArchitectureSpace, Position
from nasc_evo.space.fbnet import FBNetSpace
from nasc_evo.space.genome import Design, DesignBatch, SplitSpace
from nasc_evo.space.nasbench201 import NASBench201Space

SPACES: dict[str, type[FBNetSpace] | type[NASBench201Space]] = {
    space.name: space for space in (FBNetSpace, NASBench201Space)
}
"""Spaces of architectures by name."""

__all__ = [
    "SPACES",
    "ArchitectureSpace",
    "Design",
    "DesignBatch",
    "FBNetSpace",
    "NASBench201Space",
    "Position",
    "SplitSpace",
]
