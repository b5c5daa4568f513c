"""/fleet/v1/users and /fleet/v1/tokens"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from fleet.api.http import json_response, read_struct
from fleet.api.render import Json
from fleet.manager.control.access import TokenWish
from fleet.manager.http.request import Control, filters_of, version_of
from fleet.model.access import Token, User, UserSpec
from fleet.model.wire import to_builtins

__all__ = ["routes"]

_TOKEN_FILTERS = frozenset({"user"})


def routes(control: Control) -> APIRouter:
    """List, create, inspect, update, remove; the text of a token is in the answer to its creation and nowhere else."""
    router = APIRouter()

    @router.get("/fleet/v1/users")
    async def list_users() -> Response:
        return json_response([user_json(user) for user in control().users.list()])

    @router.post("/fleet/v1/users/create")
    async def create_user(request: Request) -> Response:
        made = await control().users.create(await read_struct(request, UserSpec, what="user"))
        return json_response({"ID": made.id}, status=201)

    @router.get("/fleet/v1/users/{id_}")
    async def inspect_user(id_: str) -> Response:
        return json_response(user_json(control().users.find(id_)))

    @router.post("/fleet/v1/users/{id_}/update")
    async def update_user(id_: str, request: Request) -> Response:
        spec = await read_struct(request, UserSpec, what="user")
        await control().users.update(id_, spec, version=version_of(request))
        return Response(status_code=200)

    @router.delete("/fleet/v1/users/{id_}")
    async def remove_user(id_: str) -> Response:
        await control().users.remove(id_)
        return Response(status_code=204)

    @router.get("/fleet/v1/tokens")
    async def list_tokens(request: Request) -> Response:
        api = control()
        owners = filters_of(request, _TOKEN_FILTERS).get("user", ("",))
        found = {token.id: token for owner in owners for token in api.tokens.list(owner)}
        names = {user.id: user.spec.name for user in api.users.list()}
        return json_response([token_json(token, names.get(token.user_id, "")) for token in found.values()])

    @router.post("/fleet/v1/tokens/create")
    async def create_token(request: Request) -> Response:
        made = await control().tokens.create(await read_struct(request, TokenWish, what="token"))
        answer = json_response({"ID": made.token.id, "Token": made.text}, status=201)
        answer.headers["Cache-Control"] = "no-store"
        return answer

    @router.delete("/fleet/v1/tokens/{id_}")
    async def remove_token(id_: str) -> Response:
        await control().tokens.remove(id_)
        return Response(status_code=204)

    return router


def user_json(user: User) -> Json:
    """As the API shows it: every field of the spec, defaults too."""
    spec = user.spec
    return {
        "ID": user.id,
        "Version": {"Index": user.version.index},
        "CreatedAt": to_builtins(user.created_at),
        "UpdatedAt": to_builtins(user.updated_at),
        "Spec": {
            "Name": spec.name,
            "Role": spec.role.value,
            "Scope": [dict(selector) for selector in spec.scope],
            "HostAccess": spec.host_access,
            "Disabled": spec.disabled,
            "Description": spec.description,
        },
    }


def token_json(token: Token, user_name: str) -> Json:
    """Without its digest."""
    return {
        "ID": token.id,
        "CreatedAt": to_builtins(token.created_at),
        "UserID": token.user_id,
        "User": user_name,
        "Description": token.description,
        "ExpiresAt": to_builtins(token.expires_at),
        "LastUsedAt": to_builtins(token.last_used_at),
    }
