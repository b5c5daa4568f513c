"""The daemon as a program: one a folder, TLS on TCP, a clean end, errors that say what to do."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from support.certificates import make_pair
from support.lab import TestLab

pytestmark = pytest.mark.e2e


class Started:
    """A fleetd of the test's own inside the host, beside the lab's; it ends with the lab at the latest."""

    def __init__(self, lab: TestLab, root: str, flags: tuple[str, ...]) -> None:
        self._lab = lab
        self._root = root
        self.socket = f"{root}/run/f.sock"
        argv = [
            sys.executable, "-m", "fleet.daemon.main", "--data-root", f"{root}/data", "--exec-root", f"{root}/run",
            "--cgroup-parent", f"{lab.layout.host_cgroup('m1')}/own", "--hostname", "alone",
            "-H", f"unix://{self.socket}", *flags,
        ]  # fmt: skip
        self.process = subprocess.Popen(lab.command("m1", argv), stderr=subprocess.PIPE, text=True)

    def ready(self) -> Started:
        self._lab.wait_until(
            lambda: (
                self.process.poll() is not None
                or docker("-H", f"unix:///proc/{self._lab.pid('m1')}/root{self.socket}", "version").returncode == 0
            ),
            120,
            what="it answers",
        )
        assert self.process.poll() is None, self.ended()
        return self

    def signal(self, number: int) -> None:
        self._lab.exec("m1", ["pkill", f"-{number}", "-f", f"data-root {self._root}/data"])

    def ended(self) -> tuple[int, str]:
        """Exit code and what it said."""
        _, told = self.process.communicate(timeout=30)
        return self.process.returncode, told


@pytest.fixture(scope="module")
def lab(make_lab: Callable[..., TestLab]) -> TestLab:
    return make_lab(managers=1, workers=0)


@pytest.fixture
def start(lab: TestLab, unique: str) -> Iterator[Callable[..., Started]]:
    running: list[Started] = []

    def go(*flags: str) -> Started:
        running.append(Started(lab, f"/run/{unique}", flags))
        return running[-1]

    yield go
    for daemon in running:
        if daemon.process.poll() is None:
            daemon.signal(signal.SIGKILL)
            daemon.ended()


Start = Callable[..., Started]


def docker(*args: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DOCKER_")}
    return subprocess.run(["docker", *args], capture_output=True, text=True, check=False, env=environment, timeout=60)


def test_tcp_with_tls_serves_clients_with_a_certificate_and_nobody_else(
    lab: TestLab, tmp_path: Path, start: Start
) -> None:
    address = lab.address("m1")
    authority = make_pair(tmp_path, "ca", None, [address])
    make_pair(tmp_path, "server", authority, [address])
    make_pair(tmp_path, "client", authority, [address])
    stranger = make_pair(tmp_path, "strangers-ca", None, [address])
    make_pair(tmp_path, "stranger", stranger, [address])
    url = f"tcp://{address}:23760"
    start(
        "-H", url, "--tlsverify", "--tlscacert", str(tmp_path / "ca.pem"),
        "--tlscert", str(tmp_path / "server.pem"), "--tlskey", str(tmp_path / "server-key.pem"),
        "--api-rate-client", "1:30",
    ).ready()  # fmt: skip

    def ask(name: str) -> subprocess.CompletedProcess[str]:
        return docker(
            "-H", url, "--tlsverify", "--tlscacert", str(tmp_path / "ca.pem"),
            "--tlscert", str(tmp_path / f"{name}.pem"), "--tlskey", str(tmp_path / f"{name}-key.pem"),
            "version", "--format", "{{.Server.Platform.Name}}",
        )  # fmt: skip

    good = ask("client")
    assert good.stdout.strip() == "fleet", good.stderr
    assert ask("stranger").returncode != 0
    assert docker("-H", url, "version", "--format", "{{.Server}}").returncode != 0
    context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client-key.pem")
    with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
        answers = (client.get(f"https://{address}:23760/version") for _ in range(500))
        refused = next((answer for answer in answers if answer.status_code != 200), None)
    assert refused is not None and refused.status_code == 429, "one client is not answered without end"
    assert refused.json()["message"].startswith("too many requests of certificate client: 1 a second and 30 at once")
    assert refused.headers["retry-after"] == "1"


def test_tcp_without_tls_is_refused_but_on_loopback(start: Start) -> None:
    code, told = start("-H", "tcp://0.0.0.0:23761").ended()
    assert code == 2
    assert "without TLS anybody" in told


def test_a_second_daemon_on_the_same_folder_is_refused_and_names_the_first(start: Start) -> None:
    first = start().ready()
    code, told = start().ended()
    assert code == 1
    assert "another fleetd (process" in told
    assert first.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_when_asked(lab: TestLab, start: Start, number: int) -> None:
    daemon = start().ready()
    daemon.signal(number)
    code, told = daemon.ended()
    assert code == 0
    assert "ready" in told
    assert "stopping" in told
    assert "Traceback" not in told
    assert lab.exec("m1", ["test", "-e", daemon.socket], check=False).returncode == 1, "its socket is gone"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--config", "/no/such/file"), "/no/such/file"),
        (("--cgroup-parent", "relative"), "cgroup"),
        (("-H", "ftp://x"), "unix:///PATH"),
        (("-H", "tcp://127.0.0.1:23762", "--tlscert", "/x"), "--tlskey"),
    ],
)
def test_wrong_configuration_ends_with_2_and_a_sentence(start: Start, flags: tuple[str, ...], says: str) -> None:
    code, told = start(*flags).ended()
    assert code == 2
    assert says in told
    assert "Traceback" not in told


def test_logs_are_one_json_object_a_line(lab: TestLab) -> None:
    lines = lab.log_path("m1").read_text().splitlines()
    assert len(lines) > 3
    events = [json.loads(line) for line in lines]
    assert all({"event", "level", "timestamp"} <= event.keys() for event in events)
    assert "SWMTKN" not in lab.log_path("m1").read_text(), "no token is logged"
