"""Latency and energy of a chain of nodes joined by links, vectorised over a population.

Nodes n_0..n_k and links l_0..l_{k-1}; cut c_j says where the network passes from node j-1 to node
j, so node j runs the blocks [c_j, c_{j+1}). A link is used if blocks remain behind its cut
(c < n). Where neighbouring cuts are equal the node between them only relays. The device is node 0;
later nodes of its role are the same machine again. From a chain that ends on a server the result
returns over every link that was used; where it ends on the device each link is passed once, for
half of its round trip.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nasc_evo.cost.link import Link
from nasc_evo.cost.rate import WEIGHTS, Variation, joint_slowdown, slowdown
from nasc_evo.cost.table import CostTable
from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace
from nasc_evo.space.genome import DesignBatch

FloatArray = NDArray[np.float64]

DEVICE = "device"
SERVER = "server"
QUANTIZER_BYTES = 4
"""Two fp16 numbers a kept channel: minimum and maximum, for bits < 16."""
LOGIT_BYTES = 4
PERCENTILE = 0.95
FEW_DESIGNS = 64
"""Up to so many designs their figures are gathered and summed at once."""
CACHED_DESIGNS = 8192
MAX_NODES = 5
"""Every combination of cuts is looked at, and their number grows by the power of the links."""


@dataclass(frozen=True)
class Queue:
    """The queue before a server: requests arrive at random and take the same time each (M/D/1).

    With a utilisation of u = arrivals x service time, a request waits u / (2 (1 - u)) service times
    on average (Pollaczek and Khinchine; Kleinrock, Queueing Systems, 1975, chapter 5).

    Attributes:
        arrival_per_s: Requests a second that arrive at the server.
        service_ms: Time that each takes; None: they are requests of the same design, each of which
            takes what the server computes of it.

    Raises:
        UserError: If a figure is no finite number above 0, or the utilisation is not below 1.
    """

    arrival_per_s: float
    service_ms: float | None = None

    def __post_init__(self) -> None:
        for name in ("arrival_per_s", "service_ms"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if name == "service_ms" and value is None:
                continue
            if not (number and 0 < value < np.inf):
                raise UserError(f"server.{name} must be a finite number above 0, got {value!r}.")
        if self.service_ms is not None:
            self.check(self.service_ms, "of")

    def utilisation(self, service_ms: FloatArray | float) -> Any:
        """Return the share of its time that a server would need."""
        own = service_ms if self.service_ms is None else self.service_ms
        return 1e-3 * self.arrival_per_s * own

    def check(self, service_ms: float, of: str) -> None:
        """Raise a UserError unless a server keeps up with a service time."""
        if self.utilisation(service_ms) >= 1:
            raise UserError(
                f"server.arrival_per_s={self.arrival_per_s:g} requests {of} {service_ms:.4g} ms "
                f"each would keep the server busy for {self.utilisation(service_ms):.3g} of its "
                f"time, which must be below 1: give fewer than {1e3 / service_ms:.4g} a second."
            )

    def waiting_ms(self, service_ms: FloatArray | float) -> Any:
        """Return the mean wait before a request is served; infinite where the queue only grows."""
        own = service_ms if self.service_ms is None else self.service_ms
        used = self.utilisation(service_ms)
        with np.errstate(divide="ignore"):
            return np.where(used < 1, used * own / (2 * np.maximum(1 - used, 0)), np.inf)


@dataclass(frozen=True, eq=False)
class Node:
    """One machine of the chain.

    Attributes:
        name: Its name.
        table: Its block costs.
        role: `"device"` or `"server"`.
        idle_mw: Power of a device that waits, None where unknown.
        queue: Of a server that is shared, None for one that is always free.
    """

    name: str
    table: CostTable
    role: str
    idle_mw: float | None = None
    queue: Queue | None = None


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of P designs on a chain of N nodes and K links.

    Attributes:
        node_ms: `[P, N]`, computing time of each node, with the wait before a shared server;
            infinite where it is overloaded, and so are the sums.
        links_ms: `[P, K]`, time of each link: round trip (half of it where nothing returns),
            tensor, result.
        payload_bytes: `[P]`, bytes sent over all links (results apart).
        device_ms: `[P]`, computing time of all nodes of role device.
        link_ms: `[P]`, sum of `links_ms`.
        server_ms: `[P]`, computing time of all nodes of role server.
        latency_ms: `[P]`, end to end; at the median rates where rates vary.
        latency_p95_ms: `[P]`, what 95 % of the inferences do not exceed where rates vary, None
            without. Whatever else is random enters by its mean.
        energy_mj: `[P]`, energy of the device; NaN where a constant is unknown.
    """

    node_ms: FloatArray
    links_ms: FloatArray
    payload_bytes: FloatArray
    device_ms: FloatArray
    link_ms: FloatArray
    server_ms: FloatArray
    latency_ms: FloatArray
    latency_p95_ms: FloatArray | None
    energy_mj: FloatArray


