"""How the rate of a link varies: log-normal, by a trace, or with the distance of a moving relay.

A variation is the distribution of a *factor*, the rate during one inference divided by the median
rate; it scales uplink and downlink alike and stays as it is during an inference. Everything is a
quantile or a quadrature, so that equal links have equal figures.
"""

import csv
import hashlib
import io
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from nasc_evo.errors import UserError, one_line
from nasc_evo.files import read_bytes

FloatArray = NDArray[np.float64]

TRACE_COLUMN = "uplink_mbps"
MAX_TRACE_BYTES = 16 * 2**20
DISTANCES = 256
"""Nodes of the quadrature over the way of a relay."""
NODES, FINE_NODES = 256, 4096
"""Equally likely values that stand for the times over one of two links, and over the other."""
WEIGHTS = np.linspace(0.0, 1.0, 129)
"""Shares of one of two links at which quantiles of their sum are computed."""
BISECTIONS = 50


class Variation(Protocol):
    """The distribution of the factor of a rate; its median is 1."""

    def exceeded(self, probability: FloatArray | float) -> Any:
        """Return the largest factor that is reached with a probability in (0, 1)."""

    def describe(self) -> dict[str, Any]:
        """Return what fixes the figures."""


@dataclass(frozen=True)
class LogNormal:
    """A rate whose logarithm is normally distributed around that of the median.

    Attributes:
        sigma: Standard deviation of the natural logarithm of the rate.

    Raises:
        UserError: If sigma is not above 0, or so large that rates lose all meaning.
    """

    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma <= 5:
            raise UserError(f"link.rate_sigma must be a number in 0..5, got {self.sigma!r}.")

    def exceeded(self, probability: FloatArray | float) -> Any:
        """Return the largest factor that is reached with a probability."""
        return np.exp(-self.sigma * ndtri(probability))

    def describe(self) -> dict[str, Any]:
        """Return what fixes the figures."""
        return {"kind": "log-normal", **asdict(self)}


