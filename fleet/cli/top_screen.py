"""``fleet top`` drawn: pure functions from a snapshot to lines of text that fit a terminal, or whole tables for a pipe.

Columns have a rank: where the width does not hold all, those of the highest rank go first, then the flexible ones are cut.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fleet.cli.top_state import NodeRow, ServiceRow, Snapshot, TaskRow, Use
from fleet.cli.widths import clean, cut, pad, shrunk, width_of

__all__ = ["SORTS", "VIEWS", "Screen", "draw", "plain"]

VIEWS: Final[Mapping[str, str]] = {"o": "overview", "n": "nodes", "v": "services", "t": "tasks", "e": "events"}
"""By the key that shows it."""
SORTS: Final = ("name", "cpu", "memory", "tasks")

_GAP: Final = 2
_FLOOR: Final = 6
_STYLES: Final = {"bad": "31", "odd": "33", "good": "32", "head": "1", "bar": "7", "dim": "2"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """What to show and how. ``events`` are (clock time, text), newest last; ``problem`` is why the snapshot is old."""

    snapshot: Snapshot
    events: Sequence[tuple[str, str]] = ()
    view: str = "overview"
    sort: str = "name"
    problem: str = ""
    time: str = ""
    colour: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class _Column:
    heading: str
    rank: int = 0
    right: bool = False
    flexible: bool = False
    floor: int = _FLOOR
    """Columns that a flexible one keeps as long as others can go."""


_Cell = tuple[str, str]
"""(text, style)."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Table:
    title: str
    columns: tuple[_Column, ...]
    rows: list[list[_Cell]]
    empty: str

    def lines(self, width: int | None, paint: Callable[[str, str], str]) -> list[str]:
        """Heading and rows, at most ``width`` columns wide."""
        if not self.rows:
            return [self.empty if width is None else cut(self.empty, width)]
        chosen, widths = self._fit(width)
        at = [self.columns.index(column) for column in chosen]
        heading = [(column.heading, "head") for column in self.columns]
        lines = []
        for row in (heading, *self.rows):
            cells = [
                (pad(cut(row[i][0], w), w, right=c.right), row[i][1])
                for i, c, w in zip(at, chosen, widths, strict=True)
            ]
            text = (" " * _GAP).join(cell for cell, _ in cells).rstrip()
            if width is not None and width_of(text) > width:
                lines.append(cut(text, width))
            else:
                lines.append((" " * _GAP).join(paint(cell, style) for cell, style in cells).rstrip())
        return lines

    def _fit(self, width: int | None) -> tuple[list[_Column], list[int]]:
        natural = {
            column: max(width_of(column.heading), *(width_of(row[i][0]) for row in self.rows))
            for i, column in enumerate(self.columns)
        }
        chosen = list(self.columns)
        if width is None:
            return chosen, [natural[column] for column in chosen]

        def floors() -> list[int]:
            return [min(natural[c], max(c.floor, len(c.heading))) if c.flexible else natural[c] for c in chosen]

        while sum(floors()) + _GAP * (len(chosen) - 1) > width and any(c.rank for c in chosen):
            chosen.remove(max(reversed(chosen), key=lambda column: column.rank))
        room = width - _GAP * (len(chosen) - 1)
        widths = shrunk([natural[c] for c in chosen], room=room, floors=floors())
        return chosen, shrunk(widths, room=room, floors=[1] * len(chosen))  # the last resort of very narrow terminals


def _size(size: int) -> str:
    value, unit = float(size), 0
    while value >= 1000 and unit < 4:
        value, unit = value / 1024, unit + 1
    text = f"{value:.1f}" if 0 < value < 10 and unit else f"{value:.0f}"
    return f"{text}{'BKMGT'[unit]}"


def _cpus(cpus: float) -> str:
    return f"{cpus:.2f}".rstrip("0").rstrip(".")


def _use(use: Use | None, *, whole: bool = True) -> tuple[str, str]:
    if use is None:
        return "-", "-"
    sign = "" if whole else "≥"
    return f"{sign}{use.cpus:.2f}", f"{sign}{_size(use.memory_bytes)}"


def _age(age_s: float) -> str:
    for limit, unit, name in ((90, 1, "s"), (5400, 60, "m"), (172_800, 3600, "h")):
        if age_s < limit:
            return f"{int(age_s / unit)}{name}"
    return f"{int(age_s / 86_400)}d"


