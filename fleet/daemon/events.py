"""What happens on this host and, on managers, in the cluster, as Docker's event messages: recent ones kept, new ones streamed."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Any, Final

from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.model.network import Network
from fleet.model.node import Node
from fleet.model.secret import Config, Secret
from fleet.model.service import Service
from fleet.model.task import Task
from fleet.store import Action, Change, Kind, Store

__all__ = ["EventLog", "matches"]

_KEPT: Final = 4_096
_QUEUE_MAX: Final = 4_096

Event = dict[str, Any]


class EventLog:
    """A bounded history with listeners. A listener that does not keep up is ended rather than waited for."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._listeners: set[asyncio.Queue[Event | None]] = set()

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    def add(self, *, kind: str, action: str, actor: str, scope: str, attributes: Mapping[str, str]) -> None:
        """Something happened now."""
        now = self._clock.now()
        nanoseconds = int(now.timestamp() * 1e6) * 1000
        event: Event = {
            "Type": kind,
            "Action": action,
            "Actor": {"ID": actor, "Attributes": dict(attributes)},
            "scope": scope,
            "time": nanoseconds // 1_000_000_000,
            "timeNano": nanoseconds,
        }
        if kind == "container":
            event |= {"status": action, "id": actor, "from": attributes.get("image", "")}
        self._kept.append(event)
        for queue in list(self._listeners):
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self._listeners.discard(queue)

    async def stream(self, *, since: datetime | None, until: datetime | None) -> AsyncIterator[Event]:
        """Kept events from ``since`` on, then new ones until ``until`` (for ever without). With ``until`` alone all kept ones."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(_QUEUE_MAX)
        self._listeners.add(queue)
        try:
            if since is not None or until is not None:
                first = since.timestamp() * 1e9 if since else 0
                last = until.timestamp() * 1e9 if until else float("inf")
                for event in list(self._kept):
                    if first <= event["timeNano"] <= last:
                        yield event
            while queue in self._listeners:
                if until is None:
                    event_ = await queue.get()
                else:
                    wait_s = (until - self._clock.now()).total_seconds()
                    if wait_s <= 0:
                        return
                    try:
                        async with asyncio.timeout(wait_s):
                            event_ = await queue.get()
                    except TimeoutError:
                        return
                if event_ is not None:
                    yield event_
        finally:
            self._listeners.discard(queue)

    async def follow_containers(self, engine: ContainerEngine) -> None:
        """Until cancelled."""
        with engine.subscribe() as events:
            async for event in events:
                kind, _, action = str(event.action.value).rpartition(" ")
                self.add(
                    kind=kind or "container", action=action, actor=event.id, scope="local", attributes=event.attributes
                )

    async def follow_store(self, store: Store) -> None:
        """Until cancelled."""
        kinds = (Kind.SERVICE, Kind.NODE, Kind.NETWORK, Kind.SECRET, Kind.CONFIG, Kind.TASK)
        with store.subscribe(*kinds) as subscription:
            while True:
                for change in await subscription.wait():
                    self._add_change(change)

    def _add_change(self, change: Change) -> None:
        obj = change.new or change.old
        if isinstance(obj, Task):
            self._add_preemption(change)
            return
        if isinstance(obj, Service):
            self._add_scaling(obj, change.old)
        attributes = _attributes(obj, change)
        if attributes is None or obj is None:
            return
        action = {Action.CREATE: "create", Action.UPDATE: "update", Action.REMOVE: "remove"}[change.action]
        self.add(kind=str(change.kind), action=action, actor=obj.id, scope="swarm", attributes=attributes)

    def _add_scaling(self, service: Service, before: object) -> None:
        """What its policy did, and what keeps it from doing more; the change of the number itself is an update as well."""
        after = service.autoscale
        old = before.autoscale if isinstance(before, Service) else None
        if after is None or not isinstance(before, Service):
            return
        told: list[dict[str, str]] = [
            {"replicas.old": str(each.before), "replicas.new": str(each.after), "reason": each.reason}
            for each in after.scalings
            if old is None or each not in old.scalings
        ]
        if after.held and (old is None or old.held != after.held):
            told.append({"held": after.held})
        for attributes in told:
            named = {"name": service.spec.name, **attributes}
            self.add(kind="service", action="autoscale", actor=service.id, scope="swarm", attributes=named)

    def _add_preemption(self, change: Change) -> None:
        """Docker has no events of tasks; that one gives its room to another is told as one of its service."""
        old, new = change.old, change.new
        if not isinstance(new, Task) or new.preempted is None or (isinstance(old, Task) and old.preempted is not None):
            return
        attributes = {
            "name": new.service_name,
            "task": new.id,
            "slot": str(new.slot),
            "node": new.node_id,
            "for": new.preempted.service,
        }
        self.add(kind="service", action="preempt", actor=new.service_id, scope="swarm", attributes=attributes)


def _attributes(obj: object, change: Change) -> dict[str, str] | None:
    """Names and what changed; ``None`` when nothing did that a person would call a change."""
    old = change.old
    match obj:
        case Service():
            result = {"name": obj.spec.name}
            if isinstance(old, Service) and change.action is Action.UPDATE:
                if old.spec == obj.spec and old.update_status == obj.update_status:
                    return None
                if old.spec.replicas != obj.spec.replicas:
                    result |= {"replicas.old": str(old.spec.replicas), "replicas.new": str(obj.spec.replicas)}
                before = old.spec.task_template.container_spec.image
                after = obj.spec.task_template.container_spec.image
                if before != after:
                    result |= {"image.old": before, "image.new": after}
            return result
        case Node():
            result = {"name": obj.description.hostname}
            if isinstance(old, Node) and change.action is Action.UPDATE:
                pairs = (
                    ("state", old.status.state, obj.status.state),
                    ("availability", old.spec.availability, obj.spec.availability),
                    ("role", old.spec.role, obj.spec.role),
                )
                changed = {f"{name}.old": str(a) for name, a, b in pairs if a is not b}
                changed |= {f"{name}.new": str(b) for name, a, b in pairs if a is not b}
                if not changed and old.spec == obj.spec:
                    return None
                result |= changed
            return result
        case Network() | Secret() | Config():
            return {"name": obj.spec.name}
        case _:
            return None


def matches(event: Event, filters: Mapping[str, tuple[str, ...]]) -> bool:
    """Docker's event filters: several values of one are alternatives, but all labels must be there. Names of objects and their
    IDs may be given by their beginning. Source: moby ``daemon/events/filter.go``."""
    attributes: Mapping[str, str] = event["Actor"]["Attributes"]
    actor, name = event["Actor"]["ID"], attributes.get("name", "")

    def one(key: str, values: tuple[str, ...]) -> bool:
        match key:
            case "type":
                return event["Type"] in values
            case "event":
                return any(event["Action"] == v or event["Action"].startswith(f"{v}:") for v in values)
            case "scope":
                return event["scope"] in values
            case "label":
                wanted = [value.partition("=") for value in values]
                return all(
                    label in attributes and (not separator or attributes[label] == value)
                    for label, separator, value in wanted
                )
            case "image":
                image = name if event["Type"] == "image" else attributes.get("image", "")
                return not {actor, image, _untagged(actor), _untagged(image)}.isdisjoint(values)
            case _:  # a kind of object
                return event["Type"] == key and (actor.startswith(values) or name.startswith(values))

    return all(one(key, values) for key, values in filters.items())


def _untagged(image: str) -> str:
    """``nginx`` of ``nginx:1@sha256:...``; a port of the registry is no tag."""
    image = image.partition("@")[0]
    head, separator, tag = image.rpartition(":")
    return head if separator and "/" not in tag else image
