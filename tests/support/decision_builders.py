"""Nodes, services and tasks for tests of decisions: everything has a default, and ids can be read."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from fleet.model.common import DiscreteResource, GenericResource, Platform
from fleet.model.ids import NodeId, ServiceId, TaskId
from fleet.model.node import (
    Availability,
    EngineDescription,
    EnginePlugin,
    Node,
    NodeDescription,
    NodeResources,
    NodeRole,
    NodeSpec,
    NodeState,
    NodeStatus,
)
from fleet.model.service import (
    ContainerSpec,
    GlobalMode,
    Placement,
    PlacementPreference,
    PortConfig,
    PublishMode,
    ReplicatedMode,
    Reservations,
    Resources,
    RestartPolicy,
    Service,
    ServiceMode,
    ServiceSpec,
    SpreadOver,
    TaskSpec,
    UpdateConfig,
)
from fleet.model.task import Task, TaskState, TaskStatus

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)

_numbers = itertools.count(1)


def a_node(
    name: str = "",
    *,
    labels: Mapping[str, str] | None = None,
    engine_labels: Mapping[str, str] | None = None,
    state: NodeState = NodeState.READY,
    availability: Availability = Availability.ACTIVE,
    role: NodeRole = NodeRole.WORKER,
    cpus: float = 4,
    memory_bytes: int = 8 << 30,
    addr: str = "10.9.0.1",
    architecture: str = "x86_64",
    plugins: Iterable[tuple[str, str]] = (),
    gpus: int = 0,
    removed: bool = False,
) -> Node:
    node_name = name or f"node{next(_numbers)}"
    generic = (GenericResource(discrete=DiscreteResource(kind="gpu", value=gpus)),) if gpus else ()
    return Node(
        id=NodeId(node_name),
        created_at=NOW,
        updated_at=NOW,
        spec=NodeSpec(labels=dict(labels or {}), availability=availability, role=role),
        description=NodeDescription(
            hostname=node_name,
            platform=Platform(architecture=architecture, os="linux"),
            resources=NodeResources(nano_cpus=int(cpus * 1e9), memory_bytes=memory_bytes, generic_resources=generic),
            engine=EngineDescription(
                labels=dict(engine_labels or {}), plugins=tuple(EnginePlugin(type=t, name=n) for t, n in plugins)
            ),
        ),
        status=NodeStatus(state=state, addr=addr),
        removed=removed,
    )


def a_task_spec(
    *,
    image: str = "app:1",
    constraints: Iterable[str] = (),
    spread: Iterable[str] = (),
    max_replicas: int = 0,
    cpus: float = 0,
    memory_bytes: int = 0,
    gpus: int = 0,
    restart: RestartPolicy | None = None,
    **more: Any,
) -> TaskSpec:
    generic = (GenericResource(discrete=DiscreteResource(kind="gpu", value=gpus)),) if gpus else ()
    return TaskSpec(
        container_spec=ContainerSpec(image=image),
        resources=Resources(
            reservations=Reservations(nano_cpus=int(cpus * 1e9), memory_bytes=memory_bytes, generic_resources=generic)
        ),
        placement=Placement(
            constraints=tuple(constraints),
            preferences=tuple(PlacementPreference(spread=SpreadOver(spread_descriptor=s)) for s in spread),
            max_replicas=max_replicas,
        ),
        restart_policy=restart,
        **more,
    )


def a_service(
    name: str = "web",
    *,
    replicas: int = 1,
    is_global: bool = False,
    spec: TaskSpec | None = None,
    update: UpdateConfig | None = None,
    rollback: UpdateConfig | None = None,
    version: int = 1,
    **more: Any,
) -> Service:
    mode = ServiceMode(global_=GlobalMode()) if is_global else ServiceMode(replicated=ReplicatedMode(replicas=replicas))
    return Service(
        id=ServiceId(name),
        created_at=NOW,
        updated_at=NOW,
        spec=ServiceSpec(
            name=name,
            task_template=spec or a_task_spec(),
            mode=mode,
            update_config=update,
            rollback_config=rollback,
        ),
        spec_version=version,
        task_spec_version=version,
        **more,
    )


def a_task(
    service: str = "web",
    *,
    slot: int = 1,
    node: str = "",
    state: TaskState = TaskState.PENDING,
    desired: TaskState = TaskState.RUNNING,
    spec: TaskSpec | None = None,
    version: int = 1,
    at: datetime = NOW,
    task_id: str = "",
    host_port: int = 0,
    **more: Any,
) -> Task:
    ports = (PortConfig(target_port=80, published_port=host_port, publish_mode=PublishMode.HOST),) if host_port else ()
    return Task(
        id=TaskId(task_id or f"task{next(_numbers)}"),
        created_at=at,
        updated_at=at,
        service_id=ServiceId(service),
        service_name=service,
        slot=slot,
        node_id=NodeId(node),
        spec=spec or a_task_spec(),
        status=TaskStatus(timestamp=at, state=state),
        desired_state=desired,
        spec_version=version,
        ports=ports,
        **more,
    )
