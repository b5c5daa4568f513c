"""Signing in with a browser: a cookie that is worth nothing alone, and never more than the token it stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet.daemon.access.limits import BURST
from fleet.daemon.access.sessions import IDLE_S, Sessions
from fleet.model.ids import TokenId
from tests.support.api_gate import Gated, gated

Body = Callable[[Gated], Awaitable[None]]


def run(body: Body) -> None:
    async def main() -> None:
        async with gated() as world:
            await body(world)

    asyncio.run(main())


async def _sign_in(world: Gated, token: str) -> tuple[dict[str, str], Any]:
    """Headers of the page from then on, and the answer."""
    answer = await world.call("POST", "/fleet/v1/session", json={"Token": token})
    assert answer.status_code == 201, answer.text
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return {"Cookie": cookie, "X-Fleet-Dashboard": answer.json()["Key"]}, answer


def test_a_session_is_its_token_s_user_until_it_is_ended() -> None:
    async def body(world: Gated) -> None:
        token = await world.user("vera", "viewer")
        headers, answer = await _sign_in(world, token)
        who = (await world.call("GET", "/fleet/v1/whoami", headers=headers)).json()
        assert (who["User"], who["Role"], who["Session"]) == ("vera", "viewer", True)
        assert (await world.call("POST", "/volumes/prune", headers=headers)).status_code == 403
        assert token not in answer.text and token not in str(answer.headers)
        ended = await world.call("DELETE", "/fleet/v1/session", headers=headers)
        assert ended.status_code == 204 and "Max-Age=0" in ended.headers["set-cookie"]
        assert (await world.call("GET", "/services", headers=headers)).status_code == 401

    run(body)


def test_the_cookie_is_kept_from_scripts_other_sites_and_the_clear() -> None:
    async def body(world: Gated) -> None:
        _, answer = await _sign_in(world, await world.user("vera", "viewer"))
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name.startswith("__Host-")
        assert set(attributes) == {"Path=/", "Secure", "HttpOnly", "SameSite=Strict"}
        assert answer.headers["cache-control"] == "no-store"

    run(body)


def test_the_cookie_alone_opens_nothing_nor_does_the_key() -> None:
    async def body(world: Gated) -> None:
        headers, _ = await _sign_in(world, await world.user("vera", "viewer"))
        for sent in ({"Cookie": headers["Cookie"]}, {**headers, "X-Fleet-Dashboard": "1"}):
            assert (await world.call("GET", "/services", headers=sent)).status_code == 401
        alone = {"X-Fleet-Dashboard": headers["X-Fleet-Dashboard"]}
        assert (await world.call("GET", "/services", headers=alone)).status_code == 401
        assert (await world.call("GET", "/services", headers=headers)).status_code == 200

    run(body)


def test_a_removed_token_ends_its_sessions() -> None:
    async def body(world: Gated) -> None:
        headers, _ = await _sign_in(world, await world.user("vera", "viewer"))
        await world.api.tokens.remove(world.api.tokens.list()[0].id)
        assert (await world.call("GET", "/services", headers=headers)).status_code == 401

    run(body)


@pytest.mark.parametrize("how", [{"is_clear": True}, {"server": ("/run/fleet.sock", None)}])
def test_one_signs_in_over_tls_alone(how: dict[str, Any]) -> None:
    async def body(world: Gated) -> None:
        token = await world.user("vera", "viewer")
        answer = await world.call("POST", "/fleet/v1/session", json={"Token": token}, **how)
        assert answer.status_code == 400 and "TLS" in answer.json()["message"]
        assert "set-cookie" not in answer.headers

    run(body)


def test_attempts_to_sign_in_are_limited_and_told() -> None:
    async def body(world: Gated) -> None:
        codes = [
            (await world.call("POST", "/fleet/v1/session", json={"Token": "FLTK-1-no"})).status_code
            for _ in range(BURST + 2)
        ]
        assert codes == [401] * BURST + [429] * 2
        assert world.told[0]["event"] == "refused" and "FLTK" not in repr(world.told)
        token = await world.user("vera", "viewer")
        await _sign_in(world, token)
        assert world.told[-1]["who"] == "user vera"
        assert token.rpartition("-")[2] not in repr(world.told)

    run(body)


class _Clock:
    at = 0.0

    def monotonic(self) -> float:
        return self.at


def test_idle_sessions_end_and_there_is_a_bound() -> None:
    clock = _Clock()
    sessions = Sessions(clock)  # type: ignore[arg-type]
    cookie, key = sessions.open(TokenId("t"))
    clock.at += IDLE_S - 1
    assert sessions.token_of(cookie, key) == "t"
    clock.at += IDLE_S - 1
    assert sessions.token_of(cookie, key) == "t", "use keeps it"
    clock.at += IDLE_S + 1
    assert sessions.token_of(cookie, key) is None
    for _ in range(10_050):
        sessions.open(TokenId("t"))
    assert len(sessions._open) <= 10_000
    assert sessions.token_of("", "") is None
