"""What saturates first at sizes that no machine here has: a discrete-event simulation of the leader, from measured costs.

    scripts/scale --plan [--nodes N] [--tasks N] [--json FILE]

Tasks go through the leader in batches, as they do in a manager: created, given addresses, placed, sent, and reported three times.
Each step takes the leader's one processor (an event loop is one thread) for what it was measured to cost, then, where it writes,
the state engine, which makes some transactions durable at once. Loops take turns, as their tasks do on the event loop. A report
that waits while a newer one of the same tasks comes is not written. Beats and the API take their share all the time. Nothing is
drawn at random, so one size has one answer.

``COSTS`` says where each number is from: processor times of one core of the machine they were measured on. What is not in the
model: nodes that come and go, followers (they do less than the leader), the network's own time. Tasks are on no overlay; what
those cost more is told apart (``fan_out_s``).
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

__all__ = ["COSTS", "Answer", "Costs", "simulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of one task at one step, microseconds of the leader's processor, unless said otherwise."""

    create_us: float
    allocate_us: float
    schedule_us: float
    send_us: float
    """One task to one node: its set computed, compared, framed, encrypted. Tasks that go to one node together share it."""
    receive_us: float
    """One frame of reports, decrypted and decoded, among many that come together."""
    beat_us: float
    """One beat of a quiet cluster, and half of an answer to it."""
    report_us: float
    """One status looked at and answered, without its write."""
    write_us: float
    """One object of a transaction: compared, encoded, sealed, taken over from the feed, told to subscribers."""
    plan_us: float
    """The orchestrator's look at one task of a service that something happened to."""
    engine_ms: float
    """One transaction, from sending it to durable; takes no processor of the leader."""
    engine_us: float
    """More of it for each object in it."""
    engine_lanes: int = 1
    """Transactions that it makes at a time: SQLite has one writer."""
    in_flight: int = 8
    """Transactions of one loop that are on their way at once (``store._PACKS_IN_FLIGHT``)."""
    batch: int = 126
    """Objects in one transaction (etcd's 128 operations, less two conditions)."""
    endpoint_us: float
    """An endpoint of an overlay in the set of one node: put there and compared."""
    node_kib: float
    """Resident memory of the leader for one session."""
    task_kib: float
    frame_bytes: int = 1_100
    """A task on its way to its node; a report back is a third."""


COSTS: Final = Costs(
    create_us=25,
    allocate_us=41,
    schedule_us=63,
    send_us=221,
    receive_us=40,
    beat_us=168,
    report_us=26,
    write_us=43,
    plan_us=11.5,
    engine_ms=1.0,
    engine_us=30,
    endpoint_us=0.3,
    node_kib=63,
    task_kib=4.7,
)
"""One manager on SQLite. From ``scripts/scale --agents 1000 --tasks 20000 --heartbeat 5 --profile``: processor time of filling,
by part, for one task (create, allocate, schedule, send, report, write: six writes a task), and memory; the beat from
``--agents 300`` when idle. ``plan_us``, ``engine_ms`` and ``engine_us`` from ``scripts/bench scheduler`` and ``store``.
``receive_us`` is what is left of the filling's frames without the beats."""

_STEPS: Final = ("create", "allocate", "schedule", "send", "preparing", "starting", "running")
_NODE_DELAY_S: Final = {"preparing": 0.01, "starting": 0.11, "running": 0.16}
_SERVICE_REPLICAS: Final = 100
_API_SHARE: Final = 0.02
"""Of the leader's processor: a dashboard and a scraper."""
_ROUND_SHARE: Final = 0.5
_MIXED: Final = 10
"""Services that the tasks of one transaction of reports are of: nodes report what they have, and that is of many services."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """``busy``: share of the leader's processor by part; ``engine``: how much of what it can have at once the engine had."""

    nodes: int
    tasks: int
    assigned_s: float = 0.0
    running_s: float = 0.0
    busy: dict[str, float] = field(default_factory=dict)
    engine: float = 0.0
    memory_gib: float = 0.0
    down_after_s: float = 0.0
    out_mbit: float = 0.0
    merged: int = 0
    """Reports that a newer one made needless to write."""
    round_s: float = 0.0
    """How long the orchestrator takes to look at all services once, with ``_ROUND_SHARE`` of what beats and API leave over."""

    @property
    def rate(self) -> float:
        return self.tasks / self.running_s if self.running_s else 0.0


@dataclass(slots=True)
class _Batch:
    size: int
    step: int = 0
    frames: float = 0.0
    """Of reports that have come and not been read."""
    waits: bool = False
    """Among the reports to be written."""


