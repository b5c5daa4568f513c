"""Checks of a service spec against what else exists: networks, secrets, configs, ports; names become ids.

Called within ``Context.guarded``: what is found here holds until the service is committed with it, or it is looked at again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from fleet import errors
from fleet.model.network import Network
from fleet.model.secret import Config, Secret
from fleet.model.service import (
    ConfigReference,
    NetworkTarget,
    PortConfig,
    PublishMode,
    SecretReference,
    Service,
    ServiceSpec,
)
from fleet.store import Store, Table, Transaction

__all__ = ["LOCAL_NETWORKS", "Resolved", "check_ports", "resolve"]

LOCAL_NETWORKS: Final = frozenset({"host", "none", "bridge"})
"""Networks every host has by itself; a service names them as they are."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The spec with ids in place of names, and the objects it needs."""

    spec: ServiceSpec
    needs: tuple[Network | Secret | Config, ...]

    def require(self, tx: Transaction) -> Transaction:
        """Make the transaction fail if one of them changes or goes."""
        for item in self.needs:
            tx.require(item)
        return tx


def resolve(store: Store, spec: ServiceSpec) -> Resolved:
    """Raises ``NotFoundError`` (network), ``ForbiddenError`` (network not for services), ``UserError`` (secret, config)."""
    needs: dict[str, Network | Secret | Config] = {}

    def networks(targets: tuple[NetworkTarget, ...]) -> tuple[NetworkTarget, ...]:
        return tuple(_network(store, target, needs) for target in targets)

    template = spec.task_template
    container = msgspec.structs.replace(
        template.container_spec,
        secrets=tuple(_secret(store, reference, needs) for reference in template.container_spec.secrets),
        configs=tuple(_config(store, reference, needs) for reference in template.container_spec.configs),
    )
    template = msgspec.structs.replace(template, container_spec=container, networks=networks(template.networks))
    resolved = msgspec.structs.replace(spec, task_template=template, networks=networks(spec.networks))
    _check_targets(resolved)
    return Resolved(resolved, tuple(needs.values()))


def _network(store: Store, target: NetworkTarget, needs: dict[str, Network | Secret | Config]) -> NetworkTarget:
    if target.target in LOCAL_NETWORKS:
        if target.aliases:
            raise errors.UserError(f"network {target.target}: aliases need an overlay network")
        return target
    network = store.networks.find(target.target, "network")
    if network.spec.ingress:
        raise errors.ForbiddenError(
            f"service cannot be explicitly attached to the ingress network {network.spec.name}: publish a port instead"
        )
    needs[network.id] = network
    return msgspec.structs.replace(target, target=network.id)


def _check_targets(spec: ServiceSpec) -> None:
    targets = [target.target for target in spec.all_networks]
    double = next((target for target in targets if targets.count(target) > 1), None)
    if double is not None:
        raise errors.UserError(f"network {double} is given twice")
    local = [target for target in targets if target in LOCAL_NETWORKS]
    if local and len(targets) > 1:
        raise errors.UserError(f"network {local[0]} cannot be combined with others")


R = TypeVar("R", Secret, Config)


def _referred(table: Table[R], *, id_: str, name: str) -> R:
    """The object a reference means: by id, which the name must fit, or by name alone."""
    what = table.kind.value
    found = table.get(id_) if id_ else table.by_name(name)
    if found is None or (name and found.spec.name != name):
        raise errors.UserError(f"{what} not found: {name or id_}")
    return found


def _secret(store: Store, reference: SecretReference, needs: dict[str, Network | Secret | Config]) -> SecretReference:
    found = _referred(store.secrets, id_=reference.secret_id, name=reference.secret_name)
    needs[found.id] = found
    return msgspec.structs.replace(reference, secret_id=found.id, secret_name=found.spec.name)


def _config(store: Store, reference: ConfigReference, needs: dict[str, Network | Secret | Config]) -> ConfigReference:
    found = _referred(store.configs, id_=reference.config_id, name=reference.config_name)
    needs[found.id] = found
    return msgspec.structs.replace(reference, config_id=found.id, config_name=found.spec.name)


def check_ports(store: Store, spec: ServiceSpec, *, service_id: str = "") -> None:
    """A port published on the mesh is this service's on every node, so no other service may publish it in any mode
    (NET-07). Two services may publish one port in host mode: the scheduler keeps them apart.

    Raises ``UserError`` that names the other service.
    """
    mine = list(_published(spec.endpoint_spec.ports if spec.endpoint_spec else ()))
    if not mine:
        return
    for other in store.services.all():
        if other.id == service_id or other.pending_delete:
            continue
        for port in _ports_of(other):
            for wanted in mine:
                if (port.protocol, port.published_port) != (wanted.protocol, wanted.published_port):
                    continue
                if PublishMode.INGRESS in (port.publish_mode, wanted.publish_mode):
                    how = "an ingress port" if port.publish_mode is PublishMode.INGRESS else "a host-published port"
                    raise errors.UserError(
                        f"port '{port.published_port}' is already in use by service '{other.spec.name}' ({other.id}) as {how}"
                    )


def _published(ports: tuple[PortConfig, ...]) -> Iterator[PortConfig]:
    return (port for port in ports if port.published_port)


def _ports_of(service: Service) -> Iterator[PortConfig]:
    """What the service asks for and what the allocator gave it, which may be a port it did not name."""
    if service.spec.endpoint_spec is not None:
        yield from _published(service.spec.endpoint_spec.ports)
    yield from _published(service.endpoint.ports)
