"""Reads that go straight to their function: the same function and the same answers as through FastAPI."""

from __future__ import annotations

import asyncio
import random
import re
from typing import Any
from unittest.mock import MagicMock

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from starlette.routing import Match

from fleet import errors
from fleet.api.direct import DirectReads
from fleet.api.http import install_error_handlers, json_response
from fleet.daemon import app as daemon_app
from fleet.daemon.access.table import TABLE
from fleet.daemon.config import DaemonConfig
from fleet.store import Transaction
from tests.support.api_gate import Gated, gated
from tests.support.objects import make_node, make_service


@pytest.fixture(scope="module")
def application() -> FastAPI:
    part: Any = MagicMock()
    names = ("membership", "engine", "images", "bridge", "locator", "events", "moves", "doctor")
    parts = dict.fromkeys((*names, "exposition", "clock", "authenticator"), part)
    return daemon_app.api_routes(config=DaemonConfig(), **parts)


def _flat(routes: Any) -> Any:
    for route in routes:
        yield from _flat(route.original_router.routes) if hasattr(route, "original_router") else (route,)


def test_the_lists_that_are_polled_and_one_of_each_are_direct(application: FastAPI) -> None:
    reads = DirectReads(application)
    for path in ("/_ping", "/version", "/info", "/nodes", "/services", "/tasks", "/events", "/containers/json"):
        assert reads.find(path), path
    for path in ("/nodes/n1", "/services/web", "/tasks/t.1.x"):
        found = reads.find(path)
        assert found is not None and found[1] == path.rpartition("/")[2]
    for path in ("/nodes/", "/nodes", "/tasks/a/b", "/", "", "/nothing"):
        found = reads.find(path)
        assert found is None or not found[1], path


def test_the_function_is_the_one_that_the_application_finds(application: FastAPI) -> None:
    reads = DirectReads(application)
    routes = [route for route in _flat(application.routes) if hasattr(route, "methods")]
    fixed = sorted({part for row in TABLE for part in row.path.split("/") if part and "{" not in part})
    chance = random.Random(23)
    words = [*fixed, "web", "a.b", "", "%", ".."]
    direct = 0
    for _ in range(3_000):
        if chance.random() < 0.5:
            path = "/" + "/".join(chance.choices(words, k=chance.randint(1, 4)))
        else:
            path = re.sub(r"{[^}]*}", lambda _: chance.choice(words), chance.choice(TABLE).path)
        found = reads.find(path)
        if found is None:
            continue
        direct += 1
        scope = {"type": "http", "method": "GET", "path": path, "root_path": "", "headers": []}
        matches = ((route, *route.matches(dict(scope))) for route in routes)
        answering = next(((route, child) for route, match, child in matches if match is Match.FULL), None)
        assert answering is not None, path
        assert answering[0].path == found[0].route.path, path
        assert answering[1]["path_params"] == ({found[0].name: found[1]} if found[0].name else {}), path
    assert direct > 300


def test_answers_and_errors_are_those_of_the_application() -> None:
    inner = FastAPI(redirect_slashes=False)
    install_error_handlers(inner)
    asked: list[str] = []

    @inner.get("/things")
    async def things(request: Request) -> Response:
        return json_response({"q": request.query_params.get("q"), "route": request.scope["route"].path})

    @inner.get("/things/{id_}")
    async def thing(id_: str) -> Response:
        asked.append(id_)
        if id_ == "bug":
            raise ZeroDivisionError
        raise errors.UnavailableError(f"no {id_}", retry_after_s=3)

    @inner.get("/counted")
    async def counted(number: int) -> Response:  # FastAPI reads this one's query
        return json_response(number)

    reads = DirectReads(inner)
    assert reads.find("/counted") is None

    async def body() -> None:
        answers = []
        for app in (inner, reads):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
                paths = ("/things?q=1", "/things/a%20b", "/things/bug", "/things/", "/counted?number=x")
                found = [await client.get(path) for path in paths]
                found.append(await client.post("/things"))
                answers.append([(each.status_code, each.text, each.headers.get("retry-after")) for each in found])
        assert answers[0] == answers[1]
        assert [status for status, _, _ in answers[0]] == [200, 503, 500, 404, 400, 405]

    asyncio.run(body())
    assert asked == ["a b", "bug"] * 2


def test_what_is_kept_as_bytes_follows_the_objects() -> None:
    async def body(world: Gated) -> None:
        await world.store.commit(Transaction().create(make_service("web")))
        await world.store.commit(Transaction().create(make_node("n")))
        ask: dict[str, Any] = {"server": ("/run/x.sock", None)}

        async def get(path: str) -> Any:
            return (await world.call("GET", path, **ask)).json()

        for _ in range(2):
            (plain,), (counted,) = await get("/services"), await get("/services?status=1")
            assert plain == await get(f"/services/{plain['ID']}")
            assert counted == {**plain, "ServiceStatus": {"RunningTasks": 0, "DesiredTasks": 1, "CompletedTasks": 0}}
            full = await get(f"/services/{plain['ID']}?insertDefaults=true")
            assert "UpdateConfig" in full["Spec"] and "UpdateConfig" not in plain["Spec"]
        spec = {**plain["Spec"], "Labels": {"new": "1"}}
        version = plain["Version"]["Index"]
        changed = await world.call("POST", f"/services/{plain['ID']}/update?version={version}", json=spec, **ask)
        assert changed.status_code == 200, changed.text
        assert (await get("/services"))[0]["Spec"]["Labels"] == {"new": "1"}

        (node,) = await get("/nodes")
        changed = await world.call(
            "POST",
            f"/nodes/{node['ID']}/update?version={node['Version']['Index']}",
            json={**node["Spec"], "Availability": "drain", "Labels": {}},
            **ask,
        )
        assert changed.status_code == 200, changed.text
        assert (await get("/nodes"))[0]["Spec"]["Availability"] == "drain"
        assert (await get(f"/nodes/{node['ID']}"))["Spec"]["Availability"] == "drain"

    async def main() -> None:
        async with gated() as world:
            await body(world)

    asyncio.run(main())
