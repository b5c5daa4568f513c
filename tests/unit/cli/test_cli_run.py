"""``fleet create ARGS`` sends what ``docker create ARGS`` sends: held against recorded bodies of docker's client 28.2,
and against the client itself where it is installed.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import socketserver
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fleet import errors
from fleet.cli.copy import split_copy
from fleet.cli.stats import usage_row
from fleet.cli.terminal import _Detach, _Keys, detach_keys
from tests.support.fake_engine import FakeEngine, Reply

FACTS: list[dict[str, Any]] = json.loads(Path(__file__).with_name("docker_run_facts.json").read_text())
KEPT = ("MaskedPaths", "Init", "StopTimeout")


def told(value: Any) -> Any:
    """Without what says nothing: a field left out, null and an empty one mean the same to the daemon."""
    if isinstance(value, dict):
        pairs = ((key, told(item)) for key, item in value.items() if key != "ConsoleSize")
        return {
            key: item
            for key, item in pairs
            if item not in (None, "", 0, False, [], {}) or (item is not None and key in KEPT)
        }
    return [told(item) for item in value] if isinstance(value, list) else value


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "env").write_text("# c\nA=1\nOWN\nMISSING\n B2=x y\n")
    (tmp_path / "lab").write_text("l1=v\nl2\n")
    (tmp_path / "sec.json").write_text('{\n "defaultAction": "SCMP_ACT_ALLOW",\n "x":  "<&>"\n}\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def created(engine: FakeEngine) -> list[Any]:
    return [told(request.body) for request in engine.sent("POST", "/containers/create")]


@pytest.mark.parametrize("fact", FACTS, ids=lambda fact: " ".join(fact["args"])[:60])
def test_flags_become_the_body_docker_sends(fleet: Any, engine: FakeEngine, folder: Path, fact: Any) -> None:
    engine.on("POST", "/containers/create", Reply(201, {"Id": "c" * 64, "Warnings": []}))
    ran = fleet("create", *fact["args"], environment={"OWN": "1"})
    if fact["body"] is None:
        assert ran.code in (2, 125) and ran.err.startswith("Error: ")
        assert created(engine) == []
    else:
        assert (ran.code, ran.out) == (0, f"{'c' * 64}\n"), ran.err
        assert created(engine) == [json.loads(json.dumps(fact["body"]).replace("FOLDER", str(folder)))]


@pytest.mark.skipif(shutil.which("docker") is None, reason="not run: docker's client is not installed")
def test_the_installed_docker_sends_the_same(fleet: Any, engine: FakeEngine, folder: Path) -> None:
    engine.on("HEAD", "/_ping", None)
    engine.on("POST", "/containers/create", Reply(201, {"Id": "c" * 64, "Warnings": []}))
    environment = {"PATH": os.environ["PATH"], "DOCKER_HOST": engine.url, "HOME": str(folder), "OWN": "1"}
    arguments = [
        ["-it", "--network", "name=a,alias=x,ip=1.2.3.4", "-p", "8000-8001:80-81/udp", "busybox", "sh", "-c", "a b"],
        ["-v", "./rel:/r", "--mount", "src=v,dst=/c,volume-opt=a=b", "--init", "--env-file", "env", "busybox"],
        ["--health-cmd", "x", "--restart", "on-failure:3", "--ulimit", "nofile=1:2", "busybox"],
        ["--security-opt", "seccomp=sec.json", "busybox"],
    ]  # fmt: skip
    for given in arguments:
        engine.requests.clear()
        ran = subprocess.run(
            ["docker", "create", *given], env=environment, capture_output=True, timeout=60, check=False
        )
        if b"unknown flag" in ran.stderr or b"28." not in subprocess.check_output(["docker", "--version"]):
            pytest.skip("not run: this docker client is of another version")
        assert ran.returncode == 0, ran.stderr
        assert fleet("create", *given, environment={"OWN": "1"}).code == 0
        theirs, ours = created(engine)
        assert ours == theirs


def test_a_missing_image_is_pulled_with_progress_and_then_used(fleet: Any, engine: FakeEngine) -> None:
    answers = [
        Reply(404, {"message": "No such image: nginx:latest"}),
        Reply(201, {"Id": "c1", "Warnings": ["careful"]}),
    ]
    engine.on("POST", "/containers/create", lambda _request: answers.pop(0))
    engine.on("POST", "/images/create", Reply(raw=b'{"status":"Pulling fs layer","id":"aa"}\n{"status":"done"}\n'))
    engine.on("POST", "/containers/c1/start", Reply(204))
    ran = fleet("run", "-d", "nginx")
    assert (ran.code, ran.out) == (0, "c1\n")
    assert "Unable to find image 'nginx' locally" in ran.err and "aa: Pulling fs layer" in ran.err
    assert "Warning: careful" in ran.err
    assert engine.sent("POST", "/images/create")[0].query == {"fromImage": "nginx", "tag": "latest"}


def test_never_pull_says_what_is_missing_with_125(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/containers/create", Reply(404, {"message": "No such image: nginx:latest"}))
    ran = fleet("run", "--pull", "never", "nginx")
    assert (ran.code, ran.err) == (125, "Error: No such image: nginx:latest\n")


@pytest.mark.parametrize(
    ("text", "code"),
    [('exec: "x": executable file not found in $PATH', 127), ('exec: "/": permission denied', 126), ("no room", 125)],
)
def test_a_start_that_fails_ends_with_dockers_codes(fleet: Any, engine: FakeEngine, text: str, code: int) -> None:
    engine.on("POST", "/containers/create", Reply(201, {"Id": "c1"}))
    engine.on("POST", "/containers/c1/start", Reply(400, {"message": text}))
    assert fleet("run", "-d", "b").code == code


def test_a_cidfile_that_is_there_stops_before_anything_is_made(fleet: Any, engine: FakeEngine, folder: Path) -> None:
    ran = fleet("run", "-d", "--cidfile", "env", "busybox")
    assert ran.code == 125 and "container ID file found" in ran.err
    assert engine.requests == []


def test_detach_keys_are_held_back_until_they_are_something_else() -> None:
    keys = _Keys(detach_keys("ctrl-p,ctrl-q"))
    assert keys.feed(b"a\x10") == b"a"
    assert keys.feed(b"b") == b"\x10b"
    assert keys.feed(b"\x10\x10") == b"\x10"
    with pytest.raises(_Detach):
        keys.feed(b"\x11")
    with pytest.raises(errors.UserError, match="unknown character"):
        detach_keys("ctrl-pp")


def test_usage_is_reckoned_as_docker_does() -> None:
    row = usage_row(
        {
            "id": "a" * 64, "name": "/web",
            "cpu_stats": {"cpu_usage": {"total_usage": 300}, "system_cpu_usage": 2000, "online_cpus": 2},
            "precpu_stats": {"cpu_usage": {"total_usage": 100}, "system_cpu_usage": 1000},
            "memory_stats": {"usage": 3 << 20, "limit": 8 << 20, "stats": {"inactive_file": 1 << 20}},
            "networks": {"eth0": {"rx_bytes": 1000, "tx_bytes": 5}},
            "blkio_stats": {"io_service_bytes_recursive": [{"op": "read", "value": 2000}, {"op": "Write", "value": 7}]},
            "pids_stats": {"current": 4},
        },
        full=False,
    )  # fmt: skip
    assert (row["CPUPerc"], row["MemUsage"], row["MemPerc"]) == ("40.00%", "2MiB / 8MiB", "25.00%")
    assert (row["NetIO"], row["BlockIO"], row["PIDs"], row["Name"]) == ("1kB / 5B", "2kB / 7B", "4", "web")


def test_connect_and_disconnect_send_what_docker_sends(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/networks/n/(dis)?connect", Reply(200))
    assert fleet("network", "connect", "--alias", "a", "--ip", "1.2.3.4", "n", "web").code == 0
    assert fleet("network", "disconnect", "-f", "n", "web").code == 0
    connect, disconnect = (told(request.body) for request in engine.requests)
    assert connect == {
        "Container": "web", "EndpointConfig": {"IPAMConfig": {"IPv4Address": "1.2.3.4"}, "Aliases": ["a"]},
    }  # fmt: skip
    assert disconnect == {"Container": "web", "Force": True}


def test_system_prune_asks_each_kind(fleet: Any, engine: FakeEngine) -> None:
    engine.on("POST", "/(containers|networks|volumes|images)/prune", {"SpaceReclaimed": 1000})
    ran = fleet("system", "prune", "-f", "--volumes", "-a")
    assert (ran.code, ran.out) == (0, "Total reclaimed space: 4kB\n")
    assert [request.path for request in engine.requests] == [
        "/containers/prune", "/networks/prune", "/volumes/prune", "/images/prune",
    ]  # fmt: skip


def test_ports_are_listed_and_looked_up(fleet: Any, engine: FakeEngine) -> None:
    ports = {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}], "9/udp": None}
    engine.on("GET", "/containers/web/json", {"NetworkSettings": {"Ports": ports}})
    assert fleet("port", "web").out == "80/tcp -> 0.0.0.0:8080\n80/tcp -> [::]:8080\n"
    assert fleet("port", "web", "80").out == "0.0.0.0:8080\n[::]:8080\n"
    assert "no public port '9/tcp' published for web" in fleet("port", "web", "9").err


# --- cp ---------------------------------------------------------------------------------------------------------------


def archive(*members: tuple[str, bytes | None]) -> bytes:
    """Regular files with their data; None is a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.type = tarfile.REGTYPE if data is not None else tarfile.DIRTYPE
            member.mode = 0o755
            member.size = len(data or b"")
            tar.addfile(member, io.BytesIO(data or b""))
    return file.getvalue()


