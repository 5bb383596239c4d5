"""The link between two nodes.

A tensor is sent in packets; each is lost with the probability `loss`, independently of the others,
and after every round, a round trip later, those that were lost are sent again (selective repeat).
For n packets, sent as often as they must be,

- a packet is sent 1 / (1 - loss) times on average, so that much longer its bytes take;
- round k + 1 is needed unless all n arrived within k rounds, which has the probability
  (1 - loss^k)^n, so that there are sum over k >= 0 of 1 - (1 - loss^k)^n rounds on average.

Both are exact for this protocol and enter a latency by their means. A rate that varies (see
:mod:`nasc_evo.cost.rate`) divides the time of the bytes, not the waiting for rounds and messages.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.config import load_group_option
from nasc_evo.cost.rate import LogNormal, Relay, Trace, Variation
from nasc_evo.errors import UserError

FloatArray = NDArray[np.float64]

MAX_LOSS = 0.99


@dataclass(frozen=True)
class Radio:
    """Power of a radio while it transfers: `P_mw = alpha * rate_mbps + beta` (Huang et al. 2012).

    Attributes:
        alpha_up_mw_per_mbps: Growth with the uplink rate.
        alpha_down_mw_per_mbps: Growth with the downlink rate.
        beta_mw: Power at rate 0.
    """

    alpha_up_mw_per_mbps: float
    alpha_down_mw_per_mbps: float
    beta_mw: float


@dataclass(frozen=True)
class Link:
    """A link between two nodes.

    Attributes:
        name: Short name.
        uplink_mbps: Rate away from the device, the median where it varies.
        downlink_mbps: Rate towards the device, likewise.
        rtt_ms: Round trip time, paid once for a message and its answer.
        efficiency: Share of the rate that carries payload, in (0, 1].
        overhead_bytes: Added to every tensor.
        radio: Power of the device's radio, None where unknown.
        message_ms: Time added to every message, be it a tensor or a result.
        loss: Probability that a packet is lost, in [0, 1).
        packet_bytes: Size of a packet, which matters where packets are lost.
        variation: How the rates vary, None for constant ones.

    Raises:
        UserError: If a figure is no finite number or out of range.
    """

    name: str
    uplink_mbps: float
    downlink_mbps: float
    rtt_ms: float = 0.0
    efficiency: float = 1.0
    overhead_bytes: int = 0
    radio: Radio | None = None
    message_ms: float = 0.0
    loss: float = 0.0
    packet_bytes: int = 1500
    variation: Variation | None = None

    def __post_init__(self) -> None:
        for name in ("uplink_mbps", "downlink_mbps"):
            self._check(name, getattr(self, name) > 0, "a finite number above 0")
        for name in ("rtt_ms", "overhead_bytes", "message_ms"):
            self._check(name, getattr(self, name) >= 0, "a finite number >= 0")
        self._check("efficiency", 0 < self.efficiency <= 1, "in (0, 1]")
        self._check("loss", 0 <= self.loss <= MAX_LOSS, f"in 0..{MAX_LOSS}")
        self._check("packet_bytes", self.packet_bytes >= 1, "a finite number >= 1")
        if self.radio is not None:
            for name, value in asdict(self.radio).items():
                if not (_is_number(value) and math.isfinite(value) and value >= 0):
                    raise UserError(
                        f"link.radio.{name} must be a finite number >= 0, got {value!r}."
                    )

    def _check(self, name: str, holds: bool, allowed: str) -> None:
        value = getattr(self, name)
        if not (math.isfinite(value) and holds):
            raise UserError(f"link.{name} must be {allowed}, got {value}.")

    @classmethod
    def create(cls, link: "str | Mapping[str, Any] | Link") -> "Link":
        """Return a link given as an object, a shipped name, or a mapping of its fields.

        Raises:
            UserError: If the name is unknown or a field is missing, unknown or out of range.
        """
        if isinstance(link, Link):
            return link
        if not isinstance(link, str | Mapping):
            raise UserError(f"A link is given by its name or its fields, got {link}.")
        values = dict(load_group_option("link", link) if isinstance(link, str) else link)
        values.pop("source", None)
        radio = values.pop("radio", None)
        kinds = {kind: values.pop(kind, None) for kind in ("rate_sigma", "trace", "relay")}
        known = [field.name for field in fields(cls) if field.name not in ("radio", "variation")]
        unknown = sorted(set(values) - set(known))
        if unknown:
            has = ", ".join([*known, "radio", *kinds])
            raise UserError(f"A link has no field '{unknown[0]}'; it has {has}.")
        variation = _variation(kinds)
        if isinstance(variation, Trace | Relay):
            kind = "trace" if isinstance(variation, Trace) else "relay"
            if values.get("uplink_mbps") is not None:
                raise UserError(
                    f"link.{kind} gives the rates, so that link.uplink_mbps must be null, got "
                    f"{values['uplink_mbps']}; the options link=trace and link=uav have it so."
                )
            values["uplink_mbps"] = variation.median_mbps
            if values.get("downlink_mbps") is None:
                values["downlink_mbps"] = variation.median_mbps
        for name in ("name", "uplink_mbps", "downlink_mbps"):
            if values.get(name) is None:
                raise UserError(f"A link needs '{name}'.")
        for name, value in values.items():
            if name != "name" and not _is_number(value):
                raise UserError(f"link.{name} must be a number, got {value!r}.")
        try:
            radio = None if radio is None else Radio(**radio)
        except TypeError as error:
            raise UserError(
                "link.radio needs exactly the numbers "
                f"{', '.join(field.name for field in fields(Radio))}, got {radio!r}."
            ) from error
        return cls(**values, radio=radio, variation=variation)

    def describe(self) -> dict[str, Any]:
        """Return what fixes the figures, for comparing runs."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["radio"] = None if self.radio is None else asdict(self.radio)
        values["variation"] = None if self.variation is None else self.variation.describe()
        return values

    def up_ms(self, n_bytes: FloatArray | float) -> Any:
        """Return the time to carry bytes away from the device, without any waiting."""
        return 8e-3 * n_bytes / (self.uplink_mbps * self.efficiency) / (1 - self.loss)

    def down_ms(self, n_bytes: FloatArray | float) -> Any:
        """Return the time to carry bytes towards the device, without any waiting."""
        return 8e-3 * n_bytes / (self.downlink_mbps * self.efficiency) / (1 - self.loss)

    def resend_ms(self, n_bytes: FloatArray | float) -> FloatArray:
        """Return the mean time of waiting for the rounds after the first one."""
        n_bytes = np.asarray(n_bytes, dtype=float)
        if self.loss == 0:
            return np.zeros(n_bytes.shape)
        sizes, inverse = np.unique(np.ceil(n_bytes / self.packet_bytes), return_inverse=True)
        return (self.rtt_ms * further_rounds(sizes, self.loss))[inverse].reshape(n_bytes.shape)

    def up_mw(self) -> float:
        """Return the power of the device's radio while it sends."""
        assert self.radio is not None
        return self.radio.alpha_up_mw_per_mbps * self.uplink_mbps + self.radio.beta_mw

    def down_mw(self) -> float:
        """Return the power of the device's radio while it receives."""
        assert self.radio is not None
        return self.radio.alpha_down_mw_per_mbps * self.downlink_mbps + self.radio.beta_mw


