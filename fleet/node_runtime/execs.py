"""How exec'd processes ended: told by the supervisor, waited for by whoever started them, in either order."""

from __future__ import annotations

import asyncio

from fleet.errors import NotFoundError, RuntimeFault

__all__ = ["Execs"]

_EXECS_MAX = 10_000


class Execs:
    """Of one client."""

    def __init__(self) -> None:
        self._codes: dict[str, asyncio.Future[int]] = {}

    def __contains__(self, exec_id: str) -> bool:
        return exec_id in self._codes

    def started(self, exec_id: str) -> None:
        """Somebody may wait for it; it may have ended already."""
        self._codes.setdefault(exec_id, asyncio.get_running_loop().create_future())

    def ended(self, exec_id: str, code: int) -> None:
        """Its exit code, perhaps before ``started``."""
        future = self._codes.setdefault(exec_id, asyncio.get_running_loop().create_future())
        if not future.done():
            future.set_result(code)
        if len(self._codes) > _EXECS_MAX:  # other clients' execs are told here too, and nobody waits for them
            self._codes.pop(next(iter(self._codes)))

    async def wait(self, exec_id: str) -> int:
        """The exit code; once. Raises `NotFoundError` for an unknown one, `RuntimeFault` when it was lost. Cancels safely."""
        future = self._codes.get(exec_id)
        if future is None:
            raise NotFoundError(f"no exec {exec_id}, or it was waited for already")
        code = await asyncio.shield(future)
        self._codes.pop(exec_id, None)
        return code

    def forget(self, exec_id: str) -> None:
        """Nobody waits for it any more."""
        self._codes.pop(exec_id, None)

    def lost(self) -> None:
        """The supervisor was replaced, and its successor knows of none."""
        lost = RuntimeFault("the supervisor was replaced; the exit code of this exec is not known")
        for future in self._codes.values():
            if not future.done():
                future.set_exception(lost)
                future.exception()  # nobody may be waiting
        self._codes.clear()