class _Leader:
    """``queues``: one a loop; the processor goes round them, a batch at a time."""

    def __init__(self, nodes: int, tasks: int, costs: Costs) -> None:
        self.answer = Answer(nodes=nodes, tasks=tasks)
        self._costs = costs
        self._now = 0.0
        self._number = 0
        self._events: list[tuple[float, int, str, _Batch, str]] = []
        self._queues: dict[str, deque[_Batch]] = {
            name: deque() for name in ("create", "allocate", "schedule", "send", "reports", "plan")
        }
        self._flying: Counter[str] = Counter()
        self._turn = 0
        self._is_busy = False
        self._spent: Counter[str] = Counter()
        self._engine_free: list[float] = [0.0] * costs.engine_lanes
        self._engine_busy = 0.0
        self._dirty = 0.0
        """Services that the orchestrator has to look at."""
        period = max(1.0, nodes / 1_000)
        beats = nodes / max(period / 2, period - 0.5)
        self._beats = beats * costs.beat_us / 1e6
        self.answer.down_after_s = 3 * period
        if self._beats + _API_SHARE >= 1.0:
            raise ValueError(f"{nodes} nodes: their beats alone take the whole processor")

    def run(self) -> Answer:
        costs, answer = self._costs, self.answer
        left = answer.tasks
        while left > 0:
            batch = _Batch(min(costs.batch, left))
            left -= batch.size
            self._queues["create"].append(batch)
        self._serve()
        while self._events:
            self._now, _, what, batch, part = heapq.heappop(self._events)
            if what == "cpu":
                self._is_busy = False
                self._computed(batch, part)
            elif what == "engine":
                self._flying[part] -= 1
                self._written(batch)
            else:
                self._reported(batch, _STEPS.index(part))
            self._serve()
        total = self._now or 1.0
        answer.running_s = total
        answer.busy = {part: spent / total for part, spent in self._spent.most_common()}
        answer.busy["beats"] = self._beats
        answer.busy["API"] = _API_SHARE
        answer.round_s = answer.tasks * costs.plan_us / 1e6 / (_ROUND_SHARE * (1.0 - self._beats - _API_SHARE))
        answer.engine = self._engine_busy / total / costs.engine_lanes
        answer.memory_gib = (answer.nodes * costs.node_kib + answer.tasks * costs.task_kib) / (1 << 20) + 0.1
        answer.out_mbit = answer.tasks * costs.frame_bytes * 8 / total / 1e6
        return answer

    # -- the processor

    def _serve(self) -> None:
        """Give the processor to the next loop that has something to do and may write."""
        if self._is_busy:
            return
        names = list(self._queues)
        for step in range(len(names)):
            name = names[(self._turn + step) % len(names)]
            queue = self._queues[name]
            if queue and self._flying[name] < self._costs.in_flight:
                self._turn = (self._turn + step + 1) % len(names)
                self._take(name, queue.popleft())
                return

    def _take(self, name: str, batch: _Batch) -> None:
        costs, size = self._costs, batch.size
        spent: Counter[str] = Counter()
        match name:
            case "create":
                spent["orchestrator"] = size * costs.create_us
            case "allocate":
                spent["allocator"] = size * costs.allocate_us
            case "schedule":
                spent["scheduler"] = size * costs.schedule_us
            case "send":
                together = max(1.0, size / self.answer.nodes)
                spent["dispatcher: sent"] = size / together * costs.send_us
            case "plan":
                pass
            case _:
                spent["dispatcher: frames"] = batch.frames * costs.receive_us
                spent["dispatcher: statuses"] = size * costs.report_us
                batch.frames, batch.waits = 0.0, False
        if name not in ("send", "plan"):
            spent["store"] = size * costs.write_us
        if name == "plan":
            spent = Counter({"orchestrator": _SERVICE_REPLICAS * costs.plan_us})
        elif name == "reports" and _STEPS[batch.step] == "running":
            self._soil(min(size, _MIXED))
        elif name in ("create", "schedule"):
            self._soil(size / _SERVICE_REPLICAS)
        share = 1.0 - self._beats - _API_SHARE
        self._is_busy = True
        for part, us in spent.items():
            self._spent[part] += us / 1e6
        self._at(sum(spent.values()) / 1e6 / share, "cpu", batch, name)

    def _soil(self, services: float) -> None:
        """So many services have a task that changed; those that are to be planned already are planned once."""
        self._dirty = min(self._dirty + services, self.answer.tasks / _SERVICE_REPLICAS)
        if self._dirty >= 1 and not self._queues["plan"]:
            self._queues["plan"].append(_Batch(0))

    def _computed(self, batch: _Batch, name: str) -> None:
        if name == "plan":
            self._dirty -= 1
            self._soil(0)
            return
        if name == "send":
            for step in ("preparing", "starting", "running"):
                self._at(_NODE_DELAY_S[step], "node", batch, step)
            return
        self._flying[name] += 1
        costs = self._costs
        slot = min(range(costs.engine_lanes), key=self._engine_free.__getitem__)
        begins = max(self._now, self._engine_free[slot])
        takes = costs.engine_ms / 1e3 + batch.size * costs.engine_us / 1e6
        self._engine_free[slot] = begins + takes
        self._engine_busy += takes
        self._at(begins + takes - self._now, "engine", batch, name)

    # -- what follows

    def _written(self, batch: _Batch) -> None:
        step = _STEPS[batch.step]
        match step:
            case "create":
                self._go(batch, "allocate")
            case "allocate":
                self._go(batch, "schedule")
            case "schedule":
                self.answer.assigned_s = self._now
                self._go(batch, "send")
            case _:
                return

    def _go(self, batch: _Batch, name: str) -> None:
        batch.step = _STEPS.index(name)
        self._queues[name].append(batch)

    def _reported(self, batch: _Batch, step: int) -> None:
        """Every frame is read; a status that still waits to be written is replaced by the newer one."""
        batch.frames += batch.size / max(1.0, batch.size / self.answer.nodes)
        batch.step = step
        if batch.waits:
            self.answer.merged += batch.size
        else:
            batch.waits = True
            self._queues["reports"].append(batch)

    def _at(self, delay_s: float, what: str, batch: _Batch, part: str) -> None:
        self._number += 1
        heapq.heappush(self._events, (self._now + delay_s, self._number, what, batch, part))


