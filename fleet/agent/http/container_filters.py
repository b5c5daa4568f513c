"""Filters of ``GET /containers/json`` and of prune. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from fleet.api.http import Filters
from fleet.containers import Container
from fleet.errors import UserError

__all__ = ["LIST_FILTERS", "PRUNE_FILTERS", "matches_labels", "parse_moment", "select"]

LIST_FILTERS: Final = frozenset(
    {
        "ancestor", "before", "expose", "exited", "health", "id", "is-task", "isolation", "label", "name", "network",
        "publish", "since", "status", "volume",
    }
)  # fmt: skip
PRUNE_FILTERS: Final = frozenset({"until", "label", "label!"})

_STATUSES: Final = ("created", "restarting", "running", "removing", "paused", "exited", "dead")


def select(
    containers: Sequence[Container],
    filters: Filters,
    *,
    image_ids: Callable[[str], set[str]],
    find: Callable[[str], Container],
) -> list[Container]:
    """Those that pass every filter (values of one filter are alternatives, labels must all hold), in the order given."""
    for status in filters.get("status", ()):
        if status not in _STATUSES:
            raise UserError(f"invalid filter 'status={status}': known ones are {', '.join(_STATUSES)}")
    wanted_images = set().union(*(image_ids(text) for text in filters["ancestor"])) if "ancestor" in filters else None
    before = min((find(text).created_at for text in filters.get("before", ())), default=None)
    since = max((find(text).created_at for text in filters.get("since", ())), default=None)
    return [
        c
        for c in containers
        if _passes(c, filters)
        and (wanted_images is None or c.image_id in wanted_images or c.config.image in filters["ancestor"])
        and (before is None or c.created_at < before)
        and (since is None or c.created_at > since)
    ]


def _passes(container: Container, filters: Filters) -> bool:
    state = container.state
    health = state.health.status if state.health else "none"
    checks: dict[str, Callable[[str], bool]] = {
        "id": container.id.startswith,
        "name": lambda text: (
            text.removeprefix("^").removesuffix("$").removeprefix("/") in container.name
            if not (text.startswith("^") and text.endswith("$"))
            else text[1:-1].removeprefix("/") == container.name
        ),
        "status": lambda text: text == state.status,
        "exited": lambda text: state.exit is not None and not container.is_up and text == str(state.exit.code),
        "health": lambda text: text == health,
        "is-task": lambda text: (text.lower() in ("1", "true")) == ("com.docker.swarm.task.id" in container.labels),
        "isolation": lambda text: text in ("", "default"),
        "volume": lambda text: any(text in (p.name, p.target) for p in container.mounts),
        "network": lambda text: _on_network(container, text),
        "expose": lambda text: any(_same_port(text, port) for port in container.exposed_ports),
        "publish": lambda text: any(
            _same_port(text, f"{p.host_port}/{p.protocol}") for p in container.config.host_ports
        ),
    }
    return all(
        any(checks[name](value) for value in values) for name, values in filters.items() if name in checks
    ) and matches_labels(container.labels, filters)


def matches_labels(labels: dict[str, str], filters: Filters) -> bool:
    """``label``: all of them, ``key`` or ``key=value``; ``label!``: none of them."""

    def has(text: str) -> bool:
        key, separator, value = text.partition("=")
        return key in labels and (not separator or labels[key] == value)

    return all(map(has, filters.get("label", ()))) and not any(map(has, filters.get("label!", ())))


def _on_network(container: Container, text: str) -> bool:
    mode = str(container.config.network_mode)
    return text == mode or any(spec.network_id.startswith(text) for spec in container.config.networks)


def _same_port(text: str, port: str) -> bool:
    number, _, protocol = text.partition("/")
    first, _, last = number.partition("-")
    own_number, _, own_protocol = port.partition("/")
    if not first.isdigit() or (last and not last.isdigit()):
        raise UserError(f"invalid port in filter: {text!r}")
    return int(first) <= int(own_number) <= int(last or first) and (protocol or "tcp") == own_protocol


def parse_moment(text: str | None, *, now: datetime) -> datetime | None:
    """An instant as clients send it: Unix seconds with a fraction, RFC 3339, or a duration before now (``10m``, ``1h30m``).

    0 and nothing mean no bound. Raises ``UserError``.
    """
    if text is None or text in ("", "0"):
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = None
    try:
        if seconds is not None:
            return datetime.fromtimestamp(seconds, UTC)
        if text[-1] in "smh" and text[0].isdigit() and "T" not in text:
            return now - _duration(text)
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError) as cause:
        raise UserError(
            f"invalid time {text!r}: give Unix seconds, an RFC 3339 time or a duration such as 10m"
        ) from cause
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _duration(text: str) -> timedelta:
    total, number = 0.0, ""
    for character in text:
        if character in "smh":
            total += float(number) * {"s": 1, "m": 60, "h": 3600}[character]
            number = ""
        else:
            number += character
    if number:
        raise ValueError(text)
    return timedelta(seconds=total)
