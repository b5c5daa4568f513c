"""Users and tokens at real TLS listeners: fleet, docker and plain HTTP, on every manager."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.certificates import make_pair
from support.lab import REPOSITORY, TestLab

from fleet import errors

pytestmark = [pytest.mark.e2e, pytest.mark.story]

_MANAGERS = ("m1", "m2", "m3")
_STACK = """
services:
  web:
    image: fleet/hello:1
    command: sh -c 'trap "exit 0" TERM; echo here is {name}; while :; do sleep 1 & wait $$!; done'
    secrets: [key]
    networks: [inside]
    volumes: [data:/data]
    deploy: {{replicas: 2}}
networks:
  inside: {{}}
volumes:
  data: {{}}
secrets:
  key: {{file: ./key}}
"""


@dataclass
class Site:
    """A lab whose hosts listen with TLS, and the files of its clients."""

    lab: TestLab
    folder: Path

    def url(self, host: str = "m1") -> str:
        return f"tcp://{self.lab.address(host)}:2376"

    def token(self, user: str, *flags: str) -> str:
        return self.lab.fleet("token", "create", user, *flags).stdout.strip()

    def file(self, token: str) -> str:
        path = self.folder / f"token-{token.split('-')[2]}"
        path.write_text(token)
        path.chmod(0o600)
        return str(path)

    def fleet(
        self, token: str, *args: str, host: str = "m1", certificate: str = "", stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """``fleet`` over TLS with this token, or with this certificate."""
        flags = ["-H", self.url(host), "--tlsverify", "--tlscacert", str(self.folder / "ca.pem")]
        if token:
            flags += ["--token-file", self.file(token)]
        if certificate:
            flags += ["--tlscert", str(self.folder / f"{certificate}.pem")]
            flags += ["--tlskey", str(self.folder / f"{certificate}-key.pem")]
        return self._run([sys.executable, "-m", "fleet.cli.main", *flags, *args], {}, stdin)

    def in_context(self, *args: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """``fleet`` with a context that names m1 and the administrator's certificate, made at first use."""
        home = self.folder / "contexts"
        environment = {"FLEET_CONFIG": str(home), "DOCKER_CONFIG": str(home), "FLEET_CONTEXT": "m1"}
        fleet = [sys.executable, "-m", "fleet.cli.main"]
        if not home.exists():
            files = {"ca": "ca.pem", "cert": "root.pem", "key": "root-key.pem"}
            endpoint = ",".join([f"host={self.url()}", *(f"{key}={self.folder / name}" for key, name in files.items())])
            made = self._run(
                [*fleet, "context", "create", "m1", "--docker", endpoint], {"FLEET_CONFIG": str(home)}, None
            )
            assert made.returncode == 0, made.stderr
        return self._run([*fleet, *args], environment, stdin)

    def docker(
        self, token: str, *args: str, host: str = "m1", certificate: str = "", stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """The real client, with the token in its configuration, or with this certificate."""
        client = shutil.which("docker")
        if client is None:
            pytest.skip("not run: needs the docker client (package docker.io or docker-cli; scripts/setup installs it)")
        home = self.folder / f"docker-{token.split('-')[2] if token else 'none'}"
        home.mkdir(exist_ok=True)
        headers = {"HttpHeaders": {"Authorization": f"Bearer {token}"}} if token else {}
        (home / "config.json").write_text(json.dumps(headers))
        flags = ["--config", str(home), "-H", self.url(host), "--tlsverify", "--tlscacert", str(self.folder / "ca.pem")]
        if certificate:
            flags += ["--tlscert", str(self.folder / f"{certificate}.pem")]
            flags += ["--tlskey", str(self.folder / f"{certificate}-key.pem")]
        environment = {"HOME": str(home), "DOCKER_CONFIG": str(home), "DOCKER_BUILDKIT": "0"}
        return self._run([client, *flags, *args], environment, stdin)

    def _run(self, argv: list[str], more: dict[str, str], stdin: str | None) -> subprocess.CompletedProcess[str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLEET_", "DOCKER_"))}
        return subprocess.run(
            argv, env=kept | more, cwd=REPOSITORY, input=stdin, capture_output=True, text=True, check=False, timeout=120
        )

    def ask(self, method: str, path: str, *, token: str = "", host: str = "m1", **kwargs: Any) -> httpx.Response:
        """Plain HTTP over TLS."""
        import ssl

        context = ssl.create_default_context(cafile=str(self.folder / "ca.pem"))
        url = self.url(host).replace("tcp:", "https:") + path
        headers = {**kwargs.pop("headers", {}), **({"Authorization": f"Bearer {token}"} if token else {})}
        with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
            return client.request(method, url, headers=headers, **kwargs)


@pytest.fixture(scope="module")
def site(make_lab: Callable[..., TestLab], tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("tls")
    authority = make_pair(folder, "ca", None, [])
    for name in ("root", "vera"):
        make_pair(folder, name, authority, [])
    flags = ("-H", "tcp://0.0.0.0:2376", "--tlscacert", str(folder / "ca.pem"), "--log-format", "json")
    flags += ("--tlscert", str(folder / "server.pem"), "--tlskey", str(folder / "server-key.pem"))
    for _ in range(20):
        network = f"10.{random.randint(200, 253)}.{random.randint(0, 255)}"
        make_pair(folder, "server", authority, [f"{network}.{number}" for number in range(1, 255)])
        try:
            lab = make_lab(managers=3, workers=1, daemon_args=flags, subnet=f"{network}.0/24")
        except errors.ConflictError:
            continue
        lab.load_hello()
        return Site(lab, folder)
    raise AssertionError("no free network was found")


def test_tls_without_credentials_is_refused_with_what_to_do(site: Site) -> None:
    answer = site.ask("GET", "/services")
    assert answer.status_code == 401
    assert "fleet token create" in answer.json()["message"]
    ran = site.fleet("", "service", "ls")
    assert ran.returncode == 1 and "authentication required" in ran.stderr
    ran = site.docker("", "service", "ls")
    assert ran.returncode == 1 and "authentication required" in ran.stderr
    assert site.ask("GET", "/_ping").status_code == 200


def test_roles_with_fleet_and_docker(site: Site) -> None:
    for name, role in (("ann", "admin"), ("otto", "operator"), ("vera", "viewer")):
        site.lab.fleet("user", "create", name, "--role", role)
    admin, operator, viewer = (site.token(name) for name in ("ann", "otto", "vera"))
    for host in _MANAGERS:
        site.lab.wait_until(
            lambda host=host: site.ask("GET", "/fleet/v1/whoami", token=viewer, host=host).status_code == 200,
            30,
            what=f"{host} knows the user",
        )
        who = json.loads(site.fleet(operator, "user", "whoami", host=host).stdout)[0]
        assert (who["User"], who["Role"]) == ("otto", "operator")
    command = ("fleet/hello:1", "sh", "-c", 'trap "exit 0" TERM; while :; do sleep 1 & wait $!; done')
    refused = site.docker(viewer, "service", "create", "--name", "web", *command)
    assert refused.returncode == 1 and "user vera is viewer" in refused.stderr
    made = site.docker(operator, "service", "create", "--detach", "--name", "web", "--replicas", "4", *command)
    assert made.returncode == 0, made.stderr
    site.lab.wait_until(lambda: len(site.lab.tasks("web")) == 4, 60, what="4 tasks of web")
    assert "web" in site.docker(viewer, "service", "ls", host="m2").stdout
    assert site.fleet(viewer, "service", "ps", "web").returncode == 0
    for args in (
        ("node", "update", "--availability", "drain", "w1"),
        ("user", "ls"),
        ("swarm", "join-token", "worker"),
    ):
        ran = site.fleet(operator, *args)
        assert (ran.returncode == 1 and "needs the role admin" in ran.stderr) or "join-token" in args, (
            args,
            ran.stderr,
        )
        assert "SWMTKN" not in ran.stdout
    assert site.fleet(admin, "user", "ls").returncode == 0


def test_a_shell_in_a_task_of_another_node_is_for_operators(site: Site) -> None:
    operator, viewer = site.token("otto"), site.token("vera")
    for task in site.lab.tasks("web"):
        name = f"web.{task['Slot']}"
        ran = site.fleet(operator, "exec", name, "echo", "inside", name)
        assert ran.stdout.strip() == f"inside {name}", ran.stderr
        refused = site.fleet(viewer, "exec", name, "true")
        assert refused.returncode != 0 and "needs the role operator" in refused.stderr
    assert site.fleet(viewer, "service", "logs", "web").returncode == 0
    told = site.lab.log_path("w1").read_text()
    asked = [json.loads(line) for line in told.splitlines() if "asked by a manager" in line]
    assert {line["user"] for line in asked} == {"otto"}, "the node of the task is told who asked"


def test_operators_do_not_get_at_hosts_without_being_allowed_to(site: Site) -> None:
    operator = site.token("otto")
    asked = ("service", "create", "--detach", "--name", "spy", "--mount", "type=bind,src=/,dst=/host", "fleet/hello:1")
    refused = site.docker(operator, *asked)
    assert refused.returncode == 1 and "host access" in refused.stderr
    refused = site.docker(operator, "run", "--rm", "--privileged", "fleet/hello:1", "true")
    assert refused.returncode != 0 and "host access" in refused.stderr
    site.lab.fleet("user", "update", "--host-access", "otto")
    ran = site.fleet(operator, "run", "--rm", "-v", "/:/host:ro", "fleet/hello:1", "echo", "now")
    assert ran.stdout.strip() == "now", ran.stderr
    site.lab.fleet("user", "update", "--no-host-access", "otto")


@pytest.mark.parametrize("client", ["docker", "fleet"])
def test_streams_end_one_after_the_other_over_tls(site: Site, client: str) -> None:
    """Without ``-i`` docker says the end of its input in TLS at once; all output and the exit code come nevertheless."""

    def run(*args: str, stdin: str | None = None) -> tuple[int, str, str]:
        if client == "docker":
            ran = site.docker("", *args, certificate="root", stdin=stdin)
        else:
            ran = site.in_context(*args, stdin=stdin)
        return ran.returncode, ran.stdout, ran.stderr

    image, name = "fleet/hello:1", f"talks-{client}"
    slowly = "for i in 1 2 3; do echo $i; sleep 0.1; done; echo err >&2; exit 3"
    assert run("run", "--name", name, image, "sh", "-c", slowly) == (3, "1\n2\n3\n", "err\n")
    assert run("start", "-a", name) == (3, "1\n2\n3\n", "err\n")
    assert run("logs", "-f", name) == (0, "1\n2\n3\n" * 2, "err\n" * 2)
    assert run("rm", name)[0] == 0
    code, out, err = run("run", "--rm", image, "sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x")
    assert (code, out == "x" * 3_000_000, err) == (0, True, "")
    assert run("run", "--rm", "-i", image, "cat", stdin="x\n") == (0, "x\n", "")
    assert run("run", "--rm", "-i", image, "sh", "-c", "cat; sleep 0.2; echo end; exit 5", stdin="") == (5, "end\n", "")
    much = "0123456789abcde\n" * 100_000
    assert run("run", "--rm", "-i", image, "sh", "-c", "echo early; cat", stdin=much) == (0, f"early\n{much}", "")

    waits = "while [ ! -e /go ]; do sleep 0.1; done; echo went; exit 4"
    assert run("run", "-d", "--name", name, image, "sh", "-c", waits)[0] == 0
    assert run("exec", name, "sh", "-c", "sleep 0.2; echo inside; exit 6") == (6, "inside\n", "")
    assert run("exec", "-i", name, "sh", "-c", "cat; echo after", stdin="typed\n") == (0, "typed\nafter\n", "")
    opener = threading.Timer(1.0, run, ("exec", name, "touch", "/go"))
    opener.start()
    assert run("attach", name) == (4, "went\n", "")
    opener.join()
    assert run("rm", name)[0] == 0


def test_docker_s_uploads_downloads_and_events_over_tls(site: Site) -> None:
    def run(*args: str) -> str:
        ran = site.docker("", *args, certificate="root")
        assert ran.returncode == 0, (args, ran.stderr)
        return ran.stdout + ran.stderr

    folder = site.folder / "build"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM fleet/hello:1\nCOPY file /file\nRUN echo building && wc -c /file\n")
    (folder / "file").write_bytes(os.urandom(2_000_000))
    assert "2000000 /file" in run("build", "-t", "built", str(folder))
    run("create", "--name", "copies", "built", "true")
    run("cp", str(folder / "file"), "copies:/copied")
    run("cp", "copies:/copied", str(folder / "back"))
    assert (folder / "back").read_bytes() == (folder / "file").read_bytes()
    run("rm", "copies")
    told = run("events", "--since", "10m", "--until", f"{time.time() + 1:.3f}", "--filter", "container=copies")
    assert "create" in told and "destroy" in told


def test_a_removed_token_is_refused_at_once_on_every_manager(site: Site) -> None:
    token = site.token("vera")
    for host in _MANAGERS:
        site.lab.wait_until(lambda host=host: site.ask("GET", "/info", token=token, host=host).status_code == 200, 30)
    site.lab.fleet("token", "rm", token.split("-")[2])
    assert site.ask("GET", "/info", token=token, host="m1").status_code == 401
    for host in _MANAGERS:  # the others hear of it from the engine, within milliseconds
        site.lab.wait_until(
            lambda host=host: site.ask("GET", "/info", token=token, host=host).status_code == 401, 10, what=host
        )


def test_an_expired_token_is_refused(site: Site) -> None:
    token = site.token("vera", "--expires", "3s")
    site.lab.wait_until(lambda: "expired" in site.ask("GET", "/info", token=token).text, 30, what="it has expired")
    assert site.ask("GET", "/info", token=token).status_code == 401
    assert "expired" in site.lab.fleet("token", "ls", "--user", "vera").stdout


def test_certificates_are_admins_or_users(site: Site) -> None:
    assert site.fleet("", "user", "ls", certificate="root").returncode == 0
    refused = site.fleet("", "user", "ls", certificate="vera")
    assert refused.returncode == 1 and "vera is viewer" in refused.stderr
    assert site.fleet("", "service", "ls", certificate="vera").returncode == 0


def test_a_worker_knows_the_names_of_users_and_lets_none_in(site: Site) -> None:
    assert site.fleet("", "ps", host="w1", certificate="root").returncode == 0
    site.lab.wait_until(
        lambda: "known to managers only" in site.fleet("", "ps", host="w1", certificate="vera").stderr,
        30,
        what="the worker is told of vera",
    )
    answer = site.ask("GET", "/containers/json", token=site.token("vera"), host="w1")
    assert answer.status_code == 503 and "managers only" in answer.json()["message"]


def _stack(site: Site, name: str) -> str:
    folder = site.folder / name
    folder.mkdir(exist_ok=True)
    (folder / "key").write_text(f"secret of {name}")
    (folder / "stack.yml").write_text(_STACK.format(name=name))
    return str(folder / "stack.yml")


def test_a_stack_s_operator_deploys_it_and_sees_no_other(site: Site) -> None:
    lab = site.lab
    lab.fleet("user", "create", "shopkeeper", "--role", "operator", "--stack", "shop")
    token = site.token("shopkeeper")
    lab.fleet("stack", "deploy", "--detach", "-c", _stack(site, "blog"), "blog")
    ran = site.fleet(token, "stack", "deploy", "--detach", "-c", _stack(site, "shop"), "shop")
    assert ran.returncode == 0, ran.stderr
    lab.wait_until(lambda: len(lab.tasks("shop_web")) == 2 and len(lab.tasks("blog_web")) == 2, 90, what="both stacks")

    def lines(*args: str) -> str:
        ran = site.fleet(token, *args)
        assert ran.returncode == 0, (args, ran.stderr)
        return ran.stdout

    for noun in ("service", "secret", "network", "stack"):
        shown = lines(noun, "ls")
        assert "shop" in shown, noun
        assert "blog" not in shown and "web " not in shown.replace("shop_web", ""), (noun, shown)
    assert lines("node", "ls").count("\n") == 1, "the heading alone"
    assert {line.split(".")[0] for line in lines("ps", "--format", "{{.Names}}").split()} <= {"shop_web"}
    assert "here is shop" in lines("service", "logs", "shop_web")
    blog = lab.get("/services/blog_web")["ID"]
    task = lab.tasks("blog_web")[0]["ID"]
    for args in (
        ("service", "inspect", "blog_web"), ("service", "rm", blog), ("service", "logs", "blog_web"),
        ("service", "scale", "--detach", "blog_web=0"), ("secret", "rm", "blog_key"), ("network", "rm", "blog_inside"),
        ("exec", "blog_web.1", "true"), ("task", "inspect", task), ("stack", "deploy", "-c", _stack(site, "blog"), "blog"),
    ):  # fmt: skip
        ran = site.fleet(token, *args)
        assert ran.returncode != 0, args
        missing = site.fleet(token, *(word.replace("blog", "nope").replace(task, "nope") for word in args))
        if args[0] not in ("stack", "task") and blog not in args:
            assert ran.stderr.replace("blog", "nope") == missing.stderr, "what is another's is as if it were not there"
    assert len(lab.tasks("blog_web")) == 2
    stolen = site.fleet(
        token, "service", "create", "--detach", "--name", "shop_thief", "-l", "com.docker.stack.namespace=shop",
        "--secret", "blog_key", "fleet/hello:1",
    )  # fmt: skip
    assert stolen.returncode != 0
    outside = site.fleet(token, "service", "create", "--detach", "--name", "free", "fleet/hello:1")
    assert outside.returncode == 1 and "com.docker.stack.namespace=shop" in outside.stderr


def test_docker_deploys_a_stack_with_a_limited_token(site: Site) -> None:
    token = site.token("shopkeeper")
    ran = site.docker(token, "stack", "deploy", "--detach=true", "-c", _stack(site, "shop"), "shop")
    assert ran.returncode == 0, ran.stderr
    assert site.docker(token, "stack", "ls", "--format", "{{.Name}}").stdout.split() == ["shop"]
    ran = site.docker(token, "stack", "ps", "shop", "--format", "{{.Name}}")
    assert ran.returncode == 0 and "shop_web.1" in ran.stdout, ran.stderr
    ran = site.docker(token, "stack", "rm", "blog")
    assert "Nothing found" in ran.stderr + ran.stdout
    assert site.docker(token, "stack", "rm", "shop").returncode == 0
    site.lab.wait_until(
        lambda: all(found["Spec"]["Name"] != "shop_web" for found in site.lab.get("/services")), 60, what="shop is gone"
    )
    assert len(site.lab.tasks("blog_web")) == 2


def test_the_log_names_users_and_no_secret(site: Site) -> None:
    token = site.token("vera")
    site.ask("POST", "/services/create", token=token, json={})
    text = site.lab.log_path("m1").read_text()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("token") == token.split("-")[2]]
    assert told and told[-1]["who"] == "user vera" and told[-1]["role"] == "viewer" and told[-1]["code"] == "403"
    for path in site.folder.glob("token-*"):
        assert path.read_text().split("-")[3] not in text


def test_a_browser_signs_in_with_a_token(site: Site) -> None:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="not run: needs playwright (scripts/setup installs it)"
    )
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("not run: needs the package chromium (scripts/setup installs it)")
    url = site.url().replace("tcp:", "https:")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=["--no-sandbox"])
        context = browser.new_context(ignore_https_errors=True)
        page = context.new_page()
        page.goto(url)
        page.get_by_label("Token").fill("FLTK-1-wrong")
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("alert").get_by_text("copy it whole").wait_for()
        page.get_by_label("Token").fill(site.token("vera"))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_label("node m1").wait_for()
        page.get_by_text("vera (viewer)").wait_for()
        assert page.get_by_role("button", name="Drain").count() == 0
        page.get_by_role("link", name="Services", exact=True).click()
        page.get_by_label("service web", exact=True).wait_for()
        for name in ("Scale", "Update", "Create service"):
            assert page.get_by_role("button", name=name).count() == 0
        (cookie,) = context.cookies()
        assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "Strict")
        page.reload()
        page.get_by_text("vera (viewer)").wait_for()
        again = httpx.get(
            url + "/services", headers={"Cookie": f"{cookie['name']}={cookie['value']}"}, verify=False, trust_env=False
        )
        assert again.status_code == 401, "the cookie alone, as every port of the host is sent it"
        page.get_by_role("button", name="Sign out").click()
        page.get_by_role("button", name="Sign in").wait_for()
        page.get_by_label("Token").fill(site.token("otto"))
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("link", name="Services", exact=True).click()
        page.get_by_label("service web", exact=True).get_by_role("button", name="Scale").click()
        page.get_by_label("Replicas").fill("5")
        page.get_by_role("dialog").get_by_role("button", name="Scale").click()
        page.get_by_text("5/5").wait_for(timeout=60_000)
        browser.close()
