"""How many replicas a service should have, left to the cluster. The policy lies in labels of the service, as schedules and wishes
do, so that any client and any Compose file can give one and ``docker service inspect`` shows it.

    fleet.autoscale.min           2            fewest tasks; 1 without
    fleet.autoscale.max           10           most tasks; has to be given
    fleet.autoscale.cpu           70           percent of a task's CPU limit, else of its reservation, else of one core
    fleet.autoscale.memory        80           percent of its memory limit, else of its reservation; without page cache
    fleet.autoscale.query         sum(waiting)      of Prometheus: one number for the whole service
    fleet.autoscale.query-target  20           what of that number one task should have
    fleet.autoscale.prometheus    http://10.0.0.5:9090     as the managers reach it; which may be asked: ``prometheus_access``
    fleet.autoscale.up-window     0s           how long more must have been needed before tasks are added
    fleet.autoscale.down-window   5m           how long fewer must have been enough before tasks are taken away
    fleet.autoscale.up-step       4,100%       most that one decision adds: tasks, percent of them, or the greater of both
    fleet.autoscale.down-step     100%         most that one decision takes away
    fleet.autoscale.interval      15s          time between two decisions
    fleet.autoscale.warmup        30s          how long what a new task uses says nothing yet

Of several targets the one that asks for most tasks counts. The limit comes before the reservation because it is where a task can
do no more: 70 is then always a target that can be reached. Names and defaults follow Kubernetes' HorizontalPodAutoscaler (v2).
"""

from __future__ import annotations

import functools
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Final
from urllib.parse import urlsplit

import msgspec

from fleet import errors
from fleet.model.prometheus_access import explain_never
from fleet.model.service import ReplicatedMode, ServiceMode, ServiceSpec

__all__ = [
    "PREFIX",
    "AutoscalePolicy",
    "QueryTarget",
    "Step",
    "check_autoscale",
    "cpu_basis",
    "explain_policy",
    "has_policy",
    "keeping_replicas",
    "memory_basis",
    "parse_policy",
    "policy_of",
    "with_replicas",
]

