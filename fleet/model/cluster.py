"""The cluster object: one a store, named ``default``."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from fleet.model.common import SECOND_NS, Driver, TlsInfo, Version
from fleet.model.ids import ClusterId
from fleet.model.wire import Value

__all__ = [
    "DEFAULT_ADDRESS_POOL",
    "DEFAULT_CERT_EXPIRY_NS",
    "DEFAULT_DATA_PATH_PORT",
    "DEFAULT_HEARTBEAT_NS",
    "ROOT_AUTHORITY",
    "SEALING_AUTHORITY",
    "STATE_AUTHORITY",
    "Authority",
    "CaConfig",
    "Cluster",
    "DispatcherConfig",
    "EncryptionConfig",
    "ExternalCa",
    "Guard",
    "JoinTokens",
    "OrchestrationConfig",
    "RaftConfig",
    "Rebalance",
    "RootRotation",
    "SealingKey",
    "SwarmSpec",
    "TaskDefaults",
]

ROOT_AUTHORITY: Final = "root"
STATE_AUTHORITY: Final = "state"
SEALING_AUTHORITY: Final = "sealing"
DEFAULT_HEARTBEAT_NS: Final = 1 * SECOND_NS
"""fleet beats every second (Swarm: 5 s) because a beat is one small frame; *down* follows after 3 of them."""
DEFAULT_CERT_EXPIRY_NS: Final = 90 * 24 * 3600 * SECOND_NS
DEFAULT_DATA_PATH_PORT: Final = 4789
DEFAULT_ADDRESS_POOL: Final = ("10.0.0.0/8",)


class OrchestrationConfig(Value, frozen=True, kw_only=True):
    task_history_retention_limit: int = 5


class RaftConfig(Value, frozen=True, kw_only=True):
    snapshot_interval: int = 10_000
    keep_old_snapshots: int = 0
    log_entries_for_slow_followers: int = 500
    election_tick: int = 10
    heartbeat_tick: int = 1


class DispatcherConfig(Value, frozen=True, kw_only=True):
    heartbeat_period_ns: int = 0


class ExternalCa(Value, frozen=True, kw_only=True):
    protocol: str = ""
    url: str = ""
    options: dict[str, str] = {}
    ca_cert: str = ""


class CaConfig(Value, frozen=True, kw_only=True):
    node_cert_expiry_ns: int = 0
    external_cas: tuple[ExternalCa, ...] = ()
    signing_ca_cert: str = ""
    signing_ca_key: str = ""
    force_rotate: int = 0


class EncryptionConfig(Value, frozen=True, kw_only=True):
    auto_lock_managers: bool = False


class TaskDefaults(Value, frozen=True, kw_only=True):
    log_driver: Driver | None = None


class SwarmSpec(Value, frozen=True, kw_only=True):
    name: str = "default"
    labels: dict[str, str] = {}
    orchestration: OrchestrationConfig = OrchestrationConfig()
    raft: RaftConfig = RaftConfig()
    dispatcher: DispatcherConfig = DispatcherConfig()
    ca_config: CaConfig = CaConfig()
    task_defaults: TaskDefaults = TaskDefaults()
    encryption_config: EncryptionConfig = EncryptionConfig()


class JoinTokens(Value, frozen=True, kw_only=True):
    worker: str = ""
    manager: str = ""


class Rebalance(Value, frozen=True, kw_only=True):
    """What a person asked for last: tasks to move until there is nothing to gain. ``outcome`` is how it came to its end."""

    requested_at: datetime
    finished_at: datetime | None = None
    outcome: str = ""


class Cluster(Value, frozen=True, kw_only=True):
    id: ClusterId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: SwarmSpec = SwarmSpec()
    tls_info: TlsInfo = TlsInfo()
    root_rotation_in_progress: bool = False
    data_path_port: int = DEFAULT_DATA_PATH_PORT
    default_addr_pool: tuple[str, ...] = DEFAULT_ADDRESS_POOL
    subnet_size: int = 24
    join_tokens: JoinTokens = JoinTokens()
    sealing_key_digest: str = ""
    """Names the key that the state is sealed with at rest; empty while it is the first one."""
    sealing_key_rotated_at: datetime | None = None
    sealing_key_rotation_in_progress: bool = False
    unlock_key: str = ""
    """What managers' keys on disk are locked with; empty while they are not."""
    rebalance: Rebalance | None = None


class RootRotation(Value, frozen=True, kw_only=True):
    """The root on its way in, PEM. First every node is told to trust it besides the old one; when all do it is *signing*,
    and every node asks for a certificate of it; when all have one it becomes the root."""

    certificate_pem: str
    key_pem: str = msgspec.field(name="KeyPEM")
    is_signing: bool = False

    def __repr__(self) -> str:
        return f"RootRotation(<root key>, is_signing={self.is_signing})"


class SealingKey(Value, frozen=True, kw_only=True):
    """Which key values are sealed with at rest (its digest; empty: the first there was), and the one on its way in, base64.
    Managers keep that too, then it is *sealing*, and when nothing is sealed otherwise it is the key."""

    digest: str = ""
    next_digest: str = ""
    next_key: str = ""
    is_sealing: bool = False

    @property
    def present(self) -> str:
        """The digest of the key to seal with now."""
        return self.next_digest if self.is_sealing else self.digest

    def __repr__(self) -> str:
        return (
            f"SealingKey(<key>, digest={self.digest!r}, next_digest={self.next_digest!r}, is_sealing={self.is_sealing})"
        )


class Guard(Value, frozen=True, kw_only=True):
    """Written in the same transaction by all who make or break references between objects, on whichever manager: of two
    that did not see each other one is refused, and looks again."""

    id: str = "references"
    version: Version = Version()
    count: int = 0


class Authority(Value, frozen=True, kw_only=True):
    """The key pair of a root, PEM; kept apart from the cluster object so that no read of that one can show it.

    ``root``: of the nodes' certificates. ``state``: of the managers' at the state engine, which no node's certificate opens.
    ``sealing``: no key pair, but the key of what is sealed at rest; once there, never removed.
    """

    id: str = ROOT_AUTHORITY
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    certificate_pem: str
    key_pem: str = msgspec.field(name="KeyPEM")
    rotation: RootRotation | None = None
    sealing: SealingKey | None = None

    def __repr__(self) -> str:
        return "Authority(<root key>)"
