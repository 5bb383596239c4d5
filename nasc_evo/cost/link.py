"""The link between two nodes."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.config import load_group_option
from nasc_evo.errors import UserError

FloatArray = NDArray[np.float64]


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
    """A link of constant rates.

    Attributes:
        name: Short name.
        uplink_mbps: Rate away from the device.
        downlink_mbps: Rate towards the device.
        rtt_ms: Round trip time, paid once for a message and its answer.
        efficiency: Share of the rate that carries payload, in (0, 1].
        overhead_bytes: Added to every message.
        radio: Power of the device's radio, None where unknown.

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

    def __post_init__(self) -> None:
        for name in ("uplink_mbps", "downlink_mbps"):
            self._check(name, getattr(self, name) > 0, "a finite number above 0")
        for name in ("rtt_ms", "overhead_bytes"):
            self._check(name, getattr(self, name) >= 0, "a finite number >= 0")
        self._check("efficiency", 0 < self.efficiency <= 1, "in (0, 1]")
        if self.radio is not None:
            for name, value in asdict(self.radio).items():
                if not (math.isfinite(value) and value >= 0):
                    raise UserError(f"link.radio.{name} must be a finite number >= 0, got {value}.")

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
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise UserError(f"A link has no field '{unknown[0]}'; it has {', '.join(known)}.")
        for name in ("name", "uplink_mbps", "downlink_mbps"):
            if values.get(name) is None:
                raise UserError(f"A link needs '{name}'.")
        for name, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name != "name" and not number:
                raise UserError(f"link.{name} must be a number, got {value!r}.")
        try:
            return cls(**values, radio=None if radio is None else Radio(**radio))
        except TypeError as error:
            raise UserError(
                "link.radio needs exactly the numbers "
                f"{', '.join(field.name for field in fields(Radio))}, got {radio!r}."
            ) from error

    def up_ms(self, n_bytes: FloatArray | float) -> Any:
        """Return the time to carry bytes away from the device, without the round trip."""
        return 8e-3 * n_bytes / (self.uplink_mbps * self.efficiency)

    def down_ms(self, n_bytes: FloatArray | float) -> Any:
        """Return the time to carry bytes towards the device, without the round trip."""
        return 8e-3 * n_bytes / (self.downlink_mbps * self.efficiency)

    def up_mw(self) -> float:
        """Return the power of the device's radio while it sends."""
        assert self.radio is not None
        return self.radio.alpha_up_mw_per_mbps * self.uplink_mbps + self.radio.beta_mw

    def down_mw(self) -> float:
        """Return the power of the device's radio while it receives."""
        assert self.radio is not None
        return self.radio.alpha_down_mw_per_mbps * self.downlink_mbps + self.radio.beta_mw
