"""Deploying stacks: what is created, left alone, changed and removed, and in which order."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fleet import errors
from fleet.cli import stack as stack_module
from tests.support.fake_engine import DIGEST, FakeEngine, Reply, Request

LABEL = "com.docker.stack.namespace"
FILE = """
services:
  web:
    image: img:1
    networks: [front]
    secrets: [tok]
    configs: [conf]
    deploy: {replicas: 2}
networks: {front: {}}
secrets: {tok: {file: ./tok.txt}}
configs: {conf: {file: ./conf.txt}}
"""


class Cluster:
    """Keeps what is created and serves it back, as a daemon that fills in defaults would."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.created: Counter[str] = Counter()
        self.kept: dict[str, list[dict[str, Any]]] = {
            "networks": [],
            "secrets": [],
            "configs": [],
            "services": [],
            "tasks": [],
        }
        for kind in self.kept:
            engine.on("GET", f"/{kind}", self._list(kind))
            engine.on("GET", f"/{kind}/[^/]+", self._one(kind))
            engine.on("POST", f"/{kind}/create", self._create(kind))
            engine.on("POST", f"/{kind}/[^/]+/update", self._update(kind))
            engine.on("DELETE", f"/{kind}/[^/]+", self._delete(kind))

    def _list(self, kind: str) -> Any:
        def answer(request: Request) -> Reply:
            names = request.query.get("filters", {}).get("name")
            return Reply(body=[o for o in self.kept[kind] if not names or o["Spec"]["Name"] in names])

        return answer

    def _one(self, kind: str) -> Any:
        def answer(request: Request) -> Reply:
            found = [o for o in self.kept[kind] if o["ID"] == request.path.split("/")[2]]
            return Reply(body=found[0]) if found else Reply(404, {"message": "not found"})

        return answer

    def _create(self, kind: str) -> Any:
        def answer(request: Request) -> Reply:
            number = f"{kind[:3]}{self.created[kind]}"
            self.created[kind] += 1
            if kind == "networks":
                self.kept[kind].append({**request.body, "Id": number, "Scope": "swarm"})
                return Reply(201, {"Id": number})
            spec = json.loads(json.dumps(request.body))
            if kind == "services":
                spec["TaskTemplate"] |= {"Runtime": "container", "ForceUpdate": 0}
                spec["TaskTemplate"]["ContainerSpec"] |= {"Isolation": "default", "DNSConfig": {}}
            self.kept[kind].append({"ID": number, "Version": {"Index": 7}, "Spec": spec})
            return Reply(201, {"ID": number})

        return answer

    def _update(self, kind: str) -> Any:
        def answer(request: Request) -> Reply:
            (found,) = (o for o in self.kept[kind] if o["ID"] == request.path.split("/")[2])
            if kind == "secrets" and found["Spec"]["Data"] != request.body["Data"]:
                return Reply(400, {"message": "only updates to Labels are allowed"})
            found["PreviousSpec"], found["Spec"] = found["Spec"], request.body
            return Reply(body={})

        return answer

    def _delete(self, kind: str) -> Any:
        def answer(request: Request) -> Reply:
            wanted = request.path.split("/")[2]
            self.kept[kind] = [o for o in self.kept[kind] if wanted not in (o.get("ID"), o.get("Id"))]
            return Reply(204)

        return answer


@pytest.fixture
def cluster(engine: FakeEngine) -> Cluster:
    return Cluster(engine)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "stack.yml").write_text(FILE)
    (tmp_path / "tok.txt").write_text("secret")
    (tmp_path / "conf.txt").write_text("conf")
    return tmp_path


def deploy(fleet: Any, folder: Path, *flags: str) -> Any:
    return fleet("stack", "deploy", "-d", "-c", str(folder / "stack.yml"), *flags, "s")


def changes(engine: FakeEngine) -> list[str]:
    return [f"{r.method} {r.path}" for r in engine.requests if r.method != "GET"]


