"""``/networks``: the cluster's and this host's own in one list, as Docker shows them.

Every host has ``bridge`` (containers that name no network), ``host`` and ``none``, and the bridge networks that people make on
it. The cluster's are the manager's; on a worker those it has tasks on are not listed here: ask a manager.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from fastapi import APIRouter, Request, Response

from fleet import errors
from fleet.agent.http import NetworkNames
from fleet.agent.http.container_body import EndpointChoice
from fleet.agent.http.container_json import endpoint_id, time_text
from fleet.api.http import Filters, json_response, parse_bool, parse_filters, read_struct
from fleet.api.render import Json
from fleet.containers.engine import ContainerEngine
from fleet.containers.networks import HostNetwork, NetworkWish
from fleet.daemon.membership import Membership
from fleet.manager.control.networks import check_families
from fleet.manager.http import SwarmNetworks, network_matches
from fleet.manager.http.networks import NETWORK_FILTERS
from fleet.model.network import IpamConfig, NetworkSpec
from fleet.model.wire import Value
from fleet.network.ipam import is_ipv6
from fleet.network.topology import DIRECT
from fleet.network.topology import NetworkSpec as HostNetworkSpec

__all__ = ["network_routes"]

_PREDEFINED: Final = ("host", "none", "bridge")


class _Connect(Value, frozen=True, kw_only=True):
    """``POST /networks/{id}/connect`` and ``disconnect``."""

    container: str = ""
    endpoint_config: EndpointChoice | None = None
    force: bool = False


def network_routes(membership: Membership, engine: ContainerEngine, bridge: HostNetworkSpec) -> APIRouter:
    """The router."""
    routes = APIRouter()
    swarm = SwarmNetworks(lambda: membership.manager().control)
    names = NetworkNames(engine, default_network=bridge.id)

    def is_manager() -> bool:
        return membership.has_control

    def predefined(name: str) -> Json | None:
        return next((n for n in _predefined(engine, bridge) if name in (n["Name"], n["Id"])), None)

    def of_swarm(name: str) -> Json | None:
        if not is_manager():
            return None
        try:
            return swarm.inspect(name, verbose=False)
        except errors.NotFoundError:
            return None

    def local_matching(filters: Filters) -> list[Json]:
        made = [_made(engine, network) for network in engine.networks.all()]
        return [
            network
            for network in _predefined(engine, bridge) + made
            if network_matches(network, filters, is_used=partial(bool, network["Containers"]))
        ]

    @routes.get("/networks")
    async def list_networks(request: Request) -> Response:
        filters = parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS)
        found = local_matching(filters)
        if is_manager():
            found += swarm.list(filters)
        return json_response(found)

    @routes.get("/networks/{name}")
    async def inspect(name: str, scope: str = "", verbose: str = "") -> Response:
        if (found := predefined(name)) is not None:
            return json_response(found)
        if scope != "swarm":
            try:
                return json_response(_made(engine, engine.networks.find(name)))
            except errors.NotFoundError:
                pass
        if not is_manager():
            raise errors.NotFoundError(f"network {name} not found")
        shown = swarm.inspect(name, verbose=parse_bool(verbose))
        return json_response({**shown, "Containers": _attached(engine, shown["Id"])})

    @routes.post("/networks/create")
    async def create(request: Request) -> Response:
        spec = await read_struct(request, NetworkSpec, what="network")
        if predefined(spec.name) is not None:
            raise errors.ForbiddenError(f"operation is not permitted on predefined {spec.name} network")
        if any(network.name == spec.name for network in engine.networks.all()):
            raise errors.ConflictError(f"network with name {spec.name} already exists")
        if spec.driver == "overlay" or (spec.driver == "" and spec.scope == "swarm"):
            return json_response(await swarm.create(spec), status=201)
        if of_swarm(spec.name) is not None:
            raise errors.ConflictError(f"network with name {spec.name} already exists")
        made = await engine.networks.create(_wish(spec))
        return json_response({"Id": made.id, "Warning": ""}, status=201)

    @routes.delete("/networks/{name}")
    async def remove(name: str) -> Response:
        if predefined(name) is not None:
            raise errors.ForbiddenError(f"{name} is a pre-defined network and cannot be removed")
        try:
            await engine.networks.remove(name)
        except errors.NotFoundError:
            if not is_manager():
                raise
            await swarm.remove(name)
        return Response(status_code=204)

    @routes.post("/networks/{name}/connect")
    async def connect(name: str, request: Request) -> Response:
        body = await read_struct(request, _Connect, what="network connect")
        if name == "host":
            raise errors.ForbiddenError(
                "cannot connect container to host network - container must be created in host network mode"
            )
        if name == "none":
            raise errors.ForbiddenError(
                "container cannot be connected to multiple networks with one of the networks in private (none) mode"
            )
        choice = body.endpoint_config or EndpointChoice()
        choice.check(name)
        place = await names.attach(
            name,
            address=choice.address or None,
            address6=choice.address6 or None,
            mac=choice.mac_address or None,
            aliases=choice.aliases,
        )
        await engine.connect(body.container, place.attachment, network=name, is_overlay=place.is_overlay)
        return Response(status_code=200)

    @routes.post("/networks/{name}/disconnect")
    async def disconnect(name: str, request: Request) -> Response:
        body = await read_struct(request, _Connect, what="network disconnect")
        network_id = bridge.id if name in (bridge.id, bridge.name) else (await names.find(name))[0]
        await engine.disconnect(body.container, network_id, network=names.name(network_id))
        return Response(status_code=200)

    @routes.post("/networks/prune")
    async def prune(request: Request) -> Response:
        filters = dict(parse_filters(request.query_params.get("filters"), known=NETWORK_FILTERS | {"until"}))
        if "until" in filters:
            raise errors.UnsupportedError("network prune: the filter 'until' is not supported")
        unused = filters | {"dangling": ("true",)}
        removed = []
        for network in local_matching(unused):
            if network["Name"] not in _PREDEFINED and not network["ConfigOnly"]:
                await engine.networks.remove(network["Id"])
                removed.append(network["Name"])
        for network in swarm.list(unused) if is_manager() else ():
            if not network["Ingress"]:
                await swarm.remove(network["Id"])
                removed.append(network["Name"])
        return json_response({"NetworksDeleted": removed})

    return routes


def _wish(spec: NetworkSpec) -> NetworkWish:
    """What the host's own networks can be of what the API can say. Raises ``UnsupportedError`` for the rest."""
    ipam = spec.ipam
    config = ipam.config if ipam is not None else ()
    driver = spec.driver or "bridge"
    refusals = (
        (
            driver not in ("bridge", *DIRECT),
            f"driver {spec.driver!r}: known are bridge, macvlan and ipvlan (this host) and overlay (the swarm)",
        ),
        (spec.scope not in ("", "local"), f"driver {driver} has no scope {spec.scope!r}"),
        (spec.ingress, "only an overlay can be the ingress network"),
        (ipam is not None and ipam.driver not in ("", "default"), f"no IPAM driver {ipam.driver if ipam else ''!r}"),
        (ipam is not None and bool(ipam.options), "the default IPAM driver has no options"),
    )
    for is_refused, sentence in refusals:
        if is_refused:
            raise errors.UnsupportedError(f"network {spec.name}: {sentence}")
    check_families(spec)
    pool = next((each for each in config if not each.is_ipv6), IpamConfig())
    pool6 = next((each for each in config if each.is_ipv6), IpamConfig())
    return NetworkWish(
        name=spec.name,
        driver=driver,  # type: ignore[arg-type]  # seen to be one above
        config_only=spec.config_only,
        config_from=spec.config_from.network if spec.config_from is not None else "",
        subnet=pool.subnet,
        gateway=pool.gateway,
        ip_range=pool.ip_range,
        aux_addresses={**pool.auxiliary_addresses, **pool6.auxiliary_addresses},
        internal=spec.internal,
        enable_ipv4=spec.enable_ipv4 is not False,
        enable_ipv6=bool(spec.enable_ipv6),
        subnet6=pool6.subnet,
        gateway6=pool6.gateway,
        ip_range6=pool6.ip_range,
        options=spec.options,
        labels=spec.labels,
    )


