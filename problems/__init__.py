"""Ready-made pymoo problems of nasc_evo.

from problems import FBNetSplit, NASBench201Split
"""

from problems.fbnet import FBNetSplit
from problems.nasbench201 import NASBench201Split

NASC_EVO_PROBLEMS = True
"""Marks this package, so that a folder of the same name in its way is recognised."""

__all__ = ["FBNetSplit", "NASBench201Split"]
