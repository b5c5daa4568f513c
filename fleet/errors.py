"""The exception tree: roots say who must act.

``UserError``        the request or spec is wrong                      HTTP 4xx, exit code 2
``ConflictError``    stale version, name taken, precondition           HTTP 409, exit code 1
``UnavailableError`` no leader, not in a swarm, lease lost: retry       HTTP 503, exit code 1
``RuntimeFault``     container, image, network or kernel refused        HTTP 500, exit code 1; of what was sent, 400
``InvariantError``   our own bug; never caught in order to continue     HTTP 500, exit code 70

Text is lower case without a full stop, because it is joined: ``mount overlay on /x: ...``. It says what was attempted,
on what, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "FleetError",
    "UserError",
    "NotFoundError",
    "ForbiddenError",
    "UnauthorizedError",
    "UnsupportedError",
    "TooLargeError",
    "ConflictError",
    "OutOfSequenceError",
    "UnavailableError",
    "RateLimitedError",
    "StorageFullError",
    "RuntimeFault",
    "RejectedFault",
    "InvariantError",
]


class FleetError(Exception):
    """Root of everything fleet raises on purpose. ``http_status`` and ``exit_code`` are part of the interface."""

    http_status: int = 500
    exit_code: int = 1
    transient: bool = False
    """Whether the same call may succeed later without anyone changing it; a property of the error, not the catcher."""


class UserError(FleetError):
    """The request or the spec is wrong; only its author can mend it."""

    http_status = 400
    exit_code = 2


class NotFoundError(UserError):
    """The named object does not exist."""

    http_status = 404
    exit_code = 1


class ForbiddenError(UserError):
    """The caller is known and may not do this (role in the certificate, predefined object)."""

    http_status = 403
    exit_code = 1


class UnauthorizedError(UserError):
    """The caller could not prove who it is (join token, unlock key, certificate)."""

    http_status = 401
    exit_code = 1


class UnsupportedError(UserError):
    """Understood, and not to be had here; the text says what is missing."""

    http_status = 501
    exit_code = 1


class TooLargeError(UserError):
    """A bound on outside data was exceeded; the text names the bound."""

    http_status = 413


class ConflictError(FleetError):
    """The world is not as the request assumed: name taken, object in use."""

    http_status = 409


class OutOfSequenceError(ConflictError):
    """The object changed since the caller read it. Docker clients look for the text ``update out of sequence``."""


class UnavailableError(FleetError):
    """Nobody can answer now: no leader, not in a swarm, session lost."""

    http_status = 503
    transient = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitedError(UnavailableError):
    """Asked too often, or with the wrong credentials; again after ``retry_after_s``."""

    http_status = 429


class StorageFullError(UnavailableError):
    """State could not be made durable because the disk is full; nothing of the request was acknowledged or kept."""

    http_status = 507


class RuntimeFault(FleetError):
    """A container, image, network or kernel operation failed on this host."""


class RejectedFault(RuntimeFault):
    """A fault that retrying on this node cannot mend (no such image, bad mount): the task becomes *rejected*. To whom asks for a
    container, or sends an archive, it says what is wrong with that."""

    http_status = 400


class InvariantError(FleetError):
    """Something fleet promised itself is not true: a bug. Never caught in order to continue."""

    exit_code = 70
