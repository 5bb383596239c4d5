"""FBNet networks, split between a device and a server."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nasc_evo.assembly import NodeLike, assemble
from nasc_evo.cost import Link
from nasc_evo.data import ImageDataset
from nasc_evo.problem import SplitProblem
from nasc_evo.space import Design
from nasc_evo.supernet.score import Evaluator


class FBNetSplit(SplitProblem):
    """Search FBNet (22 layers x 9 operations) jointly with cut, channel mask and bits.

    Args:
        device: A machine whose table ships (`edgegpu`, `raspi4`, `pixel3`, `eyeriss`, `fpga`), the
            path of a table file, a :class:`CostTable`, or a mapping `{name, path, idle_mw}`.
        server: Likewise; also `h100` and others (`python -m nasc_evo.costs list`); as a mapping it
            may have `arrival_per_s` and `service_ms`, see :class:`nasc_evo.cost.Queue`.
        link: A link that ships (`wifi`, `lte`, `3g`, `5g`, `ethernet`, `ble`), a :class:`Link`, or
            a mapping of its fields.
        dataset: `fashion_mnist`, `cifar100`, the path of a folder of images, an
            :class:`ImageDataset`, or its fields `{name, geometry, ...}`.
        evaluator: Options of :class:`nasc_evo.supernet.evaluation.SupernetEvaluator`, or any
            :class:`Evaluator`.
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
        evaluator: Mapping[str, Any] | Evaluator | None = None,
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
            "fbnet",
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
        """Say where the cost figures are those of another data set, and fitted."""
        notes = super().notes()
        official = {32: "cifar100", 224: "imagenet"}[self.dataset.geometry]
        if self.dataset.name != official:
            notes.append(
                f"Costs are those of the {self.dataset.geometry}x{self.dataset.geometry} networks "
                f"for {official} (the same network but for the classifier)."
            )
        for node in {node.name: node for node in self.chain.nodes}.values():
            fit = node.table.header.get("fit")
            if isinstance(fit, dict):
                notes.append(
                    f"Block costs of {node.name} are fitted to whole networks, not measured; see "
                    "the header of its table for how far they can move."
                )
        return notes

    def fastest_design(self) -> Design:
        """Return the design of the lowest latency in the space, found exactly.

        Costs are additive, so for given cuts the fastest network has the fastest operation of
        each layer on the node that runs it, and sends the one most important group with the
        fewest bits.
        """
        space, chain = self.space, self.chain
        fastest_ops = np.array(
            [np.nanargmin(node.table.latency_ms[1 : 1 + space.n_arch], 1) for node in chain.nodes]
        )
        cuts = space.cut_vectors
        X = np.zeros((len(cuts), space.n_var), dtype=np.int64)
        X[:, space.cut_genes] = cuts
        layer_block = np.arange(1, 1 + space.n_arch)
        node_of_layer = (space.cut_choices[cuts][:, :, None] <= layer_block).sum(axis=1)
        X[:, : space.n_arch] = fastest_ops[node_of_layer, np.arange(space.n_arch)]
        batch = space.decode_batch(X)
        best = int(np.argmin(chain.evaluate(batch).latency_ms))
        return space.decode(X[best])
