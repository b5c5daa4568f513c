"""What deploying a stack would change, decided before anything is done: pure, so ``--dry-run`` is the same code.

A service whose spec is already as asked for is left alone, so that deploying twice never restarts a task.
"""

from __future__ import annotations

import dataclasses
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal

import msgspec

from fleet import errors
from fleet.api.render import VXLAN_OPTION
from fleet.cli.pinning import is_pin_of
from fleet.compose.convert import Stack
from fleet.model import wire
from fleet.model.autoscale import keeping_replicas
from fleet.model.network import NetworkSpec
from fleet.model.secret import ConfigSpec, SecretSpec
from fleet.model.service import DnsConfig, EndpointSpec, JobMode, Privileges, ServiceSpec

__all__ = ["Change", "Existing", "differences", "plan_stack", "replica_changes", "resolve_names", "spelled_out"]

Json = dict[str, Any]
DIFFERENCES_MAX: Final = 20
_VALUE_WIDTH: Final = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Existing:
    """What the cluster has under the stack's label, and secrets and configs under the names the stack uses.

    ``unchanged``: names of secrets that are known to have the content wanted.
    """

    networks: tuple[Json, ...] = ()
    secrets: tuple[Json, ...] = ()
    configs: tuple[Json, ...] = ()
    services: tuple[Json, ...] = ()
    unchanged: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One step. ``current`` is the object as the daemon gave it, for updates and removals; ``before`` a service's spec of then,
    comparable with ``spec``.
    """

    action: Literal["create", "update", "remove", "keep"]
    kind: Literal["network", "secret", "config", "service"]
    name: str
    spec: NetworkSpec | SecretSpec | ConfigSpec | ServiceSpec | None = None
    current: Json | None = None
    details: tuple[str, ...] = ()
    before: ServiceSpec | None = None


def plan_stack(stack: Stack, existing: Existing, *, prune: bool = False) -> list[Change]:
    """The steps in the order they must be done. Raises ``UserError`` for a change that cannot be made."""
    changes: list[Change] = []
    wanted = {spec.name for spec in stack.services}
    if prune:
        changes += [
            Change(action="remove", kind="service", name=item["Spec"]["Name"], current=item)
            for item in existing.services
            if item["Spec"]["Name"] not in wanted
        ]
    networks = {item["Name"]: item for item in existing.networks}
    for network in stack.networks:
        found = networks.get(network.name)
        if found is None:
            changes.append(Change(action="create", kind="network", name=network.name, spec=network))
        else:
            _check_network(network, found)
            details = tuple(differences(found.get("Labels") or {}, network.labels, "Labels"))
            changes.append(Change(action="keep", kind="network", name=network.name, current=found, details=details))
    secrets = {item["Spec"]["Name"]: item for item in existing.secrets}
    changes += [
        _plan_secret(secret, secrets.get(secret.name), is_same=secret.name in existing.unchanged)
        for secret in stack.secrets
    ]
    configs = {item["Spec"]["Name"]: item for item in existing.configs}
    changes += [_plan_config(config, configs.get(config.name)) for config in stack.configs]
    services = {item["Spec"]["Name"]: item for item in existing.services}
    changes += [_plan_service(spec, services.get(spec.name), networks=networks) for spec in stack.services]
    return changes


def _check_network(wanted: NetworkSpec, found: Json) -> None:
    pairs = (
        ("driver", wanted.driver or "overlay", found.get("Driver") or "overlay"),
        ("internal", wanted.internal, bool(found.get("Internal"))),
        ("attachable", wanted.attachable, bool(found.get("Attachable"))),
        ("enable_ipv6", bool(wanted.enable_ipv6), bool(found.get("EnableIPv6"))),
        ("driver_opts", wanted.options, _given_options(found)),
        *_ipam_pairs(wanted, found),
    )
    for what, new, old in pairs:
        if new != old:
            raise errors.UserError(
                f"network {wanted.name} exists with {what} {old}, the file says {new}; "
                "a network cannot be changed: give it another name, or remove the stack first"
            )


def _given_options(found: Json) -> Json:
    """Without the one that the cluster adds."""
    return {name: value for name, value in (found.get("Options") or {}).items() if name != VXLAN_OPTION}


def _ipam_pairs(wanted: NetworkSpec, found: Json) -> Iterable[tuple[str, Any, Any]]:
    """What the file says of addresses; what it leaves open the cluster has chosen."""
    has = (found.get("IPAM") or {}).get("Config") or []
    for config in wanted.ipam.config if wanted.ipam else ():
        # one of each family, in any order
        current: Json = next((each for each in has if (":" in each.get("Subnet", "")) is config.is_ipv6), {})
        for what, new, key in (
            ("subnet", config.subnet, "Subnet"),
            ("ip_range", config.ip_range, "IPRange"),
            ("gateway", config.gateway, "Gateway"),
            ("aux_addresses", config.auxiliary_addresses, "AuxiliaryAddresses"),
        ):
            old = current.get(key) or "(nothing)"
            if new and not _is_one(new, old):
                yield f"ipam.config {what}", new, old


def _is_one(new: Any, old: Any) -> bool:
    """Whether two texts are one address or subnet: IPv6 has many ways to write it, and the cluster shows one of them."""
    try:
        return new == old or ipaddress.ip_interface(new) == ipaddress.ip_interface(old)
    except ValueError:
        return False


def _plan_secret(wanted: SecretSpec, found: Json | None, *, is_same: bool) -> Change:
    """The data of a secret cannot be read back, so the daemon is asked to compare: an update with the same data."""
    if found is None:
        return Change(action="create", kind="secret", name=wanted.name, spec=wanted)
    if is_same and (found["Spec"].get("Labels") or {}) == wanted.labels:
        return Change(action="keep", kind="secret", name=wanted.name, current=found)
    return Change(action="update", kind="secret", name=wanted.name, spec=wanted, current=found)


def _plan_config(wanted: ConfigSpec, found: Json | None) -> Change:
    if found is None:
        return Change(action="create", kind="config", name=wanted.name, spec=wanted)
    current = wire.parse_builtins(_with_data(found["Spec"]), ConfigSpec, what=f"config {wanted.name}")
    if current.data != wanted.data:
        raise errors.UserError(
            f"config {wanted.name} exists with other content, and configs cannot be changed; "
            f"give the new content a new name (name: {wanted.name}_2) so that services move to it"
        )
    action: Literal["keep", "update"] = "keep" if current.labels == wanted.labels else "update"
    return Change(action=action, kind="config", name=wanted.name, spec=wanted, current=found)


def _with_data(spec: Json) -> Json:
    return {**spec, "Data": spec.get("Data") or ""}


def _plan_service(wanted: ServiceSpec, found: Json | None, *, networks: Mapping[str, Json]) -> Change:
    if found is None:
        return Change(action="create", kind="service", name=wanted.name, spec=wanted)
    current = comparable(wire.parse_builtins(found["Spec"], ServiceSpec, what=f"service {wanted.name}"))
    # Targets are ids in the cluster and names in the stack, until ``resolve_names``; ids of new networks do not exist.
    names = {str(item["Id"]): name for name, item in networks.items()}
    current = _with_counts(_rename_targets(current, names))
    merged = _with_counts(_carry_over(wanted, current))
    changed = tuple(differences(spelled_out(current), spelled_out(merged)))
    action: Literal["keep", "update"] = "update" if changed else "keep"
    return Change(
        action=action, kind="service", name=wanted.name, spec=merged, current=found, details=changed, before=current
    )


def comparable(spec: ServiceSpec) -> ServiceSpec:
    """Without what a daemon fills in and a file does not say; ids of secrets and configs go, their names stay."""
    container = spec.task_template.container_spec
    container = msgspec.structs.replace(
        container,
        isolation="",
        dns_config=None if container.dns_config == DnsConfig() else container.dns_config,
        privileges=None if container.privileges == Privileges() else container.privileges,
        secrets=tuple(msgspec.structs.replace(ref, secret_id="") for ref in container.secrets),
        configs=tuple(msgspec.structs.replace(ref, config_id="") for ref in container.configs),
    )
    template = msgspec.structs.replace(spec.task_template, container_spec=container, runtime="")
    if not template.networks and spec.networks:
        template = msgspec.structs.replace(template, networks=spec.networks)
    endpoint = spec.endpoint_spec or EndpointSpec()
    return msgspec.structs.replace(spec, task_template=template, networks=(), endpoint_spec=endpoint)


def _with_counts(spec: ServiceSpec) -> ServiceSpec:
    """A job with its numbers, which a file may leave to the cluster."""
    if spec.mode.replicated_job is None:
        return spec
    job = JobMode(max_concurrent=spec.concurrency, total_completions=spec.completions)
    return msgspec.structs.replace(spec, mode=msgspec.structs.replace(spec.mode, replicated_job=job))


def _rename_targets(spec: ServiceSpec, names: Mapping[str, str]) -> ServiceSpec:
    targets = tuple(
        msgspec.structs.replace(target, target=names.get(target.target, target.target))
        for target in spec.task_template.networks
    )
    targets = tuple(sorted(targets, key=lambda target: target.target))
    return msgspec.structs.replace(spec, task_template=msgspec.structs.replace(spec.task_template, networks=targets))


def _carry_over(wanted: ServiceSpec, current: ServiceSpec) -> ServiceSpec:
    """Keep the restart counter, the digest and platforms that were settled for an image the file still names the same, and the
    number of replicas that a policy for it has led to."""
    template = msgspec.structs.replace(wanted.task_template, force_update=current.task_template.force_update)
    image, pinned = template.container_spec.image, current.task_template.container_spec.image
    if image == pinned or is_pin_of(pinned, image):
        template = msgspec.structs.replace(
            template,
            container_spec=msgspec.structs.replace(template.container_spec, image=pinned),
            placement=msgspec.structs.replace(template.placement, platforms=current.task_template.placement.platforms),
        )
    return keeping_replicas(msgspec.structs.replace(wanted, task_template=template), current)


def resolve_names(
    spec: ServiceSpec, *, networks: Mapping[str, str], secrets: Mapping[str, str], configs: Mapping[str, str]
) -> ServiceSpec:
    """``spec`` with ids (name -> id) where the cluster wants them. Raises ``NotFoundError`` for a name without one."""

    def find(kind: str, ids: Mapping[str, str], name: str) -> str:
        if name not in ids:
            raise errors.NotFoundError(f"service {spec.name}: {kind} {name} not found")
        return ids[name]

    container = spec.task_template.container_spec
    container = msgspec.structs.replace(
        container,
        secrets=tuple(
            msgspec.structs.replace(ref, secret_id=find("secret", secrets, ref.secret_name))
            for ref in container.secrets
        ),
        configs=tuple(
            msgspec.structs.replace(ref, config_id=find("config", configs, ref.config_name))
            for ref in container.configs
        ),
    )
    targets = tuple(
        msgspec.structs.replace(target, target=networks.get(target.target, target.target))
        for target in spec.task_template.networks
    )
    template = msgspec.structs.replace(spec.task_template, container_spec=container, networks=targets)
    return msgspec.structs.replace(spec, task_template=template)


def replica_changes(change: Change, tasks: Iterable[Json]) -> tuple[str, ...]:
    """What becomes of each replica of a service, as sentences; ``tasks`` are those wanted now, with ``Hostname``."""
    from fleet.manager.control.services import makes_tasks_stale

    if change.kind != "service" or change.action == "keep":
        return ()
    found = sorted(tasks, key=lambda task: (task.get("Slot") or 0, task["Hostname"]))
    where = [
        f"{change.name}.{task.get('Slot') or task['Hostname']} on {task['Hostname'] or 'no node yet'}" for task in found
    ]
    if change.action == "remove":
        return tuple(f"{each}: stopped" for each in where)
    assert isinstance(change.spec, ServiceSpec), "a service is made from a service spec"
    wanted = change.spec
    if wanted.is_job:
        return ("runs as a job when it is deployed",) if change.current is None else ()
    if change.current is None:
        return ("one replica on each node",) if wanted.is_global else _created(change.name, 1, wanted.replicas)
    slots = len(where) if wanted.is_global else min(len(where), wanted.replicas)
    lines: list[str] = []
    if change.before is not None and makes_tasks_stale(change.before, comparable(wanted)):
        parallelism = (wanted.update_config.parallelism if wanted.update_config else 1) or slots
        lines += [f"{each}: replaced" for each in where[:slots]]
        lines += [f"({parallelism} at a time)"] if slots > parallelism else []
    if not wanted.is_global:
        surplus = len(where) - slots
        lines += [f"{surplus} replica{'s' if surplus > 1 else ''} stopped"] if surplus > 0 else []
        lines += _created(change.name, len(where) + 1, wanted.replicas)
    return tuple(lines)


def _created(name: str, first: int, last: int) -> tuple[str, ...]:
    if first > last:
        return ()
    return (f"{name}.{first}: created",) if first == last else (f"{name}.{first} to {name}.{last}: created",)


def spelled_out(value: Any) -> Any:
    """Builtins with every field, defaults too: msgspec leaves a default out only when it is the very same object."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(type(value))
        return {field.encode_name: spelled_out(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: spelled_out(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [spelled_out(item) for item in value]
    return value


def differences(old: Any, new: Any, path: str = "") -> Iterable[str]:
    """``TaskTemplate.ContainerSpec.Image: a -> b`` for each leaf that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differences(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))
    elif isinstance(old, dict | None) and isinstance(new, dict | None):
        yield from differences(old or {}, new or {}, path) if (old or new) else ()
    elif old != new:
        yield f"{path}: {_short(old)} -> {_short(new)}"


def _short(value: Any) -> str:
    import json

    text = "(nothing)" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_WIDTH else f"{text[: _VALUE_WIDTH - 1]}…"