def test_copy_arguments_are_split_as_docker_splits_them() -> None:
    assert split_copy("web:/a:b") == ("web", "/a:b")
    assert split_copy("/a:b") == ("", "/a:b")
    assert split_copy("./a:b") == ("", "./a:b")
    assert split_copy("-") == ("", "-")


def test_copying_neither_from_nor_to_a_container_is_refused(fleet: Any) -> None:
    assert "must specify at least one container source" in fleet("cp", "a", "b").err
    assert "copying between containers is not supported" in fleet("cp", "a:/x", "b:/x").err


def test_a_foreign_archive_cannot_leave_the_target(tmp_path: Path) -> None:
    from fleet.cli.copy import _unpack

    target = tmp_path / "in"
    target.mkdir()
    with pytest.raises(errors.RuntimeFault, match="cannot unpack"):
        _unpack(iter([archive(("../out", b"x"))]), str(target), old="x", new="", archive=False)
    assert not (tmp_path / "out").exists()
    assert _unpack(iter([archive(("d", None), ("d/f", b"abc"))]), str(target), old="d", new="e", archive=False) == 3
    assert (target / "e/f").read_bytes() == b"abc"


def test_copying_into_a_container_that_is_not_there_names_it(fleet: Any, engine: FakeEngine, folder: Path) -> None:
    engine.on("GET", "/containers/web/json", Reply(404, {"message": "No such container: web"}))
    ran = fleet("cp", "env", "web:/etc/")
    assert (ran.code, ran.err) == (1, "Error: No such container: web\n")


