"""Costs of a split network: tables of block costs, links, and chains of nodes."""

from nasc_evo.cost.chain import Chain, Costs, Node, Queue
from nasc_evo.cost.link import Link, Radio
from nasc_evo.cost.table import CostTable

__all__ = ["Chain", "CostTable", "Costs", "Link", "Node", "Queue", "Radio"]
