"""A cancellation that comes together with a failure is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable

import pytest

from fleet.cancellation import TaskGroup, cancel_and_wait


def in_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())  # type: ignore[arg-type]

    return run


async def _fails_when(told: asyncio.Event) -> None:
    await told.wait()
    raise ValueError("failed")


@in_a_loop
async def test_who_is_cancelled_while_a_member_fails_does_not_go_on() -> None:
    told, rounds = asyncio.Event(), 0

    async def goes_on_whatever_fails() -> None:
        nonlocal rounds
        while rounds < 3:
            rounds += 1
            with contextlib.suppress(ExceptionGroup):
                async with TaskGroup() as group:
                    group.create_task(_fails_when(told))
            await asyncio.sleep(0.01)

    work = asyncio.create_task(goes_on_whatever_fails())
    await asyncio.sleep(0)
    told.set()
    work.cancel()
    await asyncio.wait({work}, timeout=10)
    assert work.cancelled()
    assert rounds == 1


@in_a_loop
async def test_members_that_fail_by_themselves_are_told_as_before() -> None:
    told = asyncio.Event()
    told.set()
    with pytest.raises(ExceptionGroup) as raised:
        async with TaskGroup() as group:
            group.create_task(_fails_when(told))
    assert [str(each) for each in raised.value.exceptions] == ["failed"]


@in_a_loop
async def test_failures_one_after_the_other_are_never_taken_for_a_cancellation() -> None:
    for _ in range(3):
        told = asyncio.Event()
        with pytest.raises(ExceptionGroup):
            async with TaskGroup() as group:
                group.create_task(_fails_when(told))
                asyncio.get_running_loop().call_later(0.01, told.set)
    me = asyncio.current_task()
    assert me is not None and me.cancelling() == 0


@in_a_loop
async def test_a_deadline_that_passes_while_a_member_fails_is_told_as_one() -> None:
    async def fails_when_cancelled() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("failed")

    with pytest.raises((TimeoutError, ExceptionGroup)):  # from 3.13 on the failure, with the deadline noted in it
        async with asyncio.timeout(0.01), TaskGroup() as group:
            group.create_task(fails_when_cancelled())
    await asyncio.sleep(0)  # nothing of it is left in this task


@in_a_loop
async def test_waiting_for_a_cancelled_task_can_itself_be_cancelled() -> None:
    held = asyncio.Event()

    async def takes_its_time() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await held.wait()

    inner = asyncio.create_task(takes_its_time())
    await asyncio.sleep(0)
    after = []

    async def waits() -> None:
        await cancel_and_wait(inner, None)
        after.append("went on")

    outer = asyncio.create_task(waits())
    await asyncio.sleep(0)
    outer.cancel()
    held.set()
    await asyncio.wait({outer}, timeout=10)
    assert outer.cancelled()
    assert not after


@in_a_loop
async def test_what_a_cancelled_task_raises_is_its_own_affair() -> None:
    async def complains() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("failed")

    task = asyncio.create_task(complains())
    await asyncio.sleep(0)
    await cancel_and_wait(task)
    assert isinstance(task.exception(), ValueError)
