"""Every route has its row, and the row that is found is the route's that answers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
from starlette.routing import Match

from fleet.daemon import app as daemon_app
from fleet.daemon.access.table import TABLE, Need, Reach, Row, row_of
from fleet.daemon.config import DaemonConfig

READS = frozenset({"GET", "HEAD"})


def _routes(routes: Any) -> Iterator[Any]:
    for route in routes:
        if hasattr(route, "original_router"):
            yield from _routes(route.original_router.routes)
        else:
            yield route


@pytest.fixture(scope="module")
def routes() -> list[Any]:
    """Of the real application; what its parts do is of no interest here."""
    part: Any = MagicMock()
    names = ("membership", "engine", "images", "bridge", "locator", "events", "moves", "doctor")
    parts = dict.fromkeys((*names, "exposition", "clock", "authenticator"), part)
    app = daemon_app.api_routes(config=DaemonConfig(), **parts)
    return list(_routes(app.routes))


def test_every_route_has_a_row_and_every_row_a_route(routes: list[Any]) -> None:
    there = {(method, route.path) for route in routes for method in route.methods}
    decided = [(method, row.path) for row in TABLE for method in row.methods]
    assert there - set(decided) == set(), "these routes have no row in fleet/daemon/access/table.py"
    assert set(decided) - there == set(), "these rows have no route"
    assert len(decided) == len(set(decided)), "two rows for one route"


def test_no_row_is_found_for_another_route(routes: list[Any]) -> None:
    fixed = sorted({part for row in TABLE for part in row.path.split("/") if part and "{" not in part})
    chance = random.Random(17)
    words = [*fixed, "web", "a.b", "", "%", ".."]
    methods = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"]
    for _ in range(3_000):
        method = chance.choice(methods)
        if chance.random() < 0.5:
            path = "/" + "/".join(chance.choices(words, k=chance.randint(1, 6)))
        else:
            path = re.sub(r"{[^}]*}", lambda _: chance.choice(words), chance.choice(TABLE).path)
        scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
        answering = next((route for route in routes if route.matches(dict(scope))[0] is Match.FULL), None)
        found = row_of(method, path)
        assert (found[0].path if found else None) == (answering.path if answering else None)


def _of(method: str, path: str) -> Row:
    found = row_of(method, path)
    assert found is not None
    return found[0]


def test_viewers_only_read() -> None:
    for row in TABLE:
        if row.need in (Need.PUBLIC, Need.READ) and row.path != "/fleet/v1/session":
            assert row.methods <= READS, row.path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/swarm/unlockkey"),
        ("GET", "/fleet/v1/swarm/backup"),
        ("GET", "/fleet/v1/users"),
        ("GET", "/fleet/v1/tokens"),
        ("POST", "/swarm/update"),
        ("POST", "/nodes/x/update"),
        ("DELETE", "/nodes/x"),
    ],
)
def test_the_cluster_s_own_is_for_admins(method: str, path: str) -> None:
    assert _of(method, path).need is Need.ADMIN


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/containers/x/exec"),
        ("POST", "/containers/x/attach"),
        ("GET", "/containers/x/archive"),
        ("GET", "/containers/x/export"),
        ("GET", "/images/a/b/get"),
        ("POST", "/exec/x/start"),
    ],
)
def test_a_viewer_gets_no_shell_and_no_file(method: str, path: str) -> None:
    assert _of(method, path).need is Need.CHANGE


def test_what_reaches_an_object_names_it() -> None:
    for row in TABLE:
        if row.reach in (Reach.ONE, Reach.UPDATE):
            assert len(row.parameters(row.path) or {}) == 1, row.path
            assert ":path" not in row.path, row.path
