"""Who sends a request, and what was granted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from fleet.model.access import AccessRole, Scope, User, is_within

__all__ = ["LOCAL", "PRINCIPAL", "USER_HEADER", "Principal", "names_in", "principal_of"]

PRINCIPAL: Final = "fleet.principal"
"""Where the gate leaves it in a request's scope, for the audit log and the routes."""


USER_HEADER: Final = "X-Fleet-User"
"""Between a manager and the node of a task: who asked. Believed of managers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """``user`` is empty for who needs no name: whoever may open the unix socket, or holds a certificate that names no user."""

    role: AccessRole
    user: str = ""
    token_id: str = ""
    scope: Scope = ()
    host_access: bool = False
    is_session: bool = False
    """Whether a browser that signed in asks."""

    @property
    def is_admin(self) -> bool:
        """May do everything."""
        return self.role is AccessRole.ADMIN

    @property
    def reaches_hosts(self) -> bool:
        """May run what gets at the host it is on."""
        return self.is_admin or (self.role is AccessRole.OPERATOR and self.host_access)

    def sees(self, labels: Mapping[str, str]) -> bool:
        """Whether an object with these labels is there at all, as far as this one is told."""
        return is_within(self.scope, labels)


LOCAL: Final = Principal(role=AccessRole.ADMIN)


def principal_of(user: User, *, token_id: str = "", is_session: bool = False) -> Principal:
    """What a user was granted."""
    spec = user.spec
    return Principal(
        role=spec.role,
        user=spec.name,
        token_id=token_id,
        scope=spec.scope,
        host_access=spec.host_access,
        is_session=is_session,
    )


def names_in(certificate: Any) -> tuple[str, ...]:
    """Common names of a certificate as ``getpeercert`` gives it; there is one as a rule."""
    subject = (certificate or {}).get("subject", ())
    return tuple(value for part in subject for key, value in part if key == "commonName")
