"""``/networks``: the cluster's and this host's own in one list, as Docker shows them.

Every host has ``bridge`` (containers that name no network), ``host`` and ``none``. The cluster's are the manager's; on a
worker those it has tasks on are not listed here: ask a manager.
"""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.api.http import json_response, parse_filters, read_struct
from fleet.containers.engine import ContainerEngine
from fleet.daemon.membership import Membership
from fleet.manager.control import ControlApi
from fleet.model.network import NetworkSpec
from fleet.network.topology import NetworkSpec as HostNetworkSpec

__all__ = ["NETWORK_FILTERS", "network_routes"]

NETWORK_FILTERS: Final = frozenset({"driver", "id", "label", "name", "scope", "type", "dangling"})


def network_routes(membership: Membership, engine: ContainerEngine, bridge: HostNetworkSpec) -> APIRouter:
    """The router."""
    routes = APIRouter()

    def control() -> ControlApi | None:
        try:
            return membership.manager().control
        except errors.UnavailableError:
            return None

    def local(name: str) -> dict[str, Any] | None:
        return next((n for n in _local_networks(engine, bridge) if name in (n["Name"], n["Id"])), None)

    @routes.get("/networks")
    async def list_networks(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS)
        found = [n for n in _local_networks(engine, bridge) if _matches(n, filters)]
        swarm = control()
        if swarm is not None:
            found += [n for n in swarm.networks.rendered() if _matches(n, filters)]
        return json_response(found)

    @routes.get("/networks/{name}")
    async def inspect(name: str, scope: str = "", verbose: str = "") -> Response:
        swarm = control()
        if swarm is not None:
            try:
                return json_response(swarm.networks.inspect(name))
            except errors.NotFoundError:
                pass
        found = local(name) if scope != "swarm" or name in ("host", "none", "bridge") else None
        if found is None:
            raise errors.NotFoundError(f"network {name} not found")
        return json_response(found)

    @routes.post("/networks/create")
    async def create(request: Request) -> Response:
        spec = await read_struct(request, NetworkSpec, what="network")
        if spec.driver not in ("overlay", "") or spec.scope == "local":
            raise errors.UnsupportedError(
                f"network driver {spec.driver or 'bridge'!r}: only overlay networks of the cluster can be created; "
                "this host's own are bridge, host and none"
            )
        if local(spec.name) is not None:
            raise errors.ForbiddenError(f"operation is not permitted on predefined {spec.name} network")
        network_id = await membership.manager().control.networks.create(spec)
        return json_response({"Id": network_id, "Warning": ""}, status=201)

    @routes.delete("/networks/{name}")
    async def remove(name: str) -> Response:
        if local(name) is not None:
            raise errors.ForbiddenError(f"{name} is a pre-defined network and cannot be removed")
        await membership.manager().control.networks.remove(name)
        return Response(status_code=204)

    @routes.post("/networks/prune")
    async def prune(request: Request) -> Response:
        parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS | {"until"})
        swarm = control()
        removed = [] if swarm is None else await swarm.networks.prune()
        return json_response({"NetworksDeleted": removed})

    return routes


def _local_networks(engine: ContainerEngine, bridge: HostNetworkSpec) -> list[dict[str, Any]]:
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


def _rendered(name: str, driver: str, config: list[dict[str, str]], containers: dict[str, Any]) -> dict[str, Any]:
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


def _matches(network: dict[str, Any], filters: Any) -> bool:
    labels = network.get("Labels") or {}

    def one(key: str, values: tuple[str, ...]) -> bool:
        match key:
            case "name":
                return any(v in network["Name"] for v in values)
            case "id":
                return any(network["Id"].startswith(v) for v in values)
            case "driver":
                return network["Driver"] in values
            case "scope":
                return network["Scope"] in values
            case "label":
                return all(
                    v.partition("=")[0] in labels
                    and (labels[v.partition("=")[0]] == v.partition("=")[2] or "=" not in v)
                    for v in values
                )
            case "type":
                builtin = network["Name"] in ("bridge", "host", "none", "ingress")
                return ("builtin" if builtin else "custom") in values
            case _:
                return True

    return all(one(key, values) for key, values in filters.items())
