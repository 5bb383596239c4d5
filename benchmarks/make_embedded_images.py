"""Write the part of Fashion-MNIST that ships in the package, and print its hashes.

    python benchmarks/make_embedded_images.py

The official files are looked for as at any other time (`$NASC_EVO_DATA/fashion-mnist`, Debian's
dataset-fashion-mnist, else a download). The 2000 search images and 512 calibration images are
class-balanced parts of the official training images; the 2000 test images are a class-balanced
part of the official test images. Each split is ordered so that every prefix is balanced too.
"""

import hashlib

import numpy as np

from nasc_evo.data.fashion_mnist import EMBEDDED, EMBEDDED_IMAGES, FashionMnist
from nasc_evo.data.images import SPLIT_SEED, stratified_order


def main() -> None:
    dataset = FashionMnist()
    train, test = dataset.load_official("train"), dataset.load_official("test")
    index = dataset.split_indices(train.y)
    order = stratified_order(test.y, np.random.default_rng(SPLIT_SEED))
    chosen = {
        "search": (train, index["search"]),
        "calibration": (train, index["calibration"]),
        "test": (test, order[: EMBEDDED_IMAGES["test"]]),
    }
    arrays = {}
    for name, (images, which) in chosen.items():
        if len(which) != EMBEDDED_IMAGES[name]:
            raise SystemExit(f"{name}: {len(which)} images instead of {EMBEDDED_IMAGES[name]}")
        arrays[f"x_{name}"] = images.x[which][..., 0]
        arrays[f"y_{name}"] = images.y[which].astype(np.uint8)
    EMBEDDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(EMBEDDED, **arrays)
    for name, array in arrays.items():
        print(f'    "{name}": "{hashlib.sha256(array.tobytes()).hexdigest()}",')


if __name__ == "__main__":
    main()
