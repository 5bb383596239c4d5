"""The genome: one integer array for architecture, cuts, channel masks and bits.

Layout: `[architecture genes | cut, mask genes, bits | cut, mask genes, bits | ...]` with one
`cut, mask, bits` segment for each link of the chain. Every gene is an index into its choices, so
each integer array within the bounds (and with cuts that do not decrease) is a valid genome. What
has a single choice (one channel group, one width) is no gene.

What a genome decodes to is its *phenotype*, a :class:`Design`. The mask and the bits of a cut
where the stored image (c = 0) or nothing (c = n) is sent have no effect and are absent from it;
an empty mask stands for the most important group alone. A node between two equal cuts only relays:
what it sends is what it got, so that the mask and the bits before it stand for both links.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import combinations_with_replacement
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nasc_evo.errors import UserError
from nasc_evo.space.architecture import ArchitectureSpace, IntArray

BITS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
"""Widths that may be chosen; 16 and 32 are half and float precision without quantiser."""


@dataclass(frozen=True)
class Design:
    """The phenotype: what is evaluated, reported and compared.

    Attributes:
        arch: Text form of the architecture.
        ops: Its genes.
        cuts: Number of blocks before each cut.
        masks: For each cut a string of 0/1, one a channel group; empty where inactive.
        bits: For each cut the width of what is sent; 0 where inactive.
    """

    arch: str
    ops: tuple[int, ...]
    cuts: tuple[int, ...]
    masks: tuple[str, ...]
    bits: tuple[int, ...]

    @cached_property
    def key(self) -> str:
        """The identity of the phenotype, `arch;cut;mask;bits`, chains joined by `/`."""
        parts = (self.cuts, self.masks, self.bits)
        return ";".join([self.arch, *("/".join(map(str, part)) for part in parts)])


@dataclass(frozen=True)
class DesignBatch:
    """A decoded population as arrays, for P designs, K links and G mask genes.

    Attributes:
        ops: Architectures, `[P, n_genes]`.
        cuts: `[P, K]`, number of blocks before each cut.
        masks: `[P, K, G]` booleans for at most G groups; False at inactive cuts and surplus ones.
        kept_channels: `[P, K]` channels that are sent; 0 where inactive.
        n_groups: `[P, K]` groups of the mask at the cut; 0 where inactive.
        bits: `[P, K]`; 0 where inactive.
    """

    ops: IntArray
    cuts: IntArray
    masks: NDArray[np.bool_]
    kept_channels: IntArray
    n_groups: IntArray
    bits: IntArray

    def __len__(self) -> int:
        return len(self.ops)

    def __getitem__(self, rows: slice) -> "DesignBatch":
        return DesignBatch(*(getattr(self, field.name)[rows] for field in fields(self)))


class SplitSpace:
    """A space of architectures together with cuts, channel masks and bits.

    Args:
        architecture: The space of networks.
        mask_groups: Number of equal channel groups at a cut, or `"channels"` for one mask gene a
            channel (as many genes as the widest cut has channels).
        bits: Allowed widths, each one of :data:`BITS`.
        merge_equal_networks: Whether architectures that compute the same function are one
            phenotype, see :meth:`ArchitectureSpace.canonical`.
        n_links: Links of the chain, each with a cut of its own.
        allow_raw_offload: Whether the stored input image may be sent (cut 0).
        min_device_blocks: Fewest blocks before the first cut, raw offload apart. Keeping blocks
            on the device is no privacy guarantee.
        min_last_blocks: Fewest blocks behind the last cut, all local apart; at least 1 where the
            chain ends on the device and outputs shall not leave it.
        channel_importance: For cut indices a score a channel, larger means more important; a
            group's score is the sum of its channels'. Where missing, the order in the tensor is
            taken.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(
        self,
        architecture: ArchitectureSpace,
        *,
        mask_groups: int | str = 8,
        bits: Sequence[int] = (4, 6, 8),
        merge_equal_networks: bool = True,
        n_links: int = 1,
        allow_raw_offload: bool = False,
        min_device_blocks: int = 2,
        min_last_blocks: int = 0,
        channel_importance: Mapping[int, ArrayLike] | None = None,
    ) -> None:
        self.architecture = architecture
        self.n_links = n_links
        self.allow_raw_offload = allow_raw_offload
        self.min_device_blocks = min_device_blocks
        self.min_last_blocks = min_last_blocks
        self.mask_groups = mask_groups
        self.merge_equal_networks = merge_equal_networks
        n = architecture.n_blocks
        if n_links < 1:
            raise UserError(f"A chain needs at least one link, got {n_links}.")
        if not isinstance(min_device_blocks, int) or not 1 <= min_device_blocks <= n:
            raise UserError(
                f"min_device_blocks must be in 1..{n} for {architecture.name}, "
                f"got {min_device_blocks}; use allow_raw_offload=true to send the input itself."
            )
        whole = isinstance(min_last_blocks, int) and not isinstance(min_last_blocks, bool)
        if not whole or not 0 <= min_last_blocks <= n - min_device_blocks:
            raise UserError(
                f"The blocks behind the last cut (chain.min_last_blocks) must be in "
                f"0..{n - min_device_blocks} for {architecture.name} with "
                f"min_device_blocks={min_device_blocks}, got {min_last_blocks!r}."
            )
        self.bits = self._check_bits(bits)
        raw = (0,) if allow_raw_offload else ()
        self.cut_choices = np.array([*raw, *range(min_device_blocks, n + 1)])
        self.channels_at = np.array([shape[0] for shape in architecture.cut_shapes] + [0])
        self.groups_at = self._groups_at(mask_groups)
        self.max_groups = int(self.groups_at.max())
        self.n_mask = self.max_groups if self.max_groups > 1 else 0
        self.importance = self._importance_order(channel_importance or {})
        """Groups from most to least important at each cut, `[n_blocks + 1, max_groups]`."""
        self.n_arch = architecture.n_genes
        bits_size = [len(self.bits)] if len(self.bits) > 1 else []
        segment_sizes = [len(self.cut_choices), *[2] * self.n_mask, *bits_size]
        self.segment = len(segment_sizes)
        self.n_var = self.n_arch + n_links * self.segment
        self.sizes = np.array([len(c) for c in architecture.gene_ops] + segment_sizes * n_links)
        """Number of choices of each gene, `[n_var]`."""
        starts = self.n_arch + self.segment * np.arange(n_links)
        self.cut_genes = starts
        self.mask_genes = starts[:, None] + 1 + np.arange(self.n_mask)
        self.bits_genes = starts + 1 + self.n_mask if bits_size else np.array([], dtype=np.int64)

    def _check_bits(self, bits: Sequence[int]) -> tuple[int, ...]:
        values = tuple(bits) if isinstance(bits, Iterable) else ()
        known = all(isinstance(v, Integral) and v in BITS for v in values)
        if not values or not known or len(set(values)) != len(values):
            raise UserError(
                f"bits must be a list of different widths out of {list(BITS)}, got {bits}."
            )
        return tuple(sorted(values))

    def _groups_at(self, mask_groups: int | str) -> IntArray:
        inner = self.channels_at[1 : self.architecture.n_blocks]
        groups = np.zeros_like(self.channels_at)
        if mask_groups == "channels":
            groups[1:-1] = inner
            return groups
        if not isinstance(mask_groups, int) or isinstance(mask_groups, bool) or mask_groups < 1:
            raise UserError(
                f"mask_groups must be a positive whole number or 'channels', got {mask_groups!r}."
            )
        if np.any(inner % mask_groups):
            width = int(inner[np.flatnonzero(inner % mask_groups)[0]])
            raise UserError(
                f"mask_groups={mask_groups} does not divide the {width} channels at a cut of "
                f"{self.architecture.name}; {int(np.gcd.reduce(inner))} and its divisors do."
            )
        groups[1:-1] = mask_groups
        return groups

    def _importance_order(self, scores: Mapping[int, ArrayLike]) -> IntArray:
        order = np.tile(np.arange(self.max_groups), (len(self.groups_at), 1))
        for cut, values in scores.items():
            if not 0 < cut < self.architecture.n_blocks:
                raise UserError(
                    f"Channels have an importance at the inner cuts 1.."
                    f"{self.architecture.n_blocks - 1}, got one at cut {cut}."
                )
            n_groups, channels = self.groups_at[cut], self.channels_at[cut]
            if np.shape(values) != (channels,) or not np.isfinite(values).all():
                raise UserError(
                    f"The importance at cut {cut} must be {channels} finite numbers, one a channel."
                )
            groups = np.reshape(values, (n_groups, -1)).sum(axis=1)
            order[cut, :n_groups] = np.argsort(-groups, kind="stable")
        return order

    @cached_property
    def cut_vectors(self) -> IntArray:
        """All cuts of a chain that are allowed, as cut genes, `[vectors, n_links]`, in order."""
        choices = range(len(self.cut_choices))
        vectors = np.array(list(combinations_with_replacement(choices, self.n_links)))
        return vectors[(self.repair_cuts(vectors.copy()) == vectors).all(axis=1)]

    def repair_cuts(self, genes: IntArray) -> IntArray:
        """Put cut genes `[P, n_links]` in order and blocks behind the last cut, in place.

        Where anything lies behind the first cut, cuts move towards the device until
        `min_last_blocks` blocks lie behind the last one.
        """
        genes.sort(axis=1)
        if self.min_last_blocks:
            n = self.architecture.n_blocks
            highest = np.searchsorted(self.cut_choices, n - self.min_last_blocks)
            split = self.cut_choices[genes[:, 0]] < n
            genes[split] = np.minimum(genes[split], highest)
        return genes

    @property
    def xl(self) -> IntArray:
        """Lower bound of every gene."""
        return np.zeros_like(self.sizes)

    @property
    def xu(self) -> IntArray:
        """Upper bound of every gene, inclusive."""
        return self.sizes - 1

    def check(self, X: NDArray) -> IntArray:
        """Return `X` as an int64 array `[P, n_var]` after checking that every row is a genome.

        Raises:
            UserError: If a gene is no whole number or out of range, or cuts decrease or leave too
                few blocks behind the last one.
        """
        X = np.atleast_2d(np.asarray(X))
        if X.ndim != 2 or X.shape[1] != self.n_var:
            raise UserError(f"A genome has {self.n_var} genes, got an array of shape {X.shape}.")
        with np.errstate(invalid="ignore"):
            genomes = X.astype(np.int64)
        if not np.array_equal(genomes, X):
            row, gene = np.argwhere(genomes != X)[0]
            raise UserError(f"Gene {gene} must be a whole number, got {X[row, gene]}.")
        bad = np.argwhere((genomes < 0) | (genomes > self.xu))
        if len(bad):
            row, gene = bad[0]
            raise UserError(f"Gene {gene} must be in 0..{self.xu[gene]}, got {genomes[row, gene]}.")
        cuts = genomes[:, self.cut_genes]
        if np.any(np.diff(cuts, axis=1) < 0):
            row = np.argwhere(np.diff(cuts, axis=1) < 0)[0][0]
            raise UserError(f"Cuts along a chain must not decrease, got genes {cuts[row]}.")
        if self.min_last_blocks:
            moved = np.flatnonzero((self.repair_cuts(cuts.copy()) != cuts).any(axis=1))
            if len(moved):
                raise UserError(
                    f"At least {self.min_last_blocks} blocks must lie behind the last cut unless "
                    f"everything is local, got cuts {self.cut_choices[cuts[moved[0]]].tolist()}."
                )
        return genomes

    def decode_batch(self, X: NDArray) -> DesignBatch:
        """Decode genomes `[P, n_var]`.

        Raises:
            UserError: If a row is no genome of this space.
        """
        genomes = self.check(X)
        cuts = self.cut_choices[genomes[:, self.cut_genes]]
        n_groups = self.groups_at[cuts]
        if self.n_mask:
            masks = genomes[:, self.mask_genes].astype(bool)
        else:
            masks = np.ones((*cuts.shape, self.max_groups), dtype=bool)
        masks &= np.arange(self.max_groups) < n_groups[..., None]
        empty = (n_groups > 0) & ~masks.any(axis=-1)
        if empty.any():
            masks[empty, self.importance[cuts[empty], 0]] = True
        chosen = genomes[:, self.bits_genes] if len(self.bits_genes) else np.zeros_like(cuts)
        for link in range(1, self.n_links):
            relays = cuts[:, link] == cuts[:, link - 1]
            masks[relays, link] = masks[relays, link - 1]
            chosen[relays, link] = chosen[relays, link - 1]
        ops = genomes[:, : self.n_arch]
        return self.assemble_batch(
            self.architecture.canonical(ops) if self.merge_equal_networks else ops,
            cuts,
            masks,
            np.array(self.bits)[chosen],
        )

    def designs(self, batch: DesignBatch) -> list[Design]:
        """Return the phenotypes of a decoded population."""
        result = []
        for i in range(len(batch)):
            masks = (
                "".join("1" if bit else "0" for bit in mask[:groups])
                for mask, groups in zip(batch.masks[i], batch.n_groups[i], strict=True)
            )
            result.append(
                Design(
                    arch=self.architecture.format(batch.ops[i]),
                    ops=tuple(batch.ops[i].tolist()),
                    cuts=tuple(batch.cuts[i].tolist()),
                    masks=tuple(masks),
                    bits=tuple(batch.bits[i].tolist()),
                )
            )
        return result

    def batch(self, designs: Sequence[Design]) -> DesignBatch:
        """Return phenotypes as a decoded population, the inverse of :meth:`designs`.

        Cuts and bits need not be among the choices of this space.

        Raises:
            UserError: If a design has no cut a link, or a cut, mask or bits that cannot be.
        """
        n, groups = self.architecture.n_blocks, self.groups_at
        for design in designs:
            parts = list(zip(design.cuts, design.masks, design.bits, strict=True))
            if not (
                len(parts) == self.n_links
                and all(0 <= cut <= n for cut in design.cuts)
                and all(len(mask) == groups[cut] for cut, mask, _ in parts)
                and all((bits in BITS) if mask else bits == 0 for _, mask, bits in parts)
                and all(set(mask) <= {"0", "1"} and "1" in mask for mask in design.masks if mask)
            ):
                raise UserError(f"{design.key[:200]} is no design of {self.architecture.name}.")
        cuts = np.array([design.cuts for design in designs], dtype=np.int64)
        cuts = cuts.reshape(len(designs), self.n_links)
        width = self.max_groups
        text = "".join(mask.ljust(width, "0") for design in designs for mask in design.masks)
        masks = np.frombuffer(text.encode(), dtype=np.uint8) == ord("1")
        ops = np.array([design.ops for design in designs], dtype=np.int64)
        return self.assemble_batch(
            ops.reshape(len(designs), self.n_arch),
            cuts,
            masks.reshape(len(designs), self.n_links, width),
            np.array([design.bits for design in designs], dtype=np.int64).reshape(cuts.shape),
        )

    def assemble_batch(
        self, ops: IntArray, cuts: IntArray, masks: NDArray[np.bool_], bits: IntArray
    ) -> DesignBatch:
        """Return designs `P` whose masks are not empty as a population.

        Args:
            ops: Architectures, `[P, n_genes]`.
            cuts: `[P, K]`.
            masks: `[P, K, max_groups]`; what is beyond the groups at a cut has no effect.
            bits: `[P, K]`; without effect where nothing is masked.
        """
        n_groups = self.groups_at[cuts]
        masks = masks & (np.arange(self.max_groups) < n_groups[..., None])
        with np.errstate(divide="ignore", invalid="ignore"):
            group_size = np.where(n_groups > 0, self.channels_at[cuts] // n_groups, 0)
        return DesignBatch(
            ops=ops,
            cuts=cuts,
            masks=masks,
            kept_channels=masks.sum(axis=-1) * group_size,
            n_groups=n_groups,
            bits=np.where(n_groups > 0, bits, 0),
        )

    def decode(self, x: NDArray) -> Design:
        """Decode one genome `[n_var]` to its phenotype."""
        return self.designs(self.decode_batch(np.asarray(x)[None]))[0]

    def encode(self, design: Design) -> IntArray:
        """Return a genome `[n_var]` of a design; inactive genes are all ones and the most bits.

        Raises:
            UserError: If the design lies outside this space.
        """
        x = np.empty(self.n_var, dtype=np.int64)
        x[: self.n_arch] = self.architecture.check(np.array(design.ops))
        if len(design.cuts) != self.n_links:
            raise UserError(f"This chain has {self.n_links} cuts, got {len(design.cuts)}.")
        for k, (cut, mask, bits) in enumerate(
            zip(design.cuts, design.masks, design.bits, strict=True)
        ):
            if cut not in self.cut_choices:
                raise UserError(
                    f"Cut {cut} is not allowed; allowed are {self.cut_choices.tolist()}."
                )
            if len(mask) != self.groups_at[cut] or not set(mask) <= {"0", "1"}:
                raise UserError(
                    f"The mask at cut {cut} needs {self.groups_at[cut]} characters 0 or 1, "
                    f"got '{mask}'."
                )
            if mask and bits not in self.bits:
                raise UserError(f"bits must be one of {list(self.bits)}, got {bits}.")
            x[self.cut_genes[k]] = np.searchsorted(self.cut_choices, cut)
            if self.n_mask:
                x[self.mask_genes[k]] = 1
                x[self.mask_genes[k][: len(mask)]] = [int(bit) for bit in mask]
            if len(self.bits_genes):
                x[self.bits_genes[k]] = self.bits.index(bits) if mask else len(self.bits) - 1
        return self.check(x)[0]

    def describe(self) -> dict[str, object]:
        """Return the settings that define the space, for manifests and for comparing runs."""
        return {
            "architecture": self.architecture.name,
            "geometry": self.architecture.geometry,
            "n_classes": self.architecture.n_classes,
            "mask_groups": self.mask_groups,
            "bits": list(self.bits),
            "merge_equal_networks": self.merge_equal_networks,
            "n_links": self.n_links,
            "allow_raw_offload": self.allow_raw_offload,
            "min_device_blocks": self.min_device_blocks,
            "min_last_blocks": self.min_last_blocks,
        }
