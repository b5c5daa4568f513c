"""Traces, for who wants them: what came of an API request and how long each step took, sent to an OpenTelemetry collector.

No context has to travel: the ids of a trace and of its first span are digests of the request's id, which services and tasks
carry anyway (``logs.request_id``). So each daemon tells its own spans, and the collector puts them together.

Nothing happens before ``configure``. Then spans go through a bounded queue to one thread that posts them in batches, as JSON
(OTLP 1.x over HTTP, ``POST URL/v1/traces``). A collector that is slow or away costs spans, never work: what does not fit is
dropped and counted in the log. No library, because the usual one costs every host more memory than the rest of the daemon's log.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from fleet import errors
from fleet.logs import get_logger

__all__ = ["Exporter", "check_endpoint", "configure", "span"]

log = get_logger("traces")

_QUEUE_MAX: Final = 4096
_BATCH_MAX: Final = 512
_GATHER_S: Final = 1.0
"""How long spans wait for others to be sent with."""
_POST_S: Final = 5.0
_ANSWER_MAX: Final = 64 * 1024
_COMPLAIN_S: Final = 60.0
_SERVER, _INTERNAL = 2, 1  # SpanKind of OTLP

Json = dict[str, Any]
_exporter: Exporter | None = None


def check_endpoint(url: str) -> str:
    """``url`` without its last slash, if spans can be posted there. Raises ``UserError``."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise errors.UserError(f"{url}: expected http://HOST:4318 or https://HOST:4318 of an OpenTelemetry collector")
    return url.rstrip("/")


def configure(exporter: Exporter | None) -> None:
    """Send spans there from now on; None: nowhere."""
    global _exporter
    _exporter = exporter


def span(
    name: str, *, request: str, began: datetime, ended: datetime, is_first: bool = False, **attributes: object
) -> None:
    """A step that was done for a request. ``is_first``: the answering of the request itself, the parent of all others."""
    if _exporter is None or not request:
        return
    trace_id, first_id = _ids(request)
    own_id = first_id if is_first else os.urandom(8).hex()
    found: Json = {
        "traceId": trace_id,
        "spanId": own_id,
        "name": name,
        "kind": _SERVER if is_first else _INTERNAL,
        "startTimeUnixNano": _nanoseconds(began),
        "endTimeUnixNano": _nanoseconds(max(began, ended)),
        "attributes": _attributes({"fleet.request": request, **attributes}),
    }
    _exporter.add(found if is_first else {**found, "parentSpanId": first_id})


def _ids(request: str) -> tuple[str, str]:
    digest = hashlib.sha256(request.encode()).hexdigest()
    return digest[:32], digest[32:48]


def _nanoseconds(moment: datetime) -> str:
    since = moment - datetime.fromtimestamp(0, UTC)
    return str((since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000)


def _attributes(given: Mapping[str, object]) -> list[Json]:
    return [
        {"key": key, "value": {"stringValue": str(value)}} for key, value in given.items() if value not in ("", None)
    ]


class Exporter:
    """One a daemon. ``resource`` tells which, such as ``{"host.name": "m1"}``."""

    def __init__(self, endpoint: str, *, resource: Mapping[str, object]) -> None:
        self._url = f"{endpoint}/v1/traces"
        self._resource = _attributes({"service.name": "fleetd", **resource})
        self._spans: queue.Queue[Json | None] = queue.Queue(_QUEUE_MAX)
        self._dropped = 0
        self._complained = float("-inf")
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def add(self, found: Json) -> None:
        """Never blocks; from any thread."""
        try:
            self._spans.put_nowait(found)
        except queue.Full:
            self._dropped += 1

    def stop(self) -> None:
        """Send what is left, for one post at the most; blocks that long."""
        try:
            self._spans.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(_POST_S + _GATHER_S)

    def _run(self) -> None:
        is_last = False
        while not is_last:
            batch, is_last = self._batch()
            if batch:
                self._post(batch)

    def _batch(self) -> tuple[list[Json], bool]:
        """Spans until there are enough or the first has waited; and whether it is the end."""
        batch: list[Json] = []
        wait_until: float | None = None
        while len(batch) < _BATCH_MAX:
            try:
                found = self._spans.get(timeout=None if wait_until is None else max(0.0, wait_until - time.monotonic()))
            except queue.Empty:
                break
            if found is None:
                return batch, True
            batch.append(found)
            wait_until = wait_until if wait_until is not None else time.monotonic() + _GATHER_S
        return batch, False

    def _post(self, batch: list[Json]) -> None:
        scope = {"scope": {"name": "fleet"}, "spans": batch}
        body = {"resourceSpans": [{"resource": {"attributes": self._resource}, "scopeSpans": [scope]}]}
        cause = ""
        try:
            self._send(json.dumps(body).encode())
        except (OSError, ValueError) as problem:
            self._dropped += len(batch)
            cause = str(problem) or type(problem).__name__
        if self._dropped and time.monotonic() - self._complained >= _COMPLAIN_S:
            self._complained = time.monotonic()
            log.warning("spans dropped", count=self._dropped, collector=self._url, cause=cause or "too many at once")
            self._dropped = 0

    def _send(self, body: bytes) -> None:
        from http import client  # costs memory where nobody traces

        parts = urlsplit(self._url)
        kind = client.HTTPSConnection if parts.scheme == "https" else client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=_POST_S)
        try:
            connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read(_ANSWER_MAX)
            if answer.status >= 300:
                raise ValueError(f"the collector answered {answer.status} {answer.reason}")
        except client.HTTPException as cause:
            raise ValueError(f"the collector does not speak HTTP: {cause!r}") from cause
        finally:
            connection.close()
