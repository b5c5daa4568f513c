"""Answers, thinned out to what whoever asked may know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from fleet import errors
from fleet.daemon.access.objects import Objects
from fleet.daemon.access.principal import Principal
from fleet.daemon.access.table import Object, Reach, Row

__all__ = ["ThinnedAnswer", "Thinner", "thinner_for"]

_LINE_MAX: Final = 4 << 20
_KINDS: Final = {
    str(about): about for about in Object if about not in (Object.NONE, Object.EVENT, Object.CHANGE, Object.INFO)
}

Json = Any
Thinner = Callable[[Json], Json]
"""From a decoded answer, or a decoded line of one, to what is left of it; None for a line that is dropped."""


def thinner_for(principal: Principal, row: Row, objects: Objects) -> Thinner | None:
    """What to do to the answer; None for nothing."""
    if row.about is Object.INFO:
        return None if principal.is_admin else lambda answer: _public(answer, is_limited=bool(principal.scope))
    if not principal.scope or row.reach is not Reach.LIST:
        return None

    def is_shown(item: Json) -> bool:
        return _is_shown(principal, row.about, item, objects)

    match row.about:
        case Object.EVENT:
            return lambda event: event if _is_event_shown(principal, event, objects) else None
        case Object.CHANGE:
            return lambda line: line if _is_change_shown(principal, line, objects) else None
        case Object.VOLUME:
            return lambda answer: {**answer, "Volumes": [item for item in answer["Volumes"] or () if is_shown(item)]}
        case _:
            return lambda answer: [item for item in answer or () if is_shown(item)]


def _is_shown(principal: Principal, about: Object, item: Json, objects: Objects) -> bool:
    match about:
        case Object.SERVICE | Object.SECRET | Object.CONFIG:
            return principal.sees(item["Spec"].get("Labels") or {})
        case Object.NETWORK | Object.VOLUME:
            return principal.sees(item.get("Labels") or {})
        case Object.TASK:
            return _is_found(principal, about, item["ID"], objects)
        case Object.CONTAINER:
            return _is_found(principal, about, item["Id"], objects)
        case _:
            return False


def _is_found(principal: Principal, about: Object, id_: str, objects: Objects) -> bool:
    try:
        objects.within(principal, about, id_)
    except errors.NotFoundError:
        return False
    return True


def _is_event_shown(principal: Principal, event: Json, objects: Objects) -> bool:
    """By the labels it tells, else by the object as it is; of what is gone and told none, nothing is shown."""
    actor = event.get("Actor") or {}
    attributes = actor.get("Attributes") or {}
    if principal.sees(attributes) and event.get("Type") == "container":
        return True
    about = _KINDS.get(event.get("Type", ""))
    return about is not None and _is_found(principal, about, actor.get("ID", ""), objects)


def _is_change_shown(principal: Principal, line: Json, objects: Objects) -> bool:
    """That something is no more tells its id alone, and whoever was shown it has to hear it."""
    about = _KINDS.get(line["Type"])
    if about is None or line.get("Action") != "put":
        return True
    return _is_shown(principal, about, line["Object"], objects)


def _public(answer: Json, *, is_limited: bool) -> Json:
    """``/info`` and ``/swarm`` without what admits to the cluster; for a limited grant without what is said of others, too."""
    cluster = answer
    if "Swarm" in answer:
        cluster = (answer["Swarm"] or {}).get("Cluster")
    if isinstance(cluster, dict):
        cluster.pop("JoinTokens", None)
        spec = cluster.get("Spec")
        if isinstance(spec, dict):
            (spec.get("CAConfig") or {}).pop("ExternalCAs", None)
            if is_limited:
                spec["Labels"] = {}
    return answer


class ThinnedAnswer:
    """ASGI ``send`` that decodes, thins and encodes a JSON answer, whole or (``by_line``) as its lines come."""

    def __init__(self, send: Any, thin: Thinner, *, by_line: bool) -> None:
        self._send = send
        self._thin = thin
        self._by_line = by_line
        self._start: Any = None
        self._passes = False
        self._pending = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._passes = message["status"] != 200
            if self._passes:
                await self._send(message)
                return
            headers = [(name, value) for name, value in message["headers"] if name.lower() != b"content-length"]
            self._start = {**message, "headers": headers}
            if self._by_line:
                await self._send(self._start)
            return
        if self._passes or message["type"] != "http.response.body":
            await self._send(message)
            return
        self._pending += message.get("body", b"")
        if len(self._pending) > _LINE_MAX and self._by_line:
            raise errors.InvariantError("a line of an answer is too long to be thinned out")
        more = message.get("more_body", False)
        if self._by_line:
            await self._send({**message, "body": self._lines(is_last=not more)})
        elif not more:
            body = msgspec.json.encode(self._thin(msgspec.json.decode(self._pending)))
            self._start["headers"].append((b"content-length", str(len(body)).encode()))
            await self._send(self._start)
            await self._send({"type": "http.response.body", "body": body})

    def _lines(self, *, is_last: bool) -> bytes:
        *lines, self._pending = self._pending.split(b"\n")
        if is_last and self._pending:
            lines.append(self._pending)
            self._pending = b""
        kept = [line for line in lines if line.strip() and self._thin(msgspec.json.decode(line)) is not None]
        return b"".join(line + b"\n" for line in kept)