def _check_devices(nodes: Sequence[Node]) -> None:
    """Raise a UserError unless the nodes of role device are one machine and no neighbours."""
    first = nodes[0]
    for before, node in pairwise(nodes):
        if node.role != DEVICE:
            continue
        if before.role == DEVICE:
            raise UserError(
                f"Neighbouring nodes of a chain cannot both be the device, got {before.name} and "
                f"{node.name}; give one the role {SERVER}."
            )
        other = (node.name, node.table.sha256) != (first.name, first.table.sha256)
        if other or len({first.idle_mw, node.idle_mw} - {None}) > 1:
            raise UserError(
                f"Nodes of role {DEVICE} are one machine that the chain returns to, got "
                f"{first.name} and {node.name} with other figures; give one the role {SERVER}."
            )


class Chain:
    """Nodes in a row with a link between neighbours.

    Args:
        space: Space of architectures, whose tables the nodes have.
        nodes: At least two; the first is a device.
        links: One fewer than nodes.
        image_bytes: Size of the stored input image, sent as it is at cut 0.
        result_bytes: Size of the result that returns to the device from where the network ends;
            None is one float32 a class.

    Raises:
        UserError: If numbers of nodes and links do not fit, nodes of role device are not one
            machine or are neighbours, links between the same two machines vary in different ways,
            a shared server can never keep up, or a size is no whole number >= 0.
    """

    def __init__(
        self,
        space: ArchitectureSpace,
        nodes: Sequence[Node],
        links: Sequence[Link],
        *,
        image_bytes: int,
        result_bytes: int | None = None,
    ) -> None:
        if not 2 <= len(nodes) <= MAX_NODES or len(links) != len(nodes) - 1:
            raise UserError(
                f"A chain needs 2 to {MAX_NODES} nodes and one link fewer than nodes, got "
                f"{len(nodes)} nodes and {len(links)} links."
            )
        if nodes[0].role != DEVICE:
            raise UserError(f"The first node of a chain is a device, got a {nodes[0].role}.")
        _check_devices(nodes)
        self.space = space
        self.nodes = tuple(nodes)
        self.links = tuple(links)
        self.image_bytes = image_bytes
        if result_bytes is None:
            result_bytes = LOGIT_BYTES * space.n_classes
        if not isinstance(result_bytes, int) or isinstance(result_bytes, bool) or result_bytes < 0:
            raise UserError(
                f"chain.result_bytes must be a whole number >= 0 or null, got {result_bytes!r}."
            )
        self.result_bytes = result_bytes
        self._varying = self._find_varying()
        self._check_queues()
        self._elements_at = np.array([0] + [h * w for _, h, w in space.cut_shapes[1:]] + [0])

    def _check_queues(self) -> None:
        """Raise a UserError where a shared server cannot keep up with any share of any network."""
        start = self.space.block_start
        for j, node in enumerate(self.nodes):
            if node.queue is None or node.queue.service_ms is not None:
                continue
            cheapest = np.nanmin(node.table.latency_ms, axis=1)
            blocks = np.add.reduceat(cheapest, start[:-1])
            last = j == len(self.nodes) - 1  # it computes the last block if it computes anything
            least = node.table.constant_ms + float(blocks[-1] if last else blocks.min())
            node.queue.check(least, f"to {node.name} of at least")

    def _find_varying(self) -> list[tuple[Variation, list[int]]]:
        """Return each way in which rates vary, and the links that vary so, together.

        Links between the same two nodes are one, passed in both directions.
        """
        found: dict[Any, tuple[Variation, list[int]]] = {}
        for j, link in enumerate(self.links):
            if link.variation is not None:
                ends = frozenset((node.name, node.role) for node in self.nodes[j : j + 2])
                variation, links = found.setdefault(ends, (link.variation, []))
                if link.variation.describe() != variation.describe():
                    raise UserError(
                        f"Links {links[0] + 1} and {j + 1} of the chain join the same two "
                        "machines, so that their rates vary as one; give both the same variation "
                        "or one a constant rate."
                    )
                links.append(j)
        if len(found) > 2:
            raise UserError(
                f"The rates of at most 2 links of a chain may vary, got {len(found)}; make others "
                "constant."
            )
        return list(found.values())

    @property
    def varies(self) -> bool:
        """Whether the rate of a link varies, so that there is a latency of the slowest cases."""
        return bool(self._varying)

    @cached_property
    def _joint_slowdown(self) -> FloatArray:
        (first, _), (second, _) = self._varying
        return joint_slowdown(first, second, PERCENTILE)

    def _percentile(self, latency_ms: FloatArray, transfer_ms: FloatArray) -> FloatArray:
        """Return the 95th percentile of the latency, `[P]`.

        Args:
            latency_ms: At the median rates, `[P]`.
            transfer_ms: Time of the bytes on each link at the median rates, `[P, K]`.
        """
        varying = [transfer_ms[:, links].sum(axis=1) for _, links in self._varying]
        total = np.sum(varying, axis=0)
        if len(varying) == 1:
            slower = slowdown(self._varying[0][0], PERCENTILE)
        else:
            share = np.divide(varying[0], total, out=np.zeros_like(total), where=total > 0)
            slower = np.interp(share, WEIGHTS, self._joint_slowdown)
        return latency_ms + total * (slower - 1)

    @property
    def ends_on_device(self) -> bool:
        """Whether the last node is a device."""
        return self.nodes[-1].role == DEVICE

    def notes(self) -> list[str]:
        """Say what stands behind measured tables, servers that are shared and rates that vary."""
        notes = []
        for table in {id(node.table): node.table for node in self.nodes}.values():
            metrics = {"latency_ms": "Latencies"}
            if table is self.nodes[0].table and not self.missing_for_energy():
                metrics["energy_mj"] = "Energies"
            for metric, what in metrics.items():
                error = table.prediction_error(metric)
                if error is not None:
                    mape, tau = error
                    notes.append(
                        f"{what} of {table.name} are sums of measured blocks, off by {mape:g} % in "
                        f"the mean for measured whole networks (Kendall's tau {tau:g})."
                    )
        for node in self.nodes:
            if node.queue is None:
                continue
            of = "of the same design" if node.queue.service_ms is None else "of other work"
            notes.append(
                f"{node.name} gets {node.queue.arrival_per_s:g} requests a second {of}; the mean "
                "wait for it (M/D/1) is part of server_ms."
            )
        if self.varies:
            notes.append(
                "latency_ms is that at the median rates, latency_p95_ms what 95 % of the "
                "inferences do not exceed as rates vary; all else enters by its mean."
            )
        return notes

    def without_queues(self) -> "Chain":
        """Return the same chain with servers that are always free."""
        nodes = [replace(node, queue=None) for node in self.nodes]
        return Chain(
            self.space,
            nodes,
            self.links,
            image_bytes=self.image_bytes,
            result_bytes=self.result_bytes,
        )

    def with_links(self, links: Sequence[Link]) -> "Chain":
        """Return the same nodes joined by other links."""
        return Chain(
            self.space,
            self.nodes,
            links,
            image_bytes=self.image_bytes,
            result_bytes=self.result_bytes,
        )

    def remote_cuts(self) -> list[tuple[str, tuple[int, ...]]]:
        """Return for each server its name and the cuts by which it runs the whole network."""
        n, k = self.space.n_blocks, len(self.links)
        return [
            (node.name, (0,) * j + (n,) * (k - j))
            for j, node in enumerate(self.nodes)
            if node.role == SERVER
        ]

    def missing_for_energy(self) -> list[str]:
        """Return the names of the unknown constants that an energy needs."""
        missing = []
        for node in self.nodes:
            if node.role == DEVICE:
                if node.table.energy_mj is None:
                    missing.append(f"energy_mj in the cost table of {node.name}")
                if node.idle_mw is None:
                    missing.append(f"the idle power of {node.name} (device.idle_mw)")
        for link, before, after in zip(self.links, self.nodes, self.nodes[1:], strict=False):
            if link.radio is None and DEVICE in (before.role, after.role):
                missing.append(f"the radio constants of {link.name} (link.radio)")
        return list(dict.fromkeys(missing))

    def payloads(self, batch: DesignBatch) -> FloatArray:
        """Return the bytes of the tensor on each link, `[P, K]`, 0 on links that are not used."""
        kept = batch.kept_channels
        values = -(-kept * self._elements_at[batch.cuts] * batch.bits // 8)
        quantizer = np.where(batch.bits < 16, QUANTIZER_BYTES * kept, 0)
        mask = -(-batch.n_groups // 8)
        overhead = np.array([link.overhead_bytes for link in self.links])
        tensor = np.where(batch.cuts == 0, self.image_bytes, values + quantizer + mask)
        return np.where(batch.cuts < self.space.n_blocks, tensor + overhead, 0).astype(float)

    def _indices(self, table: CostTable, ops: NDArray) -> NDArray:
        """Return for each position where a design's figure stands in a table, `[positions, P]`."""
        codes = self.space.position_codes(ops, table.pruned)
        n_positions, n_ops = table.latency_ms.shape
        return np.ascontiguousarray(codes.T) + n_ops * np.arange(n_positions)[:, None]

    def _split_sums(
        self, table: CostTable, metric: str, ops: NDArray, bounds: NDArray, indices: NDArray
    ) -> FloatArray:
        """Sum a table's figures between the bounds, `[P, N]`.

        Args:
            table: The table.
            metric: `latency_ms` or `energy_mj`.
            ops: Architectures, `[P, n_genes]`.
            bounds: First blocks of the nodes and the number of blocks, `[P, N + 1]`.
            indices: Of :meth:`_indices`.
        """
        figures = getattr(table, metric).ravel()
        prefix = np.empty((len(indices) + 1, len(ops)))
        prefix[0] = 0
        if len(ops) <= FEW_DESIGNS:
            figures.take(indices, out=prefix[1:], mode="clip")
            np.add.accumulate(prefix, axis=0, out=prefix)
        else:  # row by row stays in the cache
            for before, here, at in zip(prefix, prefix[1:], indices, strict=False):
                figures.take(at, out=here, mode="clip")
                here += before
        at = self.space.block_start[bounds.T] * len(ops) + np.arange(len(ops))
        at_bounds = prefix.ravel().take(at, mode="clip")
        sums = np.subtract(at_bounds[1:], at_bounds[:-1]).T
        sums += table.constant(metric) * (np.diff(bounds, axis=1) > 0)
        totals = None if table.totals is None else getattr(table.totals, metric)
        if totals is None:
            return sums
        total = totals[self.space.index(ops)]
        return sums * np.where(np.isnan(total), 1.0, total / prefix[-1])[:, None]

    @property
    def may_refuse(self) -> bool:
        """Whether some node does not run every network, or not as often as it is asked to."""
        return any(
            node.table.refused is not None
            or (node.queue is not None and node.queue.service_ms is None)
            for node in self.nodes
        )

    def refusals(self, batch: DesignBatch) -> list[str]:
        """Return for each design why a node cannot run its share; empty where all can, `[P]`.

        A network that a machine refuses as a whole is taken to be refused in part as well, unless
        the machine runs no more than the first block.
        """
        reasons = [""] * len(batch)
        bounds = self._bounds(batch)
        for j, node in enumerate(self.nodes):
            if node.queue is not None and node.queue.service_ms is None:
                indices = self._indices(node.table, batch.ops)
                service_ms = self._split_sums(node.table, "latency_ms", batch.ops, bounds, indices)[
                    :, j
                ]
                used = node.queue.utilisation(service_ms)
                for i in np.flatnonzero(used >= 1):
                    reasons[i] = f"{node.name} is overloaded: utilisation {used[i]:.3g}"
            if node.table.refused is None:
                continue
            busy = (bounds[:, j + 1] > bounds[:, j]) & (bounds[:, j + 1] > 1)
            for i in np.flatnonzero(busy & node.table.refused[self.space.index(batch.ops)]):
                reasons[i] = reasons[i] or f"the network did not compile for {node.name}"
        return reasons

    def _bounds(self, batch: DesignBatch) -> NDArray:
        """Return the first block of each node and the number of blocks, `[P, N + 1]`."""
        ends = np.zeros((len(batch), 1), dtype=np.int64)
        return np.concatenate([ends, batch.cuts, ends + self.space.n_blocks], axis=1)

    def evaluate(self, batch: DesignBatch) -> Costs:
        """Return the costs of a decoded population, computed in parts that fit into a cache."""
        if len(batch) <= CACHED_DESIGNS:
            return self._evaluate(batch)
        parts = [
            self._evaluate(batch[start : start + CACHED_DESIGNS])
            for start in range(0, len(batch), CACHED_DESIGNS)
        ]
        columns: dict[str, Any] = {}
        for field in fields(Costs):
            column = [getattr(part, field.name) for part in parts]
            columns[field.name] = None if column[0] is None else np.concatenate(column)
        return Costs(**columns)

    def _evaluate(self, batch: DesignBatch) -> Costs:
        n = self.space.n_blocks
        bounds = self._bounds(batch)
        places: dict[tuple[str, ...], NDArray] = {}

        def table_sums(table: CostTable, metric: str) -> FloatArray:
            if table.pruned not in places:
                places[table.pruned] = self._indices(table, batch.ops)
            return self._split_sums(table, metric, batch.ops, bounds, places[table.pruned])

        sums: dict[int, FloatArray] = {}
        node_ms = np.empty((len(batch), len(self.nodes)))
        for j, node in enumerate(self.nodes):
            if id(node.table) not in sums:
                sums[id(node.table)] = table_sums(node.table, "latency_ms")
            node_ms[:, j] = sums[id(node.table)][:, j]
            if node.queue is not None:
                busy = bounds[:, j + 1] > bounds[:, j]
                node_ms[:, j] += np.where(busy, node.queue.waiting_ms(node_ms[:, j]), 0.0)
        payload = self.payloads(batch)
        used = batch.cuts < n
        last_node = used.sum(axis=1)
        is_device = np.array([node.role == DEVICE for node in self.nodes])
        returns = used & ~is_device[last_node][:, None]

        transfer_ms = np.zeros(payload.shape)
        waiting_ms = np.zeros(payload.shape)
        radio_mj = np.zeros(payload.shape)
        for j, link in enumerate(self.links):
            towards_device = is_device[j + 1]
            there = link.down_ms(payload[:, j]) if towards_device else link.up_ms(payload[:, j])
            back = np.where(returns[:, j], link.down_ms(self.result_bytes), 0.0)
            transfer_ms[:, j] = there + back
            waiting_ms[:, j] = link.resend_ms(payload[:, j]) + link.message_ms
            lost_back = link.resend_ms(self.result_bytes) + link.message_ms
            waiting_ms[:, j] += np.where(returns[:, j], lost_back, 0.0)
            if link.radio is not None and (is_device[j] or towards_device):
                power = link.down_mw() if towards_device else link.up_mw()
                radio_mj[:, j] = 1e-3 * (power * there + link.down_mw() * back)
        rtt = np.array([link.rtt_ms for link in self.links]) * np.where(returns, 1.0, 0.5)
        links_ms = np.where(used, rtt + transfer_ms + waiting_ms, 0.0)
        device_ms = node_ms[:, is_device].sum(axis=1)
        link_ms = links_ms.sum(axis=1)
        server_ms = node_ms[:, ~is_device].sum(axis=1)
        latency_ms = device_ms + link_ms + server_ms
        if self.missing_for_energy():
            energy_mj = np.full(len(batch), np.nan)
        else:
            energy_mj = radio_mj.sum(axis=1)
            for j, node in enumerate(self.nodes):
                if is_device[j] and node.table.energy_mj is not None:
                    energy_mj += table_sums(node.table, "energy_mj")[:, j]
            at_device = is_device[:-1] | is_device[1:]
            busy_ms = device_ms + transfer_ms[:, at_device].sum(axis=1)
            idle_mw = self.nodes[0].idle_mw
            assert idle_mw is not None
            energy_mj += 1e-3 * idle_mw * (latency_ms - busy_ms)
        return Costs(
            node_ms=node_ms,
            links_ms=links_ms,
            payload_bytes=payload.sum(axis=1),
            device_ms=device_ms,
            link_ms=link_ms,
            server_ms=server_ms,
            latency_ms=latency_ms,
            latency_p95_ms=self._percentile(latency_ms, transfer_ms) if self.varies else None,
            energy_mj=energy_mj,
        )
