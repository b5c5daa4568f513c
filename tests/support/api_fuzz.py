"""Requests of every operation that the daemon's OpenAPI names, right, nearly right and hostile; and what an answer may not be.

A request begins as one that works (a body from the document's examples or from ``_BODIES``) and is bent in a few places: other
types, numbers at the edges, texts of any letters, nulls, keys that are nobody's, depth, bytes that are no JSON. No answer is 5xx,
but 501 (understood, not to be had here) and 503 (nobody can answer now), which say so in words; and after each the daemon still
answers. Operations that end the membership are left out, and values that would make the daemon reach for other machines.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import httpx
import hypothesis
from hypothesis import strategies as st
from support.lab import TestLab

__all__ = ["complaints", "fuzz", "operations"]

ANSWER_S: Final = 20.0
"""How long an answer may take to begin."""
_LEFT_OUT: Final = frozenset(
    {"POST /swarm/leave", "POST /swarm/join", "POST /swarm/unlock", "POST /fleet/v1/swarm/restore", "POST /auth"}
)
_MAY_WAIT: Final = re.compile(r"/(stop|restart|wait|attach|logs|stats|events|start|push|move|create|backup)$")
"""Operations whose answer lasts as long as something else does, or that may ask a registry."""
_ALLOWED: Final = frozenset({501, 503})

_TASK: Final = {
    "ContainerSpec": {"Image": "fleet/hello:1", "Command": ["sleep", "1"]},
    "Placement": {"Constraints": ["a==b"]},
}
_SERVICE: Final = {
    "Name": "fuzz",
    "Labels": {"a": "b"},
    "TaskTemplate": {
        **_TASK,
        "Resources": {"Limits": {"NanoCPUs": 10**9, "MemoryBytes": 2**26}, "Reservations": {"GenericResources": []}},
        "RestartPolicy": {"Condition": "any", "Delay": 1, "MaxAttempts": 1, "Window": 0},
        "Networks": [{"Target": "fuzz", "Aliases": ["x"]}],
        "LogDriver": {"Name": "json-file", "Options": {"max-size": "1m"}},
    },
    "Mode": {"Replicated": {"Replicas": 1}},
    "UpdateConfig": {
        "Parallelism": 1,
        "Delay": 0,
        "FailureAction": "pause",
        "MaxFailureRatio": 0.5,
        "Order": "stop-first",
    },
    "EndpointSpec": {"Mode": "vip", "Ports": [{"Protocol": "tcp", "TargetPort": 80, "PublishMode": "ingress"}]},
}
_CONTAINER: Final = {
    "Image": "fleet/hello:1",
    "Cmd": ["sleep", "1"],
    "Env": ["A=1"],
    "ExposedPorts": {"80/tcp": {}},
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 10**9},
    "HostConfig": {
        "Binds": ["fuzz:/v"],
        "Mounts": [{"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": 4096, "Mode": 448}}],
        "Memory": 2**26,
        "NanoCpus": 10**9,
        "PidsLimit": 10,
        "CapAdd": ["NET_ADMIN"],
        "Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "r"}],
        "Ulimits": [{"Name": "nofile", "Soft": 10, "Hard": 20}],
        "Sysctls": {"net.core.somaxconn": "100"},
        "RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1},
        "PortBindings": {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]},
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m"}},
    },
    "NetworkingConfig": {"EndpointsConfig": {"bridge": {"Aliases": []}}},
}
_DATA: Final = {"Name": "fuzz", "Labels": {}, "Data": "eA=="}
_NETWORK: Final = {
    "Name": "fuzz",
    "Driver": "bridge",
    "IPAM": {
        "Driver": "default",
        "Config": [{"Subnet": "10.231.0.0/24", "Gateway": "10.231.0.1", "IPRange": "10.231.0.0/25"}],
    },
    "Options": {"com.docker.network.driver.mtu": "1400"},
    "Labels": {},
}
_BODIES: Final[Mapping[str, Any]] = {
    "POST /services/create": _SERVICE,
    "POST /services/{id_}/update": _SERVICE,
    "POST /containers/create": _CONTAINER,
    "POST /containers/{name}/update": {"Memory": 2**26, "RestartPolicy": {"Name": "no"}, "PidsLimit": 5},
    "POST /containers/{name}/exec": {
        "Cmd": ["true"],
        "AttachStdout": True,
        "Env": ["A=1"],
        "User": "0",
        "WorkingDir": "/",
    },
    "POST /exec/{exec_id}/start": {"Detach": True, "Tty": False},
    "POST /secrets/create": _DATA,
    "POST /configs/create": _DATA,
    "POST /secrets/{id_}/update": _DATA,
    "POST /configs/{id_}/update": _DATA,
    "POST /networks/create": _NETWORK,
    "POST /networks/{name}/connect": {
        "Container": "fuzz",
        "EndpointConfig": {"IPAMConfig": {"IPv4Address": "10.231.0.9"}},
    },
    "POST /networks/{name}/disconnect": {"Container": "fuzz", "Force": True},
    "POST /volumes/create": {"Name": "fuzz", "Driver": "local", "DriverOpts": {}, "Labels": {}},
    "POST /nodes/{id_}/update": {"Role": "manager", "Availability": "active", "Labels": {}},
    "POST /swarm/init": {"ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": "127.0.0.1", "Spec": {}},
    "POST /swarm/update": {"Name": "default", "Labels": {}, "Orchestration": {"TaskHistoryRetentionLimit": 5}},
    "POST /commit": {"Env": ["A=1"], "Cmd": ["x"], "Labels": {"a": "b"}},
}
_QUERIES: Final = (
    "filters", "all", "force", "version", "limit", "size", "since", "until", "before", "tail", "follow", "stdout", "stderr",
    "timestamps", "details", "signal", "t", "h", "w", "condition", "name", "names", "tag", "repo", "path", "status",
    "rollback", "registryAuthFrom", "insertDefaults", "scope", "verbose", "type", "stream", "one-shot", "container", "changes",
    "author", "comment", "pause", "noOverwriteDirNonDir", "copyUIDGID", "link", "v", "named", "rotateWorkerToken", "dockerfile",
    "buildargs", "labels", "target", "networkmode", "memory", "shmsize", "q", "platform", "fromSrc", "keep-storage", "noprune",
)  # fmt: skip

_TEXTS: Final = st.one_of(
    st.sampled_from(
        [
            "",
            "fuzz",
            "0",
            "-1",
            "1",
            "true",
            "a" * 64,
            "a" * 5000,
            "../../etc/passwd",
            "%00",
            "a\x00b",
            "\ud83d\ude00",
            "é",
            "💥",
            "127.0.0.1:1/x:y",
            "sha256:" + "0" * 64,
            "9" * 30,
            "1e400",
            "NaN",
            "-0",
            "{}",
            "[]",
            "null",
            '{"a":',
            "\n",
            "$(id)",
            "10.0.0.0/8",
            "::/0",
            "999.0.0.1",
            "2026-13-45T99:99:99Z",
            "node.labels.x=~(a+)+$",
            "a==b",
            "01",
            "0x10",
            " ",
            "a b",
            ":",
            "/",
            "' or 1",
            "a" * 61 + "!",
        ]
    ),
    st.text(max_size=40),
)
_FILTERS: Final = st.dictionaries(
    st.sampled_from(["name", "id", "label", "status", "service", "node", "dangling", "until", "since", "type", "driver", "event",
                     "network", "role", "desired-state", "mode", "reference", "health", "publish", "expose", "ancestor", "x"]),
    st.one_of(st.lists(_TEXTS, max_size=3), st.dictionaries(_TEXTS, st.booleans(), max_size=3), _TEXTS),
    max_size=3,
).map(json.dumps)  # fmt: skip
_LEAVES: Final = st.one_of(
    _TEXTS,
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**70), max_value=2**70),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1]),
    st.floats(),
    st.just([]),
    st.just({}),
    st.lists(_TEXTS, max_size=3),
    st.dictionaries(_TEXTS, _TEXTS, max_size=3),
)


@dataclass(frozen=True, slots=True)
class Wish:
    """One request; ``operation`` is what the document calls it."""

    operation: str
    method: str
    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"{self.method} {self.path[:300]} {dict(self.headers)} {self.body[:600]!r}"


def operations(document: Mapping[str, Any]) -> list[str]:
    """``METHOD /path`` of all that may be tried."""
    found = [f"{method.upper()} {path}" for path, each in document["paths"].items() for method in each]
    return sorted(set(found) - _LEFT_OUT)


def _right_body(document: Mapping[str, Any], operation: str) -> Any:
    method, _, pattern = operation.partition(" ")
    documented = document["paths"][pattern][method.lower()].get("requestBody", {}).get("content", {})
    return _BODIES.get(operation, documented.get("application/json", {}).get("example", {}))


@st.composite
def _bent(draw: st.DrawFn, value: Any) -> Any:
    """``value`` with one place changed."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)))
        kind = draw(st.integers(0, 6))
        if kind == 0:
            return {k: v for k, v in value.items() if k != key}
        if kind == 1:
            return {**value, draw(_TEXTS): draw(_LEAVES)}
        return {**value, key: draw(_bent(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], draw(_bent(value[at])), *value[at + 1 :]]
    if draw(st.integers(0, 40)) == 0:
        for _ in range(draw(st.sampled_from([5, 70, 300]))):
            value = [value]
        return value
    return draw(_LEAVES)


@st.composite
def _bodies(draw: st.DrawFn, right: Any) -> bytes:
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return draw(st.binary(max_size=60))
    if kind == 1:
        return draw(
            st.sampled_from(
                [b"", b"{", b"[" * 5000, b"null", b"NaN", b'"x"', b"1e999", b'{"a":1}{', b"\xff\xfe", b"\x00"]
            )
        )
    value = right
    for _ in range(draw(st.integers(0, 3))):
        value = draw(_bent(value))
    return json.dumps(value).encode()


@st.composite
def _wishes(draw: st.DrawFn, known: tuple[tuple[str, str], ...], names: tuple[str, ...]) -> Wish:
    """A request of one of the operations, each with the JSON of a right body; ``names`` are of objects that there are."""
    operation, right = draw(st.sampled_from(known))
    method, _, pattern = operation.partition(" ")
    word = st.one_of(st.sampled_from(names), st.sampled_from(names), _TEXTS)
    path = re.sub(r"{[^}]*}", lambda _: quote(draw(word).encode("utf-8", "surrogatepass"), safe="/:@"), pattern)
    query = draw(st.dictionaries(st.sampled_from(_QUERIES), _TEXTS, max_size=3))
    if draw(st.integers(0, 2)) == 0:
        query["filters"] = draw(_FILTERS)
    if "update" in pattern and draw(st.integers(0, 3)):
        query["version"] = str(draw(st.integers(0, 400)))
    if query:
        path += "?" + urlencode({key: text.encode("utf-8", "surrogatepass") for key, text in query.items()})
    version = draw(st.sampled_from(["", "", "/v1.24", "/v1.41", "/v1.47", "/v1.99", "/v0.1"]))
    headers = []
    if draw(st.integers(0, 9)) == 0:
        junk = draw(st.sampled_from(["e30=", "!!!", "bnVsbA==", "W10=", "eyJ1c2VybmFtZSI6MX0="]))
        headers.append(
            (draw(st.sampled_from(["X-Registry-Auth", "X-Registry-Config", "Content-Type", "Upgrade"])), junk)
        )
    value = json.loads(right)
    if pattern.endswith("/create") and "Name" in value:
        value["Name"] = draw(st.sampled_from([f"fuzz{number}" for number in range(20)]))
    body = b"" if method in ("GET", "HEAD", "DELETE") else draw(_bodies(value))
    return Wish(operation, method, version + path, body, tuple(headers))


def _send(client: httpx.Client, wish: Wish) -> str:
    """What is wrong with the answer; empty when nothing is."""
    try:
        with client.stream(wish.method, wish.path, content=wish.body, headers=dict(wish.headers)) as answer:
            if answer.status_code < 500:
                return ""
            text = answer.read().decode(errors="replace")
    except httpx.TimeoutException:
        return "" if _MAY_WAIT.search(wish.operation) else f"no answer within {ANSWER_S:g} s"
    except httpx.HTTPError as cause:
        return f"{type(cause).__name__}: {cause}"
    if answer.status_code in _ALLOWED and '"message"' in text:
        return ""
    return f"{answer.status_code} {text[:600]}"


def complaints(log: str) -> list[str]:
    """Lines of a daemon's log that tell of a bug: errors, and what is not JSON, as a traceback is not."""
    found = []
    for line in filter(None, log.split("\n")):  # not splitlines: a path in the log may hold U+2028
        try:
            said = json.loads(line)
        except ValueError:
            found.append(line)
        else:
            found += [line] if said.get("level") in ("error", "critical") else []
    return found


def _refill(client: httpx.Client) -> None:
    """Objects called ``fuzz`` of each kind, where earlier requests have removed them."""
    for kind in ("networks", "volumes", "secrets", "configs", "services"):
        client.post(f"/{kind}/create", json=_BODIES[f"POST /{kind}/create"])
    client.post("/containers/create", params={"name": "fuzz"}, json={**_CONTAINER, "Cmd": ["sleep", "1000"]})
    client.post("/containers/fuzz/start")


def fuzz(socket: str, names: tuple[str, ...], *, seconds: float, seed: int) -> tuple[int, dict[str, str]]:
    """Ask the daemon at the unix socket for so long, from the first request on (to think of one takes a slow machine seconds);
    returns how many requests, and (operation -> first wrong answer to it)."""
    found: dict[str, str] = {}
    count = 0
    end = float("inf")
    with httpx.Client(
        transport=httpx.HTTPTransport(uds=socket), base_url="http://fuzz", timeout=httpx.Timeout(ANSWER_S)
    ) as client:
        document = client.get("/fleet/v1/openapi.json").json()
        known = tuple((each, json.dumps(_right_body(document, each))) for each in operations(document))

        def ask(wish: Wish) -> None:
            nonlocal count, end
            if not count:
                end = time.monotonic() + seconds
            if time.monotonic() > end or wish.operation in found:
                return
            count += 1
            if wrong := _send(client, wish):
                found[wish.operation] = f"{wish}\n    {wrong}"
            elif count % 50 == 0 and client.get("/_ping").status_code != 200:
                found[wish.operation] = f"{wish}\n    the daemon does not answer any more"

        while time.monotonic() < end:
            _refill(client)
            settings = hypothesis.settings(
                max_examples=100,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            hypothesis.seed(seed)(settings(hypothesis.given(_wishes(known, names))(ask)))()
            seed += 1
    return count, found


def main() -> int:
    """``scripts/fuzz-api``."""
    words = argparse.ArgumentParser(prog="fuzz-api")
    words.add_argument("--seconds", type=float, default=600.0)
    words.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    chosen = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-api-") as root:
        lab = TestLab(f"fuzz{chosen.seed % 10_000}", root=Path(root))
        try:
            lab.up(managers=1, workers=1)
            lab.load_hello()
            print(f"fuzz-api: seed {chosen.seed}, {chosen.seconds:g} seconds", flush=True)
            names = ("fuzz", "m1", "w1", "bridge", "fleet/hello:1")
            count, wrong = fuzz(str(lab.socket("m1")), names, seconds=chosen.seconds, seed=chosen.seed)
            said = complaints(lab.log_path("m1").read_text())
        finally:
            lab.down()
    print(f"fuzz-api: {count} requests, {len(wrong)} operations with a wrong answer, {len(said)} complaints in the log")
    print("\n".join([*(f"{name}: {text}" for name, text in wrong.items()), *said[:100]]))
    return 1 if wrong or said else 0


if __name__ == "__main__":
    sys.exit(main())