PREFIX: Final = "fleet.autoscale."
_TASKS_MAX: Final = 100_000
_PERCENT_MAX: Final = 1_000
_TEXT_MAX: Final = 2_048
_WINDOW_MAX: Final = timedelta(hours=1)
_CORE: Final = 1_000_000_000
_WHOLE: Final = re.compile(r"[0-9]{1,6}")
_PERCENT: Final = re.compile(r"([0-9]{1,6})\s*%?")
_AMOUNT: Final = re.compile(r"[0-9]{1,15}(\.[0-9]{1,9})?")
_DURATION: Final = re.compile(r"([0-9]{1,6})(s|m|h)")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """The greater of a number of tasks and a percentage of those there are."""

    tasks: int = 0
    percent: int = 0

    def most(self, replicas: int) -> int:
        """At least one: a step of nothing would be no policy."""
        return max(self.tasks, replicas * self.percent // 100, 1)

    def __str__(self) -> str:
        return ",".join([str(self.tasks)] * bool(self.tasks) + [f"{self.percent}%"] * bool(self.percent))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryTarget:
    """``per_task``: what of the query's result one task should have; > 0."""

    prometheus: str
    query: str
    per_task: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalePolicy:
    """``1 <= min_replicas <= max_replicas``, and at least one target. Percentages of ``cpu_basis`` and ``memory_basis``."""

    min_replicas: int
    max_replicas: int
    cpu_percent: int | None = None
    memory_percent: int | None = None
    query: QueryTarget | None = None
    up_window: timedelta = timedelta()
    down_window: timedelta = timedelta(minutes=5)
    up_step: Step = Step(tasks=4, percent=100)
    down_step: Step = Step(percent=100)
    interval: timedelta = timedelta(seconds=15)
    warmup: timedelta = timedelta(seconds=30)

    @property
    def measures_tasks(self) -> bool:
        """Whether nodes must say what its tasks use."""
        return self.cpu_percent is not None or self.memory_percent is not None

    @property
    def longest_window(self) -> timedelta:
        return max(self.up_window, self.down_window)


def has_policy(labels: Mapping[str, str]) -> bool:
    """Whether any label says something of scaling; cheap."""
    return any(key.startswith(PREFIX) for key in labels)


def parse_policy(labels: Mapping[str, str]) -> AutoscalePolicy | None:
    """Of a service with these labels; None without one. Raises ``UserError`` that names the label and what is expected."""
    given = tuple(sorted((key, value) for key, value in labels.items() if key.startswith(PREFIX)))
    return _parse(given) if given else None


def policy_of(spec: ServiceSpec) -> AutoscalePolicy | None:
    """None also for what has no number of replicas, and for labels that came past the API and mean nothing."""
    if spec.is_global or spec.is_job:
        return None
    try:
        return parse_policy(spec.labels)
    except errors.UserError:
        return None


def check_autoscale(spec: ServiceSpec) -> None:
    """Raises ``UserError`` for a policy that is none, or that can not be kept with this spec."""
    policy = parse_policy(spec.labels)
    if policy is None:
        return
    if spec.is_global or spec.is_job:
        raise errors.UserError(
            f"service {spec.name} has labels {PREFIX}* and is {spec.mode_name}; only replicated services are scaled: "
            "use mode replicated, or take the labels away"
        )
    if policy.query is not None and (never := _never_asked(policy.query.prometheus)):
        raise errors.UserError(f"label {PREFIX}prometheus: {policy.query.prometheus} is {never}: it is never asked")
    limits = spec.task_template.resources.limits
    if policy.cpu_percent is not None and policy.cpu_percent > 100 and limits.nano_cpus:
        raise errors.UserError(
            f"label {PREFIX}cpu: no task can use {policy.cpu_percent}% of its limit of {limits.nano_cpus / 1e9:g} CPUs; "
            "expected 1 to 100, such as 70"
        )
    if policy.memory_percent is not None and not memory_basis(spec):
        raise errors.UserError(
            f"label {PREFIX}memory is a percentage of the memory limit, and service {spec.name} has none; "
            "give it one (--limit-memory, or deploy.resources.limits.memory)"
        )


def _never_asked(prometheus: str) -> str:
    """Of an address in figures; what a name leads to is judged when it is asked."""
    try:
        return explain_never(ipaddress.ip_address(urlsplit(prometheus).hostname or ""))
    except ValueError:
        return ""


def cpu_basis(spec: ServiceSpec) -> int:
    """Billionths of a CPU that are 100 % for the policy: the limit, else the reservation, else one core."""
    resources = spec.task_template.resources
    return resources.limits.nano_cpus or resources.reservations.nano_cpus or _CORE


def memory_basis(spec: ServiceSpec) -> int:
    """Bytes that are 100 % for the policy: the limit, else the reservation; 0 when there is neither."""
    resources = spec.task_template.resources
    return resources.limits.memory_bytes or resources.reservations.memory_bytes


def with_replicas(spec: ServiceSpec, replicas: int) -> ServiceSpec:
    """The same with another number of tasks; ``spec`` is of a replicated service."""
    return msgspec.structs.replace(spec, mode=ServiceMode(replicated=ReplicatedMode(replicas=replicas)))


def keeping_replicas(spec: ServiceSpec, current: ServiceSpec) -> ServiceSpec:
    """``spec`` with the number of tasks that was found for ``current``, if both leave it to the cluster: who goes back to an
    older spec, or deploys a file again, does not mean its number. One that is stopped (0) is not among them.
    """
    if not current.replicas or not spec.replicas or policy_of(spec) is None or policy_of(current) is None:
        return spec
    return with_replicas(spec, current.replicas)


def explain_policy(spec: ServiceSpec) -> str:
    """``2 to 10 tasks, CPU at 70% of the limit of 0.5 CPUs``; empty without a policy."""
    policy = policy_of(spec)
    if policy is None:
        return ""
    limits, reserved = spec.task_template.resources.limits, spec.task_template.resources.reservations
    parts = [f"{policy.min_replicas} to {policy.max_replicas} tasks"]
    if policy.cpu_percent is not None:
        whole = (
            f"the limit of {limits.nano_cpus / 1e9:g} CPUs"
            if limits.nano_cpus
            else f"the reservation of {reserved.nano_cpus / 1e9:g} CPUs"
            if reserved.nano_cpus
            else "one core"
        )
        parts.append(f"CPU at {policy.cpu_percent}% of {whole}")
    if policy.memory_percent is not None:
        word = "limit" if limits.memory_bytes else "reservation"
        parts.append(f"memory at {policy.memory_percent}% of the {word} of {memory_basis(spec) / (1 << 20):g} MiB")
    if policy.query is not None:
        parts.append(f"{policy.query.per_task:g} a task of {policy.query.query!r} from {policy.query.prometheus}")
    return ", ".join(parts)


@functools.lru_cache(maxsize=1024)
def _parse(given: tuple[tuple[str, str], ...]) -> AutoscalePolicy:
    found = {key.removeprefix(PREFIX): value.strip() for key, value in given}
    for name, text in found.items():
        if name not in _READERS:
            raise errors.UserError(
                f"label {PREFIX}{name} is not known; there are {', '.join(PREFIX + known for known in _READERS)}"
            )
        if len(text) > _TEXT_MAX:
            raise errors.UserError(f"label {PREFIX}{name} is longer than {_TEXT_MAX} characters")
    if "max" not in found:
        raise errors.UserError(f"label {PREFIX}{min(found)} needs {PREFIX}max beside it: the most tasks there may be")
    parsed: dict[str, object] = {}
    for name, text in found.items():
        try:
            parsed[_FIELDS.get(name, name)] = _READERS[name](text)
        except errors.UserError as cause:
            raise errors.UserError(f"label {PREFIX}{name}: {cause}") from cause
    query = _query(parsed)
    if query is None and not parsed.keys() & {"cpu_percent", "memory_percent"}:
        raise errors.UserError(
            f"label {PREFIX}max says how many tasks at most, and none says by what they are scaled; "
            f"give one of {PREFIX}cpu, {PREFIX}memory, {PREFIX}query"
        )
    parsed.setdefault("min_replicas", 1)
    policy = msgspec.convert({**parsed, "query": query}, AutoscalePolicy, from_attributes=True)
    if policy.min_replicas > policy.max_replicas:
        raise errors.UserError(
            f"label {PREFIX}min: {policy.min_replicas} is more than {PREFIX}max, which is {policy.max_replicas}"
        )
    return policy


def _query(parsed: dict[str, object]) -> QueryTarget | None:
    """Takes its three parts out of ``parsed``. Raises ``UserError`` when some are missing."""
    names = {"query": "query", "per_task": "query-target", "prometheus": "prometheus"}
    parts = {field: parsed.pop(field) for field in names if field in parsed}
    if not parts:
        return None
    if missing := [PREFIX + name for field, name in names.items() if field not in parts]:
        there = next(PREFIX + name for field, name in names.items() if field in parts)
        raise errors.UserError(f"label {there} needs {' and '.join(missing)} beside it")
    return msgspec.convert(parts, QueryTarget)


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text) or not 1 <= int(text) <= _TASKS_MAX:
        raise errors.UserError(f"{text!r} is no number of tasks; expected a whole number from 1 to {_TASKS_MAX}")
    return int(text)