def simulate(nodes: int, tasks: int, costs: Costs = COSTS) -> Answer:
    """The filling of an empty cluster of ``nodes`` with ``tasks``. Raises ``ValueError`` where beats alone are too much."""
    return _Leader(nodes, tasks, costs).run()


def fan_out_s(tasks: int, nodes: int, costs: Costs = COSTS) -> float:
    """Seconds of the leader's processor for one round of changes on an overlay with so many tasks on so many nodes."""
    return nodes * (costs.send_us + tasks * costs.endpoint_us) / 1e6


_CHANGES: Final[dict[str, dict[str, float]]] = {
    "as it is": {},
    "tasks' objects half as dear to write": {"write_us": 0.5},
    "frames half as dear": {"receive_us": 0.5, "send_us": 0.5, "beat_us": 0.5},
    "one report a task instead of three": {"receive_us": 1 / 3, "report_us": 1 / 3},
    "plans that look at changed slots alone": {"plan_us": 0.05},
    "scheduling for nothing": {"schedule_us": 0.0},
    "a state engine twice as fast": {"engine_ms": 0.5, "engine_us": 0.5},
    "a state engine ten times as slow": {"engine_ms": 10.0, "engine_us": 10.0},
    "a machine twice as fast": dict.fromkeys(
        (
            "create_us",
            "allocate_us",
            "schedule_us",
            "send_us",
            "receive_us",
            "beat_us",
            "report_us",
            "write_us",
            "plan_us",
        ),
        0.5,
    ),
}


def show(answer: Answer) -> None:
    """One size: how long, and what is busy."""
    print(f"\n{answer.nodes:,} nodes, {answer.tasks:,} tasks")
    print(
        f"  all assigned after {answer.assigned_s:,.0f} s, all running after {answer.running_s:,.0f} s ({answer.rate:,.0f}/s)"
    )
    print("  leader's processor: " + ", ".join(f"{part} {share:.0%}" for part, share in answer.busy.items()))
    print(
        f"  state engine busy {answer.engine:.0%}; leader's memory {answer.memory_gib:.1f} GiB; {answer.out_mbit:.1f} Mbit/s sent"
    )
    print(f"  {answer.merged:,} statuses were replaced by newer ones before they were written")
    print(f"  a silent node is down after {answer.down_after_s:.0f} s")
    print(f"  the orchestrator looks at all services in {answer.round_s:.1f} s: so long a change may wait for it")


def main(arguments: Sequence[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="scripts/scale --plan", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--tasks", type=int, default=2_000_000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args(arguments)
    if options.nodes < 1 or options.tasks < 1:
        parser.error("at least one node and one task")
    sizes = sorted({(1_000, 20_000), (5_000, 100_000), (options.nodes, options.tasks)})
    answers = [simulate(nodes, tasks) for nodes, tasks in sizes]
    for answer in answers:
        show(answer)
    print(f"\n{f'{options.nodes:,} nodes, {options.tasks:,} tasks':44}{'s':>9}{'tasks/s':>9}")
    for name, factors in _CHANGES.items():
        changed = {part: getattr(COSTS, part) * factor for part, factor in factors.items()}
        found = simulate(options.nodes, options.tasks, dataclasses.replace(COSTS, **changed))  # type: ignore[arg-type]
        print(f"{name:44}{found.running_s:9,.0f}{found.rate:9,.0f}")
    print(f"\n{'overlay: one round of changes':44}{'s':>9}")
    for size, spread in ((100, 100), (1_000, 500), (10_000, 5_000)):
        print(f"{f'{size:,} tasks on {spread:,} nodes':44}{fan_out_s(size, spread):9.2f}")
    if options.json:
        told = {"costs": dataclasses.asdict(COSTS), "answers": [dataclasses.asdict(answer) for answer in answers]}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0
