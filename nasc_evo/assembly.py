"""From names, mappings and files to the parts of a problem.

Problem classes accept what a user would type; these functions turn it into objects. torch is
imported only when an evaluator is made.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from nasc_evo.config import group_options, load_group_option
from nasc_evo.cost import Chain, CostTable, Link, Node, Queue
from nasc_evo.cost.chain import DEVICE, SERVER
from nasc_evo.data import ImageDataset, get_dataset
from nasc_evo.errors import UserError
from nasc_evo.parallel import check_parallel, parallel_evaluator
from nasc_evo.space import SPACES, ArchitectureSpace, SplitSpace
from nasc_evo.supernet.score import Evaluator
from nasc_evo.supernet.weights import find_weights, load_importance, read_manifest

NodeLike = str | os.PathLike[str] | Mapping[str, Any] | CostTable
"""A shipped name, the path of a table file, a mapping of :data:`NODE_FIELDS`, or a table."""


def build_dataset(dataset: str | Mapping[str, Any] | ImageDataset) -> ImageDataset:
    """Return a data set given by name, by the path of a folder, by its fields or as an object."""
    if isinstance(dataset, ImageDataset):
        return dataset
    if isinstance(dataset, str):
        options = group_options("dataset")
        if dataset not in options and (os.sep in dataset or Path(dataset).is_dir()):
            return get_dataset("folder", path=dataset)
        return get_dataset(dataset)
    values = dict(dataset) if isinstance(dataset, Mapping) else {}
    if not {"name", "geometry"} <= set(values) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"A data set is given by fields, name and geometry at least, got {dataset}."
        )
    return get_dataset(**{**values, "name": str(values["name"])})


def build_architecture(name: str, dataset: ImageDataset) -> ArchitectureSpace:
    """Return the space of networks of a problem, for the geometry and classes of a data set."""
    if name not in SPACES:
        raise UserError(f"problem must be one of {', '.join(SPACES)}, got '{name}'.")
    return SPACES[name](dataset.geometry, dataset.n_classes)


NODE_FIELDS = ("name", "path", "idle_mw", "arrival_per_s", "service_ms")


def build_queue(role: str, arrival_per_s: Any, service_ms: Any) -> Queue | None:
    """Return the queue of a node, None without arrivals.

    Raises:
        UserError: If a device has one, or a figure is out of range.
    """
    if arrival_per_s is None and service_ms is None:
        return None
    if role != SERVER:
        raise UserError("arrival_per_s and service_ms are for servers; a device serves one user.")
    if arrival_per_s is None:
        raise UserError(f"server.service_ms={service_ms} needs server.arrival_per_s too.")
    return Queue(arrival_per_s, service_ms)


def build_node(node: NodeLike, role: str, space: ArchitectureSpace) -> Node:
    """Return a node of the chain."""
    if isinstance(node, CostTable):
        return Node(node.name, node, role)
    if isinstance(node, Mapping):
        values = {**dict.fromkeys(NODE_FIELDS), **node}
        if set(values) != set(NODE_FIELDS):
            raise UserError(f"A node has the fields {', '.join(NODE_FIELDS)}, got {dict(node)}.")
        idle_mw = values["idle_mw"]
        if idle_mw is not None and not (isinstance(idle_mw, (int, float)) and 0 <= idle_mw < 1e9):
            raise UserError(f"{role}.idle_mw must be a number >= 0, got {idle_mw!r}.")
        queue = build_queue(role, values["arrival_per_s"], values["service_ms"])
        if values["path"] is not None:
            table = CostTable.load(Path(str(values["path"])).expanduser(), space)
            return Node(table.name, table, role, idle_mw, queue)
        name = str(values["name"])
        return Node(name, CostTable.shipped(name, space), role, idle_mw, queue)
    if not isinstance(node, str | os.PathLike):
        raise UserError(f"A {role} is given by its name, a table file or fields, got {node}.")
    text = os.fspath(node)
    if text.endswith(".csv") or os.sep in text:
        table = CostTable.load(text, space)
        return Node(table.name, table, role)
    return Node(text, CostTable.shipped(text, space), role)


def _part(which: str, several: bool, make: Callable[..., Any], *arguments: Any) -> Any:
    """Make a part of a chain; where there are several of its kind a mistake says in which it is."""
    try:
        return make(*arguments)
    except UserError as error:
        if not several:
            raise
        raise UserError(f"{which} of the chain: {error}") from error


CHAIN_FIELDS = ("name", "nodes", "links", "roles", "min_last_blocks", "result_bytes")


def build_chain(space: ArchitectureSpace, chain: Mapping[str, Any], *, image_bytes: int) -> Chain:
    """Return a chain of :data:`CHAIN_FIELDS`; without roles a device and servers."""
    parts = dict(chain) if isinstance(chain, Mapping) else {}
    nodes, links = parts.get("nodes"), parts.get("links")
    if not isinstance(nodes, Sequence) or not isinstance(links, Sequence):
        raise UserError(f"A chain is given by lists of nodes and links, got {chain}.")
    unknown = sorted(set(parts) - set(CHAIN_FIELDS))
    if unknown:
        raise UserError(f"A chain has no field '{unknown[0]}'; it has {', '.join(CHAIN_FIELDS)}.")
    roles = parts.get("roles") or [DEVICE] + [SERVER] * (len(nodes) - 1)
    if (
        not isinstance(roles, Sequence)
        or len(roles) != len(nodes)
        or not all(role in (DEVICE, SERVER) for role in roles)
    ):
        raise UserError(
            f"A chain needs one role, {DEVICE} or {SERVER}, for each of its {len(nodes)} nodes, "
            f"got {roles}."
        )
    return Chain(
        space,
        [
            _part(f"Node {j}", len(nodes) > 2, build_node, node, role, space)
            for j, (node, role) in enumerate(zip(nodes, roles, strict=True), start=1)
        ],
        [
            _part(f"Link {j}", len(links) > 1, Link.create, link)
            for j, link in enumerate(links, start=1)
        ],
        image_bytes=image_bytes,
        result_bytes=parts.get("result_bytes"),
    )


def last_blocks(costs: Chain, chain: Mapping[str, Any]) -> int:
    """Return how many blocks must lie behind the last cut of a chain that was built.

    Raises:
        UserError: If a number is given for a chain that does not end on the device.
    """
    given = chain.get("min_last_blocks")
    if given is None:
        return 1 if costs.ends_on_device else 0
    if not costs.ends_on_device:
        raise UserError(
            f"chain.min_last_blocks={given} is for chains that end on the device; this one ends on "
            f"{costs.nodes[-1].name}, a server."
        )
    return given


EVALUATORS = ("supernet", "tabular")


def evaluator_factory(
    space: ArchitectureSpace,
    dataset: ImageDataset,
    evaluator: str | Mapping[str, Any] | Evaluator | None,
) -> tuple[Evaluator | Callable[[], Evaluator], dict[int, Any]]:
    """Return an evaluator, or a function that makes it, and the importance of channels.

    Args:
        space: Space of architectures.
        dataset: Images.
        evaluator: An evaluator, a name out of :data:`EVALUATORS`, options `{name, ...}` (of the
            supernet evaluator without a name), or None for the supernet evaluator's defaults.

    Raises:
        UserError: If an option is unknown, or weights or figures are missing, damaged or do not
            fit.
    """
    if evaluator is not None and not isinstance(evaluator, (str, Mapping)):
        if not hasattr(evaluator, "evaluate"):
            raise UserError(f"evaluator must be one of {', '.join(EVALUATORS)}, got {evaluator}.")
        return evaluator, {}
    chosen = {"name": evaluator} if isinstance(evaluator, str) else dict(evaluator or {})
    name = chosen.pop("name", "supernet")
    if name not in EVALUATORS:
        raise UserError(f"evaluator must be one of {', '.join(EVALUATORS)}, got '{name}'.")
    if name == "tabular":
        from nasc_evo.tabular import TabularEvaluator

        if chosen:
            raise UserError(f"The tabular evaluator has no options, got {', '.join(chosen)}.")
        return TabularEvaluator(space, dataset), {}
    options = {**load_group_option("evaluator", "supernet"), **chosen}
    options.pop("name")
    weights = find_weights(space, dataset, options["weights"])
    read_manifest(weights, space, dataset)
    options["weights"] = weights

    return partial(supernet_evaluator, space, dataset, options), load_importance(weights)


def supernet_evaluator(
    space: ArchitectureSpace, dataset: ImageDataset, options: Mapping[str, Any]
) -> Evaluator:
    """Return a supernet evaluator; imports torch.

    Raises:
        UserError: If an option is unknown or out of range, or weights or images are damaged.
    """
    from nasc_evo.supernet.evaluation import SupernetEvaluator

    try:
        return SupernetEvaluator(space, dataset, **options)
    except TypeError as error:
        raise UserError(f"Unknown option of the supernet evaluator: {error}.") from error


def given(evaluator: Any) -> Evaluator:
    """Return an evaluator that exists already; what makes it in a worker, after pickling."""
    return evaluator


class Parts(NamedTuple):
    """What a :class:`nasc_evo.problem.SplitProblem` is made of, and its images."""

    space: SplitSpace
    chain: Chain
    evaluator: Callable[[], Evaluator]
    dataset: ImageDataset
    lossless: bool


def assemble(
    problem: str,
    *,
    device: NodeLike,
    server: NodeLike,
    link: str | Mapping[str, Any] | Link,
    dataset: str | Mapping[str, Any] | ImageDataset,
    evaluator: str | Mapping[str, Any] | Evaluator | None,
    chain: Mapping[str, Any] | None,
    parallel: str | Mapping[str, Any],
    **genes: Any,
) -> Parts:
    """Return the parts of a problem from what a user would type.

    Args:
        problem: Name of the space of architectures.
        device: First node, see :func:`build_node`.
        server: Second node.
        link: Between them.
        dataset: See :func:`build_dataset`.
        evaluator: See :func:`evaluator_factory`.
        chain: :data:`CHAIN_FIELDS` in place of device, link and server; nodes and links at least.
        parallel: A name out of :data:`nasc_evo.parallel.BACKENDS`, or options `{name, ...}`.
        genes: Further arguments of :class:`SplitSpace`.
    """
    images = build_dataset(dataset)
    architecture = build_architecture(problem, images)
    chain = chain or {"nodes": [device, server], "links": [link], "roles": None}
    costs = build_chain(architecture, chain, image_bytes=images.image_bytes)
    workers = check_parallel({"name": parallel} if isinstance(parallel, str) else parallel)
    made, importance = evaluator_factory(architecture, images, evaluator)
    lossless = getattr(made, "knows_whole_networks_only", False)
    genes |= {"n_links": len(costs.links), "channel_importance": importance}
    genes["min_last_blocks"] = last_blocks(costs, chain)
    space = SplitSpace(architecture, **genes)
    if lossless:
        # no table knows what a mask or a quantiser does, and each network has figures of its own
        genes |= {"mask_groups": 1, "bits": (8,), "merge_equal_networks": False}
        space = SplitSpace(architecture, **genes)
    make = partial(given, made) if hasattr(made, "evaluate") else made
    return Parts(space, costs, partial(parallel_evaluator, make, workers), images, lossless)