class Archives:
    """A container's files as ``/containers/web/archive`` shows them: one folder ``/data`` with the file ``f``."""

    def __init__(self, path: Path) -> None:
        self.put: list[tuple[str, bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.0"

            def _answer(self, status: int, body: bytes = b"", stat: dict[str, Any] | None = None) -> None:
                self.send_response(status)
                if stat is not None:
                    self.send_header(
                        "X-Docker-Container-Path-Stat", base64.b64encode(json.dumps(stat).encode()).decode()
                    )
                self.send_header("Content-Type", "application/x-tar")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":  # has no body: the client would hang up on one
                    self.wfile.write(body)

            def do_HEAD(self) -> None:
                path = parse_qs(urlsplit(self.path).query)["path"][0].rstrip("/")
                stats = {"/data": {"name": "data", "mode": 0o755 | 1 << 31}, "/data/f": {"name": "f", "mode": 0o644}}
                self._answer(200, stat=stats[path]) if path in stats else self._answer(404)

            def do_GET(self) -> None:
                if self.path.endswith("/json"):
                    self._answer(200, b"{}")
                else:
                    folder = parse_qs(urlsplit(self.path).query)["path"][0] == "/data"
                    self._answer(200, archive(("data", None), ("data/f", b"abc")) if folder else archive(("f", b"abc")))

            def do_PUT(self) -> None:
                data = b""
                while size := int(self.rfile.readline().strip(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                outer.put.append((parse_qs(urlsplit(self.path).query)["path"][0], data))
                self._answer(200)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.server = Server(str(path), Handler)
        self.url = f"unix://{path}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02})


@pytest.fixture
def archives() -> Iterator[Archives]:
    with tempfile.TemporaryDirectory(prefix="fl-") as folder:
        found = Archives(Path(folder) / "a")
        found.thread.start()
        yield found
        found.server.shutdown()
        found.server.server_close()
        found.thread.join()


@pytest.mark.parametrize(
    ("source", "target", "made"),
    [
        ("web:/data/f", "new", "new"),
        ("web:/data/f", "there", "there/f"),
        ("web:/data", "new", "new/f"),
        ("web:/data", "there", "there/data/f"),
    ],
)
def test_copying_out_names_things_as_docker_does(
    fleet: Any, archives: Archives, folder: Path, source: str, target: str, made: str
) -> None:
    (folder / "there").mkdir()
    ran = fleet("cp", source, target, environment={"FLEET_HOST": archives.url})
    assert (ran.code, ran.err) == (0, f"Successfully copied 3B to {target}\n")
    assert (folder / made).read_bytes() == b"abc"


@pytest.mark.parametrize(
    ("target", "where", "name"),
    [("web:/data", "/data", "lab"), ("web:/data/f", "/data", "f"), ("web:/data/new", "/data", "new")],
)
def test_copying_in_names_things_as_docker_does(
    fleet: Any, archives: Archives, folder: Path, target: str, where: str, name: str
) -> None:
    assert fleet("cp", "lab", target, environment={"FLEET_HOST": archives.url}).code == 0
    ((path, data),) = archives.put
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert (path, tar.getnames()) == (where, [name])


def test_a_folder_does_not_replace_a_file(fleet: Any, archives: Archives, folder: Path) -> None:
    ran = fleet("cp", "web:/data", "lab", environment={"FLEET_HOST": archives.url})
    assert ran.code != 0 and "cannot copy directory" in ran.err
