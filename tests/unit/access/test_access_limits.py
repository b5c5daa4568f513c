"""How often one client and one address are answered over TCP, and who is not held up by others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fleet import errors
from fleet.daemon.access.limits import RequestLimits
from fleet.daemon.access.principal import LOCAL
from fleet.daemon.config import load_config
from fleet.daemon.listeners import TLS_EXTENSION
from fleet.daemon.metrics import RequestFigures
from fleet.daemon.rates import Rate, parse_rate
from fleet.metrics import render
from tests.support.api_gate import Gated, Tls, gated


class _Clock:
    at = 0.0

    def monotonic(self) -> float:
        return self.at


def run(body: Callable[[Gated, _Clock, list[str]], Awaitable[None]], **rates: Rate) -> None:
    async def main() -> None:
        clock, noted = _Clock(), list[str]()
        async with gated(RequestLimits(clock, **rates, note=noted.append)) as world:  # type: ignore[arg-type]
            await body(world, clock, noted)

    asyncio.run(main())


async def codes(world: Gated, count: int, **how: Any) -> list[int]:
    return [(await world.call("GET", "/services", **how)).status_code for _ in range(count)]


def test_a_client_over_its_limit_is_told_to_wait_and_others_are_answered() -> None:
    async def body(world: Gated, clock: _Clock, noted: list[str]) -> None:
        anna, vera = await world.user("anna", "viewer"), await world.user("vera", "viewer")
        assert await codes(world, 5, token=anna) == [200, 200, 200, 429, 429]
        answer = await world.call("GET", "/services", token=anna)
        assert answer.headers["retry-after"] == "1"
        assert answer.json()["message"].startswith("too many requests of token ")
        assert "2 a second and 3 at once are answered; wait" in answer.json()["message"]
        assert "--api-rate-client" in answer.json()["message"]
        assert noted == ["client"] * 3
        assert await codes(world, 1, token=vera) == [200]
        assert await codes(world, 4, tls=Tls("root")) == [200, 200, 200, 429]
        assert await codes(world, 4, tls=Tls("other")) == [200, 200, 200, 429]
        assert await codes(world, 4, is_clear=True) == [200, 200, 200, 429]
        assert await codes(world, 9, server=("/run/fleet.sock", None)) == [200] * 9, "the unix socket has no limit"
        clock.at += 0.6
        assert await codes(world, 2, token=anna) == [200, 429]

    run(body, client=Rate(2, 3))


def test_an_address_has_a_limit_that_strangers_do_not_use_up_for_others() -> None:
    async def body(world: Gated, _clock: _Clock, noted: list[str]) -> None:
        token, other = await world.user("anna", "viewer"), await world.user("vera", "viewer")
        assert await codes(world, 6) == [401] * 4 + [429] * 2
        assert await codes(world, 2, token="FLTK-1-x") == [401] * 2, "wrong credentials have a limit of their own"
        assert await codes(world, 3, token=token) == [200] * 3
        assert await codes(world, 2, token=other) == [200, 429]
        assert noted == ["address"] * 3

    run(body, address=Rate(1, 4))


def test_a_client_over_its_own_limit_takes_nothing_from_its_address() -> None:
    async def body(world: Gated, _clock: _Clock, noted: list[str]) -> None:
        token, other = await world.user("anna", "viewer"), await world.user("vera", "viewer")
        await codes(world, 20, token=token)
        assert await codes(world, 2, token=other) == [200, 200]
        assert set(noted) == {"client"}

    run(body, client=Rate(1, 2), address=Rate(1, 5))


def test_who_asks_too_often_does_not_fill_the_log() -> None:
    async def body(world: Gated, _clock: _Clock, _noted: list[str]) -> None:
        token = await world.user("anna", "viewer")
        await codes(world, 60, token=token)
        assert len(world.told) == 10

    run(body, client=Rate(1, 1))


def test_the_table_of_clients_is_bounded() -> None:
    limits = RequestLimits(_Clock(), address=Rate(1, 1))  # type: ignore[arg-type]
    for number in range(12_000):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        scope = {"client": (address, 1), "server": ("10.0.0.1", 2376), "extensions": {TLS_EXTENSION: Tls()}}
        limits.take(scope, LOCAL)
    assert limits._addresses is not None
    assert len(limits._addresses._keys) == 10_000


@pytest.mark.parametrize(
    ("text", "rate"), [("200", Rate(200, 2000)), ("5:7", Rate(5, 7)), ("off", None), ("1000000:1", Rate(1_000_000, 1))]
)
def test_rates_are_read(text: str, rate: Rate | None) -> None:
    assert parse_rate(text) == rate
    assert load_config(["--api-rate-client", text]).client_rate == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "5:", ":5", "5:0", "1.5", "1000001", "9" * 40, "on", "²"])
def test_what_is_no_rate_is_refused_in_words(text: str) -> None:
    with pytest.raises(errors.UserError, match=r"api_rate_address: .*is no rate; expected requests a second"):
        load_config([f"--api-rate-address={text}"])


def test_there_are_limits_unless_they_are_switched_off() -> None:
    config = load_config([])
    assert (config.client_rate, config.address_rate) == (Rate(200, 2000), Rate(1000, 10_000))


def test_refusals_are_counted_by_limit() -> None:
    figures = RequestFigures()
    figures.limited.inc("client")
    assert b'fleet_api_limited_requests_total{limit="client"} 1' in render(figures.families())
