"""Nodes: the hosts of the cluster.

``spec`` is the user's, ``description`` the agent's, ``status`` the dispatcher's, ``attachments`` the allocator's.
"""

from __future__ import annotations

import enum
from datetime import datetime

from fleet.model.common import GenericResource, Platform, TlsInfo, Version
from fleet.model.ids import NodeId
from fleet.model.task import Attachment
from fleet.model.wire import Value

__all__ = [
    "Availability",
    "EngineDescription",
    "EnginePlugin",
    "ManagerStatus",
    "Node",
    "NodeDescription",
    "NodeResources",
    "NodeRole",
    "NodeSpec",
    "NodeState",
    "NodeStatus",
    "Reachability",
]


class NodeRole(enum.StrEnum):
    WORKER = "worker"
    MANAGER = "manager"


class Availability(enum.StrEnum):
    ACTIVE = "active"
    PAUSE = "pause"
    DRAIN = "drain"


class NodeState(enum.StrEnum):
    """*disconnected*: the session is gone or beats are late (suspect); *down*: its tasks are replaced."""

    UNKNOWN = "unknown"
    DOWN = "down"
    READY = "ready"
    DISCONNECTED = "disconnected"


class Reachability(enum.StrEnum):
    UNKNOWN = "unknown"
    UNREACHABLE = "unreachable"
    REACHABLE = "reachable"


class NodeSpec(Value, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    role: NodeRole = NodeRole.WORKER
    availability: Availability = Availability.ACTIVE


class NodeResources(Value, frozen=True, kw_only=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] = ()


class EnginePlugin(Value, frozen=True, kw_only=True):
    type: str = ""
    name: str = ""


class EngineDescription(Value, frozen=True, kw_only=True):
    engine_version: str = ""
    labels: dict[str, str] = {}
    plugins: tuple[EnginePlugin, ...] = ()


class NodeDescription(Value, frozen=True, kw_only=True):
    hostname: str = ""
    platform: Platform = Platform()
    resources: NodeResources = NodeResources()
    engine: EngineDescription = EngineDescription()
    tls_info: TlsInfo = TlsInfo()
    tunnel_key: str = ""
    """Fleet's own: public key of the node's end of the tunnel for encrypted networks, in base64; empty where it can have none."""


class NodeStatus(Value, frozen=True, kw_only=True):
    """``addr`` is the node's address as others reach it (also the VXLAN underlay)."""

    state: NodeState = NodeState.UNKNOWN
    message: str = ""
    addr: str = ""


class ManagerStatus(Value, frozen=True, kw_only=True):
    """``addr`` is host:port of the manager's cluster listener; ``sealing_key`` the digest of the newest key for sealed values
    that it keeps on its disk, once there is more than the first."""

    leader: bool = False
    reachability: Reachability = Reachability.UNKNOWN
    addr: str = ""
    sealing_key: str = ""


class Node(Value, frozen=True, kw_only=True):
    id: NodeId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: NodeSpec = NodeSpec()
    description: NodeDescription = NodeDescription()
    status: NodeStatus = NodeStatus()
    manager_status: ManagerStatus | None = None
    # Below: fleet's own.
    attachments: tuple[Attachment, ...] = ()
    """The node's own address on the ingress network."""
    cluster_addr: str = ""
    """host:port of the node's cluster listener (image layers, logs)."""
    removed: bool = False
    """Kept as a tombstone so that its certificate stays refused (SEC-04)."""
    down_since: datetime | None = None
