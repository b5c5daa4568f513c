"""Who is let in, for what, and what the log says of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet.daemon.access.limits import BURST, FailureLimit, source_of
from fleet.manager.control.access import TokenWish
from fleet.store import Transaction
from tests.support.api_gate import Gated, Tls, gated
from tests.support.objects import make_node, make_secret

Body = Callable[[Gated], Awaitable[None]]


def run(body: Body) -> None:
    async def main() -> None:
        async with gated() as world:
            await body(world)

    asyncio.run(main())


def test_without_credentials_tls_tells_how_to_get_in() -> None:
    async def body(world: Gated) -> None:
        answer = await world.call("GET", "/services")
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert "fleet token create" in answer.json()["message"]
        assert (await world.call("GET", "/nothing")).status_code == 401, "what there is, is not told either"
        assert (await world.call("GET", "/_ping")).status_code == 200
        assert world.reached == [("GET", "/_ping")]

    run(body)


def test_roles_may_what_the_table_says() -> None:
    async def body(world: Gated) -> None:
        await world.store.commit(Transaction().create(make_node("n")))
        tokens = {role: await world.user(role, role) for role in ("admin", "operator", "viewer")}
        config = {"Name": "c", "Data": "eA=="}
        expected = {
            ("GET", "/services"): (200, 200, 200),
            ("GET", "/containers/x/logs"): (200, 200, 200),
            ("POST", "/configs/create"): (201, 201, 403),
            ("POST", "/containers/x/exec"): (200, 200, 403),
            ("GET", "/containers/x/archive"): (200, 200, 403),
            ("GET", "/fleet/v1/users"): (200, 403, 403),
            ("GET", "/swarm/unlockkey"): (200, 403, 403),
            ("DELETE", "/nodes/x"): (404, 403, 403),
            ("GET", "/no/such/route"): (200, 404, 404),
        }
        for (method, path), codes in expected.items():
            for (role, token), code in zip(tokens.items(), codes, strict=True):
                json = {**config, "Name": role} if "configs" in path else None
                answer = await world.call(method, path, token=token, json=json)
                assert answer.status_code == code, (role, method, path, answer.text)
        refusal = await world.call("POST", "/configs/create", token=tokens["viewer"], json=config)
        assert "user viewer is viewer" in refusal.json()["message"] and "operator" in refusal.json()["message"]

    run(body)


def test_the_unix_socket_and_loopback_in_the_clear_are_as_ever() -> None:
    async def body(world: Gated) -> None:
        for server in (("/run/fleet.sock", None), None):
            assert (await world.call("GET", "/fleet/v1/users", server=server)).status_code == 200
        assert (await world.call("GET", "/fleet/v1/users", is_clear=True)).status_code == 200

    run(body)


def test_a_token_in_the_clear_is_refused() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "admin")
        answer = await world.call("GET", "/services", token=token, is_clear=True)
        assert answer.status_code == 401
        assert "without TLS" in answer.json()["message"]

    run(body)


def test_a_certificate_is_an_admin_s_unless_it_names_a_user() -> None:
    async def body(world: Gated) -> None:
        await world.user("anna", "viewer")
        assert (await world.call("GET", "/fleet/v1/users", tls=Tls("root"))).status_code == 200
        assert (await world.call("GET", "/fleet/v1/users", tls=Tls("anna"))).status_code == 403
        assert (await world.call("GET", "/services", tls=Tls("anna"))).status_code == 200
        await world.api.users.remove("anna")
        assert (await world.call("GET", "/services", tls=Tls("anna"))).status_code == 401, (
            "removed, not raised to admin"
        )

    run(body)


def test_where_users_are_not_known_a_user_s_certificate_opens_nothing() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "viewer")
        world.has_control = False
        assert (await world.call("GET", "/containers/json", tls=Tls("root"))).status_code == 200
        assert (await world.call("GET", "/containers/json", tls=Tls("anna"))).status_code == 401
        answer = await world.call("GET", "/containers/json", token=token)
        assert answer.status_code == 503 and "managers only" in answer.json()["message"]

    run(body)


def test_a_token_wins_over_a_certificate() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "viewer")
        answer = await world.call("GET", "/fleet/v1/whoami", token=token, tls=Tls("root"))
        assert (answer.json()["User"], answer.json()["Role"]) == ("anna", "viewer")
        assert answer.json()["TokenID"] in token

    run(body)


@pytest.mark.parametrize("given", ["Basic YTpi", "Bearer", "Bearer x", "bearer FLTK-1-a-b", "FLTK-1"])
def test_other_authorizations_are_refused(given: str) -> None:
    async def body(world: Gated) -> None:
        answer = await world.call("GET", "/services", headers={"Authorization": given})
        assert answer.status_code == 401
        assert "FLTK-1-a-b" not in answer.text

    run(body)


def test_a_removed_token_is_refused_at_once_and_a_change_of_role_counts_at_once() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "operator")
        user = world.api.users.find("anna")
        spec = type(user.spec)(name="anna")  # a viewer
        await world.api.users.update("anna", spec, version=user.version.index)
        assert (await world.call("POST", "/volumes/prune", token=token)).status_code == 403
        await world.api.tokens.remove(world.api.tokens.list()[0].id)
        assert (await world.call("GET", "/services", token=token)).status_code == 401

    run(body)


def test_wrong_tokens_are_limited_by_address_and_right_ones_never() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "viewer")
        codes = [(await world.call("GET", "/services", token="FLTK-1-x")).status_code for _ in range(BURST + 3)]
        assert codes == [401] * BURST + [429] * 3
        answer = await world.call("GET", "/services", token="FLTK-1-x")
        assert int(answer.headers["retry-after"]) >= 1
        assert (await world.call("GET", "/services", token=token)).status_code == 200
        assert (await world.call("GET", "/services")).status_code == 401, "to show nothing is no attempt"

    run(body)


class _Clock:
    at = 0.0

    def monotonic(self) -> float:
        return self.at


def test_the_limit_refills_and_forgets() -> None:
    clock = _Clock()
    limit = FailureLimit(clock)  # type: ignore[arg-type]
    assert [limit.note("a") for _ in range(BURST)] == [0.0] * BURST
    wait_s = limit.note("a")
    assert 0 < wait_s <= 6
    assert limit.note("b") == 0
    clock.at += wait_s
    assert limit.note("a") == 0
    assert limit.note("a") > 0
    for number in range(20_000):
        limit.note(str(number))
    assert len(limit._keys) <= 10_000


def test_a_source_is_an_address_or_its_network() -> None:
    one, other = ({"client": (f"2001:db8:1:2::{n}", 1)} for n in (1, 2))
    assert source_of(one) == source_of(other) == "2001:db8:1:2::/64"
    assert source_of({"client": ("::ffff:192.0.2.7", 1)}) == source_of({"client": ("192.0.2.7", 2)})


def test_the_log_names_user_token_role_and_refusals_but_no_secret() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "operator")
        viewer = await world.user("vera", "viewer")
        id_ = world.api.tokens.list("anna")[0].id
        await world.call("POST", "/configs/create", token=token, json={"Name": "c", "Data": "eA=="})
        await world.call("GET", "/services", token=token)
        await world.call("GET", "/containers/x/export", token=viewer)
        await world.call("DELETE", "/services/x", token="FLTK-1-nonsense")
        known = {"request", "ms", "origin"}
        told = [{key: value for key, value in line.items() if key not in known} for line in world.told]
        assert told[0] == {
            "event": "change asked for", "method": "POST", "path": "/configs/create", "code": "201",
            "who": "user anna", "role": "operator", "token": id_,
        }  # fmt: skip
        assert [(line["event"], line["who"], line["code"]) for line in told[1:]] == [
            ("refused", "user vera", "403"),
            ("refused", "nobody known", "401"),
        ]
        assert all(line["origin"] == "192.0.2.7:4711" for line in world.told)
        for text in (token, viewer):
            assert text.rpartition("-")[2] not in repr(world.told)

    run(body)


def test_strangers_do_not_fill_the_log() -> None:
    async def body(world: Gated) -> None:
        for _ in range(BURST + 20):
            assert (await world.call("GET", "/services")).status_code == 401
        assert len(world.told) == BURST
        await world.call("POST", "/volumes/prune", tls=Tls("root"))
        assert world.told[-1]["unsaid"] == 20, "how many were left out is told with the next line"

    run(body)


def test_use_of_a_token_is_noted() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "viewer")
        await world.call("GET", "/services", token=token)
        while world.api.tokens.list()[0].last_used_at is None:
            await asyncio.sleep(0.01)

    run(body)


def test_viewers_and_operators_see_the_cluster_without_what_admits_to_it() -> None:
    async def body(world: Gated) -> None:
        from fleet.model.cluster import Cluster, JoinTokens
        from fleet.model.ids import ClusterId
        from tests.support.objects import NOW

        tokens = JoinTokens(worker="SWMTKN-w", manager="SWMTKN-m")
        cluster = Cluster(id=ClusterId("c"), created_at=NOW, updated_at=NOW, join_tokens=tokens)
        await world.store.commit(Transaction().create(cluster).create(make_secret("s")))
        for role in ("viewer", "operator"):
            answer = await world.call("GET", "/swarm", token=await world.user(role, role))
            assert answer.status_code == 200 and "SWMTKN" not in answer.text
        admin = await world.call("GET", "/swarm", tls=Tls("root"))
        assert "SWMTKN-m" in admin.text

    run(body)


def test_two_credentials_in_one_request_are_refused() -> None:
    async def body(world: Gated) -> None:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        from fleet.daemon.listeners import TLS_EXTENSION

        token = await world.user("anna", "admin")
        header = (b"authorization", f"Bearer {token}".encode())
        scope = {"type": "http", "method": "GET", "path": "/services", "query_string": b"", "server": ("h", 1)}
        await world.app({**scope, "headers": [header, header], "extensions": {TLS_EXTENSION: Tls()}}, None, send)
        assert sent[0]["status"] == 401

    run(body)


def test_a_websocket_has_no_row_and_is_closed_to_all_but_admins() -> None:
    async def body(world: Gated) -> None:
        from fleet.daemon.listeners import TLS_EXTENSION

        token = await world.user("anna", "operator")
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "websocket", "path": "/containers/x/attach/ws", "query_string": b"", "server": ("h", 1),
            "headers": [(b"authorization", f"Bearer {token}".encode())], "extensions": {TLS_EXTENSION: Tls()},
        }  # fmt: skip
        await world.app(scope, None, send)
        assert sent == [{"type": "websocket.close", "code": 1008, "reason": "page not found"}]
        assert world.reached == []

    run(body)


def test_a_disabled_user_is_refused_with_token_and_certificate() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("anna", "admin", disabled=True)
        assert (await world.call("GET", "/services", token=token)).status_code == 401
        assert (await world.call("GET", "/services", tls=Tls("anna"))).status_code == 401
        assert await world.api.tokens.create(TokenWish(user="anna"))

    run(body)
