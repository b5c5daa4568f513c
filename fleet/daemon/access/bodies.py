"""What may stand in a body: of operators without host access, and of those whose grant has a scope.

Bodies are read with the very types and parser that the routes read them with, from the same bytes, so that nothing can mean one
thing here and another there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec
from starlette.datastructures import QueryParams

from fleet import errors
from fleet.agent.http.attach_routes import ExecBody
from fleet.agent.http.container_body import CreateBody
from fleet.agent.http.volume_routes import VolumeBody
from fleet.daemon.access.host_access import named_volumes, wishes_of_container, wishes_of_service
from fleet.daemon.access.objects import Found, Objects
from fleet.daemon.access.principal import Principal
from fleet.daemon.access.table import Object, Reach, Row
from fleet.manager.control.service_spec import normal_spec
from fleet.model.access import Scope
from fleet.model.network import NetworkSpec
from fleet.model.secret import ConfigSpec, SecretSpec
from fleet.model.service import Service, ServiceSpec
from fleet.model.wire import parse_json
from fleet.scheduler.wishes import priority_of

__all__ = ["Bodies", "needs_body"]

_RESERVED = "com.docker.swarm."


def needs_body(row: Row, principal: Principal) -> bool:
    """Whether this request can be judged by its body alone."""
    if principal.is_admin:
        return False
    if row.reach in (Reach.CREATE, Reach.UPDATE):
        return bool(principal.scope) or row.about in (Object.SERVICE, Object.CONTAINER, Object.VOLUME)
    return row.path == "/containers/{name}/exec" and not principal.reaches_hosts


class Bodies:
    """Judges bodies; what it returns is the body to go on with."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def judge(self, principal: Principal, row: Row, body: bytes, *, target: Found | None, query: QueryParams) -> bytes:
        """``target``: the object that the path names. Raises ``ForbiddenError``, ``NotFoundError``, ``UserError``."""
        match row.about:
            case Object.SERVICE:
                self._service(principal, body, target=target, query=query)
            case Object.CONTAINER if row.reach is Reach.CREATE:
                self._container(principal, body)
            case Object.CONTAINER:
                self._exec(body)
            case Object.VOLUME:
                self._volume(principal, body)
            case Object.SECRET:
                secret = parse_json(body or b"{}", SecretSpec, what="secret")
                if secret.driver is not None and secret.driver.name:
                    raise errors.ForbiddenError(
                        "a secret with a driver can be any secret: your grant does not reach so far"
                    )
                _check_labels(principal.scope, secret.labels, what="secret")
            case Object.CONFIG:
                config = parse_json(body or b"{}", ConfigSpec, what="config")
                _check_labels(principal.scope, config.labels, what="config")
            case Object.NETWORK if row.reach is Reach.CREATE:
                network = parse_json(body or b"{}", NetworkSpec, what="network")
                _check_labels(principal.scope, network.labels, what="network")
            case Object.NETWORK:
                return self._connect(principal, body)
        return body

    def _service(self, principal: Principal, body: bytes, *, target: Found | None, query: QueryParams) -> None:
        present = self._objects.store().services.get(target.id) if target is not None else None
        spec = parse_json(body or b"{}", ServiceSpec, what="service spec")
        if present is not None and query.get("rollback", "") == "previous" and present.previous_spec is not None:
            spec = present.previous_spec
        if not principal.reaches_hosts and (wishes := wishes_of_service(spec)) and not _is_same(spec, present):
            _refuse(wishes)
        if not principal.scope:
            return
        _check_labels(principal.scope, spec.labels, what="service")
        if priority_of(spec.labels) > max(0, priority_of(present.spec.labels) if present is not None else 0):
            raise errors.ForbiddenError(
                "a priority takes room from services of others: your grant does not reach so far"
            )
        known = _references(present.spec) if present is not None else frozenset()
        for about, name in _references(spec) - known:
            self._objects.within(principal, about, name)
        _check_volumes(principal.scope, named_volumes(spec.task_template.container_spec))

    def _container(self, principal: Principal, body: bytes) -> None:
        wish = parse_json(body or b"{}", CreateBody, what="container")
        wishes = wishes_of_container(wish)
        if wishes and not principal.reaches_hosts:
            _refuse(wishes)
        reserved = [label for label in wish.labels if label.startswith(_RESERVED)]
        if reserved:
            raise errors.ForbiddenError(f"label {reserved[0]} is for containers of tasks")
        if not principal.scope:
            return
        host = wish.host_config
        modes = (host.network_mode, host.pid_mode, host.ipc_mode, host.uts_mode, host.userns_mode)
        if host.volumes_from or any(mode.startswith("container:") for mode in modes):
            raise errors.ForbiddenError("namespaces and volumes of other containers are beyond your grant")
        _check_labels(principal.scope, wish.labels, what="container")
        for name in {host.network_mode, *wish.networking_config.endpoints_config}:
            if name not in ("", "default", "bridge", "none", "host"):
                self._objects.within(principal, Object.NETWORK, name)
        _check_volumes(principal.scope, named_volumes(wish))

    def _volume(self, principal: Principal, body: bytes) -> None:
        wish = parse_json(body or b"{}", VolumeBody, what="volume")
        if wish.driver_opts and not principal.reaches_hosts:
            _refuse(["a volume with options of its driver"])
        if principal.scope:
            _check_labels(principal.scope, wish.labels, what="volume")
            _check_volumes(principal.scope, [wish.name])

    def _exec(self, body: bytes) -> None:
        if parse_json(body or b"{}", ExecBody, what="exec").privileged:
            _refuse(["privileges (--privileged)"])

    def _connect(self, principal: Principal, body: bytes) -> bytes:
        """The container by its full id, whatever its name means by the time the route looks."""
        try:
            raw = msgspec.json.decode(body or b"{}", type=dict[str, object])
        except msgspec.DecodeError as cause:
            raise errors.UserError(f"network connect: {cause}") from cause
        names = [str(value) for key, value in raw.items() if key.lower() == "container"]
        found = self._objects.within(principal, Object.CONTAINER, names[0] if len(names) == 1 else "")
        others = {key: value for key, value in raw.items() if key.lower() != "container"}
        return msgspec.json.encode({**others, "Container": found.id})


