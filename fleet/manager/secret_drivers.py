"""Secrets that are not kept here: a driver beside a manager gives their value for each task (SCF-05).

Docker's plugin protocol: ``POST /SecretProvider.GetSecret`` on ``/run/docker/plugins/NAME.sock`` (or ``NAME/NAME.sock``) of the
manager that the task's node asks. The value is stored nowhere and given to that node only; asked
for again it may be another.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any, Final

from fleet import errors
from fleet.logs import get_logger
from fleet.model import wire
from fleet.model.ids import NodeId
from fleet.model.secret import SECRET_BYTES_MAX, Secret, SecretSpec
from fleet.model.task import Task, TaskState, task_name
from fleet.store import Store

__all__ = ["SecretDrivers", "check_driver"]

log = get_logger("secret_drivers")

PLUGINS: Final = Path("/run/docker/plugins")
_NAME: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,62}(?::[a-zA-Z0-9_.-]{1,32})?")
_ANSWER_BYTES_MAX: Final = 2 * SECRET_BYTES_MAX
_PATIENCE_S: Final = 10.0


def check_driver(spec: SecretSpec) -> None:
    """Raises ``UserError`` for a driver's name that is none, and for data beside it."""
    assert spec.driver is not None
    if not _NAME.fullmatch(spec.driver.name):
        raise errors.UserError(f"secret {spec.name}: driver {spec.driver.name[:80]!r} is not a plugin's name")
    if spec.data:
        raise errors.UserError(f"secret {spec.name}: the driver {spec.driver.name} gives its data; it must have none")


class SecretDrivers:
    """Of this manager's host."""

    def __init__(self, store: Store, *, plugins: Path = PLUGINS) -> None:
        self._store = store
        self._plugins = plugins

    async def value(self, secret_id: str, *, task_id: str, node_id: NodeId) -> bytes:
        """The secret's value for the task, which must be the node's and use it. Raises ``ForbiddenError`` otherwise,
        ``UnavailableError`` when the driver gives none."""
        task, secret = self._store.tasks.get(task_id), self._store.secrets.get(secret_id)
        if (
            task is None
            or secret is None
            or secret.spec.driver is None
            or task.node_id != node_id
            or task.desired_state.rank > TaskState.RUNNING.rank
            or secret_id not in (reference.secret_id for reference in task.spec.container_spec.secrets)
        ):
            raise errors.ForbiddenError(f"secret {secret_id} is not for task {task_id} on this node")
        name = secret.spec.driver.name
        try:
            answer = await self._ask(name, self._question(secret, task))
            value = _value_in(answer)
        except errors.FleetError as cause:
            log.warning("secret driver gave nothing", driver=name, secret=secret.spec.name, cause=str(cause))
            raise errors.UnavailableError(
                f"secret {secret.spec.name}: its driver {name} gave no value: {cause}", retry_after_s=1
            ) from cause
        log.info("secret from its driver", driver=name, secret=secret.spec.name, task=task_id)
        return value

    def _question(self, secret: Secret, task: Task) -> dict[str, Any]:
        service = self._store.services.get(task.service_id)
        endpoint = service.spec.endpoint_spec if service is not None else None
        return {
            "SecretName": secret.spec.name,
            "SecretLabels": dict(secret.spec.labels),
            "ServiceID": task.service_id,
            "ServiceName": task.service_name,
            "ServiceLabels": dict(task.service_labels),
            "ServiceHostname": task.spec.container_spec.hostname,
            "ServiceEndpointSpec": wire.to_builtins(endpoint) if endpoint is not None else None,
            "TaskID": task.id,
            "TaskName": task_name(task),
            "TaskImage": task.spec.container_spec.image,
        }

    def _socket(self, name: str) -> Path:
        base = name.partition(":")[0]
        for path in (self._plugins / f"{base}.sock", self._plugins / base / f"{base}.sock"):
            if path.is_socket():
                return path
        raise errors.UnavailableError(
            f"there is no {self._plugins / base}.sock on this manager: start the plugin there"
        )

    async def _ask(self, name: str, question: dict[str, Any]) -> bytes:
        import httpx

        answer = bytearray()
        transport = httpx.AsyncHTTPTransport(uds=str(self._socket(name)))
        try:
            async with (
                httpx.AsyncClient(transport=transport, timeout=_PATIENCE_S) as client,
                client.stream("POST", "http://plugin/SecretProvider.GetSecret", json=question) as response,
            ):
                async for piece in response.aiter_bytes():
                    answer += piece
                    if len(answer) > _ANSWER_BYTES_MAX:
                        raise errors.TooLargeError(f"it answered more than {_ANSWER_BYTES_MAX} bytes")
        except (httpx.HTTPError, OSError) as cause:
            raise errors.UnavailableError(str(cause) or type(cause).__name__) from cause
        return bytes(answer)


def _value_in(answer: bytes) -> bytes:
    """Of ``{"Value": base64, "Err": "", "DoNotReuse": false}``."""
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise errors.UnavailableError("it did not answer with a JSON object")
    if said.get("Err"):
        raise errors.UnavailableError(str(said["Err"])[:500])
    try:
        value = base64.b64decode(said.get("Value") or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as cause:
        raise errors.UnavailableError("its value is not base64") from cause
    if not 0 < len(value) < SECRET_BYTES_MAX:
        raise errors.UnavailableError(f"its value has {len(value)} bytes, expected 1 to {SECRET_BYTES_MAX - 1}")
    return value
