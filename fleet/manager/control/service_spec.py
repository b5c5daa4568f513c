"""Checks of a service spec that need nothing but the spec (ERR-01, ERR-09, SVC-*).

The rules and most sentences are SwarmKit's (manager/controlapi/service.go), so scripts that look for them find them. What
Docker accepts and fleet cannot do is refused by name (``UnsupportedError``) instead of being silently ignored.
"""

from __future__ import annotations

import re
import signal
from typing import Final

import msgspec

from fleet import errors
from fleet.images.reference import parse_reference
from fleet.model import wire
from fleet.model.autoscale import check_autoscale
from fleet.model.common import MILLISECOND_NS
from fleet.model.names import service_name_fault
from fleet.model.publishing import check_sources
from fleet.model.schedule import parse_schedule
from fleet.model.service import (
    ContainerSpec,
    DnsConfig,
    EndpointMode,
    EndpointSpec,
    HealthConfig,
    Mount,
    PublishMode,
    Resources,
    RestartPolicy,
    ServiceMode,
    ServiceSpec,
    TaskSpec,
    UpdateConfig,
    userns_mode,
)
from fleet.orchestrator.moves import parse_mode
from fleet.scheduler.constraints import parse_constraints
from fleet.scheduler.wishes import parse_wishes

__all__ = ["REPLICAS_MAX", "SPEC_BYTES_MAX", "check_labels", "check_service_spec", "normal_spec"]

REPLICAS_MAX: Final = 100_000
SPEC_BYTES_MAX: Final = 256 * 1024
"""Each task keeps a copy of its template, and a service two specs."""

_LABEL_LENGTH_MAX: Final = 65_536
_CPU_MIN: Final = 1_000_000
_MEMORY_MIN: Final = 4 * 1024 * 1024
_MOUNT_TYPES: Final = ("bind", "volume", "tmpfs")
_UPDATE_ACTIONS: Final = ("pause", "continue", "rollback")
_ROLLBACK_ACTIONS: Final = ("pause", "continue")
_ORDERS: Final = ("stop-first", "start-first")
_ENV_NAME: Final = re.compile(r"[^=\0]+")
_SIGNALS: Final = frozenset(name.removeprefix("SIG") for name in signal.Signals.__members__)


def normal_spec(spec: ServiceSpec) -> ServiceSpec:
    """The spec in the one spelling that is stored: Docker's answers spell out defaults that mean nothing here
    (``Isolation: default``, ``Runtime: container``, an empty ``DNSConfig``), and clients send answers back. Without this,
    scaling would look like a new task template.
    """
    template = spec.task_template
    container = template.container_spec
    if container.isolation == "default":
        container = msgspec.structs.replace(container, isolation="")
    if container.dns_config == DnsConfig():
        container = msgspec.structs.replace(container, dns_config=None)
    runtime = "" if template.runtime == "container" else template.runtime
    deprecated = () if spec.networks == template.networks else spec.networks  # some clients say it in both places
    return msgspec.structs.replace(
        spec,
        task_template=msgspec.structs.replace(template, container_spec=container, runtime=runtime),
        networks=deprecated,
    )


def check_service_spec(spec: ServiceSpec) -> None:
    """Raises ``UserError`` or ``UnsupportedError`` with the first thing that is wrong, and where."""
    _check_name(spec.name)
    check_labels(spec.labels, what="service")
    parse_wishes(spec.labels, service_name=spec.name)
    parse_mode(spec.labels)
    check_sources(spec.labels)
    if parse_schedule(spec.labels) is not None and not spec.is_job:
        raise errors.UserError(
            f"service {spec.name} has a schedule and is {spec.mode_name}; only jobs have runs: "
            "use mode replicated-job or global-job"
        )
    userns_mode(spec.task_template.container_spec.labels)
    _check_mode(spec)
    check_autoscale(spec)
    _check_task(spec.task_template)
    _check_update(spec.update_config, what="UpdateConfig", actions=_UPDATE_ACTIONS)
    _check_update(spec.rollback_config, what="RollbackConfig", actions=_ROLLBACK_ACTIONS)
    if spec.endpoint_spec is not None:
        _check_endpoint(spec.endpoint_spec)
    if spec.task_template.networks and spec.networks:
        raise errors.UserError("TaskTemplate.Networks and the deprecated Networks differ: give them once")
    size = len(wire.encode(spec))
    if size > SPEC_BYTES_MAX:
        raise errors.TooLargeError(f"service spec of {size} bytes is larger than the limit of {SPEC_BYTES_MAX}")