def _sorted(rows: Sequence[Any], sort: str, *, reserved: bool = True) -> list[Any]:
    def cpu(row: Any) -> float:
        return float(row.use.cpus if row.use else row.cpus_reserved if reserved else 0)

    def memory(row: Any) -> int:
        return int(row.use.memory_bytes if row.use else row.memory_reserved if reserved else 0)

    by_name = sorted(rows, key=lambda row: row.name)
    if sort == "name":
        return by_name
    return sorted(by_name, key=cpu if sort == "cpu" else memory if sort == "memory" else _tasks, reverse=True)


def _tasks(row: Any) -> float:
    match row:
        case NodeRow():
            return row.tasks
        case ServiceRow():
            return row.running
        case _:
            return -float(row.age_s)


def _nodes(screen: Screen) -> _Table:
    rows: list[list[_Cell]] = []
    for node in _sorted(screen.snapshot.nodes, screen.sort):
        state = "good" if node.state == "ready" else "bad"
        cpu, memory = _use(node.use)
        rows.append(
            [
                (clean(node.name), ""),
                (node.role, ""),
                (node.state, state),
                (node.availability, "" if node.availability == "active" else "odd"),
                (str(node.tasks), ""),
                (f"{_cpus(node.cpus_reserved)}/{_cpus(node.cpus)}", ""),
                (cpu, ""),
                (f"{_size(node.memory_reserved)}/{_size(node.memory_bytes)}", ""),
                (memory, ""),
            ]
        )
    columns = (
        _Column("NODE", flexible=True), _Column("ROLE", 6), _Column("STATE"), _Column("AVAIL", 7),
        _Column("TASKS", 1, right=True), _Column("CPU RES", 2, right=True), _Column("CPU USE", 4, right=True),
        _Column("MEM RES", 3, right=True), _Column("MEM USE", 5, right=True),
    )  # fmt: skip
    return _Table("Nodes", columns, rows, "no nodes")


def _services(screen: Screen) -> _Table:
    rows: list[list[_Cell]] = []
    for service in _sorted(screen.snapshot.services, screen.sort):
        cpu, memory = _use(service.use, whole=service.whole)
        rows.append(
            [
                (clean(service.name), ""),
                (service.mode, ""),
                (f"{service.running}/{service.desired}", "" if service.running >= service.desired else "odd"),
                (_cpus(service.cpus_reserved), ""),
                (cpu, ""),
                (_size(service.memory_reserved), ""),
                (memory, ""),
                (service.update, "bad" if "paused" in service.update else ""),
            ]
        )
    columns = (
        _Column("SERVICE", flexible=True), _Column("MODE", 6), _Column("RUN", right=True), _Column("CPU RES", 2, right=True),
        _Column("CPU USE", 4, right=True), _Column("MEM RES", 3, right=True), _Column("MEM USE", 5, right=True),
        _Column("UPDATE", 7, flexible=True),
    )  # fmt: skip
    return _Table("Services", columns, rows, "no services")


def _task_table(screen: Screen, tasks: Sequence[TaskRow], *, title: str, empty: str) -> _Table:
    rows: list[list[_Cell]] = []
    ordered = _sorted(tasks, screen.sort, reserved=False)
    for task in sorted(ordered, key=lambda each: not each.trouble):
        cpu, memory = _use(task.use)
        times = f" ({task.count} times)" if task.count > 1 else ""
        style = "bad" if task.trouble else "good" if task.state == "running" else "odd"
        rows.append(
            [
                (clean(task.name), ""),
                (clean(task.node) or "-", ""),
                (task.state, style),
                (_age(task.age_s), ""),
                (cpu, ""),
                (memory, ""),
                (clean(task.reason) + times, ""),
            ]
        )
    columns: tuple[_Column, ...] = (
        _Column("TASK", flexible=True), _Column("NODE", 3, flexible=True), _Column("STATE"), _Column("AGE", 2, right=True),
        _Column("CPU", 5, right=True), _Column("MEM", 6, right=True), _Column("REASON", 1, flexible=True, floor=20),
    )  # fmt: skip
    if not any(task.use for task in tasks):
        columns, rows = (*columns[:4], columns[6]), [[*row[:4], row[6]] for row in rows]
    return _Table(title, columns, rows, empty)


