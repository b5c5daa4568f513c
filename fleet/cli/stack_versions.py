"""New content for a stack's secret or config: the object cannot be changed, so the next version of it is made.

The first is called ``STACK_key`` as ever, the next ``STACK_key_2`` and so on, each labelled with the name of the first. Services
move to the version whose content the files have; what no service could go back to any more is removed. Only names that the files
leave to fleet are handled so: one given with ``name:`` is its owner's to change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from fleet.api.client import EngineClient, EngineError
from fleet.model import wire
from fleet.model.secret import ConfigSpec, SecretSpec

if TYPE_CHECKING:
    from fleet.compose.convert import Stack

__all__ = ["VERSION_LABEL", "Versions", "settle_versions", "unused_versions"]

Json = dict[str, Any]
S = TypeVar("S", SecretSpec, ConfigSpec)

VERSION_LABEL: Final = "fleet.stack.version-of"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """``stack`` with the names that hold the wanted content; ``unchanged`` are those of secrets that exist with it."""

    stack: Stack
    unchanged: frozenset[str]


def settle_versions(
    client: EngineClient, stack: Stack, *, secrets: Iterable[Json], configs: Iterable[Json], asks: bool = True
) -> Versions:
    """Which version each secret and config of the files is; ``secrets`` and ``configs`` are the stack's in the cluster.

    The content of a secret cannot be read, so the daemon is asked whether an update with the wanted content would change it;
    unless ``asks``, the newest version is taken to be the same.
    """
    unchanged: set[str] = set()

    def has_config(found: Json, wanted: ConfigSpec) -> bool:
        spec = {**found["Spec"], "Data": found["Spec"].get("Data") or ""}
        return wire.parse_builtins(spec, ConfigSpec, what=f"config {wanted.name}").data == wanted.data

    def has_secret(found: Json, wanted: SecretSpec) -> bool:
        if wanted.driver is not None or found["Spec"].get("Driver"):
            return True  # whoever gives the content sees to it
        if not asks:
            return True
        same = msgspec.structs.replace(
            wanted, name=found["Spec"]["Name"], labels=found["Spec"].get("Labels") or {}, templating=None
        )
        body = {**found["Spec"], **wire.to_builtins(same)}
        try:
            client.post(f"/secrets/{found['ID']}/update", body, version=found["Version"]["Index"])
        except EngineError as cause:
            if cause.status != 400:
                raise
            return False
        unchanged.add(same.name)
        return True

    new_secrets = tuple(_settled(each, list(secrets), prefix=stack.name, has=has_secret) for each in stack.secrets)
    new_configs = tuple(_settled(each, list(configs), prefix=stack.name, has=has_config) for each in stack.configs)
    moved_secrets = {old.name: new.name for old, new in zip(stack.secrets, new_secrets, strict=True)}
    moved_configs = {old.name: new.name for old, new in zip(stack.configs, new_configs, strict=True)}
    services = []
    for service in stack.services:
        container = service.task_template.container_spec
        container = msgspec.structs.replace(
            container,
            secrets=tuple(
                msgspec.structs.replace(ref, secret_name=moved_secrets.get(ref.secret_name, ref.secret_name))
                for ref in container.secrets
            ),
            configs=tuple(
                msgspec.structs.replace(ref, config_name=moved_configs.get(ref.config_name, ref.config_name))
                for ref in container.configs
            ),
        )
        template = msgspec.structs.replace(service.task_template, container_spec=container)
        services.append(msgspec.structs.replace(service, task_template=template))
    settled = dataclasses.replace(stack, secrets=new_secrets, configs=new_configs, services=tuple(services))
    return Versions(stack=settled, unchanged=frozenset(unchanged))


def _settled(wanted: S, existing: list[Json], *, prefix: str, has: Callable[[Json, S], bool]) -> S:
    if not wanted.name.startswith(f"{prefix}_"):
        return wanted
    versions = {_number(item, wanted.name): item for item in existing}
    versions.pop(0, None)
    for _, item in sorted(versions.items(), reverse=True):
        if has(item, wanted):
            name = str(item["Spec"]["Name"])
            break
    else:
        name = f"{wanted.name}_{max(versions) + 1}" if versions else wanted.name
    labels = {**wanted.labels, VERSION_LABEL: wanted.name} if name != wanted.name else wanted.labels
    return msgspec.structs.replace(wanted, name=name, labels=labels)


def _number(item: Json, first: str) -> int:
    """Which version of ``first`` the object is; 0 for none."""
    spec = item["Spec"]
    name = str(spec["Name"])
    if name == first:
        return 1
    number = name.removeprefix(f"{first}_")
    is_ours = (spec.get("Labels") or {}).get(VERSION_LABEL) == first and number.isascii() and number.isdigit()
    return int(number[:9]) if is_ours and name != number else 0


def unused_versions(
    objects: Iterable[Json], services: Iterable[Json], *, noun: str, wanted: Mapping[str, str]
) -> list[Json]:
    """Of a stack's secrets (``noun`` ``Secret``) or configs those that another version has followed and no service has, nor had
    before its last update. ``wanted``: name of the first version -> of the one that the files want.
    """
    used = {
        ref[f"{noun}Name"]
        for service in services
        for spec in (service.get("Spec"), service.get("PreviousSpec"))
        for ref in ((spec or {}).get("TaskTemplate", {}).get("ContainerSpec") or {}).get(f"{noun}s") or ()
    }
    return [
        item
        for item in objects
        for first, present in wanted.items()
        if _number(item, first) and item["Spec"]["Name"] != present and item["Spec"]["Name"] not in used
    ]
