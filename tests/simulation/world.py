"""One simulated cluster from its first moment to its last: trouble, healing, convergence, and a calm update at the end."""

from __future__ import annotations

import asyncio
import functools
import random
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from fleet import errors
from fleet.manager.control import ControlApi
from fleet.manager.control.access import TokenControl
from fleet.manager.rebalancing import plan_rebalancing, wants_automatic
from fleet.model.cluster import Cluster
from fleet.model.ids import ClusterId, NetworkId
from fleet.model.network import INGRESS_NETWORK_NAME, NetworkSpec
from fleet.model.network import Network as ClusterNetwork
from fleet.model.node import (
    Availability,
    ManagerStatus,
    Node,
    NodeDescription,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
)
from fleet.model.service import Service, UpdateConfig
from fleet.model.task import Task, TaskState, is_runnable
from fleet.orchestrator.update import UpdateState, is_paused
from fleet.store import AesSealer, Store, Transaction
from fleet.store.kinds import Kind
from simulation.checkers import Checkers
from simulation.engine import SimEngine, Truth
from simulation.host import FIRST_KEY, Container, Host
from simulation.loop import SimLoop, Stuck
from simulation.nemesis import Nemesis
from simulation.network import Network
from simulation.workload import Workload

__all__ = ["Result", "World", "simulate"]

MANAGERS = ("m1", "m2", "m3")
WORKERS = ("w1", "w2")
TROUBLE_S = 25.0
CONVERGE_S = 180.0
CALM_S = 6.0
_NOTES = 400
_WATCHED = (UpdateState.UPDATING, UpdateState.ROLLBACK_STARTED)


class Violation(Exception):
    """Something that must hold does not."""


@dataclass
class Result:
    """``problem`` is empty when all held; ``digest`` is of everything that became durable, in order."""

    seed: int
    problem: str
    digest: str
    notes: list[str]
    steps: int
    virtual_s: float
    requests: dict[str, int]
    revisions: int


