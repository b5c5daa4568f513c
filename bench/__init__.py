"""Measurements. Each module has ``run(json_path: str | None) -> None``: it measures, prints a table, and writes JSON if asked to.

``python -m bench --list`` names them; ``scripts/bench NAME [--json FILE]`` runs one, without a name all, one after the other.
"""