def _predefined(engine: ContainerEngine, bridge: HostNetworkSpec) -> list[Json]:
    config = [{"Subnet": bridge.subnet, "Gateway": bridge.gateway}]
    return [
        _rendered("bridge", "bridge", config, _attached(engine, bridge.id)),
        _rendered("host", "host", [], {}),
        _rendered("none", "null", [], {}),
    ]


def _made(engine: ContainerEngine, network: HostNetwork) -> Json:
    aux = [{k: a for k, a in network.aux_addresses.items() if is_ipv6(a) is wanted} for wanted in (False, True)]
    configs = [_pool(network.subnet, network.ip_range, network.gateway, aux[0])] if network.subnet else []
    if network.subnet6:
        configs.append(_pool(network.subnet6, network.ip_range6, network.gateway6, aux[1]))
    return {
        **_rendered(
            network.name,
            "null" if network.config_only else network.driver,
            configs,
            _attached(engine, network.id),
        ),
        "Id": network.id,
        "ConfigOnly": network.config_only,
        "ConfigFrom": {"Network": network.config_from},
        "EnableIPv4": bool(network.subnet),
        "EnableIPv6": bool(network.subnet6),
        "Created": time_text(network.created_at),
        "Internal": network.internal,
        "Options": dict(network.options),
        "Labels": dict(network.labels),
    }


def _pool(subnet: str, ip_range: str, gateway: str, aux: dict[str, str]) -> dict[str, Any]:
    return {
        "Subnet": subnet,
        **({"IPRange": ip_range} if ip_range else {}),
        "Gateway": gateway,
        **({"AuxiliaryAddresses": aux} if aux else {}),
    }


def _attached(engine: ContainerEngine, network_id: str) -> dict[str, Any]:
    result = {}
    for container in engine.list():
        for address in container.networks:
            if address.network_id == network_id and container.is_up:
                result[container.id] = {
                    "Name": container.name,
                    "EndpointID": endpoint_id(container.id, network_id),
                    "MacAddress": address.mac,
                    "IPv4Address": f"{address.address}/{address.prefix_len}" if address.address else "",
                    "IPv6Address": f"{address.address6}/{address.prefix_len6}" if address.address6 else "",
                }
    return result


def _rendered(name: str, driver: str, config: list[dict[str, Any]], containers: dict[str, Any]) -> Json:
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
