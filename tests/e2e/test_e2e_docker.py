"""Docker's own command and docker-py, unmodified, through what exists: the same words, columns, exit codes and objects."""

from __future__ import annotations

import gc
import io
import json
import tarfile
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from docker import DockerClient
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound
from docker.types import ConfigReference, RestartPolicy, SecretReference, ServiceMode, UpdateConfig
from support.engine_api import VERSIONS, faults
from support.lab import TestLab

from fleet.daemon.openapi import EXAMPLES

pytestmark = pytest.mark.e2e

IDLE = ("sh", "-c", "trap 'exit 0' TERM; echo started; while :; do sleep 1 & wait $!; done")


@pytest.fixture(scope="module", autouse=True)
def image(lab: TestLab) -> None:
    lab.load_hello()


def test_version_and_info_name_the_server_and_the_swarm(lab: TestLab) -> None:
    version = json.loads(lab.docker("version", "--format", "{{json .Server}}").stdout)
    assert version["Platform"]["Name"] == "fleet"
    info = json.loads(lab.docker("info", "--format", "{{json .}}").stdout)
    assert info["Swarm"]["LocalNodeState"] == "active"
    assert info["Swarm"]["ControlAvailable"] is True
    assert (info["Swarm"]["Nodes"], info["Swarm"]["Managers"]) == (3, 1)
    on_worker = json.loads(lab.docker("info", "--format", "{{json .Swarm}}", host="w1").stdout)
    assert on_worker["ControlAvailable"] is False


def test_node_ls_shows_all_and_marks_this_one(lab: TestLab) -> None:
    lines = lab.docker(
        "node", "ls", "--format", "{{.Hostname}} {{.Status}} {{.ManagerStatus}} {{.Self}}"
    ).stdout.splitlines()
    assert sorted(lines) == ["m1 Ready Leader true", "w1 Ready  false", "w2 Ready  false"]
    refused = lab.docker("node", "ls", host="w1", check=False)
    assert refused.returncode == 1
    assert "not a swarm manager" in refused.stderr


