"""Waiting for a change of the tables, or for an instant that a plan named."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from fleet.clock import Clock
from fleet.store import Changes, Subscription

__all__ = ["PERIOD_S", "changes_until"]

PERIOD_S: Final = 60.0
"""Loops look at everything this often without any event: a net under mistakes, and under wall clocks that jump."""


async def changes_until(subscription: Subscription, clock: Clock, until: datetime | None) -> Changes:
    """The next changes; none when ``until`` came first; everything (``resync``) after a quiet minute. Cancels safely."""
    wait_s = PERIOD_S
    if until is not None:
        wait_s = min(wait_s, max((until - clock.now()).total_seconds(), 0.0))
    pending = subscription.take()
    if pending or wait_s <= 0:
        return pending
    changes = await subscription.wait_at_most(wait_s, clock)
    return changes or Changes((), resync=wait_s >= PERIOD_S)
