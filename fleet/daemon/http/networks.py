"""``/networks``: the cluster's and this host's own in one list, as Docker shows them.

Every host has ``bridge`` (containers that name no network), ``host`` and ``none``. The cluster's are the manager's; on a
worker those it has tasks on are not listed here: ask a manager.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import Filters, json_response, parse_bool, parse_filters, read_struct
from fleet.api.render import Json
from fleet.containers.engine import ContainerEngine
from fleet.daemon.membership import Membership
from fleet.manager.http import SwarmNetworks, network_matches
from fleet.manager.http.networks import NETWORK_FILTERS
from fleet.model.network import NetworkSpec
from fleet.network.topology import NetworkSpec as HostNetworkSpec

__all__ = ["network_routes"]

_PREDEFINED: Final = ("host", "none", "bridge")


def network_routes(membership: Membership, engine: ContainerEngine, bridge: HostNetworkSpec) -> APIRouter:
    """The router."""
    routes = APIRouter()
    swarm = SwarmNetworks(lambda: membership.manager().control)

    def is_manager() -> bool:
        return membership.has_control

    def local(name: str) -> Json | None:
        return next((n for n in _local_networks(engine, bridge) if name in (n["Name"], n["Id"])), None)

    def local_matching(filters: Filters) -> list[Json]:
        found = []
        for network in _local_networks(engine, bridge):
            is_used = bool(network["Containers"])
            if network_matches(network, filters, is_used=partial(bool, is_used)):
                found.append(network)
        return found

    @routes.get("/networks")
    async def list_networks(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS)
        found = local_matching(filters)
        if is_manager():
            found += swarm.list(filters)
        return json_response(found)

    @routes.get("/networks/{name}")
    async def inspect(name: str, scope: str = "", verbose: str = "") -> Response:
        if is_manager() and name not in _PREDEFINED:
            try:
                return json_response(swarm.inspect(name, verbose=parse_bool(verbose)))
            except errors.NotFoundError:
                pass
        found = local(name)
        if found is None:
            raise errors.NotFoundError(f"network {name} not found")
        return json_response(found)

    @routes.post("/networks/create")
    async def create(request: Request) -> Response:
        spec = await read_struct(request, NetworkSpec, what="network")
        if local(spec.name) is not None:
            raise errors.ForbiddenError(f"operation is not permitted on predefined {spec.name} network")
        if spec.driver not in ("overlay", "") or spec.scope == "local":
            raise errors.UnsupportedError(
                f"network driver {spec.driver or 'bridge'!r}: only overlay networks of the cluster can be created; "
                "this host's own are bridge, host and none"
            )
        return json_response(await swarm.create(spec), status=201)

    @routes.delete("/networks/{name}")
    async def remove(name: str) -> Response:
        if local(name) is not None:
            raise errors.ForbiddenError(f"{name} is a pre-defined network and cannot be removed")
        await swarm.remove(name)
        return Response(status_code=204)

    @routes.post("/networks/{name}/connect")
    @routes.post("/networks/{name}/disconnect")
    async def change_container(name: str, request: Request) -> Response:
        verb = request.url.path.rpartition("/")[2]
        raise errors.UnsupportedError(
            f"network {verb} {name}: a container keeps the network it was created with; create it anew with --network, or run "
            "it as a service (overlay networks are for services)"
        )

    @routes.post("/networks/prune")
    async def prune(request: Request) -> Response:
        filters = dict(parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS | {"until"}))
        if "until" in filters:
            raise errors.UnsupportedError("network prune: the filter 'until' is not supported")
        removed = []
        for network in swarm.list(filters | {"dangling": ("true",)}) if is_manager() else ():
            if not network["Ingress"]:
                await swarm.remove(network["Id"])
                removed.append(network["Name"])
        return json_response({"NetworksDeleted": removed})

    return routes


def _local_networks(engine: ContainerEngine, bridge: HostNetworkSpec) -> list[Json]:
    config = [{"Subnet": bridge.subnet, "Gateway": bridge.gateway}]
    return [
        _rendered("bridge", "bridge", config, _attached(engine, bridge.id)),
        _rendered("host", "host", [], {}),
        _rendered("none", "null", [], {}),
    ]


def _attached(engine: ContainerEngine, network_id: str) -> dict[str, Any]:
    result = {}
    for container in engine.list():
        for address in container.networks:
            if address.network_id == network_id and container.is_up:
                result[container.id] = {
                    "Name": container.name,
                    "EndpointID": "",
                    "MacAddress": address.mac,
                    "IPv4Address": f"{address.address}/{address.prefix_len}",
                    "IPv6Address": "",
                }
    return result


def _rendered(name: str, driver: str, config: list[dict[str, str]], containers: dict[str, Any]) -> Json:
    return {
        "Name": name,
        "Id": name,
        "Created": "0001-01-01T00:00:00Z",
        "Scope": "local",
        "Driver": driver,
        "EnableIPv4": True,
        "EnableIPv6": False,
        "IPAM": {"Driver": "default", "Options": None, "Config": config},
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": containers,
        "Options": {},
        "Labels": {},
    }
