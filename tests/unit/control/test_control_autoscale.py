"""Policies and quotas through the API: what is refused, told, kept."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from support.decision_builders import NOW, a_service, a_task, a_task_spec

from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.ids import ClusterId
from fleet.model.service import AutoscaleStatus, Scaling, Service
from fleet.model.task import TaskState
from fleet.store import Transaction

POLICY = {"fleet.autoscale.min": "2", "fleet.autoscale.max": "10", "fleet.autoscale.cpu": "70"}
STATUS = AutoscaleStatus(
    scalings=(Scaling(at=NOW, before=2, after=4, reason="2 -> 4: CPU 140%, 70% wanted"),),
    held="no room left in quota stack=shop (tasks=4)",
    held_since=NOW,
)
replace = msgspec.structs.replace


def scaled(replicas: int = 4, *, name: str = "web", **more: Any) -> Service:
    service = a_service(name, replicas=replicas, **more)
    return replace(service, spec=replace(service.spec, labels=POLICY), autoscale=STATUS)


def spec_with(labels: dict[str, str], **more: Any) -> dict[str, Any]:
    template: dict[str, Any] = {"ContainerSpec": {"Image": "app:1"}, "Resources": more.pop("resources", {})}
    return {"Name": "web", "Labels": labels, "TaskTemplate": template, **more}


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            spec_with({**POLICY, "fleet.autoscale.max": "ten"}),
            "label fleet.autoscale.max: 'ten' is no number of tasks; expected a whole number from 1 to 100000",
        ),
        (spec_with({**POLICY, "fleet.autoscale.mox": "1"}), "label fleet.autoscale.mox is not known; there are"),
        (spec_with({**POLICY, "fleet.autoscale.min": "11"}), "label fleet.autoscale.min: 11 is more than"),
        (spec_with({"fleet.autoscale.max": "3"}), "give one of fleet.autoscale.cpu, fleet.autoscale.memory"),
        (spec_with(POLICY, Mode={"Global": {}}), "is global; only replicated services are scaled"),
        (
            spec_with({**POLICY, "fleet.autoscale.memory": "80"}),
            "label fleet.autoscale.memory is a percentage of the memory limit, and service web has none",
        ),
        (
            spec_with({**POLICY, "fleet.autoscale.cpu": "120"}, resources={"Limits": {"NanoCPUs": 500000000}}),
            "no task can use 120% of its limit of 0.5 CPUs",
        ),
        (
            spec_with({**POLICY, "fleet.autoscale.query": "x"}),
            "label fleet.autoscale.query needs fleet.autoscale.query-target and fleet.autoscale.prometheus beside it",
        ),
        (
            spec_with({**POLICY, "fleet.autoscale.interval": "100ms"}),
            "label fleet.autoscale.interval: '100ms' is no duration from 1s to 600s",
        ),
    ],
)
def test_a_policy_that_is_none_is_refused_with_what_where_and_what_next(
    run: Any, spec: dict[str, Any], sentence: str
) -> None:
    async def body(world: Any) -> None:
        told = await world.call("POST", "/services/create", status=400, json=spec)
        assert sentence in told["message"]

    run(body)


def test_a_number_set_by_hand_is_answered_with_what_becomes_of_it(run: Any) -> None:
    async def body(world: Any) -> None:
        await world.store.commit(Transaction().create(scaled()))
        shown = await world.call("GET", "/services/web", status=200)
        path = f"/services/web/update?version={shown['Version']['Index']}"
        spec = {**shown["Spec"], "Mode": {"Replicated": {"Replicas": 7}}}
        told = await world.call("POST", path, status=200, json=spec)
        (warning,) = told["Warnings"]
        assert warning.startswith(
            "service web is scaled automatically (2 to 10 tasks): 7 holds until more are needed, or fewer have done for 300 s;"
        )
        shown = await world.call("GET", "/services/web", status=200)
        path = f"/services/web/update?version={shown['Version']['Index']}"
        for replicas, sentence in (
            (99, "99 holds until the next decision, within 15 s"),
            (0, "again when it has tasks"),
        ):
            spec = {**shown["Spec"], "Mode": {"Replicated": {"Replicas": replicas}}}
            told = await world.call("POST", path, status=200, json=spec)
            assert sentence in told["Warnings"][0]
            shown = await world.call("GET", "/services/web", status=200)
            path = f"/services/web/update?version={shown['Version']['Index']}"
        shown = await world.call("GET", "/services/web", status=200)
        path = f"/services/web/update?version={shown['Version']['Index']}"
        spec = {**shown["Spec"], "Labels": {**POLICY, "other": "1"}}
        assert (await world.call("POST", path, status=200, json=spec))["Warnings"] is None

    run(body)


def test_a_rollback_keeps_the_number_and_a_service_without_policy_forgets_what_was_done(run: Any) -> None:
    async def body(world: Any) -> None:
        service = scaled(6)
        before = replace(scaled(2).spec, task_template=a_task_spec(image="app:0"))
        await world.store.commit(Transaction().create(replace(service, previous_spec=before)))
        shown = await world.call("GET", "/services/web", status=200)
        version = shown["Version"]["Index"]
        await world.call(
            "POST", f"/services/web/update?version={version}&rollback=previous", status=200, json=shown["Spec"]
        )
        now = world.api.services.find("web")
        assert (now.spec.task_template.container_spec.image, now.spec.replicas) == ("app:0", 6)
        assert now.autoscale == STATUS
        shown = await world.call("GET", "/services/web", status=200)
        assert shown["Autoscale"]["Held"] == STATUS.held
        path = f"/services/web/update?version={shown['Version']['Index']}"
        await world.call("POST", path, status=200, json={**shown["Spec"], "Labels": {}})
        assert "Autoscale" not in await world.call("GET", "/services/web", status=200)

    run(body)


def test_the_report_tells_the_policy_what_was_done_and_what_is_in_the_way(run: Any) -> None:
    async def body(world: Any) -> None:
        await world.store.commit(Transaction().create(scaled()).create(a_service("plain")))
        told = (await world.call("GET", "/fleet/v1/services/web/placement", status=200))["Autoscale"]
        assert told["Policy"] == "2 to 10 tasks, CPU at 70% of one core"
        assert told["Scalings"][0]["Reason"] == "2 -> 4: CPU 140%, 70% wanted"
        assert (told["Held"], told["Now"]) == (STATUS.held, "")
        assert (await world.call("GET", "/fleet/v1/services/plain/placement", status=200))["Autoscale"] is None

    run(body)


def test_quotas_are_listed_with_what_is_used_and_who_waits(run: Any) -> None:
    async def body(world: Any) -> None:
        labels = {"fleet.quota.label=team=red": "tasks=2,cpu=3", "fleet.quota.stack=shop": "memory=1G", "other": "x"}
        cluster = Cluster(id=ClusterId("default"), created_at=NOW, updated_at=NOW, spec=SwarmSpec(labels=labels))
        web = a_service("web", replicas=3)
        web = replace(web, spec=replace(web.spec, labels={"team": "red"}))
        tx = Transaction().create(cluster).create(web)
        for slot in (1, 2, 3):
            task = a_task(slot=slot, spec=a_task_spec(cpus=1), node="a" if slot < 3 else "",
                          state=TaskState.RUNNING if slot < 3 else TaskState.PENDING)  # fmt: skip
            err = "" if slot < 3 else "beyond quota label=team=red (tasks=2)"
            tx.create(replace(task, service_labels={"team": "red"}, status=replace(task.status, err=err)))
        await world.store.commit(tx)
        red, shop = await world.call("GET", "/fleet/v1/quotas", status=200)
        assert red == {
            "Name": "label=team=red",
            "Label": "team",
            "Value": "red",
            "Services": 1,
            "Waiting": 1,
            "Used": {"Tasks": 2, "NanoCPUs": 2_000_000_000, "MemoryBytes": 0},
            "Limits": {"Tasks": 2, "NanoCPUs": 3_000_000_000, "MemoryBytes": None},
        }
        assert (shop["Name"], shop["Services"], shop["Limits"]["MemoryBytes"]) == ("stack=shop", 0, 1 << 30)

    run(body)
