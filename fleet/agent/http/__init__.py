"""HTTP routes for what lives on this host alone: containers, images, volumes, in the shapes of the Docker Engine API v1.47.

Routers translate and nothing else: body and query to a value, one call of the engine or the store, value to JSON. Paths
carry no version
(the daemon strips ``/v1.NN``). Attach and exec need a listener whose protocol class has ``HijackMixin``.
"""

from __future__ import annotations

from fastapi import APIRouter

from fleet.agent.http.archive_routes import archive_routes
from fleet.agent.http.attach_routes import attach_routes
from fleet.agent.http.container_routes import container_routes
from fleet.agent.http.hijack import HijackMixin
from fleet.agent.http.image_routes import PullSources, image_routes
from fleet.agent.http.networks import NetworkNames
from fleet.agent.http.volume_routes import volume_routes
from fleet.containers import ContainerEngine
from fleet.images import ImageStore

__all__ = ["HijackMixin", "NetworkNames", "PullSources", "host_routes"]


def host_routes(
    engine: ContainerEngine,
    images: ImageStore,
    *,
    pull_sources: PullSources,
) -> list[APIRouter]:
    """The routers to include. ``pull_sources`` gives the sources to ask for a reference."""
    networks = NetworkNames(engine)
    return [
        container_routes(engine, images, networks),
        archive_routes(engine, images),
        attach_routes(engine),
        image_routes(images, engine, pull_sources),
        volume_routes(engine),
    ]
