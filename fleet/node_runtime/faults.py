"""Faults of a container's command, told apart because their exit status is part of the Docker interface."""

from __future__ import annotations

from fleet.errors import RejectedFault

__all__ = ["CommandFault"]


class CommandFault(RejectedFault):
    """The command could not be executed. ``container_exit_code`` is 127 for not found, 126 for not permitted, as in a
    shell.
    """

    def __init__(self, message: str, *, container_exit_code: int) -> None:
        super().__init__(message)
        self.container_exit_code = container_exit_code
