"""Transcripts of what the orchestrator decides, readable as pages: commands after ``>``, below each what followed.

Each file in ``orchestrator/`` is replayed and must come out as it stands there. ``FLEET_SCENARIOS=write`` writes them anew
instead; the difference is then reviewed as prose. Time goes on only while something is waited for, or with ``wait``.

    service KEY=VALUE ...   replicas, global, delay, attempts, parallelism, order, action, monitor, update-delay
    node NAME ...           nodes that are ready
    run                     plan, place, start and stop until all is at rest or a date must come
    wait SECONDS            let time pass, doing what falls due in it
    fail SLOT | complete SLOT    the slot's running task ends
    drain|activate|down|up|remove NODE
    scale N | image NAME    as a user would
    move SLOT NODE          the slot's task is to go there for balance; ``stuck NODE``: what is placed there gets no further,
                            until ``free NODE``
    carry SLOT NODE         the slot's task is to go there with its data
    copied SLOT | reject SLOT    what the agent says of the task that waits for data
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet.model.common import SECOND_NS
from fleet.model.ids import NodeId
from fleet.model.node import Availability, Node, NodeState
from fleet.model.service import ReplicatedMode, RestartPolicy, ServiceMode, UpdateConfig
from fleet.model.task import Move, Task, TaskState
from fleet.orchestrator.plan import Plan

FOLDER = Path(__file__).parent / "orchestrator"
STEPS_MAX = 500


class Scenario:
    """Replays commands and tells what follows."""

    def __init__(self) -> None:
        self.cluster = Cluster(a_service())
        self.began = self.cluster.now
        self.policy = RestartPolicy()

    def replay(self, commands: list[str]) -> Iterator[str]:
        for command in commands:
            if not command.startswith("> "):
                yield command
                continue
            yield command
            yield from self.do(*command[2:].split())

    def do(self, verb: str, *words: str) -> Iterator[str]:
        match verb:
            case "service":
                self.make_service(dict(word.split("=") for word in words))
            case "node":
                for name in words:
                    self.cluster.nodes[a_node(name).id] = a_node(name)
            case "run":
                yield from self.rest()
            case "wait":
                yield from self.wait(float(words[0]))
            case "fail" | "complete":
                self.end(words[0], S.FAILED if verb == "fail" else S.COMPLETE)
                yield from self.rest()
            case "drain" | "activate":
                wish = Availability.DRAIN if verb == "drain" else Availability.ACTIVE
                yield from self.change(words[0], lambda n: _replace_spec(n, availability=wish))
            case "down" | "up":
                state, since = (NodeState.DOWN, self.cluster.now) if verb == "down" else (NodeState.READY, None)
                yield from self.change(
                    words[0], lambda n: msgspec.structs.replace(_replace_status(n, state=state), down_since=since)
                )
            case "remove":
                yield from self.change(words[0], lambda n: msgspec.structs.replace(n, removed=True))
            case "move" | "carry":
                task = next(t for t in self.cluster.running() if str(t.slot) == words[0])
                mark = Move(to=NodeId(words[1]), since=self.cluster.now, data=verb == "carry")
                self.cluster.tasks[task.id] = msgspec.structs.replace(task, move=mark)
                yield from self.rest()
            case "copied" | "reject":
                task = next(t for t in self.cluster.runnable() if str(t.slot) == words[0] and t.is_arriving)
                said = {"copied": True} if verb == "copied" else {"state": S.REJECTED, "err": "no room there"}
                status = msgspec.structs.replace(task.status, **said)
                self.cluster.tasks[task.id] = msgspec.structs.replace(task, status=status)
                yield from self.rest()
            case "free":
                self.cluster.stuck.difference_update(map(NodeId, words))
                yield from self.rest()
            case "stuck":
                self.cluster.stuck.update(map(NodeId, words))
            case "scale":
                self.cluster.update(mode=ServiceMode(replicated=ReplicatedMode(replicas=int(words[0]))))
                yield from self.rest()
            case "image":
                self.cluster.update(a_task_spec(image=words[0], restart=self.policy))
                yield from self.rest()
            case _:
                raise ValueError(f"no such command: {verb}")

    def make_service(self, fields: dict[str, str]) -> None:
        self.policy = RestartPolicy(
            delay_ns=int(fields.get("delay", "5")) * SECOND_NS, max_attempts=int(fields.get("attempts", "0"))
        )
        update = UpdateConfig(
            parallelism=int(fields.get("parallelism", "1")),
            order=fields.get("order", "stop-first"),
            failure_action=fields.get("action", "pause"),
            monitor_ns=int(fields.get("monitor", "5")) * SECOND_NS,
            delay_ns=int(fields.get("update-delay", "0")) * SECOND_NS,
        )
        self.cluster.service = a_service(
            replicas=int(fields.get("replicas", "1")),
            is_global="global" in fields,
            spec=a_task_spec(restart=self.policy),
            update=update,
        )

    def change(self, node: str, how: Callable[[Node], Node]) -> Iterator[str]:
        self.cluster.change_node(node, how)
        yield from self.rest()

    def end(self, slot: str, state: TaskState) -> None:
        task = next(t for t in self.cluster.running() if str(t.slot or t.node_id) == slot)
        self.cluster.observe(task, state)

    def wait(self, seconds: float) -> Iterator[str]:
        end = self.cluster.now + timedelta(seconds=seconds)
        for _ in range(STEPS_MAX):
            yield from self.rest()
            wake_at = self.cluster.plan().wake_at
            if wake_at is None or wake_at > end:
                self.cluster.now = end
                yield from self.rest()
                return
            self.cluster.now = wake_at
        raise AssertionError("waits without end")

    def rest(self) -> Iterator[str]:
        for _ in range(STEPS_MAX):
            plan = self.cluster.plan()
            yield from self.tell_plan(plan)
            before = dict(self.cluster.tasks)
            moved = self.cluster.run_agents()
            yield from self.tell_agents(before)
            if plan.is_empty and not moved:
                return
        raise AssertionError("does not come to rest")

    # -- prose

    def tell_plan(self, plan: Plan) -> Iterator[str]:
        for task in plan.create:
            yield self.line(task, f"made from {task.spec.container_spec.image}{self.hold(task)}")
        for word, tasks in (
            ("may run", plan.release),
            ("stays", [task for task in plan.move if task.move and task.move.ended]),
            ("is to stop", plan.shut_down),
            ("is to be removed", plan.remove),
        ):
            for task in tasks:
                why = f" ({self.short(task.move.ended)})" if word == "stays" and task.move else ""
                yield self.line(task, word + why)
        for service in plan.changed_services:
            status = service.update_status
            assert status is not None
            yield f"  {self.clock()}  update: {status.state} ({self.short(status.message)})"

    def tell_agents(self, before: dict[str, Task]) -> Iterator[str]:
        for task in self.cluster.tasks.values():
            state = task.status.state
            if before[task.id].status.state is not state and state.rank >= S.RUNNING.rank:
                yield self.line(task, f"{state.value} on {task.node_id}")

    def hold(self, task: Task) -> str:
        if task.hold is None:
            return ""
        if task.hold.not_before is not None:
            return f", held until {self.clock(task.hold.not_before).strip()}"
        return f", held until {self.short(task.hold.after_task or '')} has stopped"

    def line(self, task: Task, text: str) -> str:
        return f"  {self.clock()}  {task.service_name}.{task.slot or task.node_id} {self.short(task.id)} {text}"

    def clock(self, instant: object = None) -> str:
        from datetime import datetime

        now = instant if isinstance(instant, datetime) else self.cluster.now
        return f"{(now - self.began).total_seconds():.0f}s".rjust(4)

    def short(self, text: str) -> str:
        return re.sub(r"new0*(\d+)", r"#\1", text)


def _replace_spec(node: Node, **fields: object) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, **fields))


def _replace_status(node: Node, **fields: object) -> Node:
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, **fields))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript_comes_out_as_written(path: Path) -> None:
    written = path.read_text(encoding="utf-8").splitlines()
    commands = [line for line in written if not line.startswith("  ")]
    told = list(Scenario().replay(commands))
    if os.environ.get("FLEET_SCENARIOS") == "write":
        path.write_text("\n".join(told) + "\n", encoding="utf-8")
    else:
        assert told == written