def check_labels(labels: dict[str, str], *, what: str) -> None:
    """Keys must not be empty."""
    for key, value in labels.items():
        if not key.strip():
            raise errors.UserError(f"{what}: a label has an empty name")
        if len(key) + len(value) > _LABEL_LENGTH_MAX:
            raise errors.UserError(f"{what}: label {key[:64]} is longer than {_LABEL_LENGTH_MAX} characters")


def _check_name(name: str) -> None:
    if fault := service_name_fault(name):
        raise errors.UserError(fault)


def _check_job(spec: ServiceSpec) -> None:
    """A job is not updated in turns (ORC-08), and its numbers have bounds."""
    for word, config in (("update", spec.update_config), ("rollback", spec.rollback_config)):
        if config is not None:
            raise errors.UserError(f"{word} config is not allowed for a service in mode {spec.mode_name}")
    job = spec.mode.replicated_job
    for word, number in (
        ("TotalCompletions", job.total_completions if job else None),
        ("MaxConcurrent", job.max_concurrent if job else None),
    ):
        if number is not None and not 0 <= number <= REPLICAS_MAX:
            raise errors.UserError(f"{word} of a replicated job must be 0 to {REPLICAS_MAX}, not {number}")


def _check_mode(spec: ServiceSpec) -> None:
    mode: ServiceMode = spec.mode
    given = [
        value for value in (mode.replicated, mode.global_, mode.replicated_job, mode.global_job) if value is not None
    ]
    if len(given) > 1:
        raise errors.UserError("must specify only one service mode")
    if spec.is_job:
        _check_job(spec)
    if spec.replicas < 0:
        raise errors.UserError("Number of replicas must be non-negative")
    if spec.replicas > REPLICAS_MAX:
        raise errors.UserError(f"number of replicas must be at most {REPLICAS_MAX}")


# -- tasks


def _check_task(task: TaskSpec) -> None:
    if task.runtime:
        raise errors.UnsupportedError(f"task runtime {task.runtime!r} is not supported: tasks are containers")
    _check_container(task.container_spec)
    _check_resources(task.resources)
    if task.restart_policy is not None:
        _check_restart(task.restart_policy)
    parse_constraints(task.placement.constraints)
    if task.placement.max_replicas < 0:
        raise errors.UserError("Placement: MaxReplicas cannot be negative")
    for preference in task.placement.preferences:
        if preference.spread is None or not preference.spread.spread_descriptor:
            raise errors.UserError(
                "Placement: a preference needs Spread with a SpreadDescriptor, such as node.labels.zone"
            )
    for target in task.networks:
        if target.driver_opts:
            raise errors.UnsupportedError(f"network {target.target}: driver options per service are not supported")
    if task.force_update < 0:
        raise errors.UserError("ForceUpdate cannot be negative")


def _check_resources(resources: Resources) -> None:
    for word, part in (("limits", resources.limits), ("reservations", resources.reservations)):
        if part.nano_cpus and part.nano_cpus < _CPU_MIN:
            raise errors.UserError(
                f"invalid cpu value {part.nano_cpus / 1e9:g} in {word}: Must be at least {_CPU_MIN / 1e9:g}"
            )
        if part.memory_bytes and part.memory_bytes < _MEMORY_MIN:
            raise errors.UserError(f"invalid memory value {part.memory_bytes} in {word}: Must be at least 4MiB")
    if resources.limits.pids < 0:
        raise errors.UserError("invalid pids limit: cannot be negative (0 is unlimited)")
    if resources.swap_bytes is not None and resources.swap_bytes < -1:
        raise errors.UserError("invalid SwapBytes: must be -1 (unlimited), 0 or positive")
    if resources.memory_swappiness not in (None, -1):
        raise errors.UnsupportedError("Resources.MemorySwappiness is not supported")
    for generic in resources.reservations.generic_resources:
        if (generic.named is None) == (generic.discrete is None):
            raise errors.UserError("a generic resource is either named or discrete")
        if generic.discrete is not None and generic.discrete.value <= 0:
            raise errors.UserError(f"generic resource {generic.discrete.kind}: the number must be positive")


