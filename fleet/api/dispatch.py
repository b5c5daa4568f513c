"""The dispatcher's protocol: what an agent and a manager say to each other over one mutual-TLS WebSocket.

Each binary frame is one message, MessagePack of a tagged struct. The agent opens with ``Hello`` and gets ``Welcome``; then
the manager sends one complete ``Assign`` and numbered increments, the agent ``Report``s and ``Beat``s.

* **Assignments are a set of items by key.** A complete message replaces the set; an increment names the number it applies
  to and is refused by an agent that is elsewhere (it reconnects and gets a complete one). So a lost, doubled or reordered
  frame can not leave the two sides with different sets.
* **Items are what a node must know, nothing more**: its tasks; the networks those are on; every endpoint and service of
  these networks; published ports; secrets, configs and registry logins of its own tasks.
* **Usage is asked for**: of hosts now and then, of tasks only where their number depends on it or somebody looks; it is
  lost when nobody listens.
* **Reports repeat until acknowledged**: after every (re)connection the agent reports the status of all its tasks, and a
  ``Reported`` comes only after the store made them durable.
"""

from __future__ import annotations

from typing import Final

import msgspec

from fleet import errors
from fleet.model.ids import ConfigId, LoginId, NetworkId, NodeId, SecretId, ServiceId, TaskId
from fleet.model.network import Network
from fleet.model.node import NodeDescription, NodeRole
from fleet.model.publishing import ClientSource
from fleet.model.service import Protocol
from fleet.model.task import Task, TaskStatus

__all__ = [
    "FRAME_LIMIT",
    "PATH",
    "USAGE_MAX",
    "AgentMessage",
    "Assign",
    "Beat",
    "BeatReply",
    "ConfigItem",
    "Describe",
    "EndpointItem",
    "Hello",
    "HostUsage",
    "Item",
    "LoginItem",
    "ManagerMessage",
    "Measure",
    "NetworkItem",
    "NodeItem",
    "PublishedItem",
    "Redirect",
    "Report",
    "Reported",
    "SecretItem",
    "ServiceItem",
    "TaskItem",
    "TaskReport",
    "TaskUsage",
    "Trust",
    "Usage",
    "Welcome",
    "decode_agent",
    "decode_manager",
    "encode",
    "key_of",
]

PATH: Final = "/cluster/v1/session"

FRAME_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of one frame: 10,000 tasks with their networks' endpoints take about 15 MB."""


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True):
    pass


# Items -------------------------------------------------------------------------------------------------------------


class TaskItem(_Message, frozen=True, kw_only=True):
    """A task of this node. Only ``task.desired_state`` ever changes between two assignments of one task."""

    task: Task


class NetworkItem(_Message, frozen=True, kw_only=True):
    """A network this node has tasks on, or the ingress network."""

    network: Network
    vxlan_port: int
    node_address: str = ""
    """This node's own address on it, without prefix; ingress only."""
    node_address6: str = ""


class NodeItem(_Message, frozen=True, kw_only=True):
    """Another node's place on the ingress network: ``address`` without prefix, ``underlay`` its VXLAN end."""

    network_id: NetworkId
    node_id: NodeId
    underlay: str
    address: str
    address6: str = ""


class EndpointItem(_Message, frozen=True, kw_only=True):
    """A task's address on a network, wherever it runs. ``ready`` tasks get traffic."""

    network_id: NetworkId
    task_id: TaskId
    service_id: ServiceId
    names: tuple[str, ...]
    aliases: tuple[str, ...]
    address: str
    node_id: NodeId
    underlay: str
    ready: bool
    address6: str = ""
    tunnel_key: str = ""
    """On an encrypted network: public key of its node's end of the tunnel; empty while that has said none."""


class ServiceItem(_Message, frozen=True, kw_only=True):
    """A service on a network; ``vip`` without prefix, empty for dnsrr."""

    network_id: NetworkId
    service_id: ServiceId
    name: str
    aliases: tuple[str, ...]
    vip: str
    vip6: str = ""


