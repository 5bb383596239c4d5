"""Image sets: where they come from, their hashes and their splits."""

from nasc_evo.data.images import ImageDataset, Images, get_dataset

__all__ = ["ImageDataset", "Images", "get_dataset"]
