"""Neural architecture search for split computing."""

__version__ = "0.1.0"
