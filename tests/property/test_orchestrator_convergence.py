"""Whatever happens to tasks, nodes and the spec, and wherever writing a plan is cut short: safety always, then convergence.

Safety, after every step: each plan passes ``check_plan`` (slots, monotonic states, dates). Liveness, at the end: once
nodes are well and nothing fails any more, all slots run, of the current spec, and planning gives the empty plan.
"""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from support.decision_builders import a_node, a_service, a_task_spec
from support.orchestrated import Cluster, S

from fleet.manager.loops.writing import transactions_of
from fleet.model.common import SECOND_NS
from fleet.model.ids import NodeId
from fleet.model.node import Availability, Node, NodeState
from fleet.model.service import ReplicatedMode, RestartPolicy, Service, ServiceMode, TaskSpec, UpdateConfig
from fleet.model.task import Move, Task, TaskState, is_runnable
from fleet.orchestrator.check_plan import check_plan
from fleet.orchestrator.eviction import Place, place_of
from fleet.orchestrator.service import plan_service
from fleet.orchestrator.update import is_paused
from fleet.orchestrator.view import SlotKey, slot_key
from fleet.store import Transaction
from fleet.store.transaction import Step

NODES = ("a", "b", "c")
node_names = st.sampled_from(NODES)

configs = st.builds(
    UpdateConfig,
    parallelism=st.integers(0, 3),
    delay_ns=st.sampled_from([0, 2 * SECOND_NS]),
    failure_action=st.sampled_from(["pause", "continue", "rollback"]),
    order=st.sampled_from(["stop-first", "start-first"]),
    max_failure_ratio=st.sampled_from([0.0, 0.5]),
)


def write(cluster: Cluster, transaction: Transaction) -> None:
    for _, op in transaction:
        if isinstance(op.obj, Service):
            if op.step is Step.REPLACE:
                cluster.service = op.obj
            continue
        assert isinstance(op.obj, Task)
        if op.step is Step.DELETE:
            del cluster.tasks[op.obj.id]
        else:
            cluster.tasks[op.obj.id] = op.obj


