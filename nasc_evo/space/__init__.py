"""Search spaces: architectures, cuts, channel masks, and the genome that encodes them."""

from nasc_evo.space.architecture import ArchitectureSpace, Position
from nasc_evo.space.fbnet import FBNetSpace
from nasc_evo.space.genome import Design, DesignBatch, SplitSpace

__all__ = [
    "ArchitectureSpace",
    "Design",
    "DesignBatch",
    "FBNetSpace",
    "Position",
    "SplitSpace",
]
