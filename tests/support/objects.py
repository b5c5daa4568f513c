"""Small objects with sensible values, for tests that do not care about the rest."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fleet.model.ids import ConfigId, NetworkId, NodeId, SecretId, ServiceId, TaskId
from fleet.model.network import Network, NetworkSpec
from fleet.model.node import Node, NodeDescription, NodeState, NodeStatus
from fleet.model.secret import Config, ConfigSpec, Secret, SecretSpec
from fleet.model.service import ContainerSpec, Service, ServiceSpec, TaskSpec
from fleet.model.task import Task, TaskState, TaskStatus

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def make_service(name: str = "web", *, id_: str = "", spec: ServiceSpec | None = None, **fields: Any) -> Service:
    spec = spec or ServiceSpec(name=name, task_template=TaskSpec(container_spec=ContainerSpec(image="nginx:1")))
    return Service(id=ServiceId(id_ or f"service-{name}"), created_at=NOW, updated_at=NOW, spec=spec, **fields)


def make_task(
    id_: str = "task1",
    *,
    service_id: str = "service-web",
    slot: int = 1,
    node_id: str = "",
    state: TaskState = TaskState.NEW,
    **fields: Any,
) -> Task:
    fields.setdefault("spec", TaskSpec(container_spec=ContainerSpec(image="nginx:1")))
    fields.setdefault("service_name", "web")
    return Task(
        id=TaskId(id_),
        created_at=NOW,
        updated_at=NOW,
        service_id=ServiceId(service_id),
        slot=slot,
        node_id=NodeId(node_id),
        status=TaskStatus(timestamp=NOW, state=state),
        **fields,
    )


def make_node(hostname: str = "n1", *, id_: str = "", state: NodeState = NodeState.READY, **fields: Any) -> Node:
    return Node(
        id=NodeId(id_ or f"node-{hostname}"),
        created_at=NOW,
        updated_at=NOW,
        description=NodeDescription(hostname=hostname),
        status=NodeStatus(state=state),
        **fields,
    )


def make_network(name: str = "net", *, id_: str = "", **spec: Any) -> Network:
    return Network(
        id=NetworkId(id_ or f"network-{name}"),
        created_at=NOW,
        updated_at=NOW,
        spec=NetworkSpec(name=name, driver="overlay", scope="swarm", **spec),
    )


def make_secret(name: str = "s", *, id_: str = "", data: bytes = b"x", **spec: Any) -> Secret:
    return Secret(
        id=SecretId(id_ or f"secret-{name}"),
        created_at=NOW,
        updated_at=NOW,
        spec=SecretSpec(name=name, data=data, **spec),
    )


def make_config(name: str = "c", *, id_: str = "", data: bytes = b"x", **spec: Any) -> Config:
    return Config(
        id=ConfigId(id_ or f"config-{name}"),
        created_at=NOW,
        updated_at=NOW,
        spec=ConfigSpec(name=name, data=data, **spec),
    )
