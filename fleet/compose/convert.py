"""A merged document -> what the stack consists of: networks, secrets, configs and services, named and labelled.

Names are ``STACK_key`` unless the file gives a ``name`` or calls the object external. Services refer to networks,
secrets and configs by name; ids are filled in by whoever deploys, because only the cluster knows them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from fleet import errors
from fleet.compose.document import Node
from fleet.compose.order import Dependency, dependencies, in_order
from fleet.compose.reading import string_map
from fleet.compose.service import ServiceConverter
from fleet.model.common import Driver
from fleet.model.names import data_name_fault, network_name_fault, service_name_fault
from fleet.model.network import Ipam, IpamConfig, NetworkSpec
from fleet.model.secret import ConfigSpec, SecretSpec
from fleet.model.service import ServiceSpec

__all__ = ["IMAGE_LABEL", "NAMESPACE_LABEL", "Sources", "Stack", "convert"]

NAMESPACE_LABEL: Final = "com.docker.stack.namespace"
IMAGE_LABEL: Final = "com.docker.stack.image"
DEFAULT_NETWORK: Final = "default"

SECRET_MAX_BYTES: Final = 500 * 1024
CONFIG_MAX_BYTES: Final = 1000 * 1024


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What the outside gives: variables, the directory relative paths start from, and a way to read files.

    ``read_file`` raises ``OSError``; ``size_max`` is the most bytes it needs to return.
    """

    environment: Mapping[str, str]
    directory: str
    read_file: Callable[[str, int], bytes]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """What to deploy. ``external_*`` are names that must exist already."""

    name: str
    networks: tuple[NetworkSpec, ...] = ()
    secrets: tuple[SecretSpec, ...] = ()
    configs: tuple[ConfigSpec, ...] = ()
    services: tuple[ServiceSpec, ...] = ()
    external_networks: tuple[str, ...] = ()
    external_secrets: tuple[str, ...] = ()
    external_configs: tuple[str, ...] = ()
    depends_on: Mapping[str, tuple[Dependency, ...]] = dataclasses.field(default_factory=dict)
    """By full names: what a service waits for. ``services`` are in an order in which each comes after those it depends on."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Named:
    """A top-level definition: its full name and whether it exists outside the stack."""

    name: str
    external: bool
    node: Node


def convert(document: Node, *, stack: str, sources: Sources) -> Stack:
    """The stack ``document`` describes. Raises ``UserError`` with the place for every value that cannot be meant."""
    top = document.mapping()
    networks = _definitions(top.get("networks"), stack)
    secrets = _definitions(top.get("secrets"), stack)
    configs = _definitions(top.get("configs"), stack)
    volumes = _definitions(top.get("volumes"), stack)
    services_node = top.get("services")
    if services_node is None or not services_node.mapping():
        document.fail("the file has no services; expected 'services:' with at least one")
    services = services_node.mapping()
    _check_names(stack, services, networks=networks, secrets=secrets, configs=configs)

    used: set[str] = set()
    specs: list[ServiceSpec] = []
    for key, node in services.items():
        converter = ServiceConverter(
            key=key,
            node=node,
            stack=stack,
            environment=sources.environment,
            directory=sources.directory,
            read_file=sources.read_file,
            network_names={name: found.name for name, found in networks.items()},
            secret_names={name: found.name for name, found in secrets.items()},
            config_names={name: found.name for name, found in configs.items()},
            volumes={name: (found.name, found.external, found.node) for name, found in volumes.items()},
        )
        specs.append(converter.spec())
        used.update(converter.networks_used)
    found_dependencies = dependencies(services)
    place = {f"{stack}_{key}": number for number, key in enumerate(in_order(found_dependencies))}
    specs.sort(key=lambda spec: place[spec.name])
    depends_on = {
        f"{stack}_{key}": tuple(dataclasses.replace(each, service=f"{stack}_{each.service}") for each in needed)
        for key, needed in found_dependencies.items()
        if needed
    }
    if DEFAULT_NETWORK in used and DEFAULT_NETWORK not in networks:
        networks[DEFAULT_NETWORK] = _Named(
            f"{stack}_{DEFAULT_NETWORK}", False, dataclasses.replace(services_node, kind="null", entries={})
        )
    for key in used:
        if key not in networks:
            raise errors.InvariantError(f"network {key} was used and is not defined")
    return Stack(
        name=stack,
        networks=tuple(_network(networks[k], stack) for k in sorted(used) if not networks[k].external),
        secrets=tuple(_secret(found, stack, sources) for found in secrets.values() if not found.external),
        configs=tuple(_config(found, stack, sources) for found in configs.values() if not found.external),
        services=tuple(specs),
        depends_on=depends_on,
        external_networks=tuple(networks[k].name for k in sorted(used) if networks[k].external),
        external_secrets=tuple(found.name for found in secrets.values() if found.external),
        external_configs=tuple(found.name for found in configs.values() if found.external),
    )


def _check_names(
    stack: str,
    services: Mapping[str, Node],
    *,
    networks: Mapping[str, _Named],
    secrets: Mapping[str, _Named],
    configs: Mapping[str, _Named],
) -> None:
    """Raises ``UserError`` with the place of the first name that the cluster would not take."""
    named = [(f"{stack}_{key}", node, service_name_fault) for key, node in services.items()]
    named += [(found.name, found.node, data_name_fault) for found in (*secrets.values(), *configs.values())]
    named += [(found.name, found.node, network_name_fault) for found in networks.values()]
    for name, node, fault_of in named:
        if fault := fault_of(name):
            place = node.key_mark or node.mark
            raise errors.UserError(f"{place}: {node.path}: its full name is {name[:80]!r}: {fault}")


def _definitions(node: Node | None, stack: str) -> dict[str, _Named]:
    return {key: _definition(key, child, stack) for key, child in node.mapping().items()} if node else {}


def _definition(key: str, node: Node, stack: str) -> _Named:
    fields = node.mapping()
    name = fields["name"].string() if "name" in fields else ""
    external = fields.get("external")
    if external is None or (external.kind != "mapping" and not external.boolean()):
        return _Named(name or f"{stack}_{key}", False, node)
    if external.kind == "mapping":  # the older "external: {name: x}"
        old = external.entries.get("name")
        return _Named(name or (old.string() if old else key), True, node)
    return _Named(name or key, True, node)


def _network(found: _Named, stack: str) -> NetworkSpec:
    fields = found.node.mapping()
    return NetworkSpec(
        name=found.name,
        driver=fields["driver"].string() if "driver" in fields else "overlay",
        internal="internal" in fields and fields["internal"].boolean(),
        attachable="attachable" in fields and fields["attachable"].boolean(),
        enable_ipv6=True if "enable_ipv6" in fields and fields["enable_ipv6"].boolean() else None,
        enable_ipv4=False if "enable_ipv4" in fields and not fields["enable_ipv4"].boolean() else None,
        options=string_map(fields.get("driver_opts")),
        labels={**string_map(fields.get("labels")), NAMESPACE_LABEL: stack},
        ipam=_ipam(fields.get("ipam")),
    )


def _ipam(node: Node | None) -> Ipam | None:
    if node is None:
        return None
    fields = node.mapping()
    configs = []
    for item in fields["config"].sequence() if "config" in fields else ():
        entry = item.mapping()
        configs.append(
            IpamConfig(
                subnet=entry["subnet"].string() if "subnet" in entry else "",
                ip_range=entry["ip_range"].string() if "ip_range" in entry else "",
                gateway=entry["gateway"].string() if "gateway" in entry else "",
                auxiliary_addresses=string_map(entry.get("aux_addresses")),
            )
        )
    return Ipam(
        driver=fields["driver"].string() if "driver" in fields else "default",
        options=string_map(fields.get("options")),
        config=tuple(configs),
    )


def _templating(fields: Mapping[str, Node]) -> Driver | None:
    return Driver(name=fields["template_driver"].string()) if "template_driver" in fields else None


def _secret(found: _Named, stack: str, sources: Sources) -> SecretSpec:
    fields = found.node.mapping()
    labels = {**string_map(fields.get("labels")), NAMESPACE_LABEL: stack}
    if "driver" in fields:
        driver = Driver(name=fields["driver"].string(), options=string_map(fields.get("driver_opts")))
        return SecretSpec(name=found.name, labels=labels, driver=driver, templating=_templating(fields))
    data = _content(found.node, sources, size_max=SECRET_MAX_BYTES, what="secret")
    return SecretSpec(name=found.name, labels=labels, data=data, templating=_templating(fields))


def _config(found: _Named, stack: str, sources: Sources) -> ConfigSpec:
    fields = found.node.mapping()
    labels = {**string_map(fields.get("labels")), NAMESPACE_LABEL: stack}
    data = _content(found.node, sources, size_max=CONFIG_MAX_BYTES, what="config")
    return ConfigSpec(name=found.name, labels=labels, data=data, templating=_templating(fields))


def _content(node: Node, sources: Sources, *, size_max: int, what: str) -> bytes:
    fields = node.mapping()
    given = [key for key in ("file", "environment", "content") if key in fields]
    if len(given) != 1:
        node.fail(f"a {what} needs exactly one of file, environment, external{', content' if what == 'config' else ''}")
    source = fields[given[0]]
    match given[0]:
        case "file":
            data = _read(source, source.string(), sources=sources, size_max=size_max)
        case "environment":
            value = sources.environment.get(source.string())
            if value is None:
                source.fail(f"the environment variable {source.string()} is not set")
            data = value.encode()
        case _:
            data = source.scalar().encode()
    if len(data) > size_max:
        source.fail(f"a {what} has at most {size_max} bytes, this has {len(data)}")
    if not data and what == "secret":
        source.fail("a secret must not be empty")
    return data


def _read(node: Node, path: str, *, sources: Sources, size_max: int) -> bytes:
    """The file ``path`` relative to the stack's directory; errors name the place in the Compose file."""
    try:
        return sources.read_file(path, size_max)
    except OSError as cause:
        raise errors.UserError(f"{node.mark}: {node.path}: cannot read {path}: {cause.strerror or cause}") from cause
