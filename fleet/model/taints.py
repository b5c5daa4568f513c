"""Taints, by which a node keeps tasks away, and tolerations, by which a service comes all the same.

    node label      fleet.taint.KEY = VALUE:EFFECT            no-schedule | prefer-no-schedule | no-execute
    service label   fleet.placement.toleration = KEY[=VALUE][:EFFECT], ...        key * is any

*no-schedule*: nothing new comes, what is there stays. *prefer-no-schedule*: only if others are not better. *no-execute*: nothing
comes and what is there leaves. A toleration without a value is for every value, without an effect for every effect.

They lie in labels because every client of the engine API can write these. Here, and not in the scheduler, because which tasks
must leave is for the orchestrator to say, which does not know the scheduler.
"""

from __future__ import annotations

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from fleet import errors

__all__ = [
    "TAINT_PREFIX",
    "TOLERATION_LABEL",
    "Effect",
    "Taint",
    "Toleration",
    "check_taints",
    "keeps_away",
    "parse_taint",
    "parse_toleration",
    "parse_tolerations",
    "repels",
    "service_tolerations",
    "taints_of",
]

TAINT_PREFIX: Final = "fleet.taint."
TOLERATION_LABEL: Final = "fleet.placement.toleration"
TOLERATIONS_MAX: Final = 32
_KEY: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?")
_VALUE: Final = re.compile(r"[A-Za-z0-9._-]{0,63}")


class Effect(enum.StrEnum):
    NO_SCHEDULE = "no-schedule"
    PREFER_NO_SCHEDULE = "prefer-no-schedule"
    NO_EXECUTE = "no-execute"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taint:
    key: str
    value: str
    effect: Effect

    def __str__(self) -> str:
        return f"{self.key}={self.value}:{self.effect}" if self.value else f"{self.key}:{self.effect}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Toleration:
    """``key`` "*": any. ``value``, ``effect`` None: any."""

    key: str
    value: str | None = None
    effect: Effect | None = None

    def tolerates(self, taint: Taint) -> bool:
        return (
            self.key in ("*", taint.key) and self.value in (None, taint.value) and self.effect in (None, taint.effect)
        )


def parse_taint(label: str, text: str) -> Taint:
    """From a node's label and its value. Raises ``UserError`` that names the label."""
    key, (value, colon, effect) = label.removeprefix(TAINT_PREFIX), text.rpartition(":")
    try:
        if not colon:
            raise errors.UserError(
                f"{text!r} has no effect; expected VALUE:EFFECT, such as {text}:{Effect.NO_SCHEDULE}"
            )
        return Taint(key=_key(key), value=_value(value), effect=_effect(effect))
    except errors.UserError as cause:
        raise errors.UserError(f"label {label}: {cause}") from cause


def check_taints(labels: Mapping[str, str]) -> None:
    """Raises ``UserError`` for a label of a node that begins like a taint and is none."""
    for label, text in labels.items():
        if label.startswith(TAINT_PREFIX):
            parse_taint(label, text)


def taints_of(labels: Mapping[str, str]) -> tuple[Taint, ...]:
    """Of a node, in order of their keys. What does not parse, and came past the API, keeps nothing away."""
    found = []
    for label in sorted(label for label in labels if label.startswith(TAINT_PREFIX)):
        try:
            found.append(parse_taint(label, labels[label]))
        except errors.UserError:
            continue
    return tuple(found)


def parse_toleration(text: str) -> Toleration:
    """``KEY[=VALUE][:EFFECT]``. Raises ``UserError``."""
    name, colon, effect = text.strip().partition(":")
    key, equals, value = name.partition("=")
    if key == "*" and equals:
        raise errors.UserError(f"{text!r}: key * is for every taint and takes no value")
    return Toleration(
        key=key if key == "*" else _key(key),
        value=_value(value) if equals else None,
        effect=_effect(effect) if colon else None,
    )


def parse_tolerations(text: str) -> tuple[Toleration, ...]:
    """Separated by commas. Raises ``UserError``."""
    items = [item for item in text.split(",") if item.strip()]
    if not items:
        raise errors.UserError("is empty; remove the label to tolerate nothing")
    if len(items) > TOLERATIONS_MAX:
        raise errors.UserError(f"has {len(items)} entries, at most {TOLERATIONS_MAX}")
    return tuple(parse_toleration(item) for item in items)


def service_tolerations(labels: Mapping[str, str]) -> tuple[Toleration, ...]:
    """Of a service, from its labels as they are now. What does not parse, and came past the API, tolerates nothing."""
    text = labels.get(TOLERATION_LABEL)
    return () if text is None else _read(text)


@functools.lru_cache(maxsize=1024)
def _read(text: str) -> tuple[Toleration, ...]:
    try:
        return parse_tolerations(text)
    except errors.UserError:
        return ()


def repels(taints: Iterable[Taint], tolerations: Iterable[Toleration], *effects: Effect) -> list[Taint]:
    """The taints with one of the effects that no toleration is for."""
    wanted = tuple(tolerations)
    return [taint for taint in taints if taint.effect in effects and not any(each.tolerates(taint) for each in wanted)]


def keeps_away(node_labels: Mapping[str, str], tolerations: Iterable[Toleration], *, is_running: bool = False) -> bool:
    """Whether a new task must not come to the node; ``is_running``: whether one that is there must leave."""
    effects = (Effect.NO_EXECUTE,) if is_running else (Effect.NO_EXECUTE, Effect.NO_SCHEDULE)
    taints = taints_of(node_labels)
    return bool(taints) and bool(repels(taints, tolerations, *effects))


def _key(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise errors.UserError(
            f"{text!r} is no key of a taint: letters, digits and ._/- between them, at most 128 characters"
        )
    return text


def _value(text: str) -> str:
    if not _VALUE.fullmatch(text):
        raise errors.UserError(f"{text!r} is no value of a taint: letters, digits and ._-, at most 63 characters")
    return text


def _effect(text: str) -> Effect:
    if text not in list(Effect):
        raise errors.UserError(f"effect {text!r} is none of {', '.join(Effect)}")
    return Effect(text)
