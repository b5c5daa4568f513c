"""How much of the cluster the tasks of one stack, or of services with one label, may take together.

    label of the cluster   fleet.quota.stack=shop            tasks=50,cpu=4,memory=8G
                           fleet.quota.label=team=red        memory=64G

What counts is what is wanted to run and has a node: a task that is being stopped has left room already, so that a service at its
quota can be updated (stop-first). CPUs and memory are those reserved; a task that reserves none takes none, so a quota of these
is worth most beside one of tasks. A lower quota stops nothing: it keeps away what would come.

Kept by the ``NodePool``: the tasks covered, and not sums, so there is no subtraction that could go wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Final

from fleet import errors
from fleet.model.ids import TaskId
from fleet.model.service import TaskSpec
from fleet.model.task import Task, TaskState, is_runnable
from fleet.model.units import parse_bytes

__all__ = ["PREFIX", "Budget", "Quota", "QuotaLedger", "check_quotas", "over_quota", "parse_quota", "quotas_of"]

PREFIX: Final = "fleet.quota."
QUOTAS_MAX: Final = 256
_STACK_LABEL: Final = "com.docker.stack.namespace"
_LIMITS: Final = ("tasks", "cpu", "memory")
_AMOUNT_MAX: Final = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Of services whose ``label`` has this ``value``. At least one limit; None is none. ``name`` is how a person writes it."""

    name: str
    label: str
    value: str
    tasks: int | None = None
    nano_cpus: int | None = None
    memory_bytes: int | None = None

    def covers(self, service_labels: Mapping[str, str]) -> bool:
        return service_labels.get(self.label) == self.value

    def limits(self) -> list[str]:
        """As they are written."""
        found = [] if self.tasks is None else [f"tasks={self.tasks}"]
        found += [] if self.nano_cpus is None else [f"cpu={self.nano_cpus / 1e9:g}"]
        return found + ([] if self.memory_bytes is None else [f"memory={_size(self.memory_bytes)}"])


