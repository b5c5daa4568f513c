"""Typed tables with indexes and a change feed over a small revisioned key-value interface (the Engine protocol)."""