def test_first_deploy_creates_in_dockers_order_with_ids_and_labels(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    ran = deploy(fleet, folder)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines() == [
        "Creating network s_front",
        "Creating secret s_tok",
        "Creating config s_conf",
        "Creating service s_web",
    ]
    assert changes(engine) == [f"POST /{kind}/create" for kind in ("networks", "secrets", "configs", "services")]
    assert cluster.kept["secrets"][0]["Spec"] == {
        "Name": "s_tok",
        "Labels": {LABEL: "s"},
        "Data": base64.b64encode(b"secret").decode(),
    }
    body = engine.sent("POST", "/services/create")[0].body
    assert body["Name"] == "s_web"
    assert body["Labels"] == {LABEL: "s", "com.docker.stack.image": "img:1"}
    template = body["TaskTemplate"]
    assert template["Networks"] == [{"Target": "net0", "Aliases": ["web"]}]
    assert template["ContainerSpec"]["Secrets"][0] | {"File": None} == {
        "SecretID": "sec0",
        "SecretName": "s_tok",
        "File": None,
    }
    assert template["ContainerSpec"]["Configs"][0] | {"File": None} == {
        "ConfigID": "con0",
        "ConfigName": "s_conf",
        "File": None,
    }


def test_second_deploy_touches_no_service(fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path) -> None:
    deploy(fleet, folder)
    engine.requests.clear()
    ran = deploy(fleet, folder)
    assert ran.out.splitlines() == ["Keeping service s_web (unchanged)", "Stack s is up to date"]
    assert changes(engine) == ["POST /secrets/sec0/update"]  # secrets cannot be read back, so the daemon compares


def test_digest_and_platforms_settled_for_the_image_are_no_change(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder)
    template = cluster.kept["services"][0]["Spec"]["TaskTemplate"]
    assert template["ContainerSpec"]["Image"] == f"img:1@{DIGEST}"
    template["Placement"] = {"Platforms": [{"OS": "linux"}]}
    template["ForceUpdate"] = 4
    assert "Keeping service s_web (unchanged)" in deploy(fleet, folder).out


def test_the_number_that_a_policy_led_to_is_no_change_and_is_kept_by_one(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    file = folder / "stack.yml"
    policy = 'fleet.autoscale.max: "9"\n        fleet.autoscale.cpu: "50"'
    file.write_text(f"services:\n  web:\n    image: img:1\n    deploy:\n      labels:\n        {policy}\n")
    deploy(fleet, folder)
    cluster.kept["services"][0]["Spec"]["Mode"] = {"Replicated": {"Replicas": 7}}
    assert "Keeping service s_web (unchanged)" in deploy(fleet, folder).out
    file.write_text(file.read_text().replace('"50"', '"60"'))
    assert "Updating service s_web" in deploy(fleet, folder).out
    assert engine.sent("POST", "/services/.*/update")[-1].body["Mode"] == {"Replicated": {"Replicas": 7}}
    cluster.kept["services"][0]["Spec"]["Mode"] = {"Replicated": {"Replicas": 0}}
    assert "Updating service s_web" in deploy(fleet, folder).out, "one that was scaled to none is wanted again"
    assert engine.sent("POST", "/services/.*/update")[-1].body["Mode"] == {"Replicated": {"Replicas": 1}}


def test_when_images_are_looked_up_again(fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path) -> None:
    deploy(fleet, folder, "--resolve-image=never")
    container = cluster.kept["services"][0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == "img:1"
    container["Image"] = "img:1@sha256:ab"  # the tag has moved since
    for mode in ("never", "changed"):
        assert "Keeping service s_web (unchanged)" in deploy(fleet, folder, f"--resolve-image={mode}").out
    ran = deploy(fleet, folder, "--dry-run")
    assert f'ContainerSpec.Image: "img:1@sha256:ab" -> "img:1@{DIGEST}'[:60] in ran.out
    assert "Updating service s_web" in deploy(fleet, folder, "--resolve-image=always").out
    (folder / "stack.yml").write_text(FILE.replace("img:1", "img:2"))
    deploy(fleet, folder, "--resolve-image=changed")
    assert cluster.kept["services"][0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"] == f"img:2@{DIGEST}"
    assert len(engine.sent("GET", "/distribution/img:2/json")) == 1


def test_an_image_that_nobody_knows_now_stays_as_it_was_settled(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder)
    engine.on("GET", "/distribution/.*", lambda _: Reply(500, {"message": "the registry is down"}))
    ran = deploy(fleet, folder)
    assert "Keeping service s_web (unchanged)" in ran.out
    assert "could not be found on a node or a registry to record its digest (the registry is down)" in ran.err


def test_latest_is_what_no_tag_means(fleet: Any, cluster: Cluster, folder: Path) -> None:
    (folder / "stack.yml").write_text(FILE.replace("img:1", "reg:5000/img"))
    deploy(fleet, folder)
    container = cluster.kept["services"][0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    assert container["Image"] == f"reg:5000/img:latest@{DIGEST}"
    assert "Keeping service s_web (unchanged)" in deploy(fleet, folder, "--resolve-image=never").out
    container["Image"] = "reg:5000/img:2"
    assert "Updating service s_web" in deploy(fleet, folder).out


def test_changed_service_is_updated_and_the_dry_run_says_how(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder, "--resolve-image=never")
    cluster.kept["services"][0]["Spec"]["TaskTemplate"]["ForceUpdate"] = 4
    (folder / "stack.yml").write_text(FILE.replace("replicas: 2", "replicas: 3").replace("img:1", "img:2"))
    engine.requests.clear()
    ran = deploy(fleet, folder, "--dry-run", "--resolve-image=never")
    assert [line.strip() for line in ran.out.splitlines()] == [
        "keep    network s_front",
        "update  secret s_tok",
        "keep    config s_conf",
        "update  service s_web",
        'Labels.com.docker.stack.image: "img:1" -> "img:2"',
        "Mode.Replicated.Replicas: 2 -> 3",
        'TaskTemplate.ContainerSpec.Image: "img:1" -> "img:2"',
        "s_web.1 to s_web.3: created",
    ]
    assert changes(engine) == []
    deploy(fleet, folder)
    (request,) = engine.sent("POST", "/services/ser0/update")
    assert request.query == {"version": "7"}
    assert request.body["Mode"]["Replicated"]["Replicas"] == 3
    assert request.body["TaskTemplate"]["ForceUpdate"] == 4


ORDERED = """
services:
  api: {image: img, depends_on: {db: {condition: service_healthy}, migrate: {condition: service_completed_successfully}}}
  db: {image: img}
  migrate: {image: img, depends_on: [db], deploy: {mode: replicated-job}}
"""


def steps(fleet: Any, engine: FakeEngine, folder: Path, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """What was created and waited for, in order."""
    seen: list[str] = []

    def wait(_: Any, watches: Any, **__: Any) -> int:
        seen.append("wait " + " ".join(watch.name for watch in watches))
        return 0

    monkeypatch.setattr("fleet.cli.converge.wait", wait)
    engine.on("GET", "/tasks", Reply(body=[{"ID": "t", "Status": {"State": "starting"}}]))
    engine.requests.clear()
    ran = fleet("stack", "deploy", *flags, "-c", str(folder / "stack.yml"), "s")
    return ran, [line.split(",")[0] for line in ran.out.splitlines() if "service" in line or "Waiting" in line], seen


def test_services_are_deployed_when_what_they_depend_on_is_as_they_need_it(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stack.yml").write_text(ORDERED)
    ran, told, waited = steps(fleet, engine, folder, monkeypatch)
    assert (ran.code, ran.err) == (0, "")
    assert told == [
        "Creating service s_db",
        "Waiting for s_db (started)",
        "Creating service s_migrate",
        "Waiting for s_db (healthy)",
        "Waiting for s_migrate (completed_successfully)",
        "Creating service s_api",
    ]
    assert waited == ["wait s_db", "wait s_migrate", "wait s_db s_migrate s_api"]
    assert "up to date" in steps(fleet, engine, folder, monkeypatch)[0].out, "nothing to do is nothing to wait for"


def test_a_job_without_numbers_is_left_alone(fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path) -> None:
    (folder / "stack.yml").write_text(ORDERED)
    fleet("stack", "deploy", "-d", "-c", str(folder / "stack.yml"), "s")
    (job,) = [o for o in cluster.kept["services"] if o["Spec"]["Name"] == "s_migrate"]
    job["Spec"]["Mode"] = {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}}  # as a daemon fills them in
    assert "up to date" in fleet("stack", "deploy", "-d", "-c", str(folder / "stack.yml"), "s").out


def test_detached_keeps_the_order_and_says_that_nobody_waits(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stack.yml").write_text(ORDERED)
    ran, told, waited = steps(fleet, engine, folder, monkeypatch, "-d")
    assert told == [f"Creating service s_{name}" for name in ("db", "migrate", "api")]
    assert (waited, "none waits for another" in ran.err) == ([], True)


def test_what_never_completes_is_not_waited_for(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "stack.yml").write_text(ORDERED.replace(", deploy: {mode: replicated-job}", ""))
    ran, _, _ = steps(fleet, engine, folder, monkeypatch)
    assert ran.code != 0
    assert "s_api was not deployed, since it depends on s_migrate: it never completes" in ran.err


def running(cluster: Cluster, *slots: int) -> None:
    cluster.engine.on("GET", "/nodes", Reply(body=[{"ID": "n1", "Description": {"Hostname": "w1"}}]))
    cluster.engine.on("GET", "/tasks", Reply(body=[{"ID": f"t{slot}", "Slot": slot, "NodeID": "n1"} for slot in slots]))


def difference(fleet: Any, folder: Path, *flags: str) -> Any:
    return fleet("stack", "diff", "-c", str(folder / "stack.yml"), *flags, "s")


def test_diff_says_what_becomes_of_each_replica_and_changes_nothing(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    ran = difference(fleet, folder)
    assert ran.code == 1
    assert ran.out.splitlines() == [
        "create  network s_front",
        "create  secret s_tok",
        "create  config s_conf",
        "create  service s_web",
        "          s_web.1 to s_web.2: created",
    ]
    deploy(fleet, folder)
    running(cluster, 1, 2)
    engine.requests.clear()
    ran = difference(fleet, folder)
    assert (ran.code, ran.out.strip()) == (0, "Stack s is up to date")
    (folder / "conf.txt").write_text("other")
    ran = difference(fleet, folder)
    assert (ran.code, "create  config s_conf_2" in ran.out, "s_web.1 on w1: replaced" in ran.out) == (1, True, True)
    assert "(1 at a time)" in ran.out
    (folder / "conf.txt").write_text("conf")
    (folder / "stack.yml").write_text(FILE.replace("replicas: 2", "replicas: 1"))
    ran = difference(fleet, folder, "--format", "json")
    (change,) = json.loads(ran.out)
    assert change == {
        "Action": "update",
        "Kind": "service",
        "Name": "s_web",
        "Differences": ["Mode.Replicated.Replicas: 2 -> 1"],
        "Replicas": ["1 replica stopped"],
    }
    (folder / "stack.yml").write_text(FILE.replace("web:", "site:"))
    ran = difference(fleet, folder, "--prune")
    assert "remove  service s_web\n          s_web.1 on w1: stopped" in ran.out
    assert changes(engine) == []
    (folder / "stack.yml").write_text("services: 1")
    assert difference(fleet, folder).code == 2


def test_prune_removes_what_the_file_no_longer_has(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    (folder / "stack.yml").write_text(FILE.replace("services:", "services:\n  old: {image: img, networks: [front]}"))
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE)
    assert "old" not in deploy(fleet, folder).out
    assert "Removing service s_old" in deploy(fleet, folder, "--prune").out
    assert [o["Spec"]["Name"] for o in cluster.kept["services"]] == ["s_web"]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What comes of each wait, in order: "" is convergence, another text why not; later ones converge."""
    outcomes: list[str] = []

    def wait(*_: Any, **__: Any) -> int:
        why = outcomes.pop(0) if outcomes else ""
        if why:
            raise errors.ConflictError(why)
        return 0

    monkeypatch.setattr("fleet.cli.converge.wait", wait)
    return outcomes


def rolling(fleet: Any, folder: Path, *flags: str) -> Any:
    return fleet("stack", "deploy", "--rollback-on-failure", "-c", str(folder / "stack.yml"), *flags, "s")


BROKEN = FILE.replace("img:1", "img:2").replace("services:", "services:\n  new: {image: img, networks: [back]}").replace(
    "networks: {front", "networks: {back: {}, front"
)  # fmt: skip


def test_what_does_not_converge_is_put_back_and_what_was_new_goes(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, waits: list[str]
) -> None:
    (folder / "stack.yml").write_text(FILE.replace("services:", "services:\n  old: {image: img}"))
    assert deploy(fleet, folder).code == 0
    before = json.loads(json.dumps({kind: [o.get("Spec", o) for o in kept] for kind, kept in cluster.kept.items()}))
    (folder / "stack.yml").write_text(BROKEN)
    (folder / "conf.txt").write_text("other")
    waits.append("service s_web: task failed")
    ran = rolling(fleet, folder, "--prune")
    assert ran.code == 3
    assert ran.err.splitlines() == ["Error: service s_web: task failed", "Stack s is as it was before"]
    assert ran.out.splitlines()[-4:] == [
        "Rolling back service s_web (id: ser1)",
        "Removing service s_new (new)",
        "Removing config s_conf_2 (new)",
        "Removing network s_back (new)",
    ]
    assert {kind: [o.get("Spec", o) for o in kept] for kind, kept in cluster.kept.items()} == before
    back = engine.sent("POST", "/services/ser1/update")[-1]
    assert back.query == {"version": "7", "rollback": "previous"}, "so that the registry login comes back too"


def test_services_are_removed_only_after_the_rest_has_converged(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, waits: list[str]
) -> None:
    (folder / "stack.yml").write_text(FILE.replace("services:", "services:\n  old: {image: img}"))
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(BROKEN)
    ran = rolling(fleet, folder, "--prune")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "Removing service s_old")
    assert sorted(names(cluster, "services")) == ["s_new", "s_web"]


def test_a_first_deploy_that_fails_leaves_nothing(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, waits: list[str]
) -> None:
    waits.append("not converged")
    assert rolling(fleet, folder).code == 3
    assert not any(cluster.kept.values())
    engine.on("POST", "/services/create", Reply(400, {"message": "no such thing"}))
    ran = rolling(fleet, folder)
    assert (ran.code, ran.err.splitlines()[0]) == (3, "Error: no such thing")
    assert not any(cluster.kept.values())


def test_a_service_that_the_daemon_rolled_back_itself_is_left(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, waits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE.replace("img:1", "img:2"))

    def wait(*_: Any, rolled: list[int] = [], **__: Any) -> int:  # noqa: B006 - counts its calls
        rolled.append(1)
        if len(rolled) > 1:
            return 0
        (service,) = cluster.kept["services"]
        service["Spec"], service["PreviousSpec"] = service["PreviousSpec"], service["Spec"]
        raise errors.ConflictError("update rolled back")

    monkeypatch.setattr("fleet.cli.converge.wait", wait)
    engine.requests.clear()
    assert rolling(fleet, folder).code == 3
    assert changes(engine).count("POST /services/ser0/update") == 1


def test_a_rollback_that_does_not_come_about_is_an_error_of_its_own(
    fleet: Any, cluster: Cluster, folder: Path, waits: list[str]
) -> None:
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE.replace("img:1", "img:2"))
    waits += ["first", "second"]
    ran = rolling(fleet, folder)
    assert (ran.code, ran.err) == (1, "Error: first\nError: rolling back: second\n")
    ran = rolling(fleet, folder, "-d")
    assert ran.code == 2
    assert "cannot be combined with --detach" in ran.err


def names(cluster: Cluster, kind: str) -> list[str]:
    return [o["Spec"]["Name"] for o in cluster.kept[kind]]


def used(cluster: Cluster) -> list[str]:
    """The secret and the config of the one service, with their ids."""
    container = cluster.kept["services"][0]["Spec"]["TaskTemplate"]["ContainerSpec"]
    ids = {o["ID"]: o["Spec"]["Name"] for kind in ("secrets", "configs") for o in cluster.kept[kind]}
    secret, config = container["Secrets"][0], container["Configs"][0]
    assert (ids[secret["SecretID"]], ids[config["ConfigID"]]) == (secret["SecretName"], config["ConfigName"])
    assert (secret["File"]["Name"], config["File"]["Name"]) == ("tok", "conf")
    return [secret["SecretName"], config["ConfigName"]]


def test_new_content_is_a_new_version_that_services_move_to_and_back_from(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder)
    assert used(cluster) == ["s_tok", "s_conf"]
    for number in (2, 3):
        (folder / "tok.txt").write_text(f"secret {number}")
        (folder / "conf.txt").write_text(f"conf {number}")
        ran = deploy(fleet, folder)
        assert (ran.code, ran.err) == (0, "")
        assert f"Creating secret s_tok_{number}" in ran.out
        assert used(cluster) == [f"s_tok_{number}", f"s_conf_{number}"]
    assert names(cluster, "secrets") == ["s_tok", "s_tok_2", "s_tok_3"]
    assert cluster.kept["configs"][2]["Spec"]["Labels"] == {LABEL: "s", "fleet.stack.version-of": "s_conf"}
    assert "up to date" in deploy(fleet, folder).out
    (folder / "tok.txt").write_text("secret")
    (folder / "conf.txt").write_text("conf 2")
    assert "Creating" not in deploy(fleet, folder).out
    assert used(cluster) == ["s_tok", "s_conf_2"]


def test_a_name_of_ones_own_is_changed_by_its_owner(fleet: Any, cluster: Cluster, folder: Path) -> None:
    own = FILE.replace("file: ./tok.txt", "name: tok-v1, file: ./tok.txt").replace(
        "{file: ./conf", "{name: c1, file: ./conf"
    )
    (folder / "stack.yml").write_text(own)
    deploy(fleet, folder)
    (folder / "conf.txt").write_text("other")
    ran = deploy(fleet, folder)
    assert (ran.code, "config c1 exists with other content" in ran.err) == (2, True)
    (folder / "conf.txt").write_text("conf")
    (folder / "tok.txt").write_text("other")
    ran = deploy(fleet, folder)
    assert (ran.code, "secret tok-v1 exists with other content" in ran.err) == (2, True)


def test_versions_that_nothing_can_go_back_to_are_removed(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.cli.converge.wait", lambda *_, **__: 0)
    for number in (1, 2, 3):
        (folder / "conf.txt").write_text(f"conf {number}")
        ran = fleet("stack", "deploy", "-c", str(folder / "stack.yml"), "s")
        assert ran.code == 0, ran.err
    assert names(cluster, "configs") == ["s_conf_2", "s_conf_3"], "the second is what a rollback needs"
    cluster.kept["configs"].append(
        {"ID": "x", "Version": {"Index": 1}, "Spec": {"Name": "s_conf_9", "Labels": {LABEL: "s"}}}
    )
    (folder / "stack.yml").write_text(FILE.replace("replicas: 2", "replicas: 3"))
    ran = fleet("stack", "deploy", "-c", str(folder / "stack.yml"), "s")
    assert "Removing config s_conf_2 (unused)" in ran.out
    assert names(cluster, "configs") == ["s_conf_3", "s_conf_9"], "the last is not of that kind"


def test_network_that_would_have_to_change_is_refused(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE.replace("front: {}", "front: {internal: true}"))
    ran = deploy(fleet, folder)
    assert ran.code == 2
    assert "network s_front exists with internal False" in ran.err


@pytest.mark.parametrize(
    ("first", "then", "words"),
    [
        ("driver_opts: {mtu: '1400'}", "", "driver_opts {'mtu': '1400'}, the file says {}"),
        ("", "driver_opts: {mtu: '1400'}", "driver_opts {}, the file says {'mtu': '1400'}"),
        ("", "enable_ipv6: true", "enable_ipv6 False, the file says True"),
        (
            "ipam: {config: [{subnet: 10.9.0.0/24}]}",
            "ipam: {config: [{subnet: 10.8.0.0/24}]}",
            "ipam.config subnet 10.9.0.0/24, the file says 10.8.0.0/24",
        ),
        (
            "enable_ipv6: true, ipam: {config: [{subnet: 'fd00:9::/64'}, {subnet: 10.9.0.0/24}]}",
            "enable_ipv6: true, ipam: {config: [{subnet: 10.9.0.0/24}, {subnet: 'fd00:8::/64'}]}",
            "ipam.config subnet fd00:9::/64, the file says fd00:8::/64",
        ),
    ],
)
def test_no_change_of_a_network_is_dropped_in_silence(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, first: str, then: str, words: str
) -> None:
    (folder / "stack.yml").write_text(FILE.replace("front: {}", f"front: {{{first}}}"))
    deploy(fleet, folder)
    cluster.kept["networks"][0].setdefault("Options", {})["com.docker.network.driver.overlay.vxlanid_list"] = "4097"
    assert deploy(fleet, folder).code == 0, "what the cluster adds is no change"
    (folder / "stack.yml").write_text(FILE.replace("front: {}", f"front: {{{then}}}"))
    ran = deploy(fleet, folder)
    assert ran.code == 2
    assert words in ran.err


def test_labels_of_a_network_that_stay_are_told(fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path) -> None:
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE.replace("front: {}", "front: {labels: {team: a}}"))
    ran = deploy(fleet, folder)
    assert ran.code == 0
    assert 'network s_front stays as it is, its labels cannot be changed: Labels.team: (nothing) -> "a"' in ran.err


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Reply(404, {"message": "network ext not found"}), "fleet network create -d overlay ext"),
        ({"Id": "x", "Scope": "local"}, "on this host only"),
    ],
)
def test_external_network_must_be_there(
    fleet: Any, engine: FakeEngine, cluster: Cluster, tmp_path: Path, answer: Any, words: str
) -> None:
    engine.on("GET", "/networks/ext", answer)
    (tmp_path / "f.yml").write_text("services: {web: {image: i, networks: [ext]}}\nnetworks: {ext: {external: true}}\n")
    ran = fleet("stack", "deploy", "-d", "-c", str(tmp_path / "f.yml"), "s")
    assert ran.code in (1, 2)
    assert words in ran.err
    assert changes(engine) == []


def test_external_secret_that_is_missing_is_named(
    fleet: Any, engine: FakeEngine, cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "f.yml").write_text("services: {web: {image: i, secrets: [e]}}\nsecrets: {e: {external: true}}\n")
    ran = fleet("stack", "deploy", "-d", "-c", str(tmp_path / "f.yml"), "s")
    assert (ran.code, engine.sent("POST", "/services/create")) == (1, [])
    assert "service s_web: secret e not found" in ran.err


def test_object_changed_by_the_cluster_meanwhile_is_read_again(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    deploy(fleet, folder)
    (folder / "stack.yml").write_text(FILE.replace("img:1", "img:2"))
    found = cluster.kept["services"][0]
    engine.on("GET", "/services/ser0", lambda _request: Reply(body={**found, "Version": {"Index": 8}}))
    versions: list[str] = []

    def update(request: Request) -> Reply:
        versions.append(request.query["version"])
        if versions[-1] == "7":
            return Reply(409, {"message": "update out of sequence: service s_web changed since it was read"})
        return Reply(body={})

    engine.on("POST", "/services/ser0/update", update)
    assert deploy(fleet, folder).code == 0
    assert versions == ["7", "8"]


def test_a_number_that_the_cluster_chose_meanwhile_is_no_conflict(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path
) -> None:
    file = folder / "stack.yml"
    labels = '{fleet.autoscale.max: "9", fleet.autoscale.cpu: "50"}'
    file.write_text(f"services:\n  web:\n    image: img:1\n    deploy:\n      labels: {labels}\n")
    deploy(fleet, folder)
    file.write_text(file.read_text().replace("img:1", "img:2"))
    found = cluster.kept["services"][0]
    scaled = {**found, "Version": {"Index": 8}, "Spec": {**found["Spec"], "Mode": {"Replicated": {"Replicas": 6}}}}
    engine.on("GET", "/services/ser0", scaled)
    sent: list[tuple[str, Any]] = []

    def update(request: Request) -> Reply:
        sent.append((request.query["version"], request.body["Mode"]["Replicated"]["Replicas"]))
        if sent[-1][0] == "7":
            return Reply(409, {"message": "update out of sequence: service s_web was updated since it was read"})
        return Reply(body={})

    engine.on("POST", "/services/ser0/update", update)
    assert deploy(fleet, folder).code == 0
    assert sent == [("7", 1), ("8", 6)]


def test_warnings_and_variables(fleet: Any, engine: FakeEngine, cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("TAG=from-file\nREG=r\n")
    (tmp_path / "f.yml").write_text("services:\n  web:\n    image: $REG/i:$TAG\n    privileged: true\n")
    ran = fleet("stack", "deploy", "-d", "-c", str(tmp_path / "f.yml"), "s", environment={"TAG": "own"})
    assert ran.err.startswith(f"Warning: {tmp_path}/f.yml:4:5: services.web.privileged is not honoured: ")
    assert (
        engine.sent("POST", "/services/create")[0].body["TaskTemplate"]["ContainerSpec"]["Image"] == f"r/i:own@{DIGEST}"
    )


def test_variables_that_cannot_be_read_whole_are_not_used_in_part(
    fleet: Any, engine: FakeEngine, tmp_path: Path
) -> None:
    variables = tmp_path / ".env"
    (tmp_path / "f.yml").write_text("services: {web: {image: i}}")
    variables.write_text("TAG=1\n" + "# filler\n" * 120_000 + "REG=r\n")
    ran = fleet("stack", "deploy", "-d", "-c", str(tmp_path / "f.yml"), "s")
    assert (ran.code, ran.err) == (2, f"Error: {variables} is larger than the 1048576 bytes allowed\n")
    variables.write_bytes(b"TAG=\xff\n")
    ran = fleet("stack", "deploy", "-d", "-c", str(tmp_path / "f.yml"), "s")
    assert (ran.code, ran.err) == (2, f"Error: {variables} is not UTF-8 text (byte 4)\n")
    assert engine.sent("POST", "/services/create") == []


def test_config_prints_the_merged_file(fleet: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("services:\n  web:\n    image: ${I}\n    ports: ['80:80']\n")
    (tmp_path / "b.yml").write_text("services:\n  web:\n    user: '5'\n")
    ran = fleet(
        "stack", "config", "-c", str(tmp_path / "a.yml"), "-c", str(tmp_path / "b.yml"), environment={"I": "img"}
    )
    assert ran.out == "services:\n  web:\n    image: img\n    ports:\n    - 80:80\n    user: '5'\n"


def test_remove_waits_for_tasks_and_retries_networks(
    fleet: Any, engine: FakeEngine, cluster: Cluster, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stack_module, "POLL_S", 0.005)
    deploy(fleet, folder)
    states = ["running", "running", "shutdown"]
    engine.on("GET", "/tasks", lambda _request: Reply(body=[{"Status": {"State": states.pop(0)}}]))
    busy = [Reply(403, {"message": "network s_front is in use"}), Reply(204)]
    engine.on("DELETE", "/networks/net0", lambda _request: busy.pop(0))
    engine.requests.clear()
    ran = fleet("stack", "rm", "s")
    assert (ran.code, ran.err) == (0, "")
    assert changes(engine) == [
        "DELETE /services/ser0",
        "DELETE /secrets/sec0",
        "DELETE /configs/con0",
        "DELETE /networks/net0",
        "DELETE /networks/net0",
    ]
    assert (states, busy) == ([], [])


def test_removing_nothing_is_an_error(fleet: Any, cluster: Cluster) -> None:
    ran = fleet("stack", "rm", "s")
    assert (ran.code, ran.err) == (1, "Error: nothing found in stack: s\n")


def test_stack_ls_counts_services(fleet: Any, engine: FakeEngine) -> None:
    names = ["b", "a", "b"]
    engine.on("GET", "/services", [{"Spec": {"Labels": {LABEL: name}}} for name in names])
    assert fleet("stack", "ls").out == "NAME   SERVICES\na      1\nb      2\n"
    assert engine.requests[0].query == {"filters": {"label": [LABEL]}}
