"""The gate in front of a real control API over a memory engine; what lives on hosts is a few plain objects."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import httpx
from fastapi import FastAPI, Response

from fleet import errors
from fleet.api.http import install_error_handlers
from fleet.clock import SystemClock
from fleet.containers import ContainerConfig
from fleet.daemon.access import AccessGate, Authenticator
from fleet.daemon.access.limits import RequestLimits
from fleet.daemon.access.objects import Objects
from fleet.daemon.audit import Audit
from fleet.daemon.http.access import access_routes
from fleet.daemon.http.watch import watch_lines
from fleet.daemon.listeners import TLS_EXTENSION
from fleet.manager.control import ControlApi
from fleet.manager.control.access import TokenWish
from fleet.manager.http import swarm_routes
from fleet.model.access import AccessRole, UserSpec
from fleet.store import Store
from tests.support.memory_engine import MemoryEngine

TCP = ("10.0.0.1", 2376)


class Tls:
    """A TLS connection that showed this common name, or nothing."""

    def __init__(self, name: str = "") -> None:
        self._name = name

    def getpeercert(self) -> dict[str, Any]:
        return {"subject": ((("commonName", self._name),),)} if self._name else {}


class Host:
    """The containers, volumes and networks of a host, by name; the engine as far as the gate looks."""

    def __init__(self) -> None:
        self.containers: dict[str, Any] = {}
        self.volumes = SimpleNamespace(get=self._volume)
        self.networks = SimpleNamespace(find=self._network)
        self.execs = SimpleNamespace(inspect=self._exec)
        self.volume_labels: dict[str, dict[str, str]] = {}

    def add(self, name: str, **config: Any) -> None:
        self.containers[name] = SimpleNamespace(id=f"id-of-{name}", config=ContainerConfig(image="i", **config))

    def get(self, name: str) -> Any:
        for known, container in self.containers.items():
            if name in (known, container.id):
                return container
        raise errors.NotFoundError(f"No such container: {name}")

    def _volume(self, name: str) -> Any:
        if name not in self.volume_labels:
            raise errors.NotFoundError(f"get {name}: no such volume")
        return SimpleNamespace(labels=self.volume_labels[name])

    def _network(self, name: str) -> Any:
        raise errors.NotFoundError(f"network {name} not found")

    def _exec(self, name: str) -> Any:
        return SimpleNamespace(container_id=self.get(name.removeprefix("exec-")).id)


@dataclass
class Gated:
    """``call`` asks as a client over TLS would."""

    store: Store
    api: ControlApi
    host: Host
    app: Any
    told: list[dict[str, Any]] = field(default_factory=list)
    reached: list[tuple[str, str]] = field(default_factory=list)
    has_control: bool = True

    async def user(self, name: str, role: str, **more: Any) -> str:
        """A new user's token."""
        await self.api.users.create(UserSpec(name=name, role=AccessRole(role), **more))
        return (await self.api.tokens.create(TokenWish(user=name))).text

    async def call(
        self,
        method: str,
        path: str,
        *,
        token: str = "",
        tls: Tls | None = None,
        is_clear: bool = False,
        server: Any = TCP,
        headers: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> httpx.Response:
        extensions = {} if is_clear else {TLS_EXTENSION: tls or Tls()}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "extensions": extensions, "server": server}, receive, send)

        sent = {**(headers or {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        transport = httpx.ASGITransport(app=app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://fleet") as client:
            return await client.request(method, path, headers=sent, **kwargs)


@asynccontextmanager
async def gated(limits: RequestLimits | None = None) -> AsyncIterator[Gated]:
    """Without limits unless given."""
    engine = MemoryEngine()
    await engine.start()
    store = await Store.open(engine)
    numbers = itertools.count(1)
    api = ControlApi(store, SystemClock(), lambda size: next(numbers).to_bytes(size, "little"))
    inner = FastAPI()
    install_error_handlers(inner)
    world = Gated(store, api, Host(), None)

    def control() -> ControlApi:
        if not world.has_control:
            raise errors.UnavailableError("this node is not a manager")
        return api

    inner.include_router(swarm_routes(control))

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        world.reached.append((scope["method"], scope["path"]))
        await inner(scope, receive, send)

    remote = SimpleNamespace(find_task=lambda _: None, container_of_session=lambda _: None)
    objects = Objects(
        store=lambda: control().store,
        has_control=lambda: world.has_control,
        engine=world.host,  # type: ignore[arg-type]
        remote=remote,  # type: ignore[arg-type]
    )
    authenticator = Authenticator(
        control=control,
        has_control=lambda: world.has_control,
        known=lambda: {user.spec.name for user in store.users.all()},
        clock=SystemClock(),
    )
    inner.include_router(access_routes(authenticator))

    @inner.api_route("/{path:path}", methods=["GET", "HEAD", "POST", "PUT", "DELETE"], response_model=None)
    async def anything(path: str) -> Any:
        match path:
            case "containers/json":
                return [{"Id": known.id, "Names": [name]} for name, known in world.host.containers.items()]
            case "volumes":
                return {"Volumes": [{"Name": n, "Labels": found} for n, found in world.host.volume_labels.items()]}
            case "networks":
                return [{"Name": known.spec.name, "Labels": known.spec.labels} for known in store.networks.all()]
            case "events":
                actors = [{"ID": known.id} for known in store.services.all()]
                lines = [json.dumps({"Type": "service", "Action": "create", "Actor": actor}) for actor in actors]
                return Response("\n".join(lines) + "\n", media_type="application/json")
            case "fleet/v1/watch":
                role: Any = SimpleNamespace(store=store, control=api)
                return Response(await anext(watch_lines(role)), media_type="application/x-ndjson")
            case _:
                return {"path": f"/{path}"}

    gate = AccessGate(
        noted, authenticator=authenticator, objects=objects, limits=limits or RequestLimits(SystemClock())
    )
    world.app = Audit(gate, write=lambda event, **fields: world.told.append({"event": event, **fields}))
    try:
        async with asyncio.timeout(60):
            yield world
    finally:
        await store.close()
        await engine.close()
