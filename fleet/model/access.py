"""Who may use the API, and for what: users, their roles and scopes, and the tokens they show.

A **scope** limits a grant to objects that carry labels: it is a tuple of selectors, each a mapping of label to value; an object
is inside if it carries every label of any one of them. No selector at all means everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Final

from fleet.model.common import Version
from fleet.model.ids import TokenId, UserId
from fleet.model.wire import Value

__all__ = ["STACK_LABEL", "AccessRole", "Scope", "Selector", "Token", "User", "UserSpec", "is_within"]

STACK_LABEL: Final = "com.docker.stack.namespace"

Selector = dict[str, str]
Scope = tuple[Selector, ...]


class AccessRole(StrEnum):
    """Each may do what the next may, and more. ``OPERATOR`` changes services and what belongs to them, on cluster and hosts;
    ``VIEWER`` reads, and never gets a secret, a shell or a file of a container."""

    ADMIN = "admin"
    OPERATOR = "operator"
    VIEWER = "viewer"

    def includes(self, other: AccessRole) -> bool:
        """Whether this role may do what ``other`` may."""
        order = tuple(AccessRole)
        return order.index(self) <= order.index(other)


class UserSpec(Value, frozen=True, kw_only=True):
    """``host_access``: may run containers that reach the host they are on (bind mounts, privileged, host namespaces ...), which
    is as good as being root there. ``disabled``: known, and refused."""

    name: str = ""
    role: AccessRole = AccessRole.VIEWER
    scope: Scope = ()
    host_access: bool = False
    disabled: bool = False
    description: str = ""


class User(Value, frozen=True, kw_only=True):
    """``removed``: what is left so that a certificate in that name stays refused; gone when the name is given to another."""

    id: UserId
    version: Version = Version()
    created_at: datetime
    updated_at: datetime
    spec: UserSpec
    removed: bool = False


class Token(Value, frozen=True, kw_only=True):
    """``digest``: SHA-256 (hex) of the token's secret, which is kept nowhere. ``last_used_at`` may be some minutes old."""

    id: TokenId
    version: Version = Version()
    created_at: datetime
    user_id: UserId
    digest: str = ""
    description: str = ""
    expires_at: datetime | None = None
    last_used_at: datetime | None = None

    def __repr__(self) -> str:
        return f"Token(id={self.id!r}, user_id={self.user_id!r})"

    def is_expired(self, now: datetime) -> bool:
        """Whether its time is over at ``now``."""
        return self.expires_at is not None and now >= self.expires_at


def is_within(scope: Scope, labels: Mapping[str, str]) -> bool:
    """Whether an object with ``labels`` belongs to the scope."""
    return not scope or any(
        all(labels.get(name) == value for name, value in selector.items()) for selector in scope if selector
    )