class PublishedItem(_Message, frozen=True, kw_only=True):
    """An ingress port: open on every node, leading to the service's ready tasks."""

    protocol: Protocol
    published_port: int
    target_port: int
    service_id: ServiceId
    source: ClientSource = "node"


class SecretItem(_Message, frozen=True, kw_only=True):
    """A secret that a task of this node uses. Lives in memory only on the agent's side."""

    secret_id: SecretId
    data: bytes
    templated: bool = False
    """The data has placeholders to be filled in for each task."""
    driven: bool = False
    """There is no data: a driver beside the managers gives it for each task (``/cluster/v1/secrets/ID/value``)."""

    def __repr__(self) -> str:
        return f"SecretItem({self.secret_id}, <{len(self.data)} bytes>)"


class ConfigItem(_Message, frozen=True, kw_only=True):
    """A config that a task of this node uses."""

    config_id: ConfigId
    data: bytes
    templated: bool = False


class LoginItem(_Message, frozen=True, kw_only=True):
    """The registry login that a task of this node pulls its image with. Lives in memory only on the agent's side."""

    login_id: LoginId
    header: str

    def __repr__(self) -> str:
        return f"LoginItem({self.login_id}, <{len(self.header)} characters>)"


Item = (
    TaskItem | NetworkItem | NodeItem | EndpointItem | ServiceItem | PublishedItem | SecretItem | ConfigItem | LoginItem
)


def key_of(item: Item) -> str:
    """The item's identity within a node's assignment set."""
    match item:
        case TaskItem():
            return f"task/{item.task.id}"
        case NetworkItem():
            return f"network/{item.network.id}"
        case NodeItem():
            return f"node/{item.network_id}/{item.node_id}"
        case EndpointItem():
            return f"endpoint/{item.network_id}/{item.task_id}"
        case ServiceItem():
            return f"service/{item.network_id}/{item.service_id}"
        case PublishedItem():
            return f"published/{item.protocol.value}/{item.published_port}"
        case SecretItem():
            return f"secret/{item.secret_id}"
        case ConfigItem():
            return f"config/{item.config_id}"
        case LoginItem():
            return f"login/{item.login_id}"


# From the agent ----------------------------------------------------------------------------------------------------


class Hello(_Message, frozen=True, kw_only=True):
    """Opens a session. The node's identity is its certificate's, not this message's.

    ``address`` is how others reach this node (underlay and published ports); ``cluster_port`` its cluster listener;
    ``images`` what peers may fetch from it: references and manifest digests.
    """

    description: NodeDescription
    address: str
    cluster_port: int
    images: tuple[str, ...] = ()


class Describe(_Message, frozen=True, kw_only=True):
    """The description or the images changed."""

    description: NodeDescription
    images: tuple[str, ...] = ()


class TaskReport(_Message, frozen=True, kw_only=True):
    task_id: TaskId
    status: TaskStatus


class Report(_Message, frozen=True, kw_only=True):
    """Statuses, newest per task; answered by ``Reported`` with the same number once durable."""

    number: int
    tasks: tuple[TaskReport, ...]


class Applied(_Message, frozen=True, kw_only=True):
    """The host's names and balancing are those of assignment set ``number``, which asked for this (``Assign.confirm``)."""

    number: int


class TaskUsage(msgspec.Struct, frozen=True, array_like=True):
    """What a task's container has used: CPU time since it started, and memory now without page cache that can be dropped."""

    task_id: TaskId
    cpu_ns: int
    memory_bytes: int


USAGE_MAX: Final = 2_000
"""Tasks in one ``Usage``: about 100 KiB."""


class HostUsage(msgspec.Struct, frozen=True, array_like=True):
    """What a host has used: time its processors were busy since it started, memory that could not be given to others now; and
    the same of all its containers, without page cache that can be dropped."""

    cpu_ns: int
    memory_bytes: int
    containers_cpu_ns: int
    containers_memory_bytes: int


