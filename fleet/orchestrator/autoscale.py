"""How many replicas a service should have now: samples, policy, history and time in; a number and a sentence out. Pure.

    gauges ─ propose (per target) ─> greatest ─ clamp to min..max ─> recommendation ─ windows ─ steps ─ room ─> replicas

The rules are those of Kubernetes' HorizontalPodAutoscaler (v2, "Algorithm details"), with two of our own:

* **Nothing is taken away on missing figures.** A running task that nobody has heard of, or a query without an answer, keeps the
  number at least where it is, and counts as a recommendation of it: so a whole window must pass with figures before tasks go.
* **A number that this history did not lead to starts both windows anew**: one set by hand, and the one a new leader finds.

Invariants (property tests)
- A changed number is within min..max. One outside comes back at once, whatever the load.
- With one history, more load never gives a smaller number.
- After a number was reached by growing, no smaller one before the window for shrinking is over.
- Figures that are missing give no smaller number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from fleet.model.autoscale import AutoscalePolicy

__all__ = ["Decision", "Gauge", "History", "Observation", "decide"]

TOLERANCE: Final = 0.1
"""A load within a tenth of the target is on it."""
_ROUNDING: Final = 1e-9
"""Sums of shares that are whole but for their last binary digit ask for no further task."""
_RATIO_MAX: Final = 1e6
"""More than any policy's greatest number; a query may give what is infinite once it is divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One target. ``shares``: what each measured task uses, as a share of what the policy wants it to use (1 is on target).
    ``unknown``: running tasks of which there is no figure. ``demand``: of a query, how many tasks would be on target.
    ``text`` says the figure to a person; ``error`` why there is none.
    """

    text: str = ""
    shares: tuple[float, ...] = ()
    unknown: int = 0
    demand: float | None = None
    error: str = ""

    @property
    def is_complete(self) -> bool:
        return not self.error and not self.unknown and (bool(self.shares) or self.demand is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """``replicas``: the number wanted now. ``waiting``: why tasks of the service find no node, empty if all have one. ``room``:
    how many more tasks its quotas let be placed, None without one; ``room_text`` names the quota. ``is_paused``: an update
    stopped half-way; ``is_updating``: one is in work.
    """

    replicas: int
    gauges: tuple[Gauge, ...]
    waiting: str = ""
    room: int | None = None
    room_text: str = ""
    is_paused: bool = False
    is_updating: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """``replicas``: where the last decision led. ``since``: from when on everything is known. ``advice``: what would have been
    right at each instant, oldest first, no older than the longest window."""

    replicas: int
    since: datetime
    advice: tuple[tuple[datetime, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """``replicas``: the number to have. ``reason``: a sentence for people, also when nothing changes. ``held``: what stands in
    the way of a number that the load asks for; names no figure that changes all the time. ``history``: for the next decision,
    if this one is carried out."""

    replicas: int
    reason: str
    history: History
    held: str = ""


def decide(policy: AutoscalePolicy, seen: Observation, history: History | None, *, now: datetime) -> Decision:
    """The number of replicas from now on. ``history``: of the last decision; None for the first one of a leader or a policy."""
    present = seen.replicas
    if history is None or history.replicas != present:
        history = History(replicas=present, since=now)
    if not present:
        return Decision(replicas=0, reason="it is stopped or scaled to 0; start it, or scale it to 1", history=history)
    if seen.is_paused:
        history = _noted(history, policy, present, now=now)
        held = "its update is paused: a new task would be of the spec that failed"
        return Decision(replicas=present, reason=f"stays at {present}: {held}", history=history, held=held)
    bounded = _clamp(policy, present)
    if bounded != present:
        word = f"at least {bounded}" if bounded > present else f"at most {bounded}"
        history = replace(_noted(history, policy, bounded, now=now), replicas=bounded)
        return Decision(replicas=bounded, reason=f"{present} -> {bounded}: the policy wants {word}", history=history)

    wished = _wished(seen)
    advice = _clamp(policy, wished)
    history = _noted(history, policy, advice, now=now)
    wanted, why = present, ""
    if advice > present:
        wanted, why = _grown(policy, seen, history, advice, now=now)
    elif advice < present:
        wanted, why = _shrunk(policy, seen, history, now=now)
    held = _obstacle(policy, seen, wished, advice, grows=wanted > present)
    figures = "; ".join(gauge.error or gauge.text for gauge in seen.gauges if gauge.error or gauge.text)
    notes = ", ".join(note for note in (why, held) if note)
    change = f"{present} -> {wanted}" if wanted != present else f"stays at {present}"
    reason = f"{change}: {figures or 'nothing is measured yet'}{f' ({notes})' if notes else ''}"
    return Decision(replicas=wanted, reason=reason, history=replace(history, replicas=wanted), held=held)


def _wished(seen: Observation) -> int:
    """What the load asks for, without bounds."""
    proposals = [found for gauge in seen.gauges if (found := _propose(gauge, seen.replicas)) is not None]
    wished = max(proposals, default=seen.replicas)
    if all(gauge.is_complete for gauge in seen.gauges):
        return wished
    return max(wished, seen.replicas)


def _propose(gauge: Gauge, replicas: int) -> int | None:
    """None without any figure. A task that is not measured counts as idle where more are needed, and as on target where fewer
    would do: so it moves nothing by itself."""
    if gauge.error:
        return None
    if gauge.demand is not None:
        ratio = gauge.demand / replicas
    elif not gauge.shares:
        return None
    else:
        total, absent = sum(gauge.shares), max(replicas - len(gauge.shares), 0)
        ratio = total / len(gauge.shares)
        if absent and ratio > 1:
            ratio = max(total / replicas, 1.0)
        elif absent:
            ratio = min((total + absent) / replicas, 1.0)
    ratio = min(ratio, _RATIO_MAX)
    if abs(ratio - 1) <= TOLERANCE + _ROUNDING:
        return replicas
    return math.ceil(replicas * ratio - _ROUNDING)


def _clamp(policy: AutoscalePolicy, replicas: int) -> int:
    return min(max(replicas, policy.min_replicas), policy.max_replicas)


def _noted(history: History, policy: AutoscalePolicy, advice: int, *, now: datetime) -> History:
    horizon = now - policy.longest_window
    kept = tuple(entry for entry in history.advice if horizon < entry[0] <= now)
    return replace(history, advice=(*kept, (now, advice)))


def _grown(
    policy: AutoscalePolicy, seen: Observation, history: History, advice: int, *, now: datetime
) -> tuple[int, str]:
    """(number, why not more). At least the present number."""
    present = seen.replicas
    if now - history.since < policy.up_window:
        return present, f"{advice} would do; not looked at for {_text(policy.up_window.total_seconds())} yet"
    least = min(number for at, number in history.advice if at > now - policy.up_window or at == now)
    if least <= present:
        return present, f"{advice} would do, not needed for {_text(policy.up_window.total_seconds())} yet"
    most = present + policy.up_step.most(present)
    if seen.waiting:
        return present, ""
    if seen.room is not None:
        most = min(most, present + max(seen.room, 0))
    return min(least, most), f"{advice} would do" if min(least, most) < advice else ""


def _shrunk(policy: AutoscalePolicy, seen: Observation, history: History, *, now: datetime) -> tuple[int, str]:
    """(number, why not fewer). At most the present number, and at least one."""
    present = seen.replicas
    advice = history.advice[-1][1]
    if seen.is_updating:
        return present, f"{advice} would do, when its update is over"
    if now - history.since < policy.down_window:
        left = policy.down_window - (now - history.since)
        return present, f"{advice} would do; nothing goes for another {_text(left.total_seconds())}"
    highest = max(number for at, number in history.advice if at > now - policy.down_window or at == now)
    least = max(present - policy.down_step.most(present), 1)
    wanted = min(max(highest, least), present)
    return wanted, f"{advice} would do" if wanted > advice else ""


def _obstacle(policy: AutoscalePolicy, seen: Observation, wished: int, advice: int, *, grows: bool) -> str:
    """What a person should know, because the number is not what the load asks for and will not be by itself."""
    for gauge in seen.gauges:
        if gauge.error:
            return gauge.error
    if advice > seen.replicas and not grows:
        if seen.waiting:
            return f"no further tasks while some wait: {seen.waiting}"
        if seen.room is not None and seen.room <= 0:
            return f"no room left in {seen.room_text}"
    if any(gauge.unknown for gauge in seen.gauges):
        return "no figures of some running tasks: none is taken away"
    return f"the load asks for more than the policy's {policy.max_replicas}" if wished > policy.max_replicas else ""


def _text(seconds: float) -> str:
    return f"{math.ceil(seconds)} s"
