"""Whatever a viewer sends, nothing is written; whatever a limited operator sends, the others' objects are as they were."""

from __future__ import annotations

import asyncio
import base64
import random
import re
from typing import Any

import pytest

from fleet.daemon.access.table import TABLE
from fleet.store import Kind, Transaction
from tests.support.api_gate import Gated, Tls, gated
from tests.support.objects import make_network, make_node

SHOP, BLOG = ({"com.docker.stack.namespace": name} for name in ("shop", "blog"))
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
DATA = base64.b64encode(b"x").decode()
ROUNDS = 400


async def _fill(world: Gated) -> None:
    root = {"tls": Tls("root")}
    await world.store.commit(Transaction().create(make_node("n1")))
    for name, labels in (("shop", SHOP), ("blog", BLOG)):
        for kind in ("secrets", "configs"):
            await world.call("POST", f"/{kind}/create", json={"Name": name, "Labels": labels, "Data": DATA}, **root)
        await world.store.commit(Transaction().create(make_network(name, labels=labels)))
        spec = {"Name": name, "Labels": labels, "TaskTemplate": {"ContainerSpec": {"Image": "i"}}}
        assert (await world.call("POST", "/services/create", json=spec, **root)).status_code == 201
        world.host.add(name, labels=labels)


def _state(world: Gated) -> dict[str, Any]:
    """All objects but tokens, whose use is noted in them."""
    return {obj.id: obj for kind in Kind if kind is not Kind.TOKEN for obj in world.store.table(kind).all()}


def _request(world: Gated, chance: random.Random) -> dict[str, Any]:
    objects = list(_state(world).values())
    names = ["shop", "blog", "none", ""]  # no ids: what is called like a stranger's id would look like the stranger
    words = [*names, *(obj.id for obj in objects)]
    row = chance.choice(TABLE)
    path = re.sub(r"{[^}]*}", lambda _: chance.choice(words), row.path)
    method = chance.choice([*METHODS, *row.methods])
    bodies: list[Any] = [{}, None, [], {"Role": "admin"}]
    for _ in range(6):
        labels = chance.choice([SHOP, BLOG, {}])
        image = {
            "ContainerSpec": {
                "Image": "j",
                "Secrets": chance.choice([[], [{"SecretName": "blog", "File": {"Name": "f"}}]]),
            }
        }
        networks = chance.choice([[], [{"Target": "blog"}], [{"Target": "shop"}]])
        bodies.append({
            "Name": chance.choice(names), "Labels": labels, "Data": DATA, "User": "anna", "Role": "admin", "Container": "blog",
            "Availability": "drain", "TaskTemplate": {**image, "Networks": networks}, "Image": "i",
        })  # fmt: skip
    version = chance.choice([obj.version.index for obj in objects])
    query = chance.choice(["", f"?version={version}", "?force=1", f"?version={version}&rollback=previous"])
    return {"method": method, "path": (path or "/") + query, "json": chance.choice(bodies)}


async def _all_requests(seed: int, role: str, scope: tuple[dict[str, str], ...]) -> None:
    chance = random.Random(seed)
    async with gated() as world:
        await _fill(world)
        token = await world.user("anna", role, scope=scope)
        before = _state(world)
        others = {id_: obj for id_, obj in before.items() if "blog" in repr(obj)}
        for _ in range(ROUNDS):
            wish = _request(world, chance)
            world.reached.clear()
            answer = await world.call(**wish, token=token)
            if role == "viewer":
                assert _state(world) == before, wish
                assert all(method in {"GET", "HEAD"} for method, _ in world.reached if "session" not in wish["path"]), (
                    wish
                )
            else:
                now = _state(world)
                assert {id_: now.get(id_) for id_ in others} == others, (wish, answer.text)
            if scope and answer.status_code < 300 and answer.content and "openapi" not in wish["path"]:
                assert "blog" not in answer.text.replace(wish["path"].partition("?")[0], ""), (wish, answer.text)


@pytest.mark.parametrize("seed", range(3))
def test_a_viewer_never_causes_a_write(seed: int) -> None:
    asyncio.run(_all_requests(seed, "viewer", ()))


@pytest.mark.parametrize("seed", range(3))
def test_a_limited_operator_neither_changes_nor_sees_what_is_outside(seed: int) -> None:
    asyncio.run(_all_requests(seed, "operator", (SHOP,)))
