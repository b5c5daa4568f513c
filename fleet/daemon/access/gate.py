"""The gate in front of the engine API: who asks, what the route needs, and how far the grant reaches.

Order of a request: authentication, how often this one asks (``limits``), the table's row, the role, then - for a grant with a
scope, or without host access - the object in the path and the body. An object in the path is replaced by its full id before the
route sees it, so that a name cannot come to mean another one between the look and the deed. An admin passes after the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request

from fleet import errors
from fleet.api.http import problem, read_body
from fleet.daemon.access.answers import ThinnedAnswer, thinner_for
from fleet.daemon.access.authenticate import HOW_TO, Authenticator
from fleet.daemon.access.bodies import Bodies, needs_body
from fleet.daemon.access.limits import RequestLimits
from fleet.daemon.access.objects import Found, Objects
from fleet.daemon.access.principal import PRINCIPAL, Principal
from fleet.daemon.access.table import Need, Object, Reach, Row, row_of

__all__ = ["AccessGate"]

_OTHERS: Final = frozenset({"node", "before", "since"})
"""Filters of lists that name other objects, and would tell whether there are such."""


class AccessGate:
    """ASGI middleware."""

    def __init__(self, app: Any, *, authenticator: Authenticator, objects: Objects, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits
        self._authenticator = authenticator
        self._objects = objects
        self._bodies = Bodies(objects)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            principal, row, names = self._admit(scope)
            if principal is not None and row is not None and not principal.is_admin:
                target = self._target(principal, row, names, scope)
                receive = await self._judged(principal, row, target, scope, receive)
                thin = thinner_for(principal, row, self._objects)
                if thin is not None:
                    send = ThinnedAnswer(send, thin, by_line=row.about in (Object.EVENT, Object.CHANGE))
        except errors.FleetError as refusal:
            await _answer(refusal, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _admit(self, scope: Any) -> tuple[Principal | None, Row | None, Mapping[str, str]]:
        principal = self._authenticator.identify(scope)
        if principal is not None:
            scope[PRINCIPAL] = principal
        self._limits.take(scope, principal)
        if principal is not None and principal.is_admin:
            return principal, None, {}
        found = row_of(scope["method"], scope["path"]) if scope["type"] == "http" else None
        if found is None:
            if principal is None:
                raise errors.UnauthorizedError(HOW_TO)
            raise errors.NotFoundError("page not found")
        row, names = found
        if row.need is Need.PUBLIC:
            return principal, row, names
        if principal is None:
            raise errors.UnauthorizedError(HOW_TO)
        if not principal.role.includes(row.need.value):
            raise errors.ForbiddenError(
                f"user {principal.user} is {principal.role}: {scope['method']} {scope['path'][:200]} needs the role "
                f"{row.need.value}"
            )
        return principal, row, names

    async def _judged(self, principal: Principal, row: Row, target: Found | None, scope: Any, receive: Any) -> Any:
        """``receive``, of the body as it may be."""
        if principal.scope and row.reach is Reach.WHOLE:
            raise errors.ForbiddenError(
                f"user {principal.user} is limited to some objects, and this concerns all: an unlimited grant is needed"
            )
        if row.path == "/build" and not principal.reaches_hosts and _query(scope).get("networkmode") == "host":
            raise errors.ForbiddenError("a build on the host's network needs host access")
        if principal.scope and row.reach is Reach.LIST:
            self._check_filters(principal, scope)
        if needs_body(row, principal):
            body = await read_body(Request(scope, receive))
            body = self._bodies.judge(principal, row, body, target=target, query=_query(scope))
            scope["headers"] = [
                (name, str(len(body)).encode() if name == b"content-length" else value)
                for name, value in scope["headers"]
            ]
            receive = _replay(body, receive)
        return receive

    def _target(self, principal: Principal, row: Row, names: Mapping[str, str], scope: Any) -> Found | None:
        """The object in the path, and its full id in its place. What is not found at all is left to the route to say, unless the
        grant has a scope: then it must not differ from what is another's."""
        if row.reach not in (Reach.ONE, Reach.UPDATE) or not names:
            return None
        ((word, name),) = names.items()
        if principal.scope:
            found: Found | None = self._objects.within(principal, row.about, name)
        elif row.reaches_in or (row.reach is Reach.UPDATE and row.about is Object.SERVICE):
            try:
                found = self._objects.find(row.about, name)
            except (errors.NotFoundError, errors.ConflictError, errors.UserError):
                return None
        else:
            return None
        if found is None:
            return None
        if row.reaches_in and found.host_access and not principal.reaches_hosts:
            raise errors.ForbiddenError(
                f"{row.about} {name} has {' and '.join(found.host_access)}: to get into it is to get at its host, and your grant "
                "is without host access"
            )
        path = row.path.replace(f"{{{word}}}", found.id)
        scope["path"], scope["raw_path"] = path, path.encode()
        return found

    def _check_filters(self, principal: Principal, scope: Any) -> None:
        text = _query(scope).get("filters")
        try:
            filters = msgspec.json.decode(text) if text else {}
        except msgspec.DecodeError:
            return  # for the route to say
        if not isinstance(filters, dict):
            return
        if refused := sorted(_OTHERS & filters.keys()):
            raise errors.ForbiddenError(f"filter '{refused[0]}': your grant is limited to some objects")
        for name in filters.get("service") or ():
            self._objects.within(principal, Object.SERVICE, str(name))


def _query(scope: Any) -> QueryParams:
    return QueryParams(scope.get("query_string", b""))


def _replay(body: bytes, receive: Any) -> Any:
    """``receive`` that gives the body once more, then what comes."""
    is_given = False

    async def again() -> Any:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


async def _answer(refusal: errors.FleetError, scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)[:120]})
        return
    response = problem(refusal)
    if isinstance(refusal, errors.UnauthorizedError):
        response.headers["WWW-Authenticate"] = 'Bearer realm="fleet"'
    await response(scope, receive, send)
