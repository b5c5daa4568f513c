"""fleet: many Linux hosts as one machine for containers. See fleet/README.md for the map of the code."""

__version__ = "0.1.0"