def _refuse(wishes: Iterable[str]) -> None:
    raise errors.ForbiddenError(
        f"it asks for {' and '.join(dict.fromkeys(wishes))}: whoever has that is as good as root on the host, and your grant is "
        "without host access (an administrator gives it: fleet user update --host-access USER)"
    )


def _is_same(spec: ServiceSpec, present: Service | None) -> bool:
    """Whether an administrator's containers stay as they are, so that more of them, or other labels, may be asked for."""
    if present is None:
        return False
    before, after = present.spec, normal_spec(spec)
    return (
        after.task_template.container_spec == before.task_template.container_spec
        and after.task_template.log_driver == before.task_template.log_driver
        and [target.target for target in after.all_networks] == [target.target for target in before.all_networks]
    )


def _references(spec: ServiceSpec) -> frozenset[tuple[Object, str]]:
    container = spec.task_template.container_spec
    networks = {target.target for target in (*spec.task_template.networks, *spec.networks)}
    return frozenset(
        [
            *((Object.NETWORK, name) for name in networks if name != "host"),
            *((Object.SECRET, each.secret_id or each.secret_name) for each in container.secrets),
            *((Object.CONFIG, each.config_id or each.config_name) for each in container.configs),
        ]
    )


def _check_labels(scope: Scope, labels: Mapping[str, str], *, what: str) -> None:
    if scope and not any(all(labels.get(key) == value for key, value in each.items()) for each in scope if each):
        wanted = " or ".join(",".join(f"{key}={value}" for key, value in sorted(each.items())) for each in scope)
        raise errors.ForbiddenError(
            f"{what}: your grant is for objects with the label {wanted}; this would not have it"
        )


def _check_volumes(scope: Scope, names: Iterable[str]) -> None:
    """Volumes are each host's own, and what is on another host nobody can look up here; so it is the name that tells."""
    prefixes = tuple(sorted({f"{value}_" for each in scope for value in each.values()}))
    for name in names:
        if not name.startswith(prefixes):
            raise errors.ForbiddenError(
                f"volume {name}: your grant is for volumes whose names begin with {' or '.join(prefixes)}"
            )