def further_rounds(packets: FloatArray, loss: float) -> FloatArray:
    """Return the mean number of rounds beyond the first until every packet has arrived.

    Args:
        packets: Numbers of packets, `[n]`.
        loss: Probability that a packet is lost, in (0, 1).
    """
    rounds = np.zeros(len(packets))
    lost = loss
    # n packets are all there after k rounds with (1 - lost)^n; beyond these k it is one
    while lost * packets.max(initial=0) > 1e-12:
        rounds += -np.expm1(packets * math.log1p(-lost))
        lost *= loss
    return rounds


def _variation(kinds: Mapping[str, Any]) -> Variation | None:
    """Return how a rate varies out of the fields that may say so."""
    sigma, trace, relay = kinds["rate_sigma"], kinds["trace"], kinds["relay"]
    number = isinstance(sigma, (int, float)) and not isinstance(sigma, bool)
    if sigma is not None and not number:
        raise UserError(f"link.rate_sigma must be a number, got {sigma!r}.")
    given = [name for name, value in kinds.items() if value not in (None, 0)]
    if len(given) > 1:
        raise UserError(f"A rate varies in one way only, got link.{' and link.'.join(given)}.")
    if trace is not None:
        return Trace.load(os.path.expanduser(str(trace)))
    if relay is not None:
        return Relay.create(relay)
    return LogNormal(float(sigma)) if sigma else None


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that is not too large for a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**1000