def _event_table(screen: Screen) -> _Table:
    rows: list[list[_Cell]] = [[(time, "dim"), (clean(text), "")] for time, text in reversed(screen.events)]
    return _Table("Events", (_Column("TIME", 1), _Column("EVENT", flexible=True)), rows, "no events yet")


def _trouble(screen: Screen) -> _Table:
    return _task_table(screen, screen.snapshot.trouble, title="Tasks in trouble", empty="no task is in trouble")


def _tables(screen: Screen) -> list[_Table]:
    match screen.view:
        case "nodes":
            return [_nodes(screen)]
        case "services":
            return [_services(screen)]
        case "tasks":
            return [_task_table(screen, screen.snapshot.tasks, title="Tasks", empty="no tasks")]
        case "events":
            return [_event_table(screen)]
        case _:
            return [_nodes(screen), _services(screen), _trouble(screen), _event_table(screen)]


def _summary(snapshot: Snapshot) -> str:
    ready = sum(node.state == "ready" for node in snapshot.nodes)
    running = sum(task.state == "running" for task in snapshot.tasks)
    counts = f"{ready}/{len(snapshot.nodes)} nodes, {len(snapshot.services)} services, {running} tasks"
    return f"{counts}, {len(snapshot.trouble)} in trouble" if snapshot.trouble else counts


def _note(snapshot: Snapshot) -> str:
    """What the figures of use leave out."""
    if not snapshot.tells_use:
        return "use: this daemon tells no figures; what is reserved is shown"
    unknown = [clean(node.name) for node in snapshot.nodes if node.use is None and node.state == "ready"]
    return f"use: not known yet of {', '.join(unknown)}" if unknown else ""


def plain(screen: Screen) -> list[str]:
    """Whole tables without colour or limits, for pipes and ``--once``."""
    lines = [f"{screen.snapshot.here}: {_summary(screen.snapshot)}"]
    for table in _tables(screen):
        lines += ["", f"{table.title}:", *table.lines(None, lambda text, _style: text)]
    note = _note(screen.snapshot)
    return [*lines, "", note] if note else lines


def draw(screen: Screen, *, width: int, height: int) -> list[str]:
    """At most ``height`` lines of at most ``width`` columns (escape sequences of colours not counted)."""

    def paint(text: str, style: str) -> str:
        code = _STYLES.get(style)
        return f"\x1b[{code}m{text}\x1b[0m" if screen.colour and code and text else text

    title = f"fleet top  {screen.snapshot.here}  {_summary(screen.snapshot)}"
    gap = width - width_of(title) - len(screen.time)
    lines = [paint(pad(cut(f"{title}{' ' * gap}{screen.time}" if gap > 0 else title, width), width), "bar")]
    if screen.problem:
        lines.append(paint(cut(clean(screen.problem), width), "bad"))
    keys = f"q quit  s sort: {screen.sort}  " + "  ".join(f"{key} {name}" for key, name in VIEWS.items())
    foot = [cut(_note(screen.snapshot), width)] if _note(screen.snapshot) and screen.view != "events" else []
    foot.append(paint(cut(keys, width), "bar"))
    room = height - len(lines) - len(foot)
    blocks = [table.lines(width, paint) for table in _tables(screen)]
    for block, share in zip(blocks, _shares([len(block) for block in blocks], room), strict=True):
        lines += _part(block, share, width)
    lines += [""] * (height - len(lines) - len(foot))
    return [*lines[: max(0, height - len(foot))], *foot][:height]


def _part(block: list[str], share: int, width: int) -> list[str]:
    if len(block) <= share or share < 2:
        return block[:share]
    return [*block[: share - 1], cut(f"... {len(block) - share + 1} more", width)]


def _shares(needs: Sequence[int], room: int) -> list[int]:
    """Lines for each block: what it needs, or else an even part of what there is."""
    shares, left = [0] * len(needs), max(0, room)
    open_ = sorted(range(len(needs)), key=lambda i: needs[i])
    for position, i in enumerate(open_):
        shares[i] = min(needs[i], left // (len(open_) - position))
        left -= shares[i]
    return shares
