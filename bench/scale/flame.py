"""Sampled stacks ("a;b;c count" a line) as a table of parts and functions, and as a picture of where the time goes."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Final

__all__ = ["parts_of", "picture", "read", "table"]

Stacks = Counter[tuple[str, ...]]

_PARTS: Final = (
    ("fleet.manager.loops.scheduler", "scheduler"),
    ("fleet.manager.loops.orchestrator", "orchestrator"),
    ("fleet.manager.loops.", "other loops"),
    ("fleet.manager.allocator", "allocator"),
    ("fleet.manager.reports", "dispatcher: statuses written"),
    ("fleet.manager.senders:Senders.send", "dispatcher: assignments sent"),
    ("fleet.manager.dispatcher:Dispatcher._receive", "dispatcher: frames received"),
    ("fleet.manager.dispatcher", "dispatcher: the rest"),
    ("fleet.manager.senders", "dispatcher: the rest"),
    ("fleet.manager.leases", "dispatcher: the rest"),
    ("fleet.manager.withdrawals", "dispatcher: the rest"),
    ("fleet.manager.admission", "admission"),
    ("fleet.store.store:Store._follow", "store: changes taken over"),
    ("fleet.store.store:Store._commit_pack", "store: transactions made"),
    ("fleet.store.store:Store", "store: the rest"),
    ("fleet.engines.", "state engine"),
    ("fleet.manager.http", "engine API"),
    ("fleet.daemon.http", "engine API"),
    ("fleet.daemon.app", "engine API"),
    ("fleet.daemon.events", "event log"),
    ("protocols.websockets", "WebSocket"),
    ("websockets_sansio_impl", "WebSocket"),
    ("fleet.daemon.cluster_app", "WebSocket"),
    ("protocols.http", "HTTP"),
    ("httptools_impl", "HTTP"),
)
_SHOWN: Final = 25
_ROW: Final = 16
_WIDTH: Final = 1400
_LEAST: Final = 0.0015


def read(text: str) -> Stacks:
    """From the sampler's file."""
    stacks: Stacks = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        stacks[tuple(stack.split(";"))] += int(count)
    return stacks


def parts_of(stacks: Stacks) -> dict[str, float]:
    """Share of each part of the manager, the largest first; of a sample's frames the outermost that has a part says which."""
    found: Counter[str] = Counter()
    for stack, count in stacks.items():
        found[_part(stack)] += count
    total = sum(found.values()) or 1
    return {part: count / total for part, count in found.most_common()}


def _part(stack: tuple[str, ...]) -> str:
    for frame in stack:
        for start, part in _PARTS:
            if frame.startswith(start):
                return part
    return "event loop, TLS and the rest"


def table(stacks: Stacks, *, title: str) -> str:
    """Parts, and the functions with most time of their own and with that of what they called."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for stack, count in stacks.items():
        own[stack[-1]] += count
        whole.update(dict.fromkeys(stack, count))
    total = sum(own.values()) or 1
    lines = [f"{title}: {total} samples of 5 ms of processor time", ""]
    lines += [f"  {share:6.1%}  {part}" for part, share in parts_of(stacks).items()]
    lines += ["", "   own    with callees"]
    lines += [f"  {count / total:6.1%}  {whole[name] / total:6.1%}  {name}" for name, count in own.most_common(_SHOWN)]
    lines += ["", "  with callees"]
    lines += [f"  {count / total:6.1%}  {name}" for name, count in whole.most_common(2 * _SHOWN)]
    return "\n".join(lines) + "\n"


def picture(stacks: Stacks, *, title: str) -> str:
    """A flame graph as SVG: callers below, width is the share of samples, a title tells name and share."""
    total = sum(stacks.values()) or 1
    depth = max((len(stack) for stack in stacks), default=0)
    height = (depth + 3) * _ROW
    boxes: list[str] = []

    def draw(level: int, left: float, rows: list[tuple[tuple[str, ...], int]]) -> None:
        groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, count in rows:
            if len(stack) > level:
                groups.setdefault(stack[level], []).append((stack, count))
        for name, members in sorted(groups.items()):
            count = sum(found for _, found in members)
            share = count / total
            if share >= _LEAST:
                width, top = share * _WIDTH, height - (level + 2) * _ROW
                short = name.rpartition(":")[2]
                label = escape(short[: int(width / 7)]) if width > 20 else ""
                hue = 20 + hash(name) % 30 if name.startswith("fleet") else 200
                boxes.append(
                    f'<g><title>{escape(name)} {share:.1%}</title><rect x="{left:.1f}" y="{top}" width="{width:.1f}" '
                    f'height="{_ROW - 1}" fill="hsl({hue},70%,65%)"/><text x="{left + 2:.1f}" y="{top + 11}">{label}</text></g>'
                )
                draw(level + 1, left, members)
            left += share * _WIDTH

    draw(0, 0.0, list(stacks.items()))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" font-family="monospace" font-size="10">'
        f'<text x="4" y="12">{escape(title)}</text>{"".join(boxes)}</svg>\n'
    )
