"""Fashion-MNIST (Xiao, Rasul and Vollgraf 2017; Zalando, MIT licence).

Images of 28x28 grey pixels are padded to 32x32 and replicated to three channels, so that
geometry and costs are those of the CIFAR networks. A part ships in the package; training needs
the four official IDX files.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nasc_evo.data.images import (
    HeldOutDataset,
    Images,
    check_sha256,
    data_folder,
    fetch,
    read_idx,
    read_npz,
)

URL = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/"
FILE_MD5 = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""Hashes of the compressed files, from the official README."""
ARRAY_SHA256 = {
    "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
    "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
    "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
    "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
}
"""Hashes of the decoded arrays; recompressed copies of the files pass as well."""
EMBEDDED = Path(__file__).parent / "assets" / "fashion_mnist.npz"
EMBEDDED_IMAGES = {"search": 2000, "calibration": 512, "test": 2000}
EMBEDDED_SHA256 = {
    "x_search": "551d62d1a2ca7cbb608b0c3e62dcec9d934be0a4928f54f7a7964ff4e9715d9b",
    "y_search": "6e7161a8bc4966829c7f0457233530415a62644e840c165224ee55de2ba3136f",
    "x_calibration": "a68f07f623be2459904a50ebabbd4298c9d6b7ff795a22d6a1e79745fabf2afb",
    "y_calibration": "e70d69b0d91effc4de753b0e2f878e15a1fc0675328d69a885eabf003e2c600b",
    "x_test": "a00a8c5fece99016d87715742148698fe48e2951d774a39ca8af860be7171d3a",
    "y_test": "a1c893df2e8e58b6bf3a4dc2635baf65cd2ed9214e353e10a1236d916bbf484d",
}
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts the official files."""


class FashionMnist(HeldOutDataset):
    """Fashion-MNIST; the splits `search`, `calibration` and `test` come from the package.

    The shipped `test` split has 2000 of the 10000 official test images;
    :meth:`load_official` reads all.
    """

    name = "fashion_mnist"
    class_names = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mean = (0.2190, 0.2190, 0.2190)
    std = (0.3318, 0.3318, 0.3318)
    padding = 2
    image_bytes = 28 * 28
    n_search = EMBEDDED_IMAGES["search"]

    def _split(self, name: str) -> Images:
        if name in EMBEDDED_IMAGES:
            x = self._embedded[f"x_{name}"]
            return Images(x[..., None], self._embedded[f"y_{name}"].astype(np.int64))
        return super()._split(name)

    @cached_property
    def _embedded(self) -> dict[str, NDArray]:
        shapes: dict[str, tuple[int | None, ...]] = {}
        for name, count in EMBEDDED_IMAGES.items():
            shapes |= {f"x_{name}": (count, 28, 28), f"y_{name}": (count,)}
        arrays = read_npz(EMBEDDED, shapes)
        check_sha256(arrays, EMBEDDED_SHA256, str(EMBEDDED))
        return arrays

    def load_official(self, part: str) -> Images:
        """Return all official `"train"` (60000) or `"test"` (10000) images."""
        prefix, count = {"train": ("train", 60000), "test": ("t10k", 10000)}[part]
        x = read_idx(self._file(f"{prefix}-images-idx3-ubyte.gz"), (count, 28, 28))
        y = read_idx(self._file(f"{prefix}-labels-idx1-ubyte.gz"), (count,))
        expected = {name: ARRAY_SHA256[name] for name in (f"x_{part}", f"y_{part}")}
        check_sha256({f"x_{part}": x, f"y_{part}": y}, expected, "Fashion-MNIST")
        return Images(x[..., None], y.astype(np.int64))

    def _file(self, name: str) -> Path:
        folder = data_folder()
        candidates = [] if folder is None else [folder / "fashion-mnist" / name]
        candidates.append(SYSTEM_FOLDER / name)
        for path in candidates:
            if path.is_file():
                return path
        return fetch(URL + name, f"md5:{FILE_MD5[name]}", f"Fashion-MNIST {name}")
