"""A plugin beside the manager gives secrets their values, for each task by itself (SCF-05)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.lab import TestLab

pytestmark = pytest.mark.e2e

PLUGIN = """
import base64, json, os, socketserver, sys
from http.server import BaseHTTPRequestHandler

class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

class Handler(BaseHTTPRequestHandler):
    def address_string(self):
        return "unix"
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if asked["SecretName"] == "sealed":
            said = {"Err": "the vault is sealed"}
        else:
            text = f"for {asked['TaskName']} with {asked['SecretLabels'].get('path', '')}"
            said = {"Value": base64.b64encode(text.encode()).decode(), "DoNotReuse": True}
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

os.makedirs("/run/docker/plugins", exist_ok=True)
Server("/run/docker/plugins/vault.sock", Handler).serve_forever()
"""


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


@pytest.fixture
def plugin(lab: TestLab) -> Iterator[None]:
    process = subprocess.Popen(lab.command("m1", [sys.executable, "-c", PLUGIN]), stderr=subprocess.DEVNULL)
    try:
        lab.wait_until(
            lambda: lab.exec("m1", ["test", "-S", "/run/docker/plugins/vault.sock"], check=False).returncode == 0,
            20,
            what="the plugin listens",
        )
        yield
    finally:
        process.kill()
        process.wait(10)
        lab.exec("m1", ["rm", "-f", "/run/docker/plugins/vault.sock"])


def test_each_task_gets_its_own_value_and_the_state_holds_none(lab: TestLab, plugin: None) -> None:
    lab.fleet("secret", "create", "--driver", "vault", "--label", "path=db/password", "driven")
    assert lab.get("/secrets/driven")["Spec"]["Driver"]["Name"] == "vault"
    read = ("sh", "-c", "cat /run/secrets/driven; echo; sleep 1000")
    lab.fleet("service", "create", "--name", "reader", "--replicas", "3", "--secret", "driven", "fleet/hello:1", *read)
    try:
        lab.wait_until(
            lambda: lab.fleet("service", "logs", "--raw", "reader").stdout.count("for reader.") == 3, 20, what="logs"
        )
        said = set(lab.fleet("service", "logs", "--raw", "reader").stdout.split("\n")) - {""}
        tasks = {f"reader.{t['Slot']}.{t['ID']}" for t in lab.tasks("reader")}
        assert said == {f"for {name} with db/password" for name in tasks}
    finally:
        lab.fleet("service", "rm", "reader")
        lab.wait_until(
            lambda: lab.fleet("secret", "rm", "driven", check=False).returncode == 0, 20, what="it is unused"
        )


def test_a_driver_that_gives_nothing_is_waited_for_and_named(lab: TestLab, plugin: None) -> None:
    lab.fleet("secret", "create", "-d", "vault", "sealed")
    lab.fleet("secret", "create", "-d", "nobody", "absent")
    try:
        for secret, words in (("sealed", "the vault is sealed"), ("absent", "nobody.sock on this manager")):
            lab.fleet("service", "create", "-d", "--name", secret, "--secret", secret, "fleet/hello:1", "sleep", "9")
            lab.wait_until(
                lambda secret=secret, words=words: any(words in t["Status"].get("Err", "") for t in lab.get("/tasks")),
                20,
                what=f"the task says that {words}",
            )
    finally:
        for secret in ("sealed", "absent"):
            lab.fleet("service", "rm", secret, check=False)
            lab.wait_until(
                lambda s=secret: lab.fleet("secret", "rm", s, check=False).returncode == 0, 20, what="unused"
            )


def test_what_a_driven_secret_can_not_have_is_refused(lab: TestLab) -> None:
    for args, words in (
        (("--driver", "vault", "x", "-"), "no data of its own"),
        (("--driver", "../vault", "x"), "not a plugin's name"),
        (("x",), "missing FILE"),
    ):
        said = lab.fleet("secret", "create", *args, check=False, stdin="data")
        assert said.returncode != 0 and words in said.stderr
    with pytest.raises(Exception, match="it must have none"), lab.client("m1") as client:
        client.post("/secrets/create", {"Name": "x", "Data": "eA==", "Driver": {"Name": "vault"}})
