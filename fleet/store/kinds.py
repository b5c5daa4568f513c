"""What is stored: one kind per table, its key, and the names that must be unique.

Keys: ``/fleet/<kind>/<id>`` holds the object, ``/fleet/name/<kind>/<name>`` holds the id of the object that owns a
unique name. The name key is written and removed in the transaction that writes the object, so two objects can never
share one whatever raced.
"""

from __future__ import annotations

import enum
from typing import Final, TypeAlias, TypeVar

from fleet.model.access import Token, User
from fleet.model.cluster import Authority, Cluster, Guard
from fleet.model.guest import Guest
from fleet.model.network import Network
from fleet.model.node import Node
from fleet.model.secret import Config, Login, Secret
from fleet.model.service import Service
from fleet.model.task import Task, task_name

__all__ = [
    "KIND_OF",
    "ROOT",
    "TYPE_OF",
    "Kind",
    "Stored",
    "T",
    "is_hidden",
    "key_of",
    "label_of",
    "name_key",
    "unique_name",
]

ROOT: Final = "/fleet/"

Stored: TypeAlias = (
    Service | Task | Node | Network | Secret | Config | Cluster | Authority | Guard | Login | Guest | User | Token
)
T = TypeVar("T", bound=Stored)


class Kind(enum.StrEnum):
    """The tables; the value is the word in keys and in error texts."""

    SERVICE = "service"
    TASK = "task"
    NODE = "node"
    NETWORK = "network"
    SECRET = "secret"  # noqa: S105 - a word, not one
    CONFIG = "config"
    CLUSTER = "cluster"
    AUTHORITY = "authority"
    GUARD = "guard"
    LOGIN = "login"
    GUEST = "guest"
    USER = "user"
    TOKEN = "token"  # noqa: S105 - a word, not one

    @property
    def prefix(self) -> str:
        """Where the kind's objects live."""
        return f"{ROOT}{self.value}/"


TYPE_OF: Final[dict[Kind, type[Stored]]] = {
    Kind.SERVICE: Service,
    Kind.TASK: Task,
    Kind.NODE: Node,
    Kind.NETWORK: Network,
    Kind.SECRET: Secret,
    Kind.CONFIG: Config,
    Kind.CLUSTER: Cluster,
    Kind.AUTHORITY: Authority,
    Kind.GUARD: Guard,
    Kind.LOGIN: Login,
    Kind.GUEST: Guest,
    Kind.USER: User,
    Kind.TOKEN: Token,
}

KIND_OF: Final[dict[type[Stored], Kind]] = {kind: name for name, kind in TYPE_OF.items()}


def key_of(obj: Stored) -> str:
    """The object's key."""
    return KIND_OF[type(obj)].prefix + obj.id


def name_key(kind: Kind, name: str) -> str:
    """The key that owns ``name`` among the kind."""
    return f"{ROOT}name/{kind.value}/{name}"


def is_hidden(obj: Stored) -> bool:
    """Kept for the loops' sake but gone for users: a service being removed, a removed node's or user's tombstone."""
    match obj:
        case Service():
            return obj.pending_delete
        case Node() | User():
            return obj.removed
        case _:
            return False


def unique_name(obj: Stored) -> str | None:
    """The name no other object of the kind may have; None where names repeat (nodes) or do not exist.

    A service that is being removed, and a removed user, have given their names away already.
    """
    match obj:
        case Service():
            return None if obj.pending_delete else obj.spec.name
        case User():
            return None if obj.removed else obj.spec.name
        case Network() | Secret() | Config() | Cluster():
            return obj.spec.name
        case _:
            return None


def label_of(obj: Stored) -> str:
    """The object in an error text: its name where it has one, else its id."""
    match obj:
        case Service() | Network() | Secret() | Config() | Cluster() | User():
            return obj.spec.name or obj.id
        case Node():
            return obj.spec.name or obj.description.hostname or obj.id
        case Task():
            return task_name(obj)
        case _:
            return obj.id
