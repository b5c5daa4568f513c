"""What each route of the engine API needs: the one place where that is decided.

A route that is not here is refused to everybody but admins; a test holds the table against the application's routes. The first
row that fits a request counts, as with the application's routes, so rows are in their order where two could fit.

``Need`` is the role. ``Reach`` is what a grant with a scope (``model.access.Scope``) means for the route:

=========  =====================================================================================================
SHARED     nothing of anybody's is in it: allowed as to others
WHOLE      concerns the cluster or the host as a whole: refused
LIST       the answer is thinned out to what is within the scope
ONE        the object named in the path must be within, else it is not found
CREATE     the body must carry the labels, and refer to nothing outside
UPDATE     both: the object must be within, and stay there
=========  =====================================================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import Final

from starlette.routing import compile_path

from fleet.model.access import AccessRole

__all__ = ["TABLE", "Need", "Object", "Reach", "Row", "row_of"]


class Need(Enum):
    """The least role; ``PUBLIC`` is for whoever reaches the listener."""

    PUBLIC = None
    READ = AccessRole.VIEWER
    CHANGE = AccessRole.OPERATOR
    ADMIN = AccessRole.ADMIN


class Reach(StrEnum):
    """See the module."""

    SHARED = "shared"
    WHOLE = "whole"
    LIST = "list"
    ONE = "one"
    CREATE = "create"
    UPDATE = "update"


class Object(StrEnum):
    """What a route is about."""

    NONE = ""
    SERVICE = "service"
    TASK = "task"
    NODE = "node"
    SECRET = "secret"  # noqa: S105 - a word, not one
    CONFIG = "config"
    NETWORK = "network"
    VOLUME = "volume"
    CONTAINER = "container"
    EXEC = "exec"
    EVENT = "event"
    CHANGE = "change"
    INFO = "info"


@dataclass(frozen=True, slots=True)
class Row:
    """``reaches_in``: gets into a running container, so that one with access to its host gives that too."""

    methods: frozenset[str]
    path: str
    need: Need
    reach: Reach = Reach.WHOLE
    about: Object = Object.NONE
    reaches_in: bool = False
    pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", compile_path(self.path)[0])

    def parameters(self, path: str) -> Mapping[str, str] | None:
        """Names in the path; None where it does not fit."""
        match = self.pattern.match(path)
        return None if match is None else match.groupdict()


def _row(
    methods: str,
    path: str,
    need: Need,
    reach: Reach = Reach.WHOLE,
    about: Object = Object.NONE,
    *,
    reaches_in: bool = False,
) -> Row:
    return Row(frozenset(methods.split()), path, need, reach, about, reaches_in)


_PUBLIC, _READ, _CHANGE, _ADMIN = Need.PUBLIC, Need.READ, Need.CHANGE, Need.ADMIN
_SHARED, _LIST, _ONE, _CREATE, _UPDATE = Reach.SHARED, Reach.LIST, Reach.ONE, Reach.CREATE, Reach.UPDATE
_IN: Final = {"reaches_in": True}
_BOX: Final = Object.CONTAINER


def _data(about: Object) -> tuple[Row, ...]:
    path = f"/{about}s"
    return (
        _row("GET", path, _READ, _LIST, about),
        _row("POST", f"{path}/create", _CHANGE, _CREATE, about),
        _row("GET", f"{path}/{{id_}}", _READ, _ONE, about),
        _row("POST", f"{path}/{{id_}}/update", _CHANGE, _UPDATE, about),
        _row("DELETE", f"{path}/{{id_}}", _CHANGE, _ONE, about),
    )


TABLE: Final[tuple[Row, ...]] = (
    # The daemon.
    _row("GET HEAD", "/_ping", _PUBLIC, _SHARED),
    _row("GET", "/version", _READ, _SHARED),
    _row("GET", "/info", _READ, _SHARED, Object.INFO),
    _row("GET HEAD", "/fleet/v1/openapi.json", _READ, _SHARED),
    _row("GET", "/fleet/v1/whoami", _READ, _SHARED),
    _row("POST DELETE", "/fleet/v1/session", _PUBLIC, _SHARED),
    _row("GET", "/events", _READ, _LIST, Object.EVENT),
    _row("POST", "/auth", _CHANGE, _SHARED),
    _row("GET", "/system/df", _READ),
    _row("GET", "/metrics", _READ),
    # The cluster. /swarm shows the join tokens to admins alone.
    _row("GET", "/swarm", _READ, about=Object.INFO),
    _row("POST", "/swarm/update", _ADMIN),
    _row("POST", "/swarm/init", _ADMIN),
    _row("POST", "/swarm/join", _ADMIN),
    _row("POST", "/swarm/leave", _ADMIN),
    _row("GET", "/swarm/unlockkey", _ADMIN),
    _row("POST", "/swarm/unlock", _ADMIN),
    _row("GET", "/fleet/v1/swarm/backup", _ADMIN),
    _row("POST", "/fleet/v1/swarm/restore", _ADMIN),
    _row("GET", "/nodes", _READ, _LIST, Object.NODE),
    _row("GET", "/nodes/{id_}", _READ, _ONE, Object.NODE),
    _row("POST", "/nodes/{id_}/update", _ADMIN),
    _row("DELETE", "/nodes/{id_}", _ADMIN),
    _row("GET", "/fleet/v1/usage", _READ),
    _row("GET", "/fleet/v1/watch", _READ, _LIST, Object.CHANGE),
    _row("GET", "/fleet/v1/rebalance", _READ),
    _row("POST DELETE", "/fleet/v1/rebalance", _CHANGE),
    # Users.
    _row("GET", "/fleet/v1/users", _ADMIN),
    _row("POST", "/fleet/v1/users/create", _ADMIN),
    _row("GET", "/fleet/v1/users/{id_}", _ADMIN),
    _row("POST", "/fleet/v1/users/{id_}/update", _ADMIN),
    _row("DELETE", "/fleet/v1/users/{id_}", _ADMIN),
    _row("GET", "/fleet/v1/tokens", _ADMIN),
    _row("POST", "/fleet/v1/tokens/create", _ADMIN),
    _row("DELETE", "/fleet/v1/tokens/{id_}", _ADMIN),
    # Services and what belongs to them.
    _row("GET", "/services", _READ, _LIST, Object.SERVICE),
    _row("POST", "/services/create", _CHANGE, _CREATE, Object.SERVICE),
    _row("GET", "/services/{id_}", _READ, _ONE, Object.SERVICE),
    _row("POST", "/services/{id_}/update", _CHANGE, _UPDATE, Object.SERVICE),
    _row("DELETE", "/services/{id_}", _CHANGE, _ONE, Object.SERVICE),
    _row("GET", "/services/{name}/logs", _READ, _ONE, Object.SERVICE),
    _row("GET", "/fleet/v1/services/{id_}/placement", _READ),
    _row("GET", "/tasks", _READ, _LIST, Object.TASK),
    _row("GET", "/tasks/{id_}", _READ, _ONE, Object.TASK),
    _row("GET", "/tasks/{name}/logs", _READ, _ONE, Object.TASK),
    _row("GET", "/fleet/v1/tasks", _READ),
    _row("GET", "/fleet/v1/tasks/{id_}/move", _READ, _ONE, Object.TASK),
    _row("POST", "/fleet/v1/tasks/{id_}/move", _CHANGE, _ONE, Object.TASK),
    _row("GET", "/fleet/v1/quotas", _READ),
    *_data(Object.SECRET),
    *_data(Object.CONFIG),
    _row("GET", "/networks", _READ, _LIST, Object.NETWORK),
    _row("GET", "/networks/{name}", _READ, _ONE, Object.NETWORK),
    _row("POST", "/networks/create", _CHANGE, _CREATE, Object.NETWORK),
    _row("DELETE", "/networks/{name}", _CHANGE, _ONE, Object.NETWORK),
    _row("POST", "/networks/{name}/connect", _CHANGE, _UPDATE, Object.NETWORK),
    _row("POST", "/networks/{name}/disconnect", _CHANGE, _UPDATE, Object.NETWORK),
    _row("POST", "/networks/prune", _CHANGE),
    _row("GET", "/fleet/v1/networks/doctor", _READ),
    # This host's own. A viewer gets logs and figures of containers, but no process in them, no input and no file.
    _row("GET", "/volumes", _READ, _LIST, Object.VOLUME),
    _row("POST", "/volumes/create", _CHANGE, _CREATE, Object.VOLUME),
    _row("GET", "/volumes/{name}", _READ, _ONE, Object.VOLUME),
    _row("DELETE", "/volumes/{name}", _CHANGE, _ONE, Object.VOLUME),
    _row("POST", "/volumes/prune", _CHANGE),
    _row("GET", "/containers/json", _READ, _LIST, _BOX),
    _row("POST", "/containers/create", _CHANGE, _CREATE, _BOX),
    _row("POST", "/containers/prune", _CHANGE),
    _row("GET", "/containers/{name}/json", _READ, _ONE, _BOX),
    _row("GET", "/containers/{name}/changes", _READ, _ONE, _BOX),
    _row("GET", "/containers/{name}/top", _READ, _ONE, _BOX),
    _row("GET", "/containers/{name}/logs", _READ, _ONE, _BOX),
    _row("GET", "/containers/{name}/stats", _READ, _ONE, _BOX),
    _row("DELETE", "/containers/{name}", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/rename", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/update", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/start", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/stop", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/restart", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/kill", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/pause", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/unpause", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/wait", _CHANGE, _ONE, _BOX),
    _row("POST", "/containers/{name}/resize", _CHANGE, _ONE, _BOX),
    _row("GET", "/containers/{name}/export", _CHANGE, _ONE, _BOX),
    _row("GET HEAD PUT", "/containers/{name}/archive", _CHANGE, _ONE, _BOX, **_IN),
    _row("POST", "/containers/{name}/attach", _CHANGE, _ONE, _BOX, **_IN),
    _row("POST", "/containers/{name}/exec", _CHANGE, _ONE, _BOX, **_IN),
    _row("POST", "/exec/{exec_id}/start", _CHANGE, _ONE, Object.EXEC, **_IN),
    _row("POST", "/exec/{exec_id}/resize", _CHANGE, _ONE, Object.EXEC),
    _row("GET", "/exec/{exec_id}/json", _READ, _ONE, Object.EXEC),
    _row("POST", "/fleet/v1/containers/{name}/move", _ADMIN),
    # Images are the host's: a tag that one moves, all use.
    _row("GET", "/images/json", _READ),
    _row("GET", "/images/get", _CHANGE),
    _row("GET", "/images/{name:path}/get", _CHANGE),
    _row("GET", "/images/{name:path}/json", _READ),
    _row("GET", "/images/{name:path}/history", _READ),
    _row("POST", "/images/load", _CHANGE),
    _row("POST", "/images/create", _CHANGE),
    _row("POST", "/images/{name:path}/tag", _CHANGE),
    _row("POST", "/images/{name:path}/push", _CHANGE),
    _row("POST", "/images/prune", _CHANGE),
    _row("DELETE", "/images/{name:path}", _CHANGE),
    _row("GET", "/distribution/{name:path}/json", _CHANGE, _SHARED),
    _row("POST", "/build", _CHANGE),
    _row("POST", "/build/prune", _CHANGE),
    _row("POST", "/commit", _CHANGE),
)


def row_of(method: str, path: str) -> tuple[Row, Mapping[str, str]] | None:
    """The row of a request, with the names in its path; None where there is none."""
    for row in TABLE:
        if method in row.methods and (parameters := row.parameters(path)) is not None:
            return row, parameters
    return None