@dataclass(frozen=True, eq=False)
class Trace:
    """Measured rates, each as likely as the others.

    Attributes:
        rates_mbps: The rates in ascending order.
        sha256: Of the rates.
    """

    rates_mbps: FloatArray
    sha256: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Read a CSV file whose column `uplink_mbps` holds a rate a line; others are not read.

        Raises:
            UserError: If the file is missing or damaged, has no rate, or one that is not above 0.
        """
        try:
            text = read_bytes(path, MAX_TRACE_BYTES).decode("utf-8")
            rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        except FileNotFoundError as error:
            raise UserError(f"There is no file {path} of rates (link.trace).") from error
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise UserError(f"The rates {path} cannot be read ({one_line(error)}).") from error
        if not rows or rows[0].count(TRACE_COLUMN) != 1:
            first = ",".join(rows[0])[:80] if rows else "nothing"
            raise UserError(
                f"The rates {path} must be a CSV file whose first line names a column "
                f"{TRACE_COLUMN}, got {first!r}."
            )
        column = rows[0].index(TRACE_COLUMN)
        rates = []
        for number, row in enumerate(rows[1:], start=2):
            if not row:
                continue
            try:
                rate = float(row[column])
            except (ValueError, IndexError):
                rate = math.nan
            if not (math.isfinite(rate) and rate > 0):
                raise UserError(
                    f"Line {number} of the rates {path} must have a finite {TRACE_COLUMN} above 0, "
                    f"got {','.join(row)[:80]!r}; leave out times without a connection."
                )
            rates.append(rate)
        if not rates:
            raise UserError(f"The rates {path} are empty: there is no line below the first.")
        ordered = np.sort(np.array(rates))
        if ordered[0] < 1e-9 or ordered[-1] > 1e9:
            raise UserError(
                f"The rates {path} span from {ordered[0]} to {ordered[-1]} Mbps; allowed are 1e-9 "
                "to 1e9."
            )
        return cls(ordered, hashlib.sha256(ordered.tobytes()).hexdigest())

    @property
    def median_mbps(self) -> float:
        """The rate that half of the trace reaches."""
        return float(self.rates_mbps[len(self.rates_mbps) // 2])

    def exceeded(self, probability: FloatArray | float) -> Any:
        """Return the largest factor that is reached with a probability."""
        n = len(self.rates_mbps)
        needed = np.ceil(np.round(np.asarray(probability) * n, 9)).astype(np.int64)
        return self.rates_mbps[n - np.clip(needed, 1, n)] / self.median_mbps

    def describe(self) -> dict[str, Any]:
        """Return what fixes the figures."""
        return {"kind": "trace", "rates": len(self.rates_mbps), "sha256": self.sha256}


@dataclass(frozen=True)
class Relay:
    """A relay such as a UAV that flies to and fro over a line, as seen from the ground.

    The horizontal distance x is uniform between `nearest_m` and `farthest_m` and the relay at
    `altitude_m`, so that it is d = sqrt(altitude_m^2 + x^2) away. The signal-to-noise ratio falls
    as d^-path_loss_exponent, and the rate is that of Shannon: bandwidth_mhz log2(1 + snr). This is
    the channel of Zeng, Zhang and Lim, Throughput Maximization for UAV-Enabled Mobile Relaying
    Systems, IEEE Transactions on Communications 2016 (line of sight, exponent 2). Obstacles may be
    added as log-normal shadowing: a normal deviation of the ratio in dB.

    Attributes:
        altitude_m: Height above ground.
        nearest_m: Smallest horizontal distance.
        farthest_m: Largest one.
        bandwidth_mhz: Bandwidth of the channel.
        snr_db: Signal-to-noise ratio at 1 m: transmit power + gain at 1 m - noise power, in dB.
        path_loss_exponent: 2 in free space.
        shadowing_db: Standard deviation of the ratio in dB.
        max_mbps: Rate that the radio never exceeds, None for no such rate.

    Raises:
        UserError: If a figure is no finite number or out of range.
    """

    altitude_m: float
    nearest_m: float
    farthest_m: float
    bandwidth_mhz: float
    snr_db: float
    path_loss_exponent: float = 2.0
    shadowing_db: float = 0.0
    max_mbps: float | None = None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value)) and not (name == "max_mbps" and value is None):
                raise UserError(f"link.relay.{name} must be a finite number, got {value!r}.")
        ranges = (
            ("altitude_m", 1 <= self.altitude_m <= 1e6, "in 1..1e6"),
            ("nearest_m", 0 <= self.nearest_m <= 1e6, "in 0..1e6"),
            ("farthest_m", self.nearest_m < self.farthest_m <= 1e6, "above nearest_m, up to 1e6"),
            ("bandwidth_mhz", 0 < self.bandwidth_mhz <= 1e5, "above 0, up to 1e5"),
            ("snr_db", -200 <= self.snr_db <= 300, "in -200..300"),
            ("path_loss_exponent", 1 <= self.path_loss_exponent <= 6, "in 1..6"),
            ("shadowing_db", 0 <= self.shadowing_db <= 30, "in 0..30"),
            ("max_mbps", self.max_mbps is None or self.max_mbps > 0, "above 0 or null"),
        )
        for name, holds, allowed in ranges:
            if not holds:
                raise UserError(f"link.relay.{name} must be {allowed}, got {getattr(self, name)}.")
        if not self.median_mbps > 1e-9:
            raise UserError(
                f"link.relay reaches no rate: at the median it has {self.median_mbps:.3g} Mbps; "
                "give it more snr_db, or less far to fly."
            )

    @classmethod
    def create(cls, values: Any) -> "Relay":
        """Return a relay given by a mapping of its fields.

        Raises:
            UserError: If a field is missing, unknown or out of range.
        """
        known = [field.name for field in fields(cls)]
        given = dict(values) if isinstance(values, Mapping) else {}
        unknown = sorted(set(map(str, given)) - set(known))
        if unknown or not set(known[:5]) <= set(given):
            raise UserError(
                f"link.relay needs the fields {', '.join(known[:5])} and may have "
                f"{', '.join(known[5:])}, got {', '.join(map(str, given)) or values!r}."
            )
        return cls(**given)

    def _snr_db(self, x_m: FloatArray) -> FloatArray:
        """Return the ratio in dB without shadowing at horizontal distances."""
        distance_m = np.hypot(self.altitude_m, x_m)
        return self.snr_db - 10 * self.path_loss_exponent * np.log10(distance_m)

    def _rate_mbps(self, snr_db: FloatArray) -> FloatArray:
        # log2(1 + 10^(snr / 10)), without overflow
        rate = self.bandwidth_mhz * np.logaddexp2(0.0, snr_db * math.log2(10) / 10)
        return rate if self.max_mbps is None else np.minimum(rate, self.max_mbps)

    @cached_property
    def _ratios_db(self) -> FloatArray:
        """The ratios without shadowing at equally likely places."""
        return self._snr_db(
            self.nearest_m + _middles(DISTANCES) * (self.farthest_m - self.nearest_m)
        )

    def _reach_db(self, snr_db: FloatArray) -> FloatArray:
        """Return the probability that a ratio is reached, by the midpoint rule over the way."""
        return ndtr((self._ratios_db - snr_db[..., None]) / self.shadowing_db).mean(axis=-1)

    @cached_property
    def median_mbps(self) -> float:
        """The rate that is reached half of the time."""
        return float(self._exceeded_mbps(np.array(0.5)))

    def _exceeded_mbps(self, probability: FloatArray) -> FloatArray:
        if self.shadowing_db == 0:
            x_m = self.nearest_m + probability * (self.farthest_m - self.nearest_m)
            return self._rate_mbps(self._snr_db(x_m))
        low = np.full(probability.shape, self._ratios_db.min() - 10 * self.shadowing_db)
        high = np.full(probability.shape, self._ratios_db.max() + 10 * self.shadowing_db)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            reached = self._reach_db(middle) >= probability
            low, high = np.where(reached, middle, low), np.where(reached, high, middle)
        return self._rate_mbps(low)

    def exceeded(self, probability: FloatArray | float) -> Any:
        """Return the largest factor that is reached with a probability."""
        return self._exceeded_mbps(np.asarray(probability, dtype=float)) / self.median_mbps

    def describe(self) -> dict[str, Any]:
        """Return what fixes the figures."""
        return {"kind": "relay", **asdict(self)}


def slowdown(variation: Variation, probability: float) -> float:
    """Return by what a transfer at the median rate takes longer, at most, with a probability.

    A time is the inverse of a rate, so that its quantile is that of the rate from the other end.
    """
    return float(1 / variation.exceeded(probability))


def joint_slowdown(first: Variation, second: Variation, probability: float) -> FloatArray:
    """Return quantiles of the time over two links that vary independently.

    Args:
        first: Of one link.
        second: Of the other.
        probability: Of the quantile.

    Returns:
        For each w of :data:`WEIGHTS` the quantile of w / f1 + (1 - w) / f2, where f1 and f2 are the
        factors. Where the median rates would take w and 1 - w, that is what both take together.

    The distribution function of the sum is the mean of that of the second term over the first one:
    a midpoint rule over equally likely values of f1. It is inverted by bisection.
    """
    terms = 1 / first.exceeded(_middles(NODES))
    others = 1 / second.exceeded(_middles(FINE_NODES))
    weights = WEIGHTS[1:-1, None]
    low, high = np.zeros((len(weights), 1)), np.full((len(weights), 1), terms[-1] + others[-1])
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        rest = (middle - weights * terms) / (1 - weights)
        below = np.interp(rest, others, _middles(FINE_NODES), left=0.0, right=1.0)
        reached = below.mean(axis=1, keepdims=True) >= probability
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    alone = slowdown(second, probability), slowdown(first, probability)
    return np.concatenate([alone[:1], high[:, 0], alone[1:]])


def _middles(n: int) -> FloatArray:
    """Return the middles of n equal parts of 0..1."""
    return (np.arange(n) + 0.5) / n
