"""The engine API of this host as one ASGI application: who answers which path, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

from fastapi import FastAPI

from fleet.agent.http import host_routes
from fleet.agent.http.streams import json_lines
from fleet.agent.image_sources import ImageLocator
from fleet.api.direct import DirectReads
from fleet.api.http import install_error_handlers
from fleet.builder.http import build_routes
from fleet.clock import Clock
from fleet.containers.engine import ContainerEngine
from fleet.daemon.access import AccessGate, Authenticator
from fleet.daemon.access.limits import RequestLimits
from fleet.daemon.access.objects import Objects
from fleet.daemon.audit import Audit
from fleet.daemon.config import DaemonConfig
from fleet.daemon.doctor import Doctor
from fleet.daemon.events import EventLog
from fleet.daemon.http.access import access_routes
from fleet.daemon.http.distribution import distribution_routes
from fleet.daemon.http.doctor import doctor_routes
from fleet.daemon.http.logs import log_routes
from fleet.daemon.http.moves import move_routes
from fleet.daemon.http.networks import network_routes
from fleet.daemon.http.swarm import swarm_routes
from fleet.daemon.http.system import system_routes
from fleet.daemon.http.usage import usage_routes
from fleet.daemon.http.watch import watch_routes
from fleet.daemon.membership import Membership
from fleet.daemon.metrics import Exposition, RequestFigures
from fleet.daemon.metrics.http import metrics_routes
from fleet.daemon.moves import Moves
from fleet.daemon.openapi import describe
from fleet.daemon.remote import RemoteTasks
from fleet.daemon.staleness import StaleState
from fleet.daemon.versions import VersionPrefix
from fleet.images import ImageStore
from fleet.manager.http import swarm_routes as swarm_object_routes
from fleet.network.topology import NetworkSpec

__all__ = ["api_routes", "engine_app"]


def engine_app(
    *,
    config: DaemonConfig,
    membership: Membership,
    engine: ContainerEngine,
    images: ImageStore,
    bridge: NetworkSpec,
    locator: ImageLocator,
    events: EventLog,
    moves: Moves,
    doctor: Doctor,
    exposition: Exposition,
    requests: RequestFigures,
    clock: Clock,
) -> Any:
    """The application behind the unix socket and the TCP listener."""
    authenticator = Authenticator(
        control=lambda: membership.manager().control,
        has_control=lambda: membership.has_control,
        known=membership.known_users,
        clock=clock,
        note=requests.limited.inc,
    )
    app = api_routes(
        authenticator=authenticator,
        config=config,
        membership=membership,
        engine=engine,
        images=images,
        bridge=bridge,
        locator=locator,
        events=events,
        moves=moves,
        doctor=doctor,
        exposition=exposition,
        clock=clock,
    )
    remote = RemoteTasks(
        DirectReads(app),
        has_control=lambda: membership.has_control,
        manager=membership.manager,
        engine=engine,
        peers=moves.peers,
    )
    objects = Objects(
        store=lambda: membership.manager().store,
        has_control=lambda: membership.has_control,
        engine=engine,
        remote=remote,
    )
    limits = RequestLimits(clock, client=config.client_rate, address=config.address_rate, note=requests.limited.inc)
    stale = StaleState(remote, membership.majority)
    gate = AccessGate(stale, authenticator=authenticator, objects=objects, limits=limits)
    return VersionPrefix(Audit(requests.around(gate)))


def api_routes(
    *,
    authenticator: Authenticator,
    config: DaemonConfig,
    membership: Membership,
    engine: ContainerEngine,
    images: ImageStore,
    bridge: NetworkSpec,
    locator: ImageLocator,
    events: EventLog,
    moves: Moves,
    doctor: Doctor,
    exposition: Exposition,
    clock: Clock,
) -> FastAPI:
    """The routes alone; each needs a row in ``fleet.daemon.access.table``."""
    app = FastAPI(openapi_url="/fleet/v1/openapi.json", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.openapi = partial(describe, app)  # type: ignore[method-assign]
    install_error_handlers(app)
    routers = [
        system_routes(config=config, membership=membership, engine=engine, images=images, events=events, clock=clock),
        swarm_routes(membership),
        access_routes(authenticator),
        log_routes(membership),
        move_routes(membership, moves),
        usage_routes(membership, moves.peers),
        watch_routes(membership),
        metrics_routes(exposition),
        distribution_routes(images, locator.sources_for),
        doctor_routes(membership, engine, doctor, hostname=config.hostname),
        network_routes(membership, engine, bridge),
        swarm_object_routes(lambda: membership.manager().control),
        build_routes(
            engine, images, config.data_root / "builder", pull_sources=locator.sources_for, json_lines=json_lines
        ),
        *host_routes(engine, images, pull_sources=locator.sources_for),
    ]
    for router in routers:
        app.include_router(router)
    return app
