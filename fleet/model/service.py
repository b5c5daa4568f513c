"""Services: what a user asks for. A ``ServiceSpec`` is the user's intent; the system never edits it.

Shapes and defaults: Docker Engine API ``ServiceSpec``/``TaskSpec`` (v1.47). Defaults that a body leaves out come from
``fleet.model.defaults``, not from the fields, so that what a user wrote is stored as written.
"""

from __future__ import annotations

import enum
from datetime import datetime
from typing import Final

import msgspec

from fleet.errors import UserError
from fleet.model.common import Driver, GenericResource, Platform, Version
from fleet.model.ids import LoginId, NetworkId, ServiceId
from fleet.model.wire import Value

__all__ = [
    "SCALINGS_KEPT",
    "AutoscaleStatus",
    "BindOptions",
    "ConfigReference",
    "ContainerSpec",
    "DnsConfig",
    "Endpoint",
    "EndpointMode",
    "EndpointSpec",
    "FileTarget",
    "HealthConfig",
    "JobMode",
    "JobStatus",
    "Limits",
    "Mount",
    "NetworkTarget",
    "Placement",
    "PlacementPreference",
    "PortConfig",
    "Privileges",
    "Protocol",
    "PublishMode",
    "ReplicatedMode",
    "Reservations",
    "Resources",
    "RestartCondition",
    "RestartPolicy",
    "Scaling",
    "SecretReference",
    "Service",
    "ServiceMode",
    "ServiceSpec",
    "SpreadOver",
    "TaskSpec",
    "TmpfsOptions",
    "USERNS_LABEL",
    "Ulimit",
    "UpdateConfig",
    "UpdateStatus",
    "VirtualIp",
    "VolumeOptions",
    "userns_mode",
]


class Protocol(enum.StrEnum):
    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class PublishMode(enum.StrEnum):
    INGRESS = "ingress"
    HOST = "host"


class EndpointMode(enum.StrEnum):
    VIP = "vip"
    DNSRR = "dnsrr"


class RestartCondition(enum.StrEnum):
    NONE = "none"
    ON_FAILURE = "on-failure"
    ANY = "any"


class BindOptions(Value, frozen=True, kw_only=True):
    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeOptions(Value, frozen=True, kw_only=True):
    no_copy: bool = False
    labels: dict[str, str] = {}
    driver_config: Driver | None = None
    subpath: str = ""


class TmpfsOptions(Value, frozen=True, kw_only=True):
    """``mode`` is octal permission bits as a number; ``options`` as Docker: pairs or single words."""

    size_bytes: int = 0
    mode: int = 0
    options: tuple[tuple[str, ...], ...] = ()


class Mount(Value, frozen=True, kw_only=True):
    """``type``: bind, volume, tmpfs (others are refused with a reason where the task would be made)."""

    type: str = "volume"
    source: str = ""
    target: str
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    tmpfs_options: TmpfsOptions | None = None


class HealthConfig(Value, frozen=True, kw_only=True):
    """``test``: () inherit, ("NONE",), ("CMD", ...), ("CMD-SHELL", text)."""

    test: tuple[str, ...] = ()
    interval_ns: int = 0
    timeout_ns: int = 0
    retries: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0


class DnsConfig(Value, frozen=True, kw_only=True):
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class FileTarget(Value, frozen=True, kw_only=True):
    """Where a secret or config appears; ``mode`` is permission bits as a number (0o444 = 292)."""

    name: str = ""
    uid: str = "0"
    gid: str = "0"
    mode: int = 0o444


class SecretReference(Value, frozen=True, kw_only=True):
    file: FileTarget | None = None
    secret_id: str = ""
    secret_name: str = ""


class ConfigReference(Value, frozen=True, kw_only=True):
    file: FileTarget | None = None
    runtime: dict[str, str] | None = None
    config_id: str = ""
    config_name: str = ""


class Ulimit(Value, frozen=True, kw_only=True):
    name: str
    soft: int = 0
    hard: int = 0


class Privileges(Value, frozen=True, kw_only=True):
    """Kept as the client sent it; what fleet honours is decided where the container is made."""

    no_new_privileges: bool = False
    seccomp: dict[str, str] | None = None
    app_armor: dict[str, str] | None = None

    @property
    def declines_apparmor(self) -> bool:
        """Whether the containers are to run under no AppArmor profile (Docker's mode ``disabled``)."""
        return (self.app_armor or {}).get("Mode") == "disabled"


USERNS_LABEL: Final = "fleet.userns"
"""Of a service's containers, for Docker's service spec has no word for it: ``host`` keeps the host's user ids, ``remap`` insists
on a user namespace; without it the node chooses."""


def userns_mode(labels: dict[str, str]) -> str:
    """What a service's containers say of their user namespace. Raises ``UserError``."""
    mode = labels.get(USERNS_LABEL, "")
    if mode not in ("", "host", "remap"):
        raise UserError(f"container label {USERNS_LABEL}={mode[:64]}: expected host or remap")
    return mode


