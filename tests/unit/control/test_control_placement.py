"""What ``GET /fleet/v1/services/NAME/placement`` tells beside the nodes: quotas, who would yield, who did."""

from __future__ import annotations

import msgspec
from support.decision_builders import NOW, a_node, a_service, a_task, a_task_spec

from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.ids import ClusterId, TaskId
from fleet.model.service import Service
from fleet.model.task import Preempted, Task, TaskState
from fleet.store import Transaction

PATH = "/fleet/v1/services/web/placement"


def a_service_with(name: str, replicas: int, **labels: str) -> Service:
    service = a_service(name, replicas=replicas, spec=a_task_spec(cpus=1))
    return msgspec.structs.replace(service, spec=msgspec.structs.replace(service.spec, labels=labels))


def running(service: Service, slot: int) -> Task:
    task = a_task(
        service.spec.name, slot=slot, node="a", state=TaskState.RUNNING, spec=a_task_spec(cpus=1), task_id=f"t{slot}"
    )
    return msgspec.structs.replace(task, service_labels=service.spec.labels)


def test_quotas_tell_what_is_used_and_a_task_beyond_one_would_wait(run) -> None:
    async def body(world) -> None:
        web = a_service_with("web", 2, team="red")
        spec = SwarmSpec(labels={"fleet.quota.label=team=red": "tasks=1,cpu=3"})
        cluster = Cluster(id=ClusterId("default"), created_at=NOW, updated_at=NOW, spec=spec)
        node = a_node("a", labels={"fleet.taint.old": ":prefer-no-schedule"})
        for obj in (node, web, cluster, running(web, 1)):
            await world.store.commit(Transaction().create(obj))
        told = await world.call("GET", PATH, status=200)
        assert (told["Chosen"], told["Reason"]) == ("", "beyond quota label=team=red (tasks=1)")
        assert told["Quotas"] == ["quota label=team=red: tasks 1 of 1, cpu 1 of 3"]
        assert told["Nodes"][0]["Notes"] == ["taint old:prefer-no-schedule (weight -100)"]
        assert told["Nodes"][0]["Score"] == -100

    run(body)


def test_who_would_yield_and_who_did_are_told(run) -> None:
    async def body(world) -> None:
        low = a_service_with("low", 3)
        web = a_service_with("web", 2, **{"fleet.placement.priority": "5"})
        by = Preempted(by=TaskId("gone"), service="web", since=NOW)
        before = msgspec.structs.replace(running(low, 9), preempted=by, desired_state=TaskState.SHUTDOWN)
        ended = msgspec.structs.replace(before, status=msgspec.structs.replace(before.status, state=TaskState.SHUTDOWN))
        for obj in (a_node("a", cpus=3), low, web, *(running(low, slot) for slot in (1, 2, 3)), ended):
            await world.store.commit(Transaction().create(obj))
        told = await world.call("GET", PATH, status=200)
        assert told["Preempts"] == {"NodeID": "a", "Names": ["low.3"]}
        (yielded,) = told["Preempted"]
        assert (yielded["Name"], yielded["NodeID"], yielded["Service"], yielded["HasEnded"]) == (
            "low.9",
            "a",
            "web",
            True,
        )
        for_low = await world.call("GET", PATH.replace("web", "low"), status=200)
        assert for_low["Preempts"] is None and for_low["Preempted"] == told["Preempted"]

    run(body)
