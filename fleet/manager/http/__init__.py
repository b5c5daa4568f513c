"""HTTP routes of swarm objects: read the request, call the control API, render Docker's answer; nothing else.

``routes(control)`` of each module makes a router of unversioned paths. ``control()`` gives the ``ControlApi`` at the moment
of the request, or raises ``UnavailableError`` where this node is not a manager. ``swarm_routes`` bundles all of them but
networks, which share their paths with the host's own and are merged by whoever has both (``SwarmNetworks``).
"""

from collections.abc import Callable

from fastapi import APIRouter

from fleet.manager.control import ControlApi
from fleet.manager.http import access, data, nodes, quotas, rebalance, services, swarm, tasks
from fleet.manager.http.networks import SwarmNetworks, network_matches

__all__ = ["SwarmNetworks", "network_matches", "swarm_routes"]


def swarm_routes(control: Callable[[], ControlApi]) -> APIRouter:
    """/services, /tasks, /nodes, /secrets, /configs, GET /swarm and POST /swarm/update, users and tokens."""
    router = APIRouter()
    for module in (services, tasks, nodes, data, swarm, rebalance, quotas, access):
        router.include_router(module.routes(control))
    return router