class Usage(_Message, frozen=True, kw_only=True):
    """Answers ``Measure`` again and again; never acknowledged nor said twice, since the next one is newer. ``at_ns``: of the
    node's own clock that only goes forward."""

    at_ns: int
    tasks: tuple[TaskUsage, ...] = ()
    host: HostUsage | None = None


class Beat(_Message, frozen=True, kw_only=True):
    """The agent lives. Any other message counts as one."""


# From the manager --------------------------------------------------------------------------------------------------


class Welcome(_Message, frozen=True, kw_only=True):
    """The session is on. ``beat_period_s`` is how often to beat; ``managers`` are cluster addresses to fall back to."""

    session_id: str
    node_id: NodeId
    beat_period_s: float
    managers: tuple[str, ...]


class Assign(_Message, frozen=True, kw_only=True):
    """``complete``: the set is exactly ``items``. Otherwise: applies to set ``applies_to``, put ``items``, drop ``removed``.

    ``confirm``: say ``Applied`` once it is in the kernel; nobody waits for it for ever.
    """

    complete: bool = False
    applies_to: int = 0
    results_in: int
    items: tuple[Item, ...] = ()
    removed: tuple[str, ...] = ()
    confirm: bool = False


class Reported(_Message, frozen=True, kw_only=True):
    number: int


class BeatReply(_Message, frozen=True, kw_only=True):
    """The manager lives too."""

    beat_period_s: float


class Trust(_Message, frozen=True, kw_only=True):
    """Whom to believe: said after ``Welcome`` and whenever it changes.

    ``roots_pem``: the root certificates to trust, two of them while the root is being rotated. ``issuer_key``: public key
    (base64 of DER) of the root that should have issued the node's certificate; a node with another asks for a new one.
    ``role``: what the node's certificate should name; with another it asks for a new one as well. ``removed``: nodes whose
    certificates are good and yet worth nothing any more. ``managers``: cluster addresses, the leader's first. ``users``: whoever
    shows a certificate with such a name to the API is that user, and no admin.
    """

    roots_pem: str
    issuer_key: str
    role: NodeRole = NodeRole.WORKER
    removed: tuple[NodeId, ...] = ()
    managers: tuple[str, ...] = ()
    users: tuple[str, ...] = ()


class Measure(_Message, frozen=True, kw_only=True):
    """Say every ``period_s`` what the running tasks of these services use, or ``every`` one, and the ``host``; nothing ends it.
    Holds until the session ends. An older agent knows of services alone."""

    services: tuple[ServiceId, ...] = ()
    period_s: float = 10.0
    host: bool = False
    every: bool = False

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.services or self.host or self.every)


class Redirect(_Message, frozen=True, kw_only=True):
    """Instead of ``Welcome``: this manager does not lead; ``leader`` does, if it is known."""

    leader: str = ""
    managers: tuple[str, ...] = ()


AgentMessage = Hello | Describe | Report | Applied | Usage | Beat
ManagerMessage = Welcome | Redirect | Assign | Reported | BeatReply | Trust | Measure

_encoder = msgspec.msgpack.Encoder()
_agent_decoder: msgspec.msgpack.Decoder[AgentMessage] = msgspec.msgpack.Decoder(AgentMessage)
_manager_decoder: msgspec.msgpack.Decoder[ManagerMessage] = msgspec.msgpack.Decoder(ManagerMessage)


def encode(message: AgentMessage | ManagerMessage) -> bytes:
    """One frame."""
    return _encoder.encode(message)


def decode_agent(frame: bytes) -> AgentMessage:
    """A frame from an agent. Raises ``UserError`` when it is not one."""
    try:
        return _agent_decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise errors.UserError(f"frame from agent: {cause}") from cause


def decode_manager(frame: bytes) -> ManagerMessage:
    """A frame from a manager. Raises ``UserError`` when it is not one."""
    try:
        return _manager_decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError) as cause:
        raise errors.UserError(f"frame from manager: {cause}") from cause
