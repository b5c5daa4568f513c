"""``/fleet/v1/whoami``: whom this daemon takes the caller for. ``/fleet/v1/session``: signing in and out with a browser."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, read_body
from fleet.api.render import Json
from fleet.daemon.access.authenticate import Authenticator
from fleet.daemon.access.principal import LOCAL, PRINCIPAL, Principal
from fleet.daemon.access.sessions import COOKIE
from fleet.model.wire import Value, parse_json

__all__ = ["access_routes"]

_BODY_MAX = 4096
"""Bytes: whoever reaches the listener may send one."""

_ATTRIBUTES = "Path=/; Secure; HttpOnly; SameSite=Strict"


class _SignIn(Value, frozen=True, kw_only=True):
    token: str = ""

    def __repr__(self) -> str:
        return "_SignIn(token=<hidden>)"


def access_routes(authenticator: Authenticator) -> APIRouter:
    """The router."""
    routes = APIRouter()

    @routes.get("/fleet/v1/whoami")
    async def whoami(request: Request) -> Response:
        return json_response(_principal_json(request.scope.get(PRINCIPAL, LOCAL)))

    @routes.post("/fleet/v1/session")
    async def sign_in(request: Request) -> Response:
        wish = parse_json(await read_body(request, limit=_BODY_MAX), _SignIn, what="sign-in")
        principal, cookie, key = authenticator.sign_in(request.scope, wish.token)
        request.scope[PRINCIPAL] = principal
        answer = json_response({**_principal_json(principal), "Key": key}, status=201)
        answer.headers["Set-Cookie"] = f"{COOKIE}={cookie}; {_ATTRIBUTES}"
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @routes.delete("/fleet/v1/session")
    async def sign_out(request: Request) -> Response:
        authenticator.sign_out(request.scope)
        return Response(status_code=204, headers={"Set-Cookie": f"{COOKIE}=; Max-Age=0; {_ATTRIBUTES}"})

    return routes


def _principal_json(principal: Principal) -> Json:
    return {
        "User": principal.user,
        "Role": principal.role.value,
        "Scope": [dict(selector) for selector in principal.scope],
        "HostAccess": principal.reaches_hosts,
        "TokenID": principal.token_id,
        "Session": principal.is_session,
    }