@dataclass(slots=True, kw_only=True)
class Budget:
    """A quota and what is used of it, during one pass."""

    quota: Quota
    tasks: int = 0
    nano_cpus: int = 0
    memory_bytes: int = 0

    def take(self, task: Task) -> None:
        reserved = task.spec.resources.reservations
        self.tasks += 1
        self.nano_cpus += reserved.nano_cpus
        self.memory_bytes += reserved.memory_bytes

    def lacks(self, task: Task) -> list[str]:
        """The limits that do not let one more such task be placed, as they are written."""
        needs = zip(self.quota.limits(), self._needs(task.spec), strict=True)
        return [text for text, (limit, used, need) in needs if 0 < need > limit - used]

    def room(self, spec: TaskSpec) -> int:
        """How many more tasks of this spec may be placed; a limit that they take nothing of is none."""
        rooms = (max(limit - used, 0) // need for limit, used, need in self._needs(spec) if need)
        return min(rooms, default=_AMOUNT_MAX)

    def _needs(self, spec: TaskSpec) -> list[tuple[int, int, int]]:
        """(limit, used, what one task takes) of each limit that is given."""
        reserved, quota = spec.resources.reservations, self.quota
        needs = (
            (quota.tasks, self.tasks, 1),
            (quota.nano_cpus, self.nano_cpus, reserved.nano_cpus),
            (quota.memory_bytes, self.memory_bytes, reserved.memory_bytes),
        )
        return [(limit, used, need) for limit, used, need in needs if limit is not None]

    def explain(self) -> str:
        """``quota stack=shop: tasks 3 of 50, cpu 1.5 of 4``."""
        quota = self.quota
        parts = [f"tasks {self.tasks} of {quota.tasks}"] if quota.tasks is not None else []
        if quota.nano_cpus is not None:
            parts.append(f"cpu {self.nano_cpus / 1e9:g} of {quota.nano_cpus / 1e9:g}")
        if quota.memory_bytes is not None:
            parts.append(f"memory {_size(self.memory_bytes)} of {_size(quota.memory_bytes)}")
        return f"quota {quota.name}: {', '.join(parts)}"


class QuotaLedger:
    """The tasks that count for each quota."""

    def __init__(self, quotas: Iterable[Quota] = ()) -> None:
        self.quotas = tuple(quotas)
        self._covered: dict[str, dict[TaskId, Task]] = {quota.name: {} for quota in self.quotas}

    def look(self, task: Task) -> None:
        """A task appeared or changed."""
        if not self.quotas:
            return
        counts = bool(task.node_id) and task.status.state.rank >= TaskState.ASSIGNED.rank and is_runnable(task)
        for quota in self.quotas:
            if counts and quota.covers(task.service_labels):
                self._covered[quota.name][task.id] = task
            else:
                self._covered[quota.name].pop(task.id, None)

    def assume(self, task: Task) -> None:
        """A task was placed, and is not written yet."""
        for quota in self.quotas:
            if quota.covers(task.service_labels):
                self._covered[quota.name][task.id] = task

    def forget(self, task_id: TaskId) -> None:
        """A task ended or is gone; idempotent."""
        for covered in self._covered.values():
            covered.pop(task_id, None)

    def budgets(self, service_labels: Mapping[str, str]) -> list[Budget]:
        """Of the quotas that cover a service with these labels, with what is used now. O(tasks covered by these)."""
        return [self.budget(quota) for quota in self.quotas if quota.covers(service_labels)]

    def budget(self, quota: Quota) -> Budget:
        """One of ``quotas`` with what is used now. O(tasks covered)."""
        budget = Budget(quota=quota)
        for task in self._covered[quota.name].values():
            budget.take(task)
        return budget


def over_quota(budgets: Sequence[Budget], task: Task) -> str | None:
    """Why no more such task may be placed, whatever node has room; None when one may. Says no number that changes meanwhile."""
    for budget in budgets:
        if lacking := budget.lacks(task):
            return f"beyond quota {budget.quota.name} ({', '.join(lacking)})"
    return None


def parse_quota(label: str, text: str) -> Quota:
    """From a label of the cluster and its value. Raises ``UserError`` that names the label."""
    name = label.removeprefix(PREFIX)
    try:
        key, value = _selected(name)
        limits: dict[str, int] = {}
        for item in text.split(","):
            word, equals, amount = (part.strip() for part in item.partition("="))
            if word not in _LIMITS or not equals:
                raise errors.UserError(
                    f"{item.strip()!r} is no limit; expected {', '.join(f'{each}=N' for each in _LIMITS)}"
                )
            if word in limits:
                raise errors.UserError(f"{word} is limited twice")
            limits[word] = _READERS[word](amount)
    except errors.UserError as cause:
        raise errors.UserError(f"label {label}: {cause}") from cause
    return Quota(
        name=name,
        label=key,
        value=value,
        tasks=limits.get("tasks"),
        nano_cpus=limits.get("cpu"),
        memory_bytes=limits.get("memory"),
    )


def check_quotas(labels: Mapping[str, str]) -> None:
    """Raises ``UserError`` for a label of the cluster that begins like a quota and is none, or for too many."""
    found = [parse_quota(label, text) for label, text in labels.items() if label.startswith(PREFIX)]
    if len(found) > QUOTAS_MAX:
        raise errors.UserError(f"{len(found)} quotas, at most {QUOTAS_MAX}")


def quotas_of(labels: Mapping[str, str]) -> tuple[Quota, ...]:
    """Of the cluster, by name. What does not parse, and came past the API, limits nothing."""
    found = []
    for label in sorted(label for label in labels if label.startswith(PREFIX)):
        try:
            found.append(parse_quota(label, labels[label]))
        except errors.UserError:
            continue
    return tuple(found)


def _selected(name: str) -> tuple[str, str]:
    kind, _, rest = name.partition("=")
    if kind == "stack" and rest:
        return _STACK_LABEL, rest
    key, equals, value = rest.partition("=")
    if kind == "label" and key and equals:
        return key, value
    raise errors.UserError(f"{name!r} does not say whose quota it is; expected stack=NAME or label=KEY=VALUE")


def _tasks(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise errors.UserError(f"tasks: {text!r} is not a whole number")
    return int(text)


def _nano_cpus(text: str) -> int:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0 or amount > 10**6:
        raise errors.UserError(f"cpu: {text!r} is not a number of CPUs; write such as 4 or 0.5")
    return int(amount * 10**9)


def _memory(text: str) -> int:
    found = parse_bytes(text, what="memory")
    if found > _AMOUNT_MAX:
        raise errors.UserError(f"memory: {text!r} is more than can be had")
    return found


_READERS: Final[dict[str, Callable[[str], int]]] = {"tasks": _tasks, "cpu": _nano_cpus, "memory": _memory}


def _size(count: int) -> str:
    for unit, power in (("G", 30), ("M", 20), ("K", 10)):
        if count >= 1 << power:
            return f"{round(count / (1 << power), 1):g}{unit}"
    return str(count)
