"""A cluster in memory for tests of planning: plans are written at once, a simulated allocator, scheduler and agent
move tasks on, and every plan is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import timedelta

import msgspec
from support.decision_builders import NOW

from fleet.model.ids import NodeId, TaskId
from fleet.model.node import Node
from fleet.model.service import Service, TaskSpec
from fleet.model.taints import keeps_away, service_tolerations
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.check_plan import apply_plan, check_plan
from fleet.orchestrator.plan import Plan
from fleet.orchestrator.reaper import plan_reaping
from fleet.orchestrator.service import plan_service
from fleet.orchestrator.view import ServiceView, slot_key
from fleet.scheduler.constraints import match_all, parse_constraints

S = TaskState


def fits(spec: TaskSpec, node: Node) -> bool:
    return match_all(parse_constraints(spec.placement.constraints), node)


class Cluster:
    """One service on some nodes. Time stands still unless ``advance`` is called."""

    def __init__(self, service: Service, nodes: Iterable[Node] = (), tasks: Iterable[Task] = ()) -> None:
        self.service: Service | None = service
        self.nodes = {node.id: node for node in nodes}
        self.tasks: dict[TaskId, Task] = {task.id: task for task in tasks}
        self.now = NOW + timedelta(hours=1)
        self.stuck: set[NodeId] = set()
        """Nodes on which nothing comes to run."""
        self._ids = 0

    # -- what planning does

    def new_id(self) -> TaskId:
        self._ids += 1
        return TaskId(f"new{self._ids:04}")

    @property
    def view(self) -> ServiceView:
        assert self.service is not None
        return ServiceView(service=self.service, tasks=list(self.tasks.values()), nodes=self.nodes, fits=fits)

    def plan(self) -> Plan:
        """Plan, check, write. A change of the service is written alone, and planned from again, as the manager does."""
        view, ids = self.view, self._ids
        plan = plan_service(view, now=self.now, new_id=self.new_id)
        check_plan(view, plan, now=self.now)
        if plan.changed_services:
            (self.service,) = plan.changed_services
            self._ids = ids
            plan = Plan(changed_services=plan.changed_services)
        self.tasks = apply_plan(self.tasks, plan)
        return plan

    def settle(self, rounds: int = 50) -> None:
        """Plan until nothing is left to do now."""
        for _ in range(rounds):
            if self.plan().is_empty:
                return
        raise AssertionError(f"planning does not come to rest in {rounds} rounds")

    def reap(self, *, history_limit: int = 5) -> Plan:
        services = {self.service.id: self.service} if self.service else {}
        plan = plan_reaping(services, self.tasks.values(), self.nodes, history_limit=history_limit, now=self.now)
        self.tasks = apply_plan(self.tasks, plan)
        if plan.delete_services:
            self.service = None
        return plan

    # -- what others do

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def observe(self, task: Task, state: TaskState) -> None:
        """The agent (or scheduler) reports; going back is refused, as the dispatcher does."""
        current = self.tasks[task.id]
        assert state.rank >= current.status.state.rank
        since = current.status.running_since or (self.now if state is S.RUNNING else None)
        status = msgspec.structs.replace(current.status, state=state, timestamp=self.now, running_since=since)
        self.tasks[task.id] = msgspec.structs.replace(current, status=status)

    def assign(self, task: Task, node_id: str) -> None:
        self.tasks[task.id] = msgspec.structs.replace(self.tasks[task.id], node_id=NodeId(node_id))
        self.observe(task, S.ASSIGNED)

    def change_node(self, node_id: str, change: Callable[[Node], Node]) -> None:
        key = NodeId(node_id)
        self.nodes[key] = change(self.nodes[key])

    def update(self, spec: TaskSpec | None = None, **spec_fields: object) -> None:
        """As the API updates a service: versions grow, the old spec is kept, the update's status is cleared."""
        assert self.service is not None
        old = self.service
        fields = dict(spec_fields)
        if spec is not None:
            fields["task_template"] = spec
        version = old.spec_version + 1
        self.service = msgspec.structs.replace(
            old,
            spec=msgspec.structs.replace(old.spec, **fields),
            previous_spec=old.spec,
            spec_version=version,
            task_spec_version=version if spec is not None else old.task_spec_version,
            update_status=None,
        )

    def run_agents(self, *, node_for: Callable[[Task], str] | None = None) -> bool:
        """One step of everybody else: place, start, stop. Whether anything moved."""
        moved = False
        for task in list(self.tasks.values()):
            unwanted = task.desired_state.rank > S.RUNNING.rank
            state = task.status.state
            if state.is_terminal or (unwanted and state.rank < S.ASSIGNED.rank):
                continue
            if state.rank < S.ASSIGNED.rank:
                node_id = self._given(task) or (node_for(task) if node_for else self._chosen(task))
                if task.is_arriving and node_id != task.node_id:
                    continue  # no other will do
                if node_id:
                    self.assign(task, node_id)
                    moved = True
                continue
            node = self.nodes.get(task.node_id)
            if node is None or node.removed or node.status.state.value != "ready":
                continue
            if unwanted:
                self.observe(task, S.SHUTDOWN)
                moved = True
            elif task.is_arriving and state.rank < S.READY.rank:
                moved |= task.node_id not in self.stuck and self._fetch(task)
            elif state.rank < task.desired_state.rank and task.node_id not in self.stuck:
                self.observe(task, task.desired_state)
                moved = True
        return moved

    def _fetch(self, task: Task) -> bool:
        """First while the old task runs, then what that wrote until it had stopped."""
        assert task.moved_from is not None
        old = self.tasks.get(task.moved_from.task)
        if old is None or old.status.state.is_terminal:
            self.observe(task, S.READY)
            return True
        if task.status.copied:
            return False
        self.tasks[task.id] = msgspec.structs.replace(task, status=msgspec.structs.replace(task.status, copied=True))
        return True

    def run(self, rounds: int = 200) -> None:
        """Planning and everybody else in turn, until all is at rest; time goes on only to what is waited for."""
        for _ in range(rounds):
            plan = self.plan()
            moved = self.run_agents()
            if plan.is_empty and not moved:
                if plan.wake_at is None:
                    return
                self.now = max(self.now, plan.wake_at)
        raise AssertionError(f"no rest within {rounds} rounds")

    def _given(self, task: Task) -> str:
        node = self.nodes.get(task.node_id)
        is_there = not task.is_arriving or (node is not None and node.status.state.value == "ready")
        return task.node_id if is_there else ""

    def _chosen(self, task: Task) -> str:
        toward = self.nodes.get(task.toward)
        if toward is not None and toward.status.state.value == "ready" and not toward.removed:
            return toward.id
        return self._emptiest(task)

    def _emptiest(self, task: Task) -> str:
        ready = [
            node.id
            for node in self.nodes.values()
            if not node.removed
            and node.status.state.value == "ready"
            and node.spec.availability.value == "active"
            and fits(task.spec, node)
            and not keeps_away(node.spec.labels, service_tolerations(task.service_labels))
        ]
        load = dict.fromkeys(ready, 0)
        for other in self.tasks.values():
            if is_runnable(other) and other.node_id in load:
                load[other.node_id] += 1
        return min(load, key=lambda node_id: (load[node_id], node_id), default="")

    # -- what tests ask

    def runnable(self) -> list[Task]:
        return sorted(
            (t for t in self.tasks.values() if is_runnable(t)), key=lambda t: (t.slot, t.node_id, t.created_at)
        )

    def running(self) -> list[Task]:
        return [t for t in self.runnable() if t.status.state is S.RUNNING]

    def slots(self) -> list[int | NodeId]:
        return [slot_key(task) for task in self.runnable()]
