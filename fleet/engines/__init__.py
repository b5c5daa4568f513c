"""Engines under the store. One contract, several implementations: sqlite for one manager."""