class Orchestration(RuleBasedStateMachine):
    cluster: Cluster

    @initialize(replicas=st.integers(0, 4), is_global=st.booleans(), update=configs, delay_s=st.sampled_from([0, 5]))
    def begin(self, replicas: int, is_global: bool, update: UpdateConfig, delay_s: int) -> None:
        self.policy = RestartPolicy(delay_ns=delay_s * SECOND_NS)
        self.image = 1
        service = a_service(replicas=replicas, is_global=is_global, update=update, rollback=update, spec=self.spec())
        self.cluster = Cluster(service, [a_node(name) for name in NODES])

    def spec(self) -> TaskSpec:
        return a_task_spec(image=f"app:{self.image}", restart=self.policy)

    @property
    def service(self) -> Service:
        assert self.cluster.service is not None
        return self.cluster.service

    # -- what the manager does

    @rule()
    def plan(self) -> None:
        self.cluster.plan()

    @rule(data=st.data())
    def plan_and_die_while_writing(self, data: st.DataObject) -> None:
        """Any of the plan's transactions may be missing; each is whole or absent."""
        view = self.cluster.view
        plan = plan_service(view, now=self.cluster.now, new_id=self.cluster.new_id)
        check_plan(view, plan, now=self.cluster.now)
        before = self.fresh_per_slot()
        for transaction in transactions_of(plan, self.service):
            if data.draw(st.booleans()):
                write(self.cluster, transaction)
        for key, count in self.fresh_per_slot().items():
            assert count <= max(1, before[key]), "a plan half written doubles a slot"

    def fresh_per_slot(self) -> Counter[SlotKey]:
        """Runnable tasks of the current spec that need not leave their node."""
        view = self.cluster.view
        tasks = (t for t in self.cluster.tasks.values() if is_runnable(t) and not view.is_stale(t))
        return Counter(slot_key(task) for task in tasks if place_of(task, view) is Place.GOOD)

    @rule(data=st.data(), to=node_names, with_data=st.booleans())
    def a_task_is_to_move(self, data: st.DataObject, to: str, with_data: bool) -> None:
        alone = [t for t in self.cluster.running() if t.slot and not t.is_moving]
        if alone:
            task = data.draw(st.sampled_from(alone))
            mark = Move(to=NodeId(to), since=self.cluster.now, data=with_data)
            self.cluster.tasks[task.id] = msgspec.structs.replace(task, move=mark)

    @rule()
    def reap(self) -> None:
        self.cluster.reap(history_limit=2)

    # -- what the world does

    @rule()
    def agents(self) -> None:
        self.cluster.run_agents()

    @rule(seconds=st.sampled_from([0.5, 2, 6, 61]))
    def time_passes(self, seconds: float) -> None:
        self.cluster.advance(seconds)

    @rule(data=st.data(), state=st.sampled_from([S.FAILED, S.COMPLETE, S.REJECTED]))
    def task_ends(self, data: st.DataObject, state: TaskState) -> None:
        alive = [t for t in self.cluster.tasks.values() if S.ASSIGNED.rank <= t.status.state.rank <= S.RUNNING.rank]
        if alive:
            self.cluster.observe(data.draw(st.sampled_from(alive)), state)

    @rule(name=node_names, state=st.sampled_from(list(NodeState)))
    def node_state(self, name: str, state: NodeState) -> None:
        self.cluster.change_node(name, lambda node: in_state(node, state))

    @rule(name=node_names, availability=st.sampled_from(list(Availability)))
    def node_availability(self, name: str, availability: Availability) -> None:
        self.cluster.change_node(name, lambda node: available(node, availability))

    # -- what users do

    @precondition(lambda self: not self.service.spec.is_global)
    @rule(replicas=st.integers(0, 5))
    def scale(self, replicas: int) -> None:
        self.cluster.update(mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)))

    @rule(update=configs)
    def update_spec(self, update: UpdateConfig) -> None:
        self.image += 1
        self.cluster.update(self.spec(), update_config=update)

    # -- what must hold

    def teardown(self) -> None:
        if not hasattr(self, "cluster"):
            return
        cluster = self.cluster
        for name in NODES:
            cluster.change_node(name, lambda node: available(in_state(node, NodeState.READY), Availability.ACTIVE))
        cluster.advance(61)
        cluster.run()
        if is_paused(self.service):
            self.image += 1
            cluster.update(self.spec(), update_config=UpdateConfig())
            cluster.run()
        wanted = set(NODES) if self.service.spec.is_global else self.service.spec.replicas
        running = cluster.running()
        assert ({t.node_id for t in running} if self.service.spec.is_global else len(running)) == wanted
        assert not any(cluster.view.is_stale(t) for t in running)
        assert len(cluster.runnable()) == len(running)
        status = self.service.update_status
        assert status is None or status.state in ("completed", "rollback_completed")
        assert cluster.plan().is_empty
        assert cluster.plan().wake_at is None


def in_state(node: Node, state: NodeState) -> Node:
    return msgspec.structs.replace(node, status=msgspec.structs.replace(node.status, state=state))


def available(node: Node, availability: Availability) -> Node:
    return msgspec.structs.replace(node, spec=msgspec.structs.replace(node.spec, availability=availability))


TestOrchestration = Orchestration.TestCase
TestOrchestration.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(deadline=None)
@given(
    delay_s=st.integers(1, 20),
    lives_s=st.lists(st.floats(0, 30), min_size=1, max_size=8),
    is_global=st.booleans(),
    attempts=st.integers(0, 4),
)
def test_restarts_obey_delay_and_attempts(delay_s: int, lives_s: list[float], is_global: bool, attempts: int) -> None:
    policy = RestartPolicy(delay_ns=delay_s * SECOND_NS, max_attempts=attempts)
    cluster = Cluster(a_service(spec=a_task_spec(restart=policy), is_global=is_global), [a_node("a")])
    restarts = 0
    cluster.run()
    for life_s in lives_s:
        running = cluster.running()
        if not running:
            break
        cluster.advance(life_s)
        cluster.observe(running[0], S.FAILED)
        ended_at = cluster.now
        while not cluster.running():
            plan = cluster.plan()
            if plan.release or any(task.desired_state is S.RUNNING for task in plan.create):
                restarts += 1
                assert (cluster.now - ended_at).total_seconds() >= delay_s
            if plan.is_empty and not cluster.run_agents():
                if plan.wake_at is None:
                    break
                cluster.now = plan.wake_at
        cluster.reap(history_limit=1)
    assert restarts == (min(attempts, len(lives_s)) if attempts else len(lives_s))
