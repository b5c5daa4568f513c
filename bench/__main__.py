"""Runs benchmarks by name: ``python -m bench [NAME ...] [--json FILE] [--list]``."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Final

GROUPS: Final = {
    "runtime": ("container_start", "container_memory", "logs", "images", "build"),
}
"""Names that stand for several, one after the other."""


def benchmarks() -> dict[str, str]:
    """Name and first line of the docstring of every module here that has ``run``, read without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(arguments: list[str]) -> int:
    """Returns the exit code: 2 for an unknown name, 1 when a benchmark failed."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure fleet, beside its peers where they are installed."
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all when none is given")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too, under the benchmark's name")
    parser.add_argument("--list", action="store_true", help="show what there is")
    options = parser.parse_args(arguments)
    known = benchmarks()
    if options.list:
        for name, line in known.items():
            print(f"{name:20} {line}")
        for name, members in GROUPS.items():
            print(f"{name:20} One after the other: {', '.join(members)}.")
        return 0
    if unknown := [name for name in options.names if name not in known and name not in GROUPS]:
        there = ", ".join((*known, *GROUPS))
        print(f"bench: there is no {', '.join(unknown)}; there is {there}", file=sys.stderr)
        return 2
    names = [member for name in options.names for member in GROUPS.get(name, (name,))]
    numbers: dict[str, object] = {}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or known:
            print(f"\n== {name}: {known[name]}\n", flush=True)
            own = Path(folder, f"{name}.json")
            try:
                importlib.import_module(f"bench.{name}").run(str(own) if options.json else None)
            except Exception as cause:  # noqa: BLE001 - the others still run; it is told, and fails the run
                print(f"bench: {name} failed: {type(cause).__name__}: {cause}", file=sys.stderr)
                failed.append(name)
                continue
            if own.exists():
                numbers[name] = json.loads(own.read_text(encoding="utf-8"))
    if options.json:
        Path(options.json).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    if failed:
        print(f"bench: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
