"""What is told of changes of the cluster, and what nodes and tasks use, as the API answers it."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from support.memory_engine import MemoryEngine
from support.objects import make_node, make_service, make_task

from fleet import errors
from fleet.api.dispatch import HostUsage, TaskUsage, Usage
from fleet.clock import SystemClock
from fleet.daemon.http.watch import watch_lines
from fleet.daemon.usage import usage_json
from fleet.manager.control import ControlApi
from fleet.manager.host_loads import HostLoads
from fleet.manager.usage import TaskLoads
from fleet.model.service import Service
from fleet.model.task import Task, TaskState
from fleet.store import Store, Transaction

Lines = list[dict[str, Any]]


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        numbers = itertools.count(1)
        control = ControlApi(store, SystemClock(), lambda size: next(numbers).to_bytes(size, "little"))
        self.role: Any = SimpleNamespace(store=store, control=control)
        self._pieces = watch_lines(self.role)

    async def told(self) -> Lines:
        async with asyncio.timeout(30):
            return [json.loads(line) for line in (await anext(self._pieces)).splitlines()]

    async def put(self, now: Any, **changed: Any) -> None:
        await self.store.commit(Transaction().replace(msgspec.structs.replace(now, **changed)))


def in_world(body: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = MemoryEngine()
        await engine.start()
        store = await Store.open(engine)
        try:
            await body(World(store))
        finally:
            await store.close()
            await engine.close()

    asyncio.run(main())


def names(lines: Lines) -> list[tuple[str, str, str]]:
    return [(line["Type"], line.get("Action", ""), line.get("ID", "")) for line in lines]


def running(service: Service, **fields: Any) -> Task:
    task = make_task("t1", service_id=service.id)
    status = msgspec.structs.replace(task.status, state=TaskState.RUNNING)
    return msgspec.structs.replace(task, status=status, desired_state=TaskState.RUNNING, **fields)


def test_everything_is_told_first_and_then_what_changed_with_the_count_of_its_service() -> None:
    async def body(world: World) -> None:
        node, service = make_node("w1"), make_service("web")
        await world.store.commit(Transaction().create(node).create(service).create(running(service)))
        first = await world.told()
        assert names(first) == [
            ("reset", "", ""), ("node", "put", node.id), ("service", "put", service.id), ("task", "put", "t1"), ("synced", "", "")
        ]  # fmt: skip
        assert first[2]["Object"]["ServiceStatus"]["RunningTasks"] == 1
        assert "NetworksAttachments" not in first[3]["Object"] and first[3]["Object"]["Status"]["State"] == "running"
        (task,) = world.store.tasks.all()
        await world.put(task, status=msgspec.structs.replace(task.status, state=TaskState.FAILED, err="boom"))
        second = await world.told()
        assert names(second) == [("task", "put", "t1"), ("service", "put", service.id)]
        assert second[0]["Object"]["Status"]["Err"] == "boom"
        assert second[1]["Object"]["ServiceStatus"]["RunningTasks"] == 0
        (task,) = world.store.tasks.all()
        await world.store.commit(Transaction().delete(task))
        assert names(await world.told()) == [("task", "remove", "t1"), ("service", "put", service.id)]
        (node,) = world.store.nodes.all()
        await world.put(node, removed=True)
        assert names(await world.told()) == [("node", "remove", node.id)]

    in_world(body)


def test_a_task_has_the_digest_of_its_service_until_an_update_and_after_a_rollback() -> None:
    async def body(world: World) -> None:
        service = make_service("web")
        template = service.spec.task_template
        await world.store.commit(Transaction().create(service).create(running(service, spec=template)))
        digests = {line["Type"]: line["SpecDigest"] for line in await world.told() if "SpecDigest" in line}
        assert digests["task"] == digests["service"]
        for force, same in ((1, False), (template.force_update, True)):
            (now,) = world.store.services.all()
            changed = msgspec.structs.replace(now.spec.task_template, force_update=force)
            await world.put(now, spec=msgspec.structs.replace(now.spec, task_template=changed))
            (line,) = await world.told()
            assert (line["SpecDigest"] == digests["task"]) is same

    in_world(body)


def test_use_is_told_of_nodes_with_their_past_and_of_tasks_when_they_are_asked_for() -> None:
    async def body(world: World) -> None:
        node, service = make_node("w1"), make_service("web")
        task = running(service, node_id=node.id)
        await world.store.commit(Transaction().create(node).create(service).create(task))
        clock: Any = SimpleNamespace(monotonic=lambda: clock.time, now=SystemClock().now, time=0.0)
        loads, hosts = TaskLoads(world.store, clock), HostLoads(world.store, clock)
        world.role.dispatcher = SimpleNamespace(loads=loads, hosts=hosts, sessions=1)
        for seconds in (10.0, 20.0):
            clock.time = seconds
            used = HostUsage(int(seconds * 5e8), 7, int(seconds * 1e8), 5)
            said = Usage(at_ns=int(seconds * 1e9), host=used, tasks=(TaskUsage(task.id, int(seconds * 2e8), 3),))
            loads.note(node.id, said)
            hosts.note(node.id, said)
        plain = usage_json(world.role, {})
        (shown,) = plain["Nodes"]
        assert "Tasks" not in plain and "History" not in shown
        assert (shown["Now"]["NanoCPUs"], shown["Now"]["MemoryBytes"]) == (500_000_000, 7)
        assert shown["Now"]["Containers"] == {"NanoCPUs": 100_000_000, "MemoryBytes": 5}
        assert not loads.wanted([]).every
        whole = usage_json(world.role, {"since": "0", "tasks": "1"})
        assert whole["Nodes"][0]["History"] == [shown["Now"]]
        assert whole["Tasks"] == [{"ID": "t1", "NanoCPUs": 200_000_000, "MemoryBytes": 3}]
        await loads.watch_turned()
        assert loads.wanted([]).every, "a look has them read"
        for bad in ("soon", "nan"):
            with pytest.raises(errors.UserError, match="since"):
                usage_json(world.role, {"since": bad})

    in_world(body)