def test_a_services_whole_day(lab: TestLab) -> None:
    lab.docker("network", "create", "-d", "overlay", "--attachable", "back")
    assert "back" in lab.docker("network", "ls", "--filter", "driver=overlay", "--format", "{{.Name}}").stdout.split()
    created = lab.docker(
        "service", "create", "--name", "api", "--replicas", "2", "--network", "back", "--publish", "8090:80",
        "--env", "A=1", "--label", "team=x", "--limit-memory", "32m", "--restart-delay", "0s", "fleet/hello:1", *IDLE,
    )  # fmt: skip
    assert "converged" in created.stdout
    listed = lab.docker("service", "ls", "--format", "{{.Name}} {{.Mode}} {{.Replicas}} {{.Ports}}").stdout
    assert "api replicated 2/2 *:8090->80/tcp" in listed
    states = lab.docker("service", "ps", "api", "--format", "{{.Name}} {{.DesiredState}} {{.CurrentState}}").stdout
    assert states.count("Running Running") == 2
    spec = json.loads(lab.docker("service", "inspect", "api").stdout)[0]
    assert spec["Spec"]["Labels"] == {"team": "x"}
    assert spec["Spec"]["TaskTemplate"]["ContainerSpec"]["Env"] == ["A=1"]
    assert "@sha256:" in spec["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "the digest was resolved and pinned"
    assert len(spec["Endpoint"]["VirtualIPs"]) >= 1
    pretty = lab.docker("service", "inspect", "--pretty", "api").stdout
    assert "Replicas:\t2" in pretty
    assert "back" in pretty
    lab.docker("service", "scale", "api=3")
    assert len([t for t in lab.tasks("api") if t["DesiredState"] == "running"]) == 3
    lab.docker("service", "update", "--env-add", "B=2", "api", timeout_s=120)
    running = [t for t in lab.tasks("api") if t["DesiredState"] == "running"]
    # docker's client keeps the variables in a map, so it sends them in any order
    assert {frozenset(t["Spec"]["ContainerSpec"]["Env"]) for t in running} == {frozenset({"A=1", "B=2"})}
    lines = lab.docker("service", "logs", "api").stdout.splitlines()
    assert len([line for line in lines if line.endswith("started")]) >= 3
    assert all(line.startswith("api.") for line in lines)
    in_use = lab.docker("network", "rm", "back", check=False)
    assert in_use.returncode == 1
    lab.docker("service", "rm", "api")
    lab.wait_until(
        lambda: lab.docker("network", "rm", "back", check=False).returncode == 0, 20, what="the network can be removed"
    )
    missing = lab.docker("service", "inspect", "api", check=False)
    assert missing.returncode == 1
    assert "no such service: api" in missing.stderr.lower()


def test_stack_deploy_twice_and_rm(lab: TestLab) -> None:
    lab.docker("stack", "deploy", "-c", "compose-examples/hello/stack.yml", "hi")
    lab.wait_until(
        lambda: "hi_web 3/3" in lab.docker("stack", "services", "hi", "--format", "{{.Name}} {{.Replicas}}").stdout,
        30,
        what="three replicas",
    )
    before = {t["ID"] for t in lab.tasks("hi_web")}
    lab.docker("stack", "deploy", "-c", "compose-examples/hello/stack.yml", "hi")
    assert {t["ID"] for t in lab.tasks("hi_web")} == before, "deploying the same again restarts nothing"
    assert "hi" in lab.docker("stack", "ls", "--format", "{{.Name}}").stdout.split()
    assert "hi_client.1" in lab.docker("stack", "ps", "hi", "--format", "{{.Name}}").stdout
    lab.docker("stack", "rm", "hi")
    lab.wait_until(
        lambda: not any(lab.get("/containers/json", host=h, all=True) for h in lab.hosts()), 30, what="nothing is left"
    )


def test_secrets_and_configs_reach_the_task_and_no_disk(lab: TestLab) -> None:
    lab.docker("secret", "create", "token", "-", stdin="hunter2-of-the-test")
    lab.docker("config", "create", "motd", "-", stdin="good morning")
    show = "cat /run/secrets/token /motd; ls -l /run/secrets/token; while :; do sleep 1; done"
    lab.docker(
        "service", "create", "-d", "--name", "keeper", "--secret", "token", "--config", "motd", "--stop-grace-period",
        "1s", "--constraint", "node.hostname==w1", "fleet/hello:1", "sh", "-c", show,
    )  # fmt: skip
    lab.wait_until(
        lambda: "good morning" in lab.docker("service", "logs", "--raw", "keeper").stdout, 20, what="its log"
    )
    out = lab.docker("service", "logs", "--raw", "keeper").stdout
    assert "hunter2-of-the-test" in out
    assert "-r--r--r--" in out
    assert "Data" not in json.loads(lab.docker("secret", "inspect", "token").stdout)[0]["Spec"]
    refused = lab.docker("secret", "rm", "token", check=False)
    assert refused.returncode == 1
    assert "in use" in refused.stderr
    found = lab.exec("w1", ["grep", "-rl", "hunter2-of-the-test", str(lab.layout.data("w1"))], check=False)
    files = [line for line in str(found.stdout).splitlines() if "-json.log" not in line and ".log" not in line]
    assert files == [], "the secret is on the worker's disk"
    lab.docker("service", "rm", "keeper")
    lab.wait_until(lambda: lab.docker("secret", "rm", "token", check=False).returncode == 0, 20, what="secret removed")
    lab.docker("config", "rm", "motd")


def test_a_job_runs_to_its_completions_and_again_when_forced(lab: TestLab) -> None:
    lab.docker(
        "service", "create", "--name", "batch", "--mode", "replicated-job", "--replicas", "4", "--max-concurrent", "2",
        "fleet/hello:1", "sh", "-c", "echo did {{.Task.Slot}}", timeout_s=90,
    )  # fmt: skip
    listed = lab.docker("service", "ls", "--filter", "name=batch", "--format", "{{.Mode}} {{.Replicas}}").stdout.strip()
    assert listed == "replicated job 0/2 (4/4 completed)"
    first = {task["ID"] for task in lab.tasks("batch", state="complete")}
    assert len(first) == 4
    assert sorted(task.get("Slot", 0) for task in lab.tasks("batch", state="complete")) == [0, 1, 2, 3]
    lab.docker("service", "update", "--force", "batch", timeout_s=90)

    def second_time() -> bool:
        now = [task for task in lab.tasks("batch", state="complete") if task["ID"] not in first]
        return len(now) == 4 and all(
            t["Status"]["State"] == "complete" and t["JobIteration"] == {"Index": 1} for t in now
        )

    lab.wait_until(second_time, 30, what="the job is done again")
    lab.wait_until(
        lambda: not first & {task["ID"] for task in lab.tasks("batch", state="complete")},
        30,
        what="the first run is forgotten",
    )
    assert "scale" not in lab.docker("service", "rm", "batch").stderr
    lab.docker("service", "create", "--name", "each", "--mode", "global-job", "fleet/hello:1", "true", timeout_s=90)
    assert len({task["NodeID"] for task in lab.tasks("each", state="complete")}) == 3
    lab.docker("service", "rm", "each")


def test_a_templated_config_is_filled_in_for_each_task(lab: TestLab) -> None:
    lab.docker("secret", "create", "pw", "-", stdin="s3same")
    template = 'slot={{.Task.Slot}} of {{.Service.Name}} host={{ env "DB" }} password={{ secret "pw" }}'
    lab.docker("config", "create", "--template-driver", "golang", "app.conf", "-", stdin=template)
    lab.docker(
        "service", "create", "--name", "filled", "--replicas", "2", "--secret", "pw", "--config", "app.conf", "--env", "DB=db1",
        "fleet/hello:1", "sh", "-c", "cat /app.conf; echo; while :; do sleep 1; done",
    )  # fmt: skip

    def lines() -> set[str]:
        shown = lab.docker("service", "logs", "--raw", "filled").stdout
        return {line for line in shown.splitlines() if line}

    expected = {f"slot={slot} of filled host=db1 password=s3same" for slot in (1, 2)}
    lab.wait_until(lambda: lines() == expected, 20, what="both tasks show their configuration")
    lab.docker("service", "rm", "filled")
    lab.wait_until(lambda: lab.docker("config", "rm", "app.conf", check=False).returncode == 0, 20, what="it is free")
    lab.docker("secret", "rm", "pw")


def test_plain_containers_live_beside_services(lab: TestLab) -> None:
    lab.docker("run", "-d", "--name", "plain", "fleet/hello:1", "sleep", "60")
    assert "plain" in lab.docker("ps", "--format", "{{.Names}}").stdout.split()
    usage = lab.get("/system/df")
    assert "/plain" in [name for container in usage["Containers"] for name in container["Names"]]
    assert [image["Containers"] for image in usage["Images"]] == [len(usage["Containers"])]
    lab.docker("rm", "-f", "plain")
    assert "plain" not in lab.docker("ps", "-a", "--format", "{{.Names}}").stdout.split()


def test_what_a_daemon_shows_is_dockers_field_by_field_for_old_and_new_clients(lab: TestLab) -> None:
    name = "shown"
    lab.docker("network", "create", "-d", "overlay", "--attachable", name)
    lab.docker("secret", "create", name, "-", stdin="x")
    lab.docker("config", "create", name, "-", stdin="x")
    lab.docker("volume", "create", name)
    lab.docker(
        "service", "create", "--name", name, "--network", name, "--secret", name, "--config", name,
        "--publish", "8091:80", "fleet/hello:1", *IDLE,
    )  # fmt: skip
    lab.docker("run", "-d", "--name", name, "-v", f"{name}:/v", "fleet/hello:1", "sleep", "60")
    looked_at = (
        ("Version", "/version"),
        ("Info", "/info"),
        ("Swarm", "/swarm"),
        ("[Node]", "/nodes"),
        ("[Service]", "/services?status=true"),
        ("Service", f"/services/{name}?insertDefaults=true"),
        ("[Task]", "/tasks"),
        ("[Secret]", "/secrets"),
        ("[Config]", "/configs"),
        ("[Network]", "/networks"),
        ("Network", f"/networks/{name}?verbose=true"),
        ("VolumeList", "/volumes"),
        ("[ContainerSummary]", "/containers/json?all=1"),
        ("ContainerInspect", f"/containers/{name}/json"),
        ("[ImageSummary]", "/images/json"),
        ("ImageInspect", "/images/fleet/hello:1/json"),
        ("SystemDataUsage", "/system/df"),
    )
    found: list[tuple[Any, str]] = []
    for version in (VERSIONS[0], (1, 41), VERSIONS[-1]):
        for kind, path in looked_at:
            answer = lab.get(f"/v{version[0]}.{version[1]}{path}")
            found += [(version, fault) for fault in faults(kind, answer, version=version)]
    events = lab.docker("events", "--since", "0", "--until", "0s", "--format", "{{json .}}").stdout.splitlines()
    found += [(None, fault) for line in events for fault in faults("Event", json.loads(line))]
    assert found == []
    assert events
    assert lab.get("/system/df?type=volume")["Images"] is None
    for path in ("/fleet/v1/rebalance", "/fleet/v1/networks/doctor", f"/fleet/v1/services/{name}/placement"):
        example = EXAMPLES[f"GET {path}".replace(name, "{id_}")].answer
        shown = lab.get(path)
        assert shown.keys() == example.keys()
        for key in shown.keys() & {"Nodes", "Hosts", "Findings"}:
            assert shown[key][0].keys() == example[key][0].keys()
    lab.docker("rm", "-f", name)
    lab.docker("service", "rm", name)
    for kind in ("secret", "config", "volume"):
        lab.docker(kind, "rm", name)
    lab.wait_until(lambda: lab.docker("network", "rm", name, check=False).returncode == 0, 20, what="no task has it")


@pytest.fixture
def docker_py(lab: TestLab) -> Iterator[DockerClient]:
    """docker-py's client of m1."""
    client = DockerClient(base_url=lab.env("m1")["DOCKER_HOST"], timeout=60)
    yield client
    client.close()


def _tar(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _untar(chunks: Iterable[bytes]) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves sockets to the collector
def test_docker_py_runs_a_container_through_its_life(lab: TestLab, docker_py: DockerClient) -> None:
    with pytest.raises(ContainerError) as failed:
        docker_py.containers.run("fleet/hello:1", ["sh", "-c", "echo bad >&2; exit 3"], remove=True)
    assert (failed.value.exit_status, failed.value.stderr) == (3, b"bad\n")
    assert docker_py.containers.run("fleet/hello:1", "echo plain", remove=True) == b"plain\n"
    since = int(time.time())
    made = docker_py.containers.run(
        "fleet/hello:1", list(IDLE), name="py", detach=True, mem_limit="32m", labels={"by": "py"}, hostname="own"
    )
    try:
        followed = made.logs(stream=True, follow=True)
        assert next(followed) == b"started\n"
        followed.close()
        assert made.exec_run(["sh", "-c", "hostname; exit 4"], environment={"A": "b"}) == (4, b"own\n")
        code, parts = made.exec_run(["sh", "-c", "echo out; echo err >&2"], demux=True)
        assert (code, parts) == (0, (b"out\n", b"err\n"))
        assert b"".join(made.exec_run("echo flows", stream=True).output) == b"flows\n"
        assert made.put_archive("/tmp", _tar(note="kept"))
        chunks, stat = made.get_archive("/tmp/note")
        assert (_untar(chunks), stat["name"], stat["size"]) == ({"note": b"kept"}, "note", 4)
        assert {"Path": "/tmp/note", "Kind": 1} in made.diff()
        assert any("sleep" in row[-1] for row in made.top()["Processes"])
        stats = made.stats(stream=False)
        assert stats["memory_stats"]["limit"] == 32 << 20
        assert stats["pids_stats"]["current"] >= 2
        made.pause()
        made.reload()
        assert made.status == "paused"
        made.unpause()
        made.update(mem_limit="48m", memswap_limit="48m")
        made.rename("py2")
        assert [found.name for found in docker_py.containers.list(filters={"label": "by=py"})] == ["py2"]
        image = made.commit("py-made", "1")
        assert docker_py.containers.run(image, "cat /tmp/note", remove=True) == b"kept"
        made.restart(timeout=5)
        lab.wait_until(lambda: made.logs().count(b"started") == 2, 30, what="it listens to signals again")
        made.stop(timeout=5)
        assert made.wait()["StatusCode"] == 0
        assert made.logs(stdout=True, stderr=False, tail=1) == b"started\n"
        made.start()
        made.kill("KILL")
        assert made.wait()["StatusCode"] == 137
    finally:
        made.remove(force=True)
    docker_py.images.remove("py-made:1")
    actor = {"container": made.id, "type": "container"}
    seen = [
        event["Action"] for event in docker_py.events(since=since, until=time.time() + 1, decode=True, filters=actor)
    ]
    order = [word for word in seen if word in ("create", "start", "pause", "unpause", "rename", "destroy")]
    pauses = ["pause", "unpause"]  # for a commit as well
    assert order == ["create", "start", *pauses, "rename", *pauses, "start", "start", "destroy"]
    with pytest.raises(NotFound):
        docker_py.containers.get("py2")
    gc.collect()  # here, as the sockets that it left are no affair of the tests after this one


def test_docker_py_keeps_images_networks_and_volumes(docker_py: DockerClient) -> None:
    recipe = io.BytesIO(b"FROM fleet/hello:1\nLABEL a=b\nRUN echo built > /built\n")
    image, log = docker_py.images.build(fileobj=recipe, tag="py-built:1", rm=True)
    assert (image.labels, image.tags) == ({"a": "b"}, ["py-built:1"])
    assert any("Successfully built" in line.get("stream", "") for line in log)
    with pytest.raises(BuildError):
        docker_py.images.build(fileobj=io.BytesIO(b"FROM fleet/hello:1\nRUN false\n"), rm=True)
    assert image.tag("py-other", "2")
    saved = b"".join(docker_py.images.get("py-other:2").save(named=True))
    assert len(image.history()) >= 2
    docker_py.images.remove("py-other:2")
    docker_py.images.remove("py-built:1")
    with pytest.raises(ImageNotFound):
        docker_py.images.get("py-built:1")
    assert [loaded.id for loaded in docker_py.images.load(saved)] == [image.id]
    docker_py.images.remove(image.id, force=True)
    docker_py.images.prune()
    assert docker_py.images.get("fleet/hello:1")

    network = docker_py.networks.create("py-net", driver="bridge", labels={"by": "py"})
    volume = docker_py.volumes.create("py-vol", labels={"by": "py"})
    made = docker_py.containers.run(
        "fleet/hello:1", list(IDLE), detach=True, volumes={"py-vol": {"bind": "/data", "mode": "rw"}}
    )
    try:
        network.connect(made, aliases=["aka"])
        network.reload()
        assert [found.id for found in network.containers] == [made.id]
        other = docker_py.containers.run(
            "fleet/hello:1", "nslookup aka 127.0.0.11", network="py-net", remove=True, volumes=["py-vol:/data:ro"]
        )
        assert b"Address" in other
        network.disconnect(made)
        with pytest.raises(APIError) as busy:
            volume.remove()
        assert busy.value.status_code == 409
    finally:
        made.remove(force=True)
    volume.remove()
    network.remove()
    assert not docker_py.networks.list(names=["py-net"])
    assert "py-vol" not in [found.name for found in docker_py.volumes.list()]


def test_docker_py_orchestrates(lab: TestLab, docker_py: DockerClient) -> None:
    assert sorted(node.attrs["Description"]["Hostname"] for node in docker_py.nodes.list()) == ["m1", "w1", "w2"]
    docker_py.swarm.reload()
    assert docker_py.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
    worker = docker_py.nodes.list(filters={"role": "worker"})[0]
    worker.update({**worker.attrs["Spec"], "Labels": {"py": "1"}})
    secret = docker_py.secrets.create(name="py-secret", data=b"hidden", labels={"by": "py"})
    config = docker_py.configs.create(name="py-config", data=b"open")
    network = docker_py.networks.create("py-over", driver="overlay", attachable=True)
    service = docker_py.services.create(
        "fleet/hello:1",
        ["sh", "-c", f"cat /run/secrets/py-secret /py-config; {IDLE[-1]}"],
        name="py-service",
        constraints=["node.labels.py==1"],
        env=["A=1"],
        mode=ServiceMode("replicated", replicas=1),
        networks=["py-over"],
        secrets=[SecretReference(secret.id, "py-secret")],
        configs=[ConfigReference(config.id, "py-config", filename="/py-config")],
        restart_policy=RestartPolicy(condition="any", delay=0),
        update_config=UpdateConfig(parallelism=1, order="start-first"),
    )
    lab.wait_until(
        lambda: service.tasks({"desired-state": "running"})[:1] and lab.tasks("py-service"), 60, what="one task"
    )
    assert [task["NodeID"] for task in lab.tasks("py-service")] == [worker.id]
    lab.wait_until(
        lambda: b"hiddenopen" in b"".join(service.logs(stdout=True)), 30, what="its secret and config are read"
    )
    assert service.scale(2)
    lab.wait_until(lambda: len(lab.tasks("py-service")) == 2, 60, what="two tasks")
    service.reload()
    assert service.update(env=["A=2"], labels={"v": "2"})
    service.reload()
    assert service.attrs["Spec"]["Labels"] == {"v": "2"}
    assert service.force_update()
    assert [found.name for found in docker_py.services.list(filters={"name": "py-service"})] == ["py-service"]
    service.remove()
    left = {"ServiceID": service.id}.items()
    lab.wait_until(
        lambda: not [task for task in lab.get("/tasks") if left <= task.items()], 60, what="its tasks are gone"
    )
    for kept in (secret, config, network):
        lab.wait_until(lambda kept=kept: _gone(kept), 30, what=f"{kept} can be removed")
    worker.reload()
    worker.update({**worker.attrs["Spec"], "Labels": {}})


def _gone(kept: Any) -> bool:
    try:
        kept.remove()
    except APIError as error:
        return error.status_code == 404
    return True
