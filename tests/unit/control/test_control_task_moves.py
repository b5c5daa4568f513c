"""Moving a task with its data: what is refused and why, what asking for it writes, what is told of it, and to whom."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from support.decision_builders import NOW, a_node, a_service, a_task, a_task_spec

from fleet import errors
from fleet.api.task_moves import Verdict
from fleet.manager.task_moves import standing_of
from fleet.model.cluster import Cluster, SwarmSpec
from fleet.model.ids import ClusterId, NodeId, TaskId
from fleet.model.node import Availability, Node, NodeState
from fleet.model.service import JobMode, ServiceMode, UpdateStatus
from fleet.model.task import ContainerStatus, Move, MovedFrom, Task, TaskState
from fleet.orchestrator.update import UpdateState
from fleet.store import Transaction

S = TaskState


def host(name: str, **fields: object) -> Node:
    return msgspec.structs.replace(a_node(name, **fields), cluster_addr=f"{name}:2377")  # type: ignore[arg-type]


def task_on_a(**fields: object) -> Task:
    task = a_task("web", slot=1, node="a", state=S.RUNNING, task_id="task1", **fields)  # type: ignore[arg-type]
    status = msgspec.structs.replace(
        task.status, container_status=ContainerStatus(container_id="c0ffee" * 10 + "0000"), running_since=NOW
    )
    return msgspec.structs.replace(task, status=status)


async def refused(world, *objects: object, to: str = "b", status: int = 409) -> str:
    await world.store.commit(_all(objects))
    answer = await world.call("POST", "/fleet/v1/tasks/web.1/move", json={"To": to}, status=status)
    assert all(task.move is None or not task.move.data for task in world.store.tasks.all())
    return str(answer["message"])


def _all(objects: object) -> Transaction:
    transaction = Transaction()
    for each in objects:  # type: ignore[attr-defined]
        transaction.create(each)
    return transaction


def test_asking_for_it_marks_the_task_and_no_more(run) -> None:
    async def body(world) -> None:
        await world.store.commit(_all([a_service(), host("a"), host("b"), task_on_a()]))
        told = await world.call("POST", "/fleet/v1/tasks/web.1/move", json={"To": "b"}, status=202)
        assert (told["Stage"], told["From"], told["To"], told["Successor"]) == ("copying", "a", "b", None)
        task = world.store.tasks.get("task1")
        assert (task.move.to, task.move.data, task.desired_state) == ("b", True, S.RUNNING)
        again = await world.call("POST", "/fleet/v1/tasks/task1/move", json={"To": "b"}, status=409)
        assert "is being moved already" in again["message"]

    run(body)


def test_a_task_is_known_by_its_containers_names_and_slots_but_not_by_a_prefix_that_another_container_may_have(
    run,
) -> None:
    async def body(world) -> None:
        await world.store.commit(_all([a_service(), host("a"), task_on_a()]))
        for text in ("task1", "web.1", "web.1.task1", "c0ffee" * 2):
            assert [t["ID"] for t in await world.call("GET", f"/fleet/v1/tasks?named={text}", status=200)] == ["task1"]
        for text in ("ta", "web", "c0ffee", "other"):
            assert await world.call("GET", f"/fleet/v1/tasks?named={text}", status=200) == []

    run(body)


@pytest.mark.parametrize(
    ("node", "why"),
    [
        (host("b", availability=Availability.DRAIN), "availability is drain"),
        (host("b", state=NodeState.DOWN), "is down"),
        (host("b", architecture="aarch64"), "that is aarch64, and what its container wrote is for x86_64"),
        (host("b", labels={"fleet.taint.gpu": ":no-schedule"}), "taint gpu:no-schedule is not tolerated"),
        (host("b", cpus=0.5), "needs 1 CPUs, 0.5 are free"),
        (host("b", labels={"disk": "hdd"}), "node.labels.disk==ssd does not hold"),
    ],
)
def test_a_node_that_cannot_take_it_is_refused_with_the_schedulers_reason(run, node: Node, why: str) -> None:
    spec = a_task_spec(cpus=1, constraints=["node.labels.disk==ssd"] if "disk" in node.spec.labels else [])
    ssd = {"disk": "ssd"}

    async def body(world) -> None:
        assert why in await refused(world, a_service(spec=spec), host("a", labels=ssd), node, task_on_a(spec=spec))

    run(body)


def test_a_host_port_that_is_taken_and_a_quota_are_reasons_too(run) -> None:
    async def body(world) -> None:
        other = a_task("other", node="b", state=S.RUNNING, host_port=80, task_id="other1")
        quota = Cluster(
            id=ClusterId("default"),
            created_at=NOW,
            updated_at=NOW,
            spec=SwarmSpec(labels={"fleet.quota.label=t=r": "tasks=1"}),
        )
        labelled = msgspec.structs.replace(task_on_a(host_port=80), service_labels={"t": "r"})
        text = await refused(world, a_service(), a_service("other"), host("a"), host("b"), labelled, other)
        assert "port 80/tcp is in use" in text
        assert "beyond quota" in await refused(world, quota)

    run(body)


def test_what_cannot_be_moved_at_all_says_why(run) -> None:
    async def body(world) -> None:
        job = a_service("job")
        job = msgspec.structs.replace(
            job, spec=msgspec.structs.replace(job.spec, mode=ServiceMode(replicated_job=JobMode(total_completions=1)))
        )
        tasks = [
            a_task(name, slot=slot, node="a", state=S.RUNNING, task_id=name) for name, slot in (("job", 1), ("all", 0))
        ]
        await world.store.commit(_all([job, a_service("all", is_global=True), host("a"), host("b"), *tasks]))
        for name, why in (("job", "is of a job"), ("all", "is of a global service")):
            answer = await world.call("POST", f"/fleet/v1/tasks/{name}/move", json={"To": "b"}, status=400)
            assert why in answer["message"]
        service = a_service(update_status=UpdateStatus(state=UpdateState.UPDATING, started_at=NOW))
        assert "is being updated (updating)" in await refused(world, service, task_on_a())
        await world.call("POST", "/fleet/v1/tasks/nope/move", json={"To": "b"}, status=404)
        checkpoint = {"To": "b", "Checkpoint": True}
        answer = await world.call("POST", "/fleet/v1/tasks/web.1/move", json=checkpoint, status=501)
        assert "no CRIU" in answer["message"]

    run(body)


def test_a_task_that_is_there_already_or_does_not_run_is_refused(run) -> None:
    async def body(world) -> None:
        text = await refused(world, a_service(), host("a"), host("b"), task_on_a(), to="a", status=400)
        assert "is on a already" in text
        ended = a_task("web", slot=2, node="a", state=S.FAILED, task_id="ended")
        await world.store.commit(_all([ended]))
        answer = await world.call("POST", "/fleet/v1/tasks/ended/move", json={"To": "b"}, status=409)
        assert "does not run (it is failed)" in answer["message"]

    run(body)


def pair(*, move: dict[str, object], old: dict[str, object], new: dict[str, object]) -> list[Task]:
    """The old task on a and its successor on b."""
    first = task_on_a()
    mark = Move(to=NodeId("b"), since=NOW, data=True, **{"successor": TaskId("task2"), **move})  # type: ignore[arg-type]
    state = old.pop("state", S.RUNNING)
    first = msgspec.structs.replace(first, move=mark, status=msgspec.structs.replace(first.status, state=state), **old)
    second = a_task("web", slot=1, node="b", task_id="task2", at=NOW + timedelta(seconds=1), desired=S.READY)
    status = msgspec.structs.replace(second.status, **new.pop("status", {}))  # type: ignore[arg-type]
    return [
        first,
        msgspec.structs.replace(
            second, status=status, moved_from=MovedFrom(task=TaskId("task1"), node=NodeId("a")), **new
        ),
    ]


GONE = {"desired_state": S.SHUTDOWN, "state": S.SHUTDOWN}


@pytest.mark.parametrize(
    ("tasks", "stage", "verdict", "rights"),
    [
        (pair(move={}, old={}, new={"status": {"state": S.PREPARING}}), "copying", Verdict.OPEN, (True, False)),
        (
            pair(move={}, old={"desired_state": S.SHUTDOWN}, new={"status": {"state": S.PREPARING}}),
            "stopping",
            Verdict.OPEN,
            (True, True),
        ),
        (
            pair(move={}, old=dict(GONE), new={"status": {"state": S.RUNNING, "running_since": NOW}}),
            "moved",
            Verdict.MOVED,
            (False, True),
        ),
        (
            pair(move={"ended": "no"}, old={}, new={"desired_state": S.REMOVE, "status": {"state": S.PREPARING}}),
            "stayed",
            Verdict.OVER,
            (False, False),
        ),
        (
            pair(move={}, old=dict(GONE), new={"status": {"state": S.REJECTED, "err": "full"}}),
            "returning",
            Verdict.OVER,
            (False, True),
        ),
        (  # it was given up, and its node told only later that it had come to run: the old data is what counts
            pair(
                move={"ended": "its node is down"},
                old=dict(GONE),
                new={"desired_state": S.SHUTDOWN, "status": {"state": S.RUNNING, "running_since": NOW}},
            ),
            "lost",
            Verdict.OVER,
            (False, True),
        ),
    ],
)
def test_people_and_hosts_are_told_the_same(
    run, tasks: list[Task], stage: str, verdict: Verdict, rights: tuple[bool, bool]
) -> None:
    async def body(world) -> None:
        await world.store.commit(_all([a_service(), host("a"), host("b"), *tasks]))
        assert (await world.call("GET", "/fleet/v1/tasks/task1/move", status=200))["Stage"] == stage
        standing = standing_of(world.store, "task2", asks=NodeId("a"))
        assert standing.verdict is verdict
        assert (standing.may_copy, standing.may_finish) == rights
        assert standing.from_address == "a:2377"
        assert standing_of(world.store, "task2", asks=NodeId("b")) == standing
        with pytest.raises(errors.ForbiddenError):
            standing_of(world.store, "task2", asks=NodeId("c"))
        with pytest.raises(errors.NotFoundError):
            standing_of(world.store, "task1", asks=NodeId("a"))

    run(body)


def test_the_old_data_in_use_again_is_told_as_returned(run) -> None:
    async def body(world) -> None:
        tasks = pair(
            move={"ended": "full"}, old=dict(GONE), new={"desired_state": S.SHUTDOWN, "status": {"state": S.REJECTED}}
        )
        third = a_task("web", slot=1, node="a", task_id="task3", state=S.RUNNING, at=NOW + timedelta(seconds=2))
        third = msgspec.structs.replace(third, moved_from=tasks[1].moved_from)
        await world.store.commit(_all([a_service(), host("a"), host("b"), *tasks, third]))
        told = await world.call("GET", "/fleet/v1/tasks/task1/move", status=200)
        assert (told["Stage"], told["Message"], told["Successor"]["ID"]) == ("returned", "full", "task3")

    run(body)