def _percent(text: str) -> int:
    match = _PERCENT.fullmatch(text)
    if match is None or not 1 <= int(match[1]) <= _PERCENT_MAX:
        raise errors.UserError(
            f"{text!r} is no percentage; expected a whole number from 1 to {_PERCENT_MAX}, such as 70"
        )
    return int(match[1])


def _per_task(text: str) -> float:
    if not _AMOUNT.fullmatch(text) or float(text) <= 0:
        raise errors.UserError(f"{text!r} is no target; expected a number above 0, such as 20 or 0.5")
    return float(text)


def _promql(text: str) -> str:
    if not text:
        raise errors.UserError(
            "the query is empty; expected PromQL with one number as its result, such as sum(waiting)"
        )
    return text


def _address(text: str) -> str:
    try:
        parts = urlsplit(text)
        is_usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        )
        has_credentials, _ = parts.username is not None, parts.port
    except ValueError:
        is_usable, has_credentials = False, False
    if has_credentials:
        raise errors.UserError("an address with a password in it would be shown to everybody; leave it out")
    if not is_usable or not text.isascii() or any(not 0x20 < ord(character) < 0x7F for character in text):
        raise errors.UserError(f"{text!r} is no address of a Prometheus; expected such as http://10.0.0.5:9090")
    return text.rstrip("/")


def _step(text: str) -> Step:
    tasks = percent = 0
    for part in (part.strip() for part in text.split(",")):
        amount = part.removesuffix("%").rstrip()
        is_given_twice = percent if part.endswith("%") else tasks
        if is_given_twice or not _WHOLE.fullmatch(amount) or not 1 <= int(amount) <= _TASKS_MAX:
            raise errors.UserError(
                f"{text!r} is no step; expected tasks, a percentage or both, such as 2, 50% or 4,100%"
            )
        if part.endswith("%"):
            percent = int(amount)
        else:
            tasks = int(amount)
    return Step(tasks=tasks, percent=percent)


def _span(low: timedelta, high: timedelta) -> Callable[[str], timedelta]:
    def read(text: str) -> timedelta:
        match = _DURATION.fullmatch(text)
        found = timedelta(seconds=int(match[1]) * _UNITS[match[2]]) if match else None
        if found is None or not low <= found <= high:
            raise errors.UserError(
                f"{text!r} is no duration from {low.total_seconds():g}s to {high.total_seconds():g}s; write such as 30s or 5m"
            )
        return found

    return read


_window: Final = _span(timedelta(), _WINDOW_MAX)
_READERS: Final[dict[str, Callable[[str], object]]] = {
    "min": _whole,
    "max": _whole,
    "cpu": _percent,
    "memory": _percent,
    "query": _promql,
    "query-target": _per_task,
    "prometheus": _address,
    "up-window": _window,
    "down-window": _window,
    "up-step": _step,
    "down-step": _step,
    "interval": _span(timedelta(seconds=1), timedelta(minutes=10)),
    "warmup": _window,
}
_FIELDS: Final = {
    "min": "min_replicas",
    "max": "max_replicas",
    "cpu": "cpu_percent",
    "memory": "memory_percent",
    "query-target": "per_task",
    "up-window": "up_window",
    "down-window": "down_window",
    "up-step": "up_step",
    "down-step": "down_step",
}
