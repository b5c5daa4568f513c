"""What each node must know, computed from the tables: tasks, networks, endpoints, services, published ports, secrets,
logins.

Pure over the tables. ``Assembler.items_for`` gives the complete set for a node; ``difference`` the step from what was last
sent. Network-wide items (endpoints, services) are computed when they are first needed and shared by all nodes until the tables
change. What is read here of a table must be named in ``audience``, which says who is to be looked at again.

When an endpoint gets traffic (``ready``): its task is *running*, is wanted to run, and its node answers. A task wanted to
stop is unready from the moment the wish is stored, which is before its agent hears of it: so it leaves names and
balancing first and stops second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from fleet.api.dispatch import (
    Assign,
    ConfigItem,
    EndpointItem,
    Item,
    LoginItem,
    NetworkItem,
    NodeItem,
    PublishedItem,
    SecretItem,
    ServiceItem,
    TaskItem,
    key_of,
)
from fleet.model.common import Driver
from fleet.model.guest import Guest
from fleet.model.ids import NetworkId, NodeId, ServiceId, TaskId
from fleet.model.network import Network
from fleet.model.node import Node, NodeState
from fleet.model.publishing import source_of
from fleet.model.secret import TEMPLATE_DRIVER
from fleet.model.service import EndpointMode, PublishMode, Service
from fleet.model.task import Attachment, Task, TaskState, task_name
from fleet.network.ipam import is_ipv6
from fleet.store import Store

__all__ = ["Assembler", "difference", "slot_name"]


def _bare(address: str) -> str:
    return address.partition("/")[0]


def slot_name(task: Task) -> str:
    """The stable name of the task's place: ``web.1``, or ``web.<node id>`` for global services."""
    return f"{task.service_name}.{task.slot or task.node_id}"


def _holds_address(task: Task) -> bool:
    return (
        bool(task.node_id) and not task.status.state.is_terminal and task.status.state.rank >= TaskState.ASSIGNED.rank
    )