class World:
    """Build inside the loop."""

    def __init__(self, loop: SimLoop, seed: int) -> None:
        self.loop = loop
        self.chance = random.Random(seed)
        self.nonces = random.Random(seed)
        random.seed(seed)  # what the agent spreads load with
        loop.thread_delay = lambda: self.chance.uniform(0.0, 0.02)
        self.network = Network(loop, self.chance)
        self.truth = Truth(loop, self.chance)
        self.checkers = Checkers(self)
        self.truth.applied.append(self.checkers.look)
        self.trouble: dict[str, float] = {}
        self.notes: deque[str] = deque(maxlen=_NOTES)
        self.problem = ""
        self.failed = loop.create_future()
        self.manager_addresses = tuple(f"{name}:2377" for name in MANAGERS)
        self.hosts: list[Host] = []
        self.hosts += [Host(self, name, is_manager=name in MANAGERS) for name in (*MANAGERS, *WORKERS)]
        self.workload = Workload(self)
        self.nemesis = Nemesis(self)

    # -- what the parts tell and ask

    def note(self, text: str) -> None:
        self.notes.append(f"{self.loop.time() - 1000:8.3f}  {text}")

    def fail(self, text: str, *, cause: BaseException | None = None) -> None:
        if not self.problem:
            self.problem = text
            self.note(f"WRONG: {text}")
            if cause is not None:
                self.notes.extend("".join(traceback.format_exception(cause)).splitlines())
            self.failed.set_result(None)

    def troubled(self, name: str) -> None:
        self.trouble[name] = self.loop.time()

    def before_start(self, host: Host, container: Container) -> None:
        self.checkers.before_start(host, container)

    def reaches_majority(self, host: str) -> bool:
        reached = [m for m in MANAGERS if self.network.reaches(host, m) and self.network.reaches(m, host)]
        return len(reached) * 2 > len(MANAGERS) and host not in self.network.off

    def services(self) -> list[Service]:
        return [s for _, s in sorted(self.checkers.objects[Kind.SERVICE].items()) if not s.pending_delete]

    def network_names(self) -> list[str]:
        found = self.checkers.objects[Kind.NETWORK].values()
        return sorted(n.spec.name for n in found if not n.spec.ingress)

    def tasks(self, service: Service) -> list[Task]:
        return list(self.checkers.tasks_of(service.id))

    # -- the story

    async def run(self) -> None:
        await self._found()
        for host in self.hosts:
            self.loop.later(self.chance.uniform(0, 1), host.start)
        workload = self.loop.spawn(self.workload.run(TROUBLE_S), None)
        trouble = self.loop.spawn(self.nemesis.run(TROUBLE_S - 3), None)
        await asyncio.gather(workload, trouble)
        self.nemesis.heal()
        self.note("healed")
        await self._mend()
        await self._until(self.not_converged, "converged")
        self._check_kept()
        await self._stays()
        await self._calm()

    async def _found(self) -> None:
        engine = SimEngine(self.truth, "", lambda: True)
        await engine.start()
        store = await Store.open(engine, sealer=AesSealer(FIRST_KEY, entropy=self.nonces.randbytes))
        now = self.hosts[0].clock.now()
        tx = Transaction().create(Cluster(id=ClusterId("c" * 25), created_at=now, updated_at=now))
        spec = NetworkSpec(name=INGRESS_NETWORK_NAME, driver="overlay", scope="swarm", ingress=True, enable_ipv6=True)
        tx.create(ClusterNetwork(id=NetworkId("i" * 25), spec=spec, created_at=now, updated_at=now))
        for host in self.hosts:
            role = NodeRole.MANAGER if host.is_manager else NodeRole.WORKER
            status = ManagerStatus(addr=host.address) if host.is_manager else None
            tx.create(
                Node(
                    id=host.node_id,
                    created_at=now,
                    updated_at=now,
                    spec=NodeSpec(role=role),
                    description=NodeDescription(hostname=host.name),
                    status=NodeStatus(state=NodeState.UNKNOWN),
                    manager_status=status,
                )
            )
        await store.commit(tx)
        await store.close()
        await engine.close()

    async def _mend(self) -> None:
        """As a user would: nodes active, and every service on an image that is well."""
        for host in self.hosts:
            await self._insist(lambda host=host: self.workload.set_availability(host.node_id, Availability.ACTIVE))  # type: ignore[misc]
        for service in self.services():
            if not service.spec.is_job:
                await self._insist(
                    lambda service=service: self._set_image(service.id, "good:10", UpdateConfig(parallelism=0))
                )  # type: ignore[misc]
            elif service.spec.task_template.container_spec.image != "job:1":
                await self._insist(lambda service=service: self._remove(service.id))  # type: ignore[misc]

    async def _insist(self, attempt: Any) -> None:
        for _ in range(100):
            if await attempt() == "acknowledged":
                return
            await asyncio.sleep(0.5)
        self.fail("the healed cluster takes no changes")

    async def _set_image(self, service_id: str, image: str, config: UpdateConfig) -> str:
        async def change(api: ControlApi) -> Any:
            found = api.services.find(service_id)
            template, replace = found.spec.task_template, msgspec.structs.replace
            container = replace(template.container_spec, image=image)
            spec = replace(found.spec, task_template=replace(template, container_spec=container), update_config=config)
            return await api.services.update(service_id, spec, version=found.version.index)

        return (await self.workload.ask(change))[0]

    async def _told(self, call: Callable[[ControlApi], Awaitable[Any]]) -> str:
        return (await self.workload.ask(call))[0]

    async def _remove(self, service_id: str) -> str:
        return (await self.workload.ask(lambda api: api.services.remove(service_id)))[0]

    async def _until(self, why_not: Any, what: str) -> None:
        end = self.loop.time() + CONVERGE_S
        while why := why_not():
            if self.loop.time() > end:
                self.fail(f"not {what} after {CONVERGE_S:g} s: {why}")
                self._tell_situation()
                return
            await asyncio.sleep(0.25)
        self.note(what)

    def _tell_situation(self) -> None:
        for host in self.hosts:
            there = sorted(f"{name[:8]} {c.state}" for name, c in host.containers.items())
            leads = host.role is not None and host.role.leadership.is_leading
            tried = host.worker._controllers.values() if host.worker is not None else ()
            self.note(
                f"  controllers: {sorted((c.task.id[:8], str(c.task.desired_state), str(c.status.state)) for c in tried)}"
            )
            self.note(
                f"{host.name}: {'leads, ' if leads else ''}{'fleetd on' if host.process else 'fleetd off'}, {there}"
            )
        for task in sorted(
            self.checkers.objects[Kind.TASK].values(), key=lambda t: (t.service_id, t.slot, t.created_at)
        ):
            hold = f", held {task.hold}" if task.hold else ""
            self.note(
                f"{task.service_name}.{task.slot} {task.id[:8]} {task.spec.container_spec.image} at {task.node_id}: wanted "
                f"{task.desired_state}, is {task.status.state} {task.status.err!r}{hold}"
            )

    def not_converged(self) -> str:
        objects = self.checkers.objects
        if why := self.checkers.not_sealed_alike():
            return why
        for node in objects[Kind.NODE].values():
            if node.status.state is not NodeState.READY:
                return f"{node.id} is {node.status.state}"
        wanted: set[str] = set()
        for service in objects[Kind.SERVICE].values():
            if service.pending_delete:
                return f"service {service.spec.name} is not gone"
            if why := self._not_served(service):
                return f"service {service.spec.name}: {why}"
            wanted |= {t.id for t in self.tasks(service) if is_runnable(t)}
        running = Counter(name for host in self.hosts for name in host.running())
        if running != Counter(wanted):
            return (
                f"containers: {sorted(running - Counter(wanted))} too many, {sorted(Counter(wanted) - running)} missing"
            )
        if moving := sorted(t.id for t in objects[Kind.TASK].values() if t.is_moving):
            return f"tasks {moving} are still to move"
        if any(cluster.rebalance and not cluster.rebalance.finished_at for cluster in objects[Kind.CLUSTER].values()):
            return "rebalancing has not come to its end"
        if orphans := sorted(t.id for t in objects[Kind.TASK].values() if t.service_id not in objects[Kind.SERVICE]):
            return f"tasks {orphans} of no service"
        return self._moves_to_come()

    def _moves_to_come(self) -> str:
        """Where it is automatic, tasks are moved a while after the last node came back: all is quiet until then, but not over."""
        leader = next((h for h in self.hosts if h.role is not None and h.role.leadership.is_leading), None)
        if leader is None or leader.role is None:
            return "nobody leads"
        store = leader.role.store
        cluster = next(iter(store.clusters.all()), None)
        if not wants_automatic(store, cluster):
            return ""
        for service in store.services.all():  # its tasks move once nobody watches its update any more
            if service.update_status is not None and service.update_status.state in _WATCHED:
                return f"the update of service {service.spec.name} is still watched"
        moves = plan_rebalancing(store, cluster, now=leader.clock.now(), is_asked=False).moves
        return f"{len(moves)} tasks will move by themselves" if moves else ""

    def _not_served(self, service: Service) -> str:
        tasks = self.tasks(service)
        runnable = [t for t in tasks if is_runnable(t)]
        if service.spec.is_job:
            iteration = (service.job_iteration.index if service.job_iteration else 0) or 0
            mine = [t for t in tasks if ((t.job_iteration.index if t.job_iteration else 0) or 0) == iteration]
            complete = {t.slot or t.node_id for t in mine if t.status.state is TaskState.COMPLETE}
            job = service.spec.mode.replicated_job
            due = len(self.hosts) if job is None else (1 if job.total_completions is None else job.total_completions)
            return (
                ""
                if len(complete) >= due and not runnable
                else f"{len(complete)} of {due} completed, {len(runnable)} to go"
            )
        if is_paused(service):
            return "its update is paused"
        image = service.spec.task_template.container_spec.image
        good = [t for t in runnable if t.status.state is TaskState.RUNNING and t.spec.container_spec.image == image]
        due = len(self.hosts) if service.spec.is_global else service.spec.replicas
        if len(good) != due or len(runnable) != due:
            return f"{len(good)} of {due} run, {len(runnable)} wanted"
        slots = {t.slot or t.node_id for t in good}
        return "" if len(slots) == due else f"{due} tasks in {len(slots)} slots"

    def _check_kept(self) -> None:
        configs = self.checkers.objects[Kind.CONFIG]
        for name, id_ in self.workload.kept.items():
            if id_ not in configs:
                self.fail(f"config {name}, whose creation was acknowledged, is gone")
        for host in self.hosts:
            if host.role is not None:
                self._check_tokens(host.name, host.role.control.tokens)

    def _check_tokens(self, name: str, tokens: TokenControl) -> None:
        for text in (*self.workload.tokens, *self.workload.revoked):
            try:
                tokens.owner(text)
            except errors.UnauthorizedError:
                is_taken = False
            else:
                is_taken = True
            if is_taken is not (text in self.workload.tokens):
                self.fail(
                    f"{name}: token {text[:20]} is {'' if is_taken else 'not '}taken, against what was acknowledged"
                )

    async def _stays(self) -> None:
        """Nothing happens any more, and all managers show the same."""
        await asyncio.sleep(CALM_S / 3)  # what was decided before, and is being written, may still come
        await self._until(self.not_converged, "still converged")
        created = self.checkers.created.copy()
        await asyncio.sleep(CALM_S)
        if self.checkers.created != created:
            for service in self.services():
                if self.checkers.created[service.id] != created[service.id]:
                    youngest = max(self.tasks(service), key=lambda task: (task.created_at, task.id))
                    self.note(
                        f"made: {service.spec.name}.{youngest.slot} {youngest.id[:8]}, to move to {youngest.toward!r}"
                    )
            self.fail("tasks are made although nothing happens")
        for host in self.hosts:
            if host.role is not None:
                shown = {t.id: (t.version.index, t.status.state) for t in host.role.store.tasks.all()}
                entries = self.truth.current
                truth = {
                    id_: (entries[f"{Kind.TASK.prefix}{id_}"].mod_revision, t.status.state)
                    for id_, t in self.checkers.objects[Kind.TASK].items()
                }
                if shown != truth:
                    self.fail(f"{host.name} shows other tasks than there are")

    async def _calm(self) -> None:
        """A healthy service is moved and updated, while leaders die."""
        await self._insist(lambda: self._told(_moves_by_hand))
        services = [s for s in self.services() if s.spec.mode.replicated and s.spec.replicas >= 2]
        if not services:
            return
        service = self.chance.choice(services)
        order, parallelism = self.chance.choice(("stop-first", "start-first")), self.chance.randint(1, 2)
        config = UpdateConfig(parallelism=parallelism, order=order, monitor_ns=500_000_000)
        # A change of the configuration alone, so that both specs say the same order.
        await self._insist(lambda: self._set_image(service.id, "good:10", config))
        await asyncio.sleep(30.0)
        await self._until(self.not_converged, "healthy")
        floor = service.spec.replicas - (parallelism if order == "stop-first" else 0)
        await self._calm_rebalancing(service, floor=max(floor, 1))
        await self._calm_update(service, config, floor=floor)
        await self._calm_move(service)

    async def _calm_rebalancing(self, service: Service, *, floor: int) -> None:
        """Nodes come back and take their share, and meanwhile never fewer tasks serve than promised."""
        away = self.hosts[: len(self.hosts) // 2]
        for availability in (Availability.DRAIN, Availability.ACTIVE):
            for host in away:
                await self._insist(functools.partial(self.workload.set_availability, host.node_id, availability))
            await asyncio.sleep(15.0)
        await self._until(self.not_converged, "half the nodes are back")
        look = self._watch(service, floor, "while tasks are moved")
        await self._insist(lambda: self._told(lambda api: api.rebalance.request()))
        await self._kill_leader()
        await self._until(self.not_converged, "rebalanced")
        await asyncio.sleep(5.0)  # the node of the leader that died takes its share too
        await self._insist(lambda: self._told(lambda api: api.rebalance.request()))
        await self._until(self.not_converged, "rebalanced again")
        self.truth.applied.remove(look)
        counts = Counter(task.node_id for task in self.tasks(service) if is_runnable(task))
        each = [counts[host.node_id] for host in self.hosts]
        if max(each) - min(each) > 1:
            self.fail(f"{service.spec.name} is not balanced: {dict(counts)}")

    async def _kill_leader(self) -> None:
        leader = next((h for h in self.hosts if h.role is not None and h.role.leadership.is_leading), None)
        if leader is not None:
            await asyncio.sleep(self.chance.uniform(0.0, 3.0))
            self.note(f"kill the leader, {leader.name}")
            leader.kill()
            self.loop.later(1.0, leader.start)

    def _watch(self, service: Service, floor: int, when: str) -> Callable[..., None]:
        replicas = service.spec.replicas

        def look(*_: object) -> None:
            if self.loop.time() >= 0:
                serving = sum(
                    task.status.state is TaskState.RUNNING and host.containers[task.id].state == "running"
                    for host in self.hosts
                    for task in self.tasks(service)
                    if task.node_id == host.node_id and task.id in host.containers
                )
                if serving < floor:
                    self.fail(f"{serving} of {replicas} serve {when}")

        self.truth.applied.append(look)
        return look

    async def _calm_update(self, service: Service, config: UpdateConfig, *, floor: int) -> None:
        """A rolling update: each slot once, and never fewer than promised."""
        replicas, before = service.spec.replicas, self.checkers.created[service.id]
        order, parallelism = config.order, config.parallelism
        look = self._watch(service, floor, f"during an update {order} by {parallelism}")
        self.note(f"calm update of {service.spec.name}, {order}, {parallelism} at a time")
        await self._insist(lambda: self._set_image(service.id, "good:11", config))
        await self._kill_leader()
        await self._until(self.not_converged, "updated")
        self.truth.applied.remove(look)
        made = self.checkers.created[service.id] - before
        if made != replicas:
            self.fail(f"an update of {replicas} replicas made {made} tasks")

    async def _calm_move(self, service: Service) -> None:
        """A task goes to another node with its data, or what cannot be had there is used where it is."""
        task = self.chance.choice(sorted((t for t in self.tasks(service) if is_runnable(t)), key=lambda t: t.id))
        target = self.chance.choice([host for host in self.hosts if host.node_id != task.node_id])
        self.note(f"calm move of {task.id} to {target.name}")
        await self._insist(lambda: self._told(lambda api: _asked_to_move(api, task.id, target.node_id)))
        await self._kill_leader()
        await self._until(self.not_converged, "moved")
        (after,) = (t for t in self.tasks(service) if t.slot == task.slot and is_runnable(t))
        expected = target.node_id if after.moved_from and after.moved_from.node != after.node_id else task.node_id
        if after.node_id != expected or (after.id != task.id and after.moved_from is None):
            self.fail(
                f"task {task.id} was to move to {target.name}; {after.id} runs on {after.node_id} without its data"
            )


async def _asked_to_move(api: ControlApi, task_id: str, node_id: str) -> None:
    """Insisting, it may have been noted before."""
    task = api.tasks.find(task_id)
    if task.move is None or not task.move.data:
        await api.task_moves.move(task_id, node_id)


async def _moves_by_hand(api: ControlApi) -> Cluster:
    cluster = api.cluster.find()
    spec = msgspec.structs.replace(cluster.spec, labels={"fleet.rebalance": "manual"})
    return await api.cluster.update(spec, version=cluster.version.index)


async def _watched(world: World) -> None:
    story = world.loop.spawn(world.run(), None)
    await asyncio.wait({story, world.failed}, return_when=asyncio.FIRST_COMPLETED)
    if story.done() and not story.cancelled() and (cause := story.exception()) is not None:
        world.fail(f"{type(cause).__name__}: {cause}", cause=cause)


def simulate(seed: int) -> Result:
    """The whole story of one seed. Deterministic, given the same PYTHONHASHSEED."""
    loop = SimLoop()
    asyncio.set_event_loop(loop)
    world = World(loop, seed)
    try:
        loop.run_until_complete(_watched(world))
    except Stuck:
        world.fail("everybody waits for somebody")
    result = Result(
        seed=seed,
        problem=world.problem,
        digest=world.checkers.digest.hexdigest(),
        notes=list(world.notes),
        steps=loop.steps,
        virtual_s=loop.time() - 1000.0,
        requests=world.workload.done,
        revisions=world.truth.revision,
    )
    asyncio.set_event_loop(None)
    return result