class ContainerSpec(Value, frozen=True, kw_only=True):
    """``command`` replaces the image's ENTRYPOINT, ``args`` its CMD."""

    image: str = ""
    labels: dict[str, str] = {}
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    hostname: str = ""
    env: tuple[str, ...] = ()
    dir: str = ""
    user: str = ""
    groups: tuple[str, ...] = ()
    privileges: Privileges | None = None
    tty: bool = False
    open_stdin: bool = False
    read_only: bool = False
    mounts: tuple[Mount, ...] = ()
    stop_signal: str = ""
    stop_grace_period_ns: int | None = None
    healthcheck: HealthConfig | None = None
    hosts: tuple[str, ...] = ()
    dns_config: DnsConfig | None = None
    secrets: tuple[SecretReference, ...] = ()
    configs: tuple[ConfigReference, ...] = ()
    oom_score_adj: int = 0
    isolation: str = ""
    init: bool | None = None
    sysctls: dict[str, str] = {}
    capability_add: tuple[str, ...] = ()
    capability_drop: tuple[str, ...] = ()
    ulimits: tuple[Ulimit, ...] = ()


class Limits(Value, frozen=True, kw_only=True):
    """0 = unlimited."""

    nano_cpus: int = 0
    memory_bytes: int = 0
    pids: int = msgspec.field(default=0, name="Pids")


class Reservations(Value, frozen=True, kw_only=True):
    nano_cpus: int = 0
    memory_bytes: int = 0
    generic_resources: tuple[GenericResource, ...] = ()


class Resources(Value, frozen=True, kw_only=True):
    limits: Limits = Limits()
    reservations: Reservations = Reservations()
    swap_bytes: int | None = None
    memory_swappiness: int | None = None


class RestartPolicy(Value, frozen=True, kw_only=True):
    """``None`` means the default: any, 5 s, unlimited, unbounded (RST-01..06)."""

    condition: RestartCondition = RestartCondition.ANY
    delay_ns: int | None = None
    max_attempts: int = 0
    window_ns: int = 0


class SpreadOver(Value, frozen=True, kw_only=True):
    spread_descriptor: str


class PlacementPreference(Value, frozen=True, kw_only=True):
    spread: SpreadOver | None = None


class Placement(Value, frozen=True, kw_only=True):
    constraints: tuple[str, ...] = ()
    preferences: tuple[PlacementPreference, ...] = ()
    max_replicas: int = 0
    platforms: tuple[Platform, ...] = ()


class NetworkTarget(Value, frozen=True, kw_only=True):
    """``target`` is the network's id once stored; clients may send a name."""

    target: str = ""
    aliases: tuple[str, ...] = ()
    driver_opts: dict[str, str] = {}


class TaskSpec(Value, frozen=True, kw_only=True):
    container_spec: ContainerSpec = ContainerSpec()
    resources: Resources = Resources()
    restart_policy: RestartPolicy | None = None
    placement: Placement = Placement()
    networks: tuple[NetworkTarget, ...] = ()
    log_driver: Driver | None = None
    force_update: int = 0
    runtime: str = ""
    # Below: fleet's own; never taken from clients nor shown to them.
    registry_login: LoginId = LoginId("")
    """The ``Login`` its image is pulled with, if there is one."""


class ReplicatedMode(Value, frozen=True, kw_only=True):
    replicas: int | None = None


class GlobalMode(Value, frozen=True, kw_only=True):
    pass


class JobMode(Value, frozen=True, kw_only=True):
    max_concurrent: int | None = None
    total_completions: int | None = None


class ServiceMode(Value, frozen=True, kw_only=True):
    """Exactly one is set; none means replicated with one replica."""

    replicated: ReplicatedMode | None = None
    global_: GlobalMode | None = msgspec.field(default=None, name="Global")
    replicated_job: JobMode | None = None
    global_job: GlobalMode | None = None


class UpdateConfig(Value, frozen=True, kw_only=True):
    """``parallelism`` 0 = all at once; ``max_failure_ratio`` 0..1; ``progress_deadline_ns`` 0 = a slot's new task may take
    for ever until it runs, as with Swarm."""

    parallelism: int = 1
    delay_ns: int = 0
    failure_action: str = "pause"
    monitor_ns: int = 5_000_000_000
    max_failure_ratio: float = 0.0
    order: str = "stop-first"
    progress_deadline_ns: int = 0


class PortConfig(Value, frozen=True, kw_only=True):
    """``published_port`` 0 = let the allocator choose (30000-32767)."""

    name: str = ""
    protocol: Protocol = Protocol.TCP
    target_port: int = 0
    published_port: int = 0
    publish_mode: PublishMode = PublishMode.INGRESS


class EndpointSpec(Value, frozen=True, kw_only=True):
    mode: EndpointMode = EndpointMode.VIP
    ports: tuple[PortConfig, ...] = ()


