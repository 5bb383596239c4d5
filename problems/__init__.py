"""Ready-made pymoo problems of nasc_evo.

from problems import FBNetSplit
"""

from problems.fbnet import FBNetSplit

NASC_EVO_PROBLEMS = True
"""Marks this package, so that a folder of the same name in its way is recognised."""

__all__ = ["FBNetSplit"]
