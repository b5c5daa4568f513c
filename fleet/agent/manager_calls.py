"""Questions of a node to its managers, to whichever answers, over mutual TLS."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import Any, Final

import httpx

from fleet import errors

__all__ = ["ManagerCalls"]

_TIMEOUT_S: Final = 15.0
_KINDS: Final[dict[int, type[errors.FleetError]]] = {
    400: errors.UserError,
    403: errors.ForbiddenError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
}


class ManagerCalls:
    """Both are asked anew for each call: certificates and managers change."""

    def __init__(self, *, tls: Callable[[], ssl.SSLContext], managers: Callable[[], Sequence[str]]) -> None:
        self._tls = tls
        self._managers = managers

    async def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON of the first manager that answers. Raises what it refuses with (``UserError``, ``ForbiddenError``,
        ``NotFoundError``, ``ConflictError``), and ``UnavailableError`` when none could be asked."""
        last = "no manager is known"
        async with httpx.AsyncClient(verify=self._tls(), timeout=_TIMEOUT_S, trust_env=False) as client:
            for manager in self._managers():
                try:
                    answer = await client.request(method, f"https://{manager}{path}", json=body)
                    said = answer.json()
                except (httpx.HTTPError, ValueError) as cause:
                    last = f"{manager}: {str(cause) or type(cause).__name__}"
                    continue
                if answer.is_success:
                    return said
                message = str(said.get("message", "")) if isinstance(said, dict) else ""
                if answer.status_code in _KINDS:
                    raise _KINDS[answer.status_code](message)
                last = f"{manager}: {message or answer.status_code}"
        raise errors.UnavailableError(f"no manager could be asked: {last}", retry_after_s=1)
