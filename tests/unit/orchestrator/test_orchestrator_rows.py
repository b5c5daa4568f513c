"""The table of Swarm's semantics names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
ROWS = REPOSITORY / "fleet" / "orchestrator" / "ROWS.md"


def test_every_row_names_tests_that_are_there() -> None:
    found: dict[str, set[str]] = {}
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        found[path.stem] = set(re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE))
    ours = {name for stem, names in found.items() if stem.startswith("test_orchestrator") for name in names}
    rows = [line for line in ROWS.read_text().splitlines() if re.match(r"\| [A-Z]{3}-\d", line)]
    assert len(rows) > 40
    for row in rows:
        named = re.findall(r"`((?:\w+:)?test_\w+)`", row)
        assert named, row
        for name in named:
            module, colon, test = name.rpartition(":")
            assert test in (found.get(module, set()) if colon else ours), f"{name} is not there: {row}"
