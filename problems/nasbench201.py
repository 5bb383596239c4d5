"""NAS-Bench-201 networks, split between a device and a server."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from nasc_evo.assembly import NodeLike, assemble
from nasc_evo.cost import Link
from nasc_evo.cost.network import OFFICIAL_DATASET
from nasc_evo.data import ImageDataset
from nasc_evo.problem import SplitProblem
from nasc_evo.search.exact import all_genomes
from nasc_evo.space import Design
from nasc_evo.supernet.score import Evaluator


class NASBench201Split(SplitProblem):
    """Search NAS-Bench-201 (a cell of 6 edges x 5 operations) jointly with cut, mask and bits.

    Args:
        device: A machine whose table ships (`edgegpu`, `raspi4`, `edgetpu`, `pixel3`, `eyeriss`,
            `fpga`), the path of a table file, a :class:`CostTable`, or a mapping
            `{name, path, idle_mw}`.
        server: Likewise; also `h100` and others (`python -m nasc_evo.costs list`); as a mapping it
            may have `arrival_per_s` and `service_ms`, see :class:`nasc_evo.cost.Queue`.
        link: A link that ships (`wifi`, `lte`, `3g`, `5g`, `ethernet`, `ble`), a :class:`Link`, or
            a mapping of its fields.
        dataset: `fashion_mnist`, `cifar100`, the path of a folder of images, an
            :class:`ImageDataset`, or its fields `{name, geometry, ...}`.
        evaluator: `"tabular"` for the official accuracies (CIFAR-100; mask and bits are then no
            genes, since no table knows their effect), options of
            :class:`nasc_evo.supernet.evaluation.SupernetEvaluator`, or any :class:`Evaluator`.
        chain: `{nodes, links, roles, min_last_blocks, result_bytes}` in place of device, link and
            server; see :mod:`nasc_evo.cost.chain`. Where the last role is `device`, so many blocks
            lie behind the last cut (1) unless everything is local.
        objectives: Metrics to minimise.
        limits: Upper limits of metrics.
        allow_raw_offload: Whether the stored image itself may be sent (cut 0).
        min_device_blocks: Fewest blocks on the device otherwise; no privacy guarantee.
        mask_groups: Channel groups at a cut, or `"channels"`.
        bits: Widths of the quantiser to choose from.
        halving: `{images, confidence}`: score on so many images first, and on all only what could
            still enter the front; see :mod:`nasc_evo.halving`.
        parallel: `serial`, `loky`, `dask`, `ray`, or `{name, n_jobs, chunk, address}`; see
            :mod:`nasc_evo.parallel`. End the workers with :meth:`close`.

    Raises:
        UserError: If an argument is unknown or out of range, or files are missing or damaged.
    """

    def __init__(
        self,
        device: NodeLike = "edgegpu",
        server: NodeLike = "h100",
        link: str | Mapping[str, Any] | Link = "wifi",
        dataset: str | Mapping[str, Any] | ImageDataset = "fashion_mnist",
        evaluator: str | Mapping[str, Any] | Evaluator | None = None,
        *,
        chain: Mapping[str, Any] | None = None,
        objectives: Sequence[str] = ("error", "latency_ms"),
        limits: Mapping[str, float | None] | None = None,
        allow_raw_offload: bool = False,
        min_device_blocks: int = 2,
        mask_groups: int | str = 8,
        bits: Sequence[int] = (4, 6, 8),
        halving: Mapping[str, Any] | None = None,
        parallel: str | Mapping[str, Any] = "serial",
    ) -> None:
        parts = assemble(
            "nasbench201",
            device=device,
            server=server,
            link=link,
            dataset=dataset,
            evaluator=evaluator,
            chain=chain,
            parallel=parallel,
            mask_groups=mask_groups,
            bits=bits,
            allow_raw_offload=allow_raw_offload,
            min_device_blocks=min_device_blocks,
        )
        super().__init__(
            parts.space,
            parts.chain,
            parts.evaluator,
            objectives=objectives,
            limits=limits,
            lossless=parts.lossless,
            halving=halving,
        )
        self.dataset = parts.dataset

    def notes(self) -> list[str]:
        """Say what the cost figures and the accuracies are."""
        notes = [
            *super().notes(),
            f"Costs are those of the networks for {OFFICIAL_DATASET} (the same network but for the "
            "classifier).",
        ]
        for node in {node.name: node for node in self.chain.nodes}.values():
            fit = node.table.header.get("fit")
            if not isinstance(fit, dict):
                continue
            note = f"Block costs of {node.name} are fitted to whole networks"
            checked = fit.get("cross_validated")
            if isinstance(checked, dict) and "mape_percent" in checked:
                note += f" (cross-validated MAPE {checked['mape_percent']} %)"
            if node.table.totals is not None:
                known = int(np.isfinite(node.table.totals.latency_ms).sum())
                note += f" and scaled to the official total, known for {known} of 15625 networks"
            notes.append(note + ".")
        if self.space.max_groups == 1:
            notes.append(
                "Accuracies are official ones of whole networks: every channel is sent, at "
                f"{self.space.bits[0]} bits, and counts as lossless."
            )
        return notes

    def fastest_design(self) -> Design | None:
        """Return the design of the lowest latency in the space, found by looking at all."""
        return self._fastest

    @cached_property
    def _fastest(self) -> Design | None:
        best, fastest = np.inf, None
        for X in all_genomes(self.space):
            batch = self.space.decode_batch(X)
            latency_ms = self.chain.evaluate(batch).latency_ms
            if self.chain.may_refuse:
                refused = np.array([bool(reason) for reason in self.chain.refusals(batch)])
                latency_ms = np.where(refused, np.inf, latency_ms)
            row = int(np.argmin(latency_ms))
            if latency_ms[row] < best:
                best, fastest = float(latency_ms[row]), X[row]
        return None if fastest is None else self.space.decode(fastest)