class Assembler:
    """Over the tables as they are at each call."""

    def __init__(self, store: Store, *, vxlan_port: int) -> None:
        self._store = store
        self._vxlan_port = vxlan_port
        self._revision = -1
        self._network_items: dict[str, dict[str, Item]] = {}
        self._as_now: set[str] = set()
        """Networks of which that is what the tables say at this revision."""
        self._services = _OfServices()
        self._services_at = -1

    def items_for(self, node_id: NodeId) -> dict[str, Item]:
        """The complete assignment set of a node by key."""
        return self.set_for(node_id)[0]

    def set_for(self, node_id: NodeId) -> tuple[dict[str, Item], frozenset[str]]:
        """The complete assignment set of a node by key, and the networks in it. What did not change is the very object that it
        was, so that comparing the sets of many nodes is cheap."""
        self._look()
        items: list[Item] = []
        found: dict[str, Item] = {}
        needed: set[str] = set()
        secrets: set[str] = set()
        configs: set[str] = set()
        logins: set[str] = set()
        for task in self._store.tasks.by_node(node_id):
            if task.status.state.rank < TaskState.ASSIGNED.rank:
                continue
            items.append(TaskItem(task=task))
            if not task.status.state.is_terminal:
                needed.update(a.network_id for a in task.network_attachments)
            if task.desired_state.rank <= TaskState.RUNNING.rank and not task.status.state.is_terminal:
                secrets.update(s.secret_id for s in task.spec.container_spec.secrets)
                configs.update(c.config_id for c in task.spec.container_spec.configs)
                logins.add(task.spec.registry_login)
        needed.update(guest.network_id for guest in self._store.guests.all() if guest.node_id == node_id)
        node = self._store.nodes.get(node_id)
        if self._services.published and (ingress := self._ingress(node)) is not None:
            needed.add(ingress.id)
            found.update(self._services.published)
        networks: set[str] = set()
        for network_id in sorted(needed):
            network = self._store.networks.get(network_id)
            if network is None:
                continue
            own = next((a for a in (node.attachments if node else ()) if a.network_id == network_id), None)
            networks.add(network.id)
            items.append(
                NetworkItem(
                    network=network,
                    vxlan_port=self._vxlan_port,
                    node_address=own.address if own else "",
                    node_address6=own.address6 if own else "",
                )
            )
            found.update(self._of_network(network))
        items.extend(
            SecretItem(
                secret_id=secret.id,
                data=secret.spec.data,
                templated=_is_template(secret.spec.templating),
                driven=secret.spec.driver is not None,
            )
            for secret_id in sorted(secrets)
            if (secret := self._store.secrets.get(secret_id)) is not None
        )
        items.extend(
            ConfigItem(config_id=config.id, data=config.spec.data, templated=_is_template(config.spec.templating))
            for config_id in sorted(configs)
            if (config := self._store.configs.get(config_id)) is not None
        )
        items.extend(
            LoginItem(login_id=login.id, header=login.header)
            for login_id in sorted(logins)
            if (login := self._store.logins.get(login_id)) is not None
        )
        found.update((key_of(item), item) for item in items)
        return found, frozenset(networks)

    def _look(self) -> None:
        """Forget what the tables no longer say."""
        if self._revision != self._store.revision:
            self._revision = self._store.revision
            self._as_now = set()
            self._network_items = {
                id_: kept for id_, kept in self._network_items.items() if self._store.networks.get(id_)
            }
        if self._services_at != self._store.services.changes:
            self._services_at = self._store.services.changes
            new = _of_services(self._store.services.all())
            new.published = _kept(self._services.published, new.published.values())
            self._services = new

    def _ingress(self, node: Node | None) -> Network | None:
        """The ingress network, if the node has an address of its own on it: without one it cannot lead anybody there."""
        for attachment in node.attachments if node is not None else ():
            network = self._store.networks.get(attachment.network_id)
            if network is not None and network.spec.ingress and attachment.addresses:
                return network
        return None

    def _of_network(self, network: Network) -> dict[str, Item]:
        if network.id not in self._as_now:
            self._as_now.add(network.id)
            self._network_items[network.id] = _kept(self._network_items.get(network.id, {}), self._endpoints(network))
        return self._network_items[network.id]

    def _endpoints(self, network: Network) -> Iterator[Item]:
        for task in self._store.tasks.by_network(network.id):
            node = self._store.nodes.get(task.node_id) if _holds_address(task) else None
            if node is None or node.removed:
                continue
            for attachment in task.network_attachments:
                if attachment.network_id == network.id and (endpoint := _endpoint(task, node, attachment)) is not None:
                    yield _with_key(endpoint, network, node)
        for guest in self._store.guests.all():
            host = self._store.nodes.get(guest.node_id) if guest.network_id == network.id else None
            if host is not None and not host.removed and guest.address:
                yield _with_key(_guest_endpoint(guest, host), network, host)
        yield from self._services.by_network.get(network.id, ())
        if not network.spec.ingress:
            return
        for node in self._store.nodes.all():
            if node.removed:
                continue
            for attachment in node.attachments:
                if attachment.network_id == network.id and attachment.addresses:
                    yield NodeItem(
                        network_id=network.id,
                        node_id=node.id,
                        underlay=node.status.addr,
                        address=attachment.address,
                        address6=attachment.address6,
                    )


def _kept(before: Mapping[str, Item], items: Iterable[Item]) -> dict[str, Item]:
    """By key; each that is as it was before is that very object."""
    now = {key_of(item): item for item in items}
    for key, item in now.items():
        old = before.get(key)
        if old is not None and old == item:
            now[key] = old
    return now


@dataclass(slots=True)
class _OfServices:
    """What the services say to all."""

    by_network: dict[str, list[Item]] = field(default_factory=dict)
    published: dict[str, Item] = field(default_factory=dict)


