"""Clients: they create, change and remove things through random managers and remember what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from fleet import errors
from fleet.manager.control import ControlApi
from fleet.manager.control.access import TokenWish
from fleet.model.access import UserSpec
from fleet.model.common import SECOND_NS
from fleet.model.network import NetworkSpec
from fleet.model.node import Availability
from fleet.model.secret import ConfigSpec
from fleet.model.service import (
    ContainerSpec,
    GlobalMode,
    JobMode,
    NetworkTarget,
    ReplicatedMode,
    RestartCondition,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
)
from fleet.model.task import TaskState
from fleet.store import Kind

if TYPE_CHECKING:
    from simulation.world import World

__all__ = ["Workload"]

_ANSWER_S = 10.0
_IMAGES = ("good",) * 6 + ("flaky", "flaky", "crashing", "stubborn", "sick", "missing")


class Workload:
    """``run`` until told to stop."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._chance = world.chance
        self._numbers = 0
        self.kept: dict[str, str] = {}
        """Name -> id of each config that was acknowledged and not asked to go."""
        self.tokens: dict[str, str] = {}
        """Text -> id of each token that was acknowledged and not asked to go."""
        self.revoked: list[str] = []
        """Texts of those whose removal was acknowledged."""
        self.done: dict[str, int] = {"acknowledged": 0, "refused": 0, "unknown": 0}

    async def run(self, seconds: float) -> None:
        end = self._world.loop.time() + seconds
        while self._world.loop.time() < end:
            await asyncio.sleep(self._chance.uniform(0.0, 0.8))
            kinds = (
                self._create_config,
                self._swap_config,
                self._swap_config,
                self._remove_config,
                self._create_service,
            )
            kinds += (self._create_service, self._change_service, self._change_service, self._change_service)
            kinds += (self._change_service, self._remove_service, self._change_node, self._create_network)
            kinds += (self._rotate_sealing_key, self._rebalance, self._change_rebalancing)
            kinds += (self._create_token, self._remove_token, self._move_task, self._move_task)
            await self._chance.choice(kinds)()

    async def ask(self, call: Callable[[ControlApi], Awaitable[Any]], *, host: str = "") -> tuple[str, Any]:
        """As a request to a manager over HTTP: ``acknowledged`` and the answer, ``refused``, or ``unknown``."""
        world = self._world
        managers = [h for h in world.hosts if h.is_manager and h.name == (host or h.name)]
        chosen = self._chance.choice(managers)
        role, process = chosen.role, chosen.process
        if role is None or process is None:
            await asyncio.sleep(0.05)
            return "refused", None

        async def handled() -> Any:
            role.majority.require()
            return await call(role.control)

        request = world.loop.spawn(handled(), process)
        await asyncio.wait({request}, timeout=_ANSWER_S)
        if not request.done():
            if not process.is_dead:
                request.cancel()
            outcome: tuple[str, Any] = ("unknown", None)
        elif (cause := request.exception()) is None:
            outcome = ("acknowledged", request.result())
        elif isinstance(cause, errors.InvariantError) or not isinstance(cause, errors.FleetError):
            world.fail(f"a request at {chosen.name}: {type(cause).__name__}: {cause}", cause=cause)
            outcome = ("unknown", None)
        elif isinstance(cause, errors.UnavailableError):
            outcome = ("unknown", None)
        else:
            outcome = ("refused", None)
        self.done[outcome[0]] += 1
        return outcome

    def _name(self, what: str) -> str:
        self._numbers += 1
        return f"{what}{self._numbers}"

    # -- configs: what is told about single objects

    async def _create_config(self) -> None:
        name = self._name("c")
        outcome, config = await self.ask(lambda api: api.configs.create(ConfigSpec(name=name, data=b"x")))
        if outcome == "acknowledged":
            self.kept[name] = config.id

    async def _swap_config(self) -> None:
        if not self.kept:
            return
        name = self._chance.choice(sorted(self.kept))
        id_, value = self.kept[name], self._name("v")
        read: list[int] = []

        async def swap(api: ControlApi) -> Any:
            config = api.configs.find(id_)
            read.append(config.version.index)
            spec = msgspec.structs.replace(config.spec, labels={"value": value})
            return await api.configs.update(id_, spec, version=config.version.index)

        outcome, _ = await self.ask(swap)
        if outcome == "acknowledged":
            self._world.checkers.swapped(id_, read[0], value)

    async def _remove_config(self) -> None:
        if len(self.kept) > 3:
            name = self._chance.choice(sorted(self.kept))
            id_ = self.kept.pop(name)
            await self.ask(lambda api: api.configs.remove(id_))

    # -- users and their tokens

    async def _create_token(self) -> None:
        async def create(api: ControlApi) -> Any:
            if api.users.named("ann") is None:
                await api.users.create(UserSpec(name="ann"))
            return await api.tokens.create(TokenWish(user="ann"))

        outcome, made = await self.ask(create)
        if outcome == "acknowledged":
            self.tokens[made.text] = made.token.id

    async def _remove_token(self) -> None:
        if not self.tokens:
            return
        text = self._chance.choice(sorted(self.tokens))
        id_ = self.tokens.pop(text)

        async def remove(api: ControlApi) -> None:
            api.tokens.owner(text)
            await api.tokens.remove(id_)
            try:
                api.tokens.owner(text)
            except errors.UnauthorizedError:
                return
            self._world.fail(f"token {id_} is taken by the manager that has just removed it")

        outcome, _ = await self.ask(remove)
        if outcome == "acknowledged":
            self.revoked.append(text)

    # -- services

    async def _create_service(self) -> None:
        if len(self._world.services()) >= 4:
            return
        spec = self._spec(self._name("s"))
        await self.ask(lambda api: api.services.create(spec))

    def _spec(self, name: str) -> ServiceSpec:
        chance = self._chance
        kind = chance.choice(("replicated",) * 5 + ("global", "replicated-job", "global-job"))
        is_job = kind.endswith("job")
        mode = {
            "replicated": ServiceMode(replicated=ReplicatedMode(replicas=chance.randint(1, 5))),
            "global": ServiceMode(global_=GlobalMode()),
            "replicated-job": ServiceMode(
                replicated_job=JobMode(max_concurrent=2, total_completions=chance.randint(1, 4))
            ),
            "global-job": ServiceMode(global_job=GlobalMode()),
        }[kind]
        networks = self._world.network_names()
        target = (NetworkTarget(target=chance.choice(networks)),) if networks and chance.random() < 0.6 else ()
        restart = RestartPolicy(
            condition=RestartCondition.ON_FAILURE
            if is_job
            else chance.choice((RestartCondition.ANY, RestartCondition.ON_FAILURE)),
            delay_ns=int(chance.choice((0, 0.5, 3)) * SECOND_NS),
            max_attempts=chance.choice((0, 0, 2, 3)),
        )
        image = chance.choice(("job", "job", "crashing")) if is_job else chance.choice(_IMAGES)
        return ServiceSpec(
            name=name,
            task_template=TaskSpec(
                container_spec=ContainerSpec(image=f"{image}:1"), restart_policy=restart, networks=target
            ),
            mode=mode,
            update_config=None if is_job else self._update_config(),
            rollback_config=None if is_job else self._update_config(rollback=True),
        )

    def _update_config(self, *, rollback: bool = False) -> UpdateConfig:
        chance = self._chance
        actions = ("pause", "continue") if rollback else ("pause", "continue", "rollback")
        return UpdateConfig(
            parallelism=chance.randint(0, 3),
            delay_ns=int(chance.choice((0, 0, 1)) * SECOND_NS),
            failure_action=chance.choice(actions),
            monitor_ns=int(chance.choice((0.5, 3)) * SECOND_NS),
            max_failure_ratio=chance.choice((0.0, 0.5)),
            order=chance.choice(("stop-first", "stop-first", "start-first")),
        )

    async def _change_service(self) -> None:
        services = self._world.services()
        if not services:
            return
        service, chance = self._chance.choice(services), self._chance
        rolls_back = chance.random() < 0.15

        async def change(api: ControlApi) -> Any:
            found = api.services.find(service.id)
            return await api.services.update(
                service.id, self._changed(found.spec), version=found.version.index, rollback=rolls_back
            )

        await self.ask(change)

    def _changed(self, spec: ServiceSpec) -> ServiceSpec:
        chance, replace = self._chance, msgspec.structs.replace
        template = spec.task_template
        what = chance.random()
        if spec.is_job or what < 0.15:
            return replace(spec, task_template=replace(template, force_update=template.force_update + 1))
        if what < 0.55 and not spec.is_global:
            return replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=chance.randint(0, 6))))
        image = f"{chance.choice(_IMAGES)}:{chance.randint(1, 9)}"
        container = replace(template.container_spec, image=image)
        return replace(
            spec, task_template=replace(template, container_spec=container), update_config=self._update_config()
        )

    async def _remove_service(self) -> None:
        services = self._world.services()
        if len(services) > 1:
            service = self._chance.choice(services)
            await self.ask(lambda api: api.services.remove(service.id))

    # -- nodes and networks

    async def _change_node(self) -> None:
        host = self._chance.choice(self._world.hosts)
        availability = self._chance.choice(
            (Availability.ACTIVE, Availability.ACTIVE, Availability.DRAIN, Availability.PAUSE)
        )
        await self.set_availability(host.node_id, availability)

    async def set_availability(self, node_id: str, availability: Availability) -> str:
        async def change(api: ControlApi) -> Any:
            node = api.nodes.find(node_id)
            spec = msgspec.structs.replace(node.spec, availability=availability)
            return await api.nodes.update(node_id, spec, version=node.version.index)

        return (await self.ask(change))[0]

    async def _create_network(self) -> None:
        if len(self._world.network_names()) < 2:
            name = self._name("n")
            spec = NetworkSpec(name=name, driver="overlay", scope="swarm", enable_ipv6=True)
            await self.ask(lambda api: api.networks.create(spec))

    async def _rotate_sealing_key(self) -> None:
        async def rotate(api: ControlApi) -> Any:
            cluster = api.cluster.find()
            return await api.cluster.update(cluster.spec, version=cluster.version.index, rotate_sealing_key=True)

        await self.ask(rotate)

    async def _move_task(self) -> None:
        """With its data, to any node; much of it is refused."""
        running = [t for t in self._world.checkers.objects[Kind.TASK].values() if t.status.state is TaskState.RUNNING]
        if running:
            task_id = self._chance.choice(sorted(task.id for task in running))
            target = self._chance.choice(self._world.hosts).node_id
            await self.ask(lambda api: api.task_moves.move(task_id, target))

    async def _rebalance(self) -> None:
        await self.ask(lambda api: api.rebalance.request())

    async def _change_rebalancing(self) -> None:
        mode = self._chance.choice(("off", "manual", "automatic", "automatic"))

        async def change(api: ControlApi) -> Any:
            cluster = api.cluster.find()
            spec = msgspec.structs.replace(cluster.spec, labels={**cluster.spec.labels, "fleet.rebalance": mode})
            return await api.cluster.update(spec, version=cluster.version.index)

        await self.ask(change)