class ServiceSpec(Value, frozen=True, kw_only=True):
    name: str = ""
    labels: dict[str, str] = {}
    task_template: TaskSpec = TaskSpec()
    mode: ServiceMode = ServiceMode()
    update_config: UpdateConfig | None = None
    rollback_config: UpdateConfig | None = None
    networks: tuple[NetworkTarget, ...] = ()
    endpoint_spec: EndpointSpec | None = None

    @property
    def is_global(self) -> bool:
        return self.mode.global_ is not None

    @property
    def is_job(self) -> bool:
        """Its tasks are to end; either kind of job."""
        return self.mode.replicated_job is not None or self.mode.global_job is not None

    @property
    def mode_name(self) -> str:
        """As Docker's command line calls it: replicated, global, replicated-job, global-job."""
        kind = "global" if self.is_global or self.mode.global_job is not None else "replicated"
        return f"{kind}-job" if self.is_job else kind

    @property
    def completions(self) -> int:
        """How many tasks of a replicated job are to end well; as many as may run at a time unless told otherwise."""
        job = self.mode.replicated_job
        if job is None:
            return 0
        return job.total_completions if job.total_completions is not None else (job.max_concurrent or 1)

    @property
    def concurrency(self) -> int:
        """How many tasks of a replicated job may be in work at a time; 0 in the spec is all of them (SVC-04)."""
        job = self.mode.replicated_job
        if job is None:
            return 0
        return self.completions if job.max_concurrent == 0 else (job.max_concurrent or 1)

    @property
    def replicas(self) -> int:
        """Desired number of tasks of a replicated service (default 1); 0 for other modes."""
        if self.is_global or self.is_job:
            return 0
        wanted = self.mode.replicated.replicas if self.mode.replicated else None
        return 1 if wanted is None else wanted

    @property
    def all_networks(self) -> tuple[NetworkTarget, ...]:
        """The networks of the task template, or the deprecated place at the top of the spec."""
        return self.task_template.networks or self.networks


class VirtualIp(Value, frozen=True, kw_only=True):
    """``addr`` is CIDR, such as ``10.0.1.2/24``; on a network with IPv6 a service has two, one of each family."""

    network_id: NetworkId
    addr: str = ""


class Endpoint(Value, frozen=True, kw_only=True):
    """What the allocator gave the service: its ports as really published and one VIP per network."""

    spec: EndpointSpec | None = None
    ports: tuple[PortConfig, ...] = ()
    virtual_ips: tuple[VirtualIp, ...] = ()


class UpdateStatus(Value, frozen=True, kw_only=True):
    state: str = ""
    started_at: datetime | None = None
    completed_at: datetime | None = None
    message: str = ""


class JobRun(Value, frozen=True, kw_only=True):
    """A run that a schedule began, or did not (``iteration`` 0). ``outcome``: running, succeeded, failed, skipped, missed."""

    scheduled: datetime
    iteration: int = 0
    started_at: datetime | None = None
    outcome: str
    reason: str = ""


RUNS_KEPT = 10


class JobStatus(Value, frozen=True, kw_only=True):
    """``scheduled``: the last instant of the service's schedule dealt with; ``runs``: what came of those, oldest first."""

    job_iteration: Version = Version()
    last_execution: datetime | None = None
    # Below: fleet's own.
    scheduled: datetime | None = None
    runs: tuple[JobRun, ...] = ()


class Scaling(Value, frozen=True, kw_only=True):
    """A number of replicas that the cluster chose, and why."""

    at: datetime
    before: int
    after: int
    reason: str


SCALINGS_KEPT = 10


class AutoscaleStatus(Value, frozen=True, kw_only=True):
    """What became of the service's policy for its number of replicas; written by the leader's autoscale loop alone.

    ``scalings``: the newest, oldest first. ``held``: why it is not scaled as it should be, empty when nothing stands in the way.
    """

    scalings: tuple[Scaling, ...] = ()
    held: str = ""
    held_since: datetime | None = None


class Service(Value, frozen=True, kw_only=True):
    """``spec_version`` grows with every update of the spec; tasks remember the one they came from."""

    id: ServiceId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: ServiceSpec
    previous_spec: ServiceSpec | None = None
    endpoint: Endpoint = Endpoint()
    update_status: UpdateStatus | None = None
    job_status: JobStatus | None = None
    # Below: fleet's own.
    autoscale: AutoscaleStatus | None = None
    spec_version: int = 1
    task_spec_version: int = 1
    """``spec_version`` of the last update that makes running tasks stale (UPD-01); written with the spec."""
    spec_base_revision: int = 0
    """The store's revision just before the spec was last written: whoever read the service after that has seen the spec.
    So an update that names an older version than the newest is stale only if the *spec* changed since."""
    request: str = ""
    """Id of the API request that wrote the spec last, or removed the service; for logs alone."""
    pending_delete: bool = False
    """The service was removed; kept until its tasks are gone and its addresses free."""

    @property
    def job_iteration(self) -> Version | None:
        """The run of the job that is wanted; None when it is no job."""
        if not self.spec.is_job:
            return None
        return self.job_status.job_iteration if self.job_status is not None else Version()
