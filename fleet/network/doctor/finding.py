"""One thing that was looked at, as a sentence."""

from __future__ import annotations

import enum

from fleet.model.wire import Value

__all__ = ["MENDS", "Check", "Finding", "Level", "note", "right", "wrong"]

MENDS = (
    "fleetd mends it within a minute; if it comes back, find what changes it: NetworkManager and systemd-networkd must leave "
    "links called fb*, fx*, fv* and ft* alone"
)


class Check(enum.StrEnum):
    """What was looked at."""

    HOST = "host"
    KERNEL = "kernel"
    LINKS = "links"
    FORWARDING = "forwarding"
    TUNNEL = "tunnel"
    RULES = "rules"
    NAMES = "names"
    PORTS = "ports"
    PATH = "path"
    MTU = "mtu"


class Level(enum.StrEnum):
    """``note``: nothing is broken, but it could not be looked at, or a person should know."""

    RIGHT = "right"
    NOTE = "note"
    WRONG = "wrong"


class Finding(Value, frozen=True, kw_only=True, omit_defaults=False):
    """``says`` is what is so, ``remedy`` what to do about it. ``network`` and ``host`` are names; empty if it is about none."""

    check: Check
    level: Level
    says: str
    remedy: str = ""
    network: str = ""
    host: str = ""


def right(check: Check, says: str, *, network: str = "") -> Finding:
    return Finding(check=check, level=Level.RIGHT, says=says, network=network)


def note(check: Check, says: str, remedy: str = "", *, network: str = "") -> Finding:
    return Finding(check=check, level=Level.NOTE, says=says, remedy=remedy, network=network)


def wrong(check: Check, says: str, remedy: str, *, network: str = "") -> Finding:
    return Finding(check=check, level=Level.WRONG, says=says, remedy=remedy, network=network)