def _of_services(services: Iterable[Service]) -> _OfServices:
    found = _OfServices()
    for service in services:
        if service.pending_delete:
            continue
        for item in _services(service):
            found.by_network.setdefault(item.network_id, []).append(item)
        for port in service.endpoint.ports:
            if port.publish_mode is PublishMode.INGRESS and port.published_port:
                published = PublishedItem(
                    protocol=port.protocol,
                    published_port=port.published_port,
                    target_port=port.target_port,
                    service_id=service.id,
                    source=source_of(service.spec.labels, port),
                )
                found.published[key_of(published)] = published
    return found


def _is_template(driver: Driver | None) -> bool:
    return driver is not None and driver.name == TEMPLATE_DRIVER


def _endpoint(task: Task, node: Node, attachment: Attachment) -> EndpointItem | None:
    """A task of a node that is down keeps its address, for it may run there unseen, but no name: ``web.1`` is its successor."""
    if not attachment.addresses:
        return None
    ready = (
        task.status.state is TaskState.RUNNING
        and task.desired_state.rank <= TaskState.RUNNING.rank
        and node.status.state is NodeState.READY
    )
    return EndpointItem(
        network_id=attachment.network_id,
        task_id=task.id,
        service_id=task.service_id,
        names=(task_name(task), slot_name(task)) if node.status.state is not NodeState.DOWN else (),
        aliases=attachment.aliases,
        address=attachment.address,
        address6=attachment.address6,
        node_id=node.id,
        underlay=node.status.addr,
        ready=ready,
    )


def _guest_endpoint(guest: Guest, node: Node) -> EndpointItem:
    """A container that no service made: known by its own names, and by no service id."""
    return EndpointItem(
        network_id=guest.network_id,
        task_id=TaskId(guest.container_id),
        service_id=ServiceId(""),
        names=guest.names if node.status.state is not NodeState.DOWN else (),
        aliases=guest.aliases,
        address=_bare(guest.address),
        address6=_bare(guest.address6),
        node_id=node.id,
        underlay=node.status.addr,
        ready=node.status.state is NodeState.READY,
    )


def _with_key(endpoint: EndpointItem, network: Network, node: Node) -> EndpointItem:
    if not network.spec.is_encrypted:
        return endpoint
    return msgspec.structs.replace(endpoint, tunnel_key=node.description.tunnel_key)


def _services(service: Service) -> Iterable[ServiceItem]:
    mode = service.spec.endpoint_spec.mode if service.spec.endpoint_spec else EndpointMode.VIP
    vips, vips6 = (
        {v.network_id: _bare(v.addr) for v in service.endpoint.virtual_ips if is_ipv6(v.addr) is wanted}
        for wanted in (False, True)
    )
    for target in service.spec.all_networks:
        network_id = NetworkId(target.target)
        yield ServiceItem(
            network_id=network_id,
            service_id=service.id,
            name=service.spec.name,
            aliases=target.aliases,
            vip=vips.get(network_id, "") if mode is EndpointMode.VIP else "",
            vip6=vips6.get(network_id, "") if mode is EndpointMode.VIP else "",
        )


def _same(old: Item, new: Item) -> bool:
    if isinstance(old, TaskItem) and isinstance(new, TaskItem):
        # A task is immutable for its agent but for the wish; its own reports coming back are no news.
        return old.task.desired_state is new.task.desired_state
    return old == new


def difference(sent: Mapping[str, Item], wanted: Mapping[str, Item], *, applies_to: int) -> Assign | None:
    """The increment from ``sent`` to ``wanted``, or ``None`` when there is none."""
    items = tuple(
        item
        for key, item in wanted.items()
        if (old := sent.get(key)) is not item and (old is None or not _same(old, item))
    )
    removed = tuple(key for key in sent if key not in wanted)
    if not items and not removed:
        return None
    return Assign(applies_to=applies_to, results_in=applies_to + 1, items=items, removed=removed)
