"""Forming a swarm, against daemons that know nothing but membership and refuse what Docker's refuse."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.api.client import EngineError
from fleet.lab.swarm import Member, form_swarm


@dataclass
class Cluster:
    """What all daemons agree on."""

    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    managers_max: int = 1
    never_ready: str = ""
    calls: list[str] = field(default_factory=list)

    def admit(self, name: str, role: str) -> None:
        state = "unknown" if name == self.never_ready else "ready"
        self.nodes[name] = {"role": role, "Description": {"Hostname": name}, "Status": {"State": state}}


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def answer(cluster: Cluster, name: str, call: str, body: Any) -> Any:
    node = cluster.nodes.get(name)
    match call:
        case "GET /info":
            state = {"LocalNodeState": "active" if node else "inactive"}
            return {"Swarm": {**state, "ControlAvailable": bool(node and node["role"] == "manager")}}
        case "POST /swarm/init":
            assert body == {"AdvertiseAddr": f"10.1.1.{name[1:]}", "ListenAddr": "0.0.0.0:2377"}
            if node:
                raise Refusal(503, "this node is already part of a swarm")
            cluster.admit(name, "manager")
            return "id"
        case "GET /swarm":
            return {"JoinTokens": {"Worker": "for-workers", "Manager": "for-managers"}}
        case "POST /swarm/join":
            assert body["RemoteAddrs"] == ["10.1.1.1:2377"]
            role = {"for-workers": "worker", "for-managers": "manager"}[body["JoinToken"]]
            if role == "manager" and sum(n["role"] == role for n in cluster.nodes.values()) >= cluster.managers_max:
                raise Refusal(501, "a second manager needs the etcd engine")
            cluster.admit(name, role)
            return None
        case "GET /nodes":
            return list(cluster.nodes.values())
    raise Refusal(404, f"{call}: page not found")


def handler(cluster: Cluster, name: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def reply(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            call = f"{self.command} {self.path}"
            cluster.calls.append(f"{name} {call}")
            try:
                status, result = 200, answer(cluster, name, call, json.loads(body) if body else None)
            except Refusal as refusal:
                status, result = refusal.status, {"message": str(refusal)}
            data = json.dumps(result).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = reply  # noqa: N815 - the names http.server calls

        def log_message(self, *_: object) -> None:
            return

    return Handler


class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def get_request(self) -> tuple[Any, Any]:
        connection, _ = super().get_request()
        return connection, ("unix", 0)  # http.server wants an address to log


@contextmanager
def daemons(cluster: Cluster, folder: Path, names: list[str]) -> Iterator[list[Member]]:
    with ExitStack() as stack:
        members = []
        for name in names:
            path = folder / f"{name}.sock"
            server = stack.enter_context(Server(str(path), handler(cluster, name)))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
            stack.callback(server.shutdown)
            role = "manager" if name.startswith("m") else "worker"
            number = name[1:] if name.startswith("m") else f"10{name[1:]}"
            members.append(Member(name=name, role=role, address=f"10.1.1.{number}", url=f"unix://{path}"))
        yield members


def roles(cluster: Cluster) -> dict[str, str]:
    return {name: node["role"] for name, node in cluster.nodes.items()}


def test_the_first_manager_begins_and_the_others_join_in_their_role(tmp_path: Path) -> None:
    cluster = Cluster(managers_max=3)
    with daemons(cluster, tmp_path, ["m1", "m2", "w1"]) as members:
        form_swarm(members, say=print, timeout_s=5)
    assert roles(cluster) == {"m1": "manager", "m2": "manager", "w1": "worker"}


def test_a_swarm_that_is_complete_is_left_as_it_is(tmp_path: Path) -> None:
    cluster = Cluster()
    with daemons(cluster, tmp_path, ["m1", "w1"]) as members:
        form_swarm(members, say=print, timeout_s=5)
        cluster.calls.clear()
        form_swarm(members, say=print, timeout_s=5)
    assert not [call for call in cluster.calls if "POST" in call]


def test_a_host_outside_the_swarm_joins_it_later(tmp_path: Path) -> None:
    cluster = Cluster()
    with daemons(cluster, tmp_path, ["m1", "w1", "w2"]) as members:
        form_swarm(members[:2], say=print, timeout_s=5)
        form_swarm(members, say=print, timeout_s=5)
    assert roles(cluster) == {"m1": "manager", "w1": "worker", "w2": "worker"}


def test_the_daemons_refusal_is_passed_on_with_the_hosts_name(tmp_path: Path) -> None:
    with (
        daemons(Cluster(), tmp_path, ["m1", "m2"]) as members,
        pytest.raises(EngineError, match="m2 as manager: a second manager needs the etcd engine"),
    ):
        form_swarm(members, say=print, timeout_s=5)


def test_nodes_that_do_not_become_ready_are_named(tmp_path: Path) -> None:
    with (
        daemons(Cluster(never_ready="w1"), tmp_path, ["m1", "w1"]) as members,
        pytest.raises(errors.UnavailableError, match=r"nodes not ready after 0\.3 s: w1"),
    ):
        form_swarm(members, say=print, timeout_s=0.3)