def _check_restart(policy: RestartPolicy) -> None:
    if policy.delay_ns is not None and policy.delay_ns < 0:
        raise errors.UserError("TaskSpec: restart-delay cannot be negative")
    if policy.max_attempts < 0:
        raise errors.UserError("TaskSpec: restart-max-attempts cannot be negative")
    if policy.window_ns < 0:
        raise errors.UserError("TaskSpec: restart-window cannot be negative")


def _check_container(spec: ContainerSpec) -> None:
    if not spec.image:
        raise errors.UserError("ContainerSpec: image reference must be provided")
    try:
        parse_reference(spec.image)
    except errors.UserError as cause:
        raise errors.UserError(f'ContainerSpec: "{spec.image}" is not a valid repository/tag: {cause}') from cause
    check_labels(spec.labels, what="ContainerSpec")
    for variable in spec.env:
        if not _ENV_NAME.match(variable) or "\0" in variable:
            raise errors.UserError(f"ContainerSpec: environment variable {variable!r} has no name")
    _check_mounts(spec.mounts)
    if spec.stop_grace_period_ns is not None and spec.stop_grace_period_ns < 0:
        raise errors.UserError("ContainerSpec: StopGracePeriod cannot be negative")
    if spec.stop_signal and not _is_signal(spec.stop_signal):
        raise errors.UserError(f"ContainerSpec: {spec.stop_signal!r} is not a signal")
    if spec.healthcheck is not None:
        _check_health(spec.healthcheck)
    for host in spec.hosts:
        if len(host.split()) < 2:
            raise errors.UserError(f"ContainerSpec: host entry {host!r} must be an address and at least one name")
    if not -1000 <= spec.oom_score_adj <= 1000:
        raise errors.UserError("ContainerSpec: OomScoreAdj must be between -1000 and 1000")
    for limit in spec.ulimits:
        if limit.hard != -1 and limit.soft > limit.hard:
            raise errors.UserError(f"ulimit {limit.name}: soft limit {limit.soft} is above the hard limit {limit.hard}")
    _check_files(spec)
    _refuse_unsupported(spec)


def _check_files(spec: ContainerSpec) -> None:
    taken: dict[tuple[str, str], str] = {}
    references = [
        ("secret", ref.secret_name, ref.file.name if ref.file else "", ref.file.mode if ref.file else 0)
        for ref in spec.secrets
    ] + [
        ("config", ref.config_name, ref.file.name if ref.file else "", ref.file.mode if ref.file else 0)
        for ref in spec.configs
    ]
    for kind, name, target, mode in references:
        place = (kind, target or name)
        if not place[1]:
            continue
        if place in taken:
            raise errors.UserError(
                f"{kind} references '{taken[place]}' and '{name}' have a conflicting target: '{place[1]}'"
            )
        taken[place] = name
        if not 0 <= mode <= 0o7777:
            raise errors.UserError(f"{kind} {name}: mode {mode:o} is not permission bits")
        if ".." in place[1].split("/"):
            raise errors.UserError(f"{kind} {name}: target {place[1]!r} must not contain '..'")


def _refuse_unsupported(spec: ContainerSpec) -> None:
    if spec.isolation:
        raise errors.UnsupportedError(f"ContainerSpec: Isolation {spec.isolation!r} is for Windows")
    if spec.privileges is not None:
        seccomp, apparmor = spec.privileges.seccomp, spec.privileges.app_armor
        for word, block, known in (("Seccomp", seccomp, ("default",)), ("AppArmor", apparmor, ("default", "disabled"))):
            if block and block.get("Mode", "default") not in known:
                raise errors.UnsupportedError(
                    f"ContainerSpec: Privileges.{word} is not supported: the default profile applies"
                )
    for config in spec.configs:
        if config.runtime is not None:
            raise errors.UnsupportedError(
                f"config {config.config_name}: Runtime targets (credential specs) are for Windows"
            )


def _is_signal(text: str) -> bool:
    if text.isdigit():
        return 0 < int(text) <= signal.SIGRTMAX
    name = text.upper().removeprefix("SIG")
    return name in _SIGNALS or re.fullmatch(r"RTM(IN(\+\d+)?|AX(-\d+)?)", name) is not None


