"""What is known of whole networks beyond the additive costs of their blocks.

The NAS-Bench-201 part of HW-NAS-Bench measured whole networks. Where its official figures are at
hand (`$NASC_EVO_DATA/hwnas/nb201_hw.npz`, written by `python -m nasc_evo.costs
import-hwnasbench`), the block costs of a network are scaled so that they add up to its official
total; networks without a figure keep the additive one.
"""

import base64
import binascii
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nasc_evo.data.images import data_folder
from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_arrays

OFFICIAL_FILE = Path("hwnas") / "nb201_hw.npz"
OFFICIAL_DATASETS = ("cifar10", "cifar100", "ImageNet16-120")
OFFICIAL_DATASET = OFFICIAL_DATASETS[0]
MAX_OFFICIAL_BYTES = 64 * 2**20
"""Largest size of a file of official figures, several times what they have."""
DID_NOT_COMPILE = -1.0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class NetworkTotals:
    """Costs of whole networks, by their official index.

    Attributes:
        latency_ms: `[networks]`, NaN where there is none.
        energy_mj: Likewise; None where the machine has no energies.
        refused: Which networks did not compile.
        sha256: Of the figures.
    """

    latency_ms: FloatArray
    energy_mj: FloatArray | None
    refused: NDArray[np.bool_]
    sha256: str


class OfficialCosts(NamedTuple):
    """The NAS-Bench-201 part of HW-NAS-Bench.

    Attributes:
        values: `[datasets, metrics, networks]` in ms and mJ, NaN where missing.
        datasets: Names of the first axis.
        metrics: Names of the second axis, such as `raspi4_latency`.
    """

    values: FloatArray
    datasets: list[str]
    metrics: list[str]


def official_costs(n_networks: int) -> OfficialCosts | None:
    """Return the official figures of whole networks, None where the file is not at hand.

    Raises:
        UserError: If the file is damaged.
    """
    folder = data_folder()
    if folder is None or not (folder / OFFICIAL_FILE).is_file():
        return None
    path = folder / OFFICIAL_FILE
    advice = "write it anew with `python -m nasc_evo.costs import-hwnasbench FILE`."
    arrays = read_arrays(path, advice, MAX_OFFICIAL_BYTES, ("values", "datasets", "metrics"))
    values = arrays.pop("values")
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.kind != "U":
            raise UserError(f"'{name}' of the data file {path} must be a list of texts; {advice}")
    datasets, metrics = arrays["datasets"].tolist(), arrays["metrics"].tolist()
    shape = (len(datasets), len(metrics), n_networks)
    if values.shape != shape or values.dtype != np.float64:
        raise UserError(
            f"The data file {path} must hold float64 figures of shape {shape}, got "
            f"{values.dtype} of shape {values.shape}; {advice}"
        )
    if not set(OFFICIAL_DATASETS) <= set(datasets):
        raise UserError(
            f"The data file {path} must have figures of {', '.join(OFFICIAL_DATASETS)}; {advice}"
        )
    return OfficialCosts(values, datasets, metrics)


def official_totals(machine: str, n_networks: int) -> NetworkTotals | None:
    """Return the official NAS-Bench-201 figures of a machine, None where they are not at hand.

    Raises:
        UserError: If the file is damaged.
    """
    costs = official_costs(n_networks)
    if costs is None or f"{machine}_latency" not in costs.metrics:
        return None
    values, metrics = costs.values[costs.datasets.index(OFFICIAL_DATASET)], costs.metrics
    official = values[metrics.index(f"{machine}_latency")]
    latency_ms, refused = _measured(official), official == DID_NOT_COMPILE
    energy_mj = None
    if f"{machine}_energy" in metrics:
        energy_mj = _measured(values[metrics.index(f"{machine}_energy")])
    digest = hashlib.sha256(latency_ms.tobytes())
    digest.update(refused.tobytes() if refused.any() else b"")
    digest.update(b"" if energy_mj is None else energy_mj.tobytes())
    return NetworkTotals(latency_ms, energy_mj, refused, digest.hexdigest())


def _measured(values: FloatArray) -> FloatArray:
    return np.where((values > 0) & np.isfinite(values), values, np.nan)


def pack_flags(flags: NDArray[np.bool_]) -> str:
    """Return one bit a network as text: base64 of the zlib-compressed bits, first network first."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode("ascii")


def unpack_flags(text: str, n: int) -> NDArray[np.bool_]:
    """Return the `n` flags of :func:`pack_flags`.

    Raises:
        ValueError: If the text holds anything else.
    """
    try:
        packed = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), n)
    except (binascii.Error, zlib.error) as error:
        raise ValueError(one_line(error)) from error
    if len(packed) != -(-n // 8):
        raise ValueError(f"{8 * len(packed)} flags instead of {n}")
    return np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=n).astype(bool)
