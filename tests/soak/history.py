"""What clients did and were told, and whether it can have happened to one object that changes one step at a time.

Writes are compare-and-swaps: *this value, if the object is still at the version I read*. For one object:

* no two acknowledged writes stand on the same version;
* a write that began after another was acknowledged stands on a later version;
* the value that is there in the end is that of the acknowledged write on the latest version, or of one whose outcome nobody was
  told and that stands on a later version still.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["History", "Write"]

Outcome = Literal["acknowledged", "refused", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One attempt. Times are of one clock, in seconds; ``version`` is what the object was read at."""

    key: str
    version: int
    value: str
    began: float
    ended: float
    outcome: Outcome


@dataclass
class History:
    """Filled by several threads."""

    writes: list[Write] = field(default_factory=list)
    created: dict[str, Outcome] = field(default_factory=dict)
    """Objects that were to be created, by name."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, write: Write) -> None:
        with self._lock:
            self.writes.append(write)

    def note_creation(self, name: str, outcome: Outcome) -> None:
        with self._lock:
            self.created[name] = outcome

    def problems(self, *, final_values: dict[str, str], names: set[str]) -> list[str]:
        """What cannot be: empty when all is well. ``final_values`` and ``names`` are what is there in the end."""
        found = [f"created and acknowledged, and not there: {name}" for name in self._lost(names)]
        by_key: dict[str, list[Write]] = defaultdict(list)
        for write in self.writes:
            by_key[write.key].append(write)
        for key, writes in by_key.items():
            found += _problems_of(key, writes, final_values.get(key))
        return found

    def _lost(self, names: set[str]) -> list[str]:
        return sorted(name for name, outcome in self.created.items() if outcome == "acknowledged" and name not in names)


def _problems_of(key: str, writes: list[Write], final: str | None) -> list[str]:
    found = []
    done = sorted((w for w in writes if w.outcome == "acknowledged"), key=lambda w: w.version)
    for one, other in itertools.pairwise(done):
        if one.version == other.version:
            found.append(f"{key}: two writes acknowledged on version {one.version}: {one.value} and {other.value}")
    # In order of versions, no write may have ended before one of a smaller version began.
    earliest_end = float("inf")
    for write in reversed(done):
        if earliest_end < write.began:
            found.append(
                f"{key}: {write.value} on version {write.version} began after a later version was acknowledged"
            )
        earliest_end = min(earliest_end, write.ended)
    if not done:
        return found
    last = done[-1]
    allowed = {last.value} | {w.value for w in writes if w.outcome == "unknown" and w.version > last.version}
    # Told of no outcome, and on the same version: had it happened, the acknowledged one could not have.
    if final not in allowed:
        found.append(f"{key}: is {final!r} in the end, and the last acknowledged write was {last.value!r}")
    return found
