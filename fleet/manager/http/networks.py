"""Networks of the cluster for ``/networks``, as plain functions: the same paths serve each host's own networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, cast

from fleet import errors
from fleet.api.http import Filters
from fleet.api.render import Json, network_json
from fleet.manager.control import ControlApi
from fleet.manager.control.filters import has_labels
from fleet.manager.http.request import Control
from fleet.model.network import Network, NetworkSpec
from fleet.model.service import Service
from fleet.model.task import TaskState, task_name

__all__ = ["NETWORK_FILTERS", "SwarmNetworks", "network_matches"]

NETWORK_FILTERS: Final = frozenset({"id", "name", "driver", "label", "scope", "type", "dangling"})

_PREDEFINED: Final = frozenset({"bridge", "host", "none"})


class SwarmNetworks:
    """Everything raises ``UnavailableError`` (from ``control``) where this node is not a manager."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def list(self, filters: Filters | None = None) -> list[Json]:
        """Rendered networks that fit the filters."""
        api = self._control().networks
        return [
            rendered
            for network in api.list()
            if network_matches(rendered := network_json(network), filters or {}, is_used=partial(api.is_used, network))
        ]

    def inspect(self, text: str, *, verbose: bool = False) -> Json:
        """By id, name or prefix; ``verbose`` adds the services on it with their tasks, cluster-wide. ``NotFoundError``."""
        api = self._control()
        network = api.networks.find(text)
        return network_json(network, services=_services(api, network) if verbose else None)

    async def create(self, spec: NetworkSpec) -> Json:
        """The answer of ``POST /networks/create`` (201)."""
        network = await self._control().networks.create(spec)
        return {"Id": network.id, "Warning": ""}

    async def remove(self, text: str) -> None:
        """Answer 204."""
        await self._control().networks.remove(text)


def network_matches(
    rendered: Mapping[str, object], filters: Filters, *, is_used: Callable[[], bool] | None = None
) -> bool:
    """Whether a rendered network, the cluster's or a host's, fits the filters.

    ``name`` is a substring (``^`` and ``$`` anchor it), ``id`` a prefix. ``is_used`` is asked only for ``dangling``.
    """
    name, id_ = str(rendered.get("Name", "")), str(rendered.get("Id", ""))
    labels = cast("Mapping[str, str]", rendered.get("Labels") or {})
    for key, texts in filters.items():
        match key:
            case "name":
                fits = any(_found(text, name) for text in texts)
            case "id":
                fits = any(id_.startswith(text) for text in texts)
            case "driver" | "scope":
                fits = rendered.get(key.capitalize()) in texts
            case "label":
                fits = has_labels(filters, key, labels)
            case "type":
                fits = _is_type(texts, name)
            case "dangling":
                fits = _is_dangling(texts, is_used)
            case _:
                raise errors.UserError(f"invalid filter '{key}': known ones are {', '.join(sorted(NETWORK_FILTERS))}")
        if not fits:
            return False
    return True


def _found(pattern: str, name: str) -> bool:
    """Docker takes a regular expression; a hostile one could stop the manager, so only its anchors are known here."""
    core = pattern.removeprefix("^").removesuffix("$")
    at_start, at_end = pattern.startswith("^"), pattern.endswith("$")
    if at_start and at_end:
        return name == core
    if at_start:
        return name.startswith(core)
    return name.endswith(core) if at_end else core in name


def _is_type(texts: tuple[str, ...], name: str) -> bool:
    unknown = set(texts) - {"custom", "builtin"}
    if unknown:
        raise errors.UserError(f"invalid filter: 'type'='{min(unknown)}': custom or builtin")
    return ("builtin" if name in _PREDEFINED else "custom") in texts


def _is_dangling(texts: tuple[str, ...], is_used: Callable[[], bool] | None) -> bool:
    unknown = {text.lower() for text in texts} - {"true", "false", "1", "0"}
    if unknown:
        raise errors.UserError(f"invalid filter: 'dangling'='{min(unknown)}': true or false")
    wanted = {text.lower() in ("true", "1") for text in texts}
    return (is_used is None or not is_used()) in wanted


def _services(api: ControlApi, network: Network) -> dict[str, Json]:
    result: dict[str, Json] = {}
    for service in api.services.list():
        if any(target.target == network.id for target in service.spec.all_networks):
            result[service.spec.name] = _service(api, service, network)
    return result


def _service(api: ControlApi, service: Service, network: Network) -> Json:
    vip = next((v.addr.partition("/")[0] for v in service.endpoint.virtual_ips if v.network_id == network.id), "")
    tasks: list[Json] = []
    for task in api.store.tasks.by_service(service.id):
        address = next(
            (a.addresses[0] for a in task.network_attachments if a.network_id == network.id and a.addresses), ""
        )
        if task.status.state is TaskState.RUNNING and address:
            node = api.store.nodes.get(task.node_id)
            info = {"Host IP": node.status.addr if node else ""}
            tasks.append(
                {"Name": task_name(task), "EndpointID": "", "EndpointIP": address.partition("/")[0], "Info": info}
            )
    ports = [f"Target: {port.target_port}, Publish: {port.published_port}" for port in service.endpoint.ports]
    return {"VIP": vip, "Ports": ports, "LocalLBIndex": 0, "Tasks": tasks}