def _check_health(health: HealthConfig) -> None:
    durations = {
        "Interval": health.interval_ns,
        "Timeout": health.timeout_ns,
        "StartPeriod": health.start_period_ns,
        "StartInterval": health.start_interval_ns,
    }
    for word, duration_ns in durations.items():
        if duration_ns < 0 or 0 < duration_ns < MILLISECOND_NS:
            raise errors.UserError(f"ContainerSpec: {word} in Healthcheck cannot be less than 1ms (0 inherits it)")
    if health.retries < 0:
        raise errors.UserError("ContainerSpec: Retries in Healthcheck cannot be negative")
    if health.test and health.test[0] not in ("", "NONE", "CMD", "CMD-SHELL"):
        raise errors.UserError(
            f"ContainerSpec: Test in Healthcheck must begin with NONE, CMD or CMD-SHELL, not {health.test[0]!r}"
        )


def _check_mounts(mounts: tuple[Mount, ...]) -> None:
    targets: set[str] = set()
    for mount in mounts:
        if mount.type not in _MOUNT_TYPES:
            known = ", ".join(_MOUNT_TYPES)
            raise errors.UnsupportedError(
                f"mount {mount.target}: type {mount.type!r} is not supported: use one of {known}"
            )
        if not mount.target.startswith("/"):
            raise errors.UserError(f"invalid mount target {mount.target!r}: mount path must be absolute")
        target = mount.target.rstrip("/")
        if not target:
            raise errors.UserError(f"invalid mount target {mount.target!r}: destination can't be '/'")
        if target in targets:
            raise errors.UserError(f"ContainerSpec: duplicate mount point: {mount.target}")
        targets.add(target)
        _check_mount_type(mount)


def _check_mount_type(mount: Mount) -> None:
    options = {"bind": mount.bind_options, "volume": mount.volume_options, "tmpfs": mount.tmpfs_options}
    for word, value in options.items():
        if value is not None and word != mount.type and value != type(value)():
            raise errors.UserError(f"mount {mount.target}: {word.capitalize()}Options do not go with type {mount.type}")
    if mount.type == "bind" and not mount.source.startswith("/"):
        raise errors.UserError(f"invalid mount source {mount.source!r} for {mount.target}: mount path must be absolute")
    if mount.type == "tmpfs" and mount.source:
        raise errors.UserError(f"mount {mount.target}: a tmpfs has no source")
    if mount.tmpfs_options is not None and mount.tmpfs_options.size_bytes < 0:
        raise errors.UserError(f"mount {mount.target}: the size of a tmpfs cannot be negative")


# -- updates and endpoint


def _check_update(config: UpdateConfig | None, *, what: str, actions: tuple[str, ...]) -> None:
    if config is None:
        return
    checks: tuple[tuple[bool, str], ...] = (
        (config.parallelism < 0, "parallelism cannot be negative (0 is all at once)"),
        (config.delay_ns < 0, "delay cannot be negative"),
        (config.monitor_ns < 0, "monitor cannot be negative"),
        (config.progress_deadline_ns < 0, "progress deadline cannot be negative (0 is none)"),
        (not 0 <= config.max_failure_ratio <= 1, "max failure ratio cannot be less than 0 or bigger than 1"),
        (config.failure_action not in actions, f"failure action must be one of {', '.join(actions)}"),
        (config.order not in _ORDERS, f"order must be one of {', '.join(_ORDERS)}"),
    )
    for is_wrong, sentence in checks:
        if is_wrong:
            raise errors.UserError(f"{what}: {sentence}")


def _check_endpoint(endpoint: EndpointSpec) -> None:
    seen: set[tuple[str, int]] = set()
    for port in endpoint.ports:
        if not 0 < port.target_port <= 65535:
            raise errors.UserError(f"EndpointSpec: target port {port.target_port} is not between 1 and 65535")
        if not 0 <= port.published_port <= 65535:
            raise errors.UserError(f"EndpointSpec: published port {port.published_port} is not between 0 and 65535")
        if endpoint.mode is EndpointMode.DNSRR and port.publish_mode is PublishMode.INGRESS:
            raise errors.UserError("EndpointSpec: port published with ingress mode can't be used with dnsrr mode")
        if not port.published_port:
            continue
        key = (port.protocol.value, port.published_port)
        if key in seen:
            raise errors.UserError(f"EndpointSpec: duplicate published ports provided: {port.published_port}/{key[0]}")
        seen.add(key)
