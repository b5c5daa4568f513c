"""Whom a manager asks for the number that a service is scaled by: what services of the cluster publish, and what an administrator
allowed (``fleet.model.prometheus_access``).

A published port counts while a task stands behind it: then the kernel leads there, and to no program of the host's own that has
the same port. Ingress ports do on every node, host ports on the node of the task. Addresses of overlay networks do not count:
who may create a network chooses its subnet, and where no task is attached the kernel would send to whoever else has it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from fleet import errors
from fleet.model.ids import NodeId
from fleet.model.node import Node
from fleet.model.prometheus_access import Address, AllowedHosts, explain_never, parse_allowed
from fleet.model.service import PortConfig, Protocol, PublishMode, Service
from fleet.model.task import Task, TaskState
from fleet.store import Store

__all__ = ["PrometheusTargets"]


class PrometheusTargets:
    """Reads the store anew for each question."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def explain_refusal(self, host: str, address: Address, port: int) -> str:
        """Why ``address``, which ``host`` was resolved to, is not asked; empty when it is."""
        if never := explain_never(address):
            return f"{address} is {never}: it is never asked"
        if self._allowed().covers(host, address):
            return ""
        how = f"an administrator can allow it: fleet swarm update --prometheus-allow {host}"
        mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
        if (mapped or address).is_loopback:
            return (
                f"{address} is loopback, the managers' own; give a node's address and a port that a service publishes, or "
                f"{how.replace(host, str(mapped or address))}"
            )
        if self._is_published(mapped or address, port):
            return ""
        return f"no running service publishes port {port} at {address}; {how}"

    def _allowed(self) -> AllowedHosts:
        for cluster in self._store.clusters.all():
            try:
                return parse_allowed(cluster.spec.labels)
            except errors.UserError:  # came past the API
                break
        return AllowedHosts()

    def _is_published(self, address: Address, port: int) -> bool:
        nodes = {node.id for node in self._store.nodes.all() if not node.removed and address in set(_addresses(node))}
        return bool(nodes) and any(self._leads(service, port, nodes) for service in self._store.services.all())

    def _leads(self, service: Service, port: int, nodes: set[NodeId]) -> bool:
        published = service.endpoint.ports
        is_ingress = any(_is(each, port) and each.publish_mode is PublishMode.INGRESS for each in published)
        if not is_ingress and all(each.publish_mode is PublishMode.INGRESS for each in published):
            return False
        tasks = (task for task in self._store.tasks.by_service(service.id) if _runs(task))
        return any(is_ingress or (task.node_id in nodes and _binds(task, port)) for task in tasks)


def _runs(task: Task) -> bool:
    return task.status.state is TaskState.RUNNING and task.desired_outcome is TaskState.RUNNING


def _binds(task: Task, port: int) -> bool:
    bound = task.status.port_status.ports if task.status.port_status is not None else ()
    return any(_is(each, port) for each in bound)


def _is(config: PortConfig, port: int) -> bool:
    return config.published_port == port and config.protocol is Protocol.TCP


def _addresses(node: Node) -> Iterator[Address]:
    """Where others reach it."""
    for text in (node.status.addr, node.cluster_addr.rpartition(":")[0].strip("[]")):
        try:
            yield ipaddress.ip_address(text)
        except ValueError:
            continue
