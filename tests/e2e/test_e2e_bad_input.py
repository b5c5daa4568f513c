"""Wrong, hostile and unlucky input: a sentence that says what and where, the right status, and nothing lost."""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import TestLab

from fleet import errors
from fleet.api.client import EngineError

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def lab(make_lab: object) -> TestLab:
    assert callable(make_lab)
    made = make_lab(managers=1, workers=1)
    assert isinstance(made, TestLab)
    made.load_hello()
    return made


def refused(lab: TestLab, *args: str, code: int, says: str, stdin: str | None = None) -> None:
    done = lab.fleet(*args, check=False, stdin=stdin)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr


def create(*flags: str) -> tuple[str, ...]:
    return ("service", "create", "--detach", "--name", "bad", *flags, "fleet/hello:1", "sleep", "1000")


def test_an_unknown_image_is_said_and_the_task_rejected(lab: TestLab) -> None:
    lab.fleet("service", "create", "--detach", "--name", "noimage", "--restart-condition", "none", "nowhere/none:9")
    lab.wait_until(lambda: lab.tasks("noimage", state="rejected"), 40, what="the task is rejected")
    assert "no such image: nowhere/none:9" in lab.tasks("noimage", state="rejected")[0]["Status"]["Err"]
    lab.fleet("service", "rm", "noimage")


def test_an_image_without_the_command_fails_the_task_with_the_commands_name(lab: TestLab) -> None:
    lab.fleet(
        "service", "create", "--detach", "--name", "nocmd", "--restart-condition", "none", "fleet/hello:1", "/no/such"
    )
    lab.wait_until(
        lambda: lab.tasks("nocmd", state="failed") or lab.tasks("nocmd", state="rejected"), 20, what="it fails"
    )
    task = (lab.tasks("nocmd", state="failed") or lab.tasks("nocmd", state="rejected"))[0]
    assert "/no/such" in task["Status"]["Err"]
    lab.fleet("service", "rm", "nocmd")


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--network", "nonet"), 1, "network nonet not found"),
        (("--constraint", "node.labels.x=y"), 1, "expected == or !="),
        (("--limit-memory", "1m"), 1, "4MiB"),
        (("--limit-memory", "lots"), 2, "lots"),
        (("--replicas", "-1"), 2, "-1"),
        (("--publish", "70000:80"), 2, "70000"),
        (("--mount", "type=bind,src=rel,dst=/x"), 1, "absolute"),
        (("--mount", "type=magic,dst=/x"), 2, "magic"),
        (("--restart-condition", "sometimes"), 2, "sometimes"),
        (("--mode", "global-job", "--replicas", "2"), 2, "--replicas has no meaning"),
        (("--no-such-flag",), 2, "no-such-flag"),
    ],
)
def test_wrong_flags_are_refused_with_a_sentence(lab: TestLab, flags: tuple[str, ...], code: int, says: str) -> None:
    done = lab.fleet(*create(*flags), check=False)
    text = done.stderr.replace(" ", "").lower()
    assert done.returncode in ({code} if code == 2 else {1, 2}), done.stderr
    assert says.replace(" ", "").lower() in text, done.stderr
    assert lab.fleet("service", "ls", "-q").stdout == ""


def test_a_published_port_that_is_taken_is_refused(lab: TestLab) -> None:
    lab.fleet("service", "create", "--detach", "--name", "first", "-p", "8091:80", "fleet/hello:1", "sleep", "1000")
    refused(lab, *create("-p", "8091:81"), code=1, says="8091")
    lab.fleet("service", "rm", "first")


def test_a_constraint_nobody_meets_leaves_the_task_pending_with_the_reason(lab: TestLab) -> None:
    lab.fleet(*create("--constraint", "node.labels.zone==moon"))
    lab.wait_until(
        lambda: any("no suitable node" in t["Status"].get("Err", "") for t in lab.tasks("bad", state="pending")),
        15,
        what="a reason",
    )
    assert "scheduling constraints not satisfied on 2 nodes" in lab.fleet("service", "ps", "--no-trunc", "bad").stdout
    lab.fleet("node", "update", "--label-add", "zone=moon", "w1")
    lab.wait_until(lambda: lab.tasks("bad"), 15, what="it runs once a node has the label")
    lab.fleet("service", "rm", "bad")


def test_a_stale_version_is_409_with_dockers_words(lab: TestLab) -> None:
    lab.fleet(*create())
    seen = lab.get("/services/bad")
    with lab.client("m1") as client:
        spec = seen["Spec"] | {"Labels": {"a": "1"}}
        client.post(f"/services/{seen['ID']}/update", spec, version=seen["Version"]["Index"])
        with pytest.raises(EngineError, match="update out of sequence") as stale:
            client.post(f"/services/{seen['ID']}/update", spec, version=seen["Version"]["Index"])
    assert stale.value.status == 409
    lab.fleet("service", "rm", "bad")


def raw(lab: TestLab, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection("fleet")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    connection.sock.connect(str(lab.socket("m1")))
    connection.request(method, path, body=body, headers=headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_bodies_that_are_not_json_or_far_too_large(lab: TestLab) -> None:
    as_json = {"Content-Type": "application/json"}
    status, text = raw(lab, "POST", "/services/create", b"this is not json", as_json)
    assert (status, "not valid JSON" in text) == (400, True)
    status, text = raw(lab, "POST", "/v1.41/services/create", b"[" * 1_000_000, as_json)
    assert status == 400
    announced = socket.socket(socket.AF_UNIX)
    announced.settimeout(30)
    announced.connect(str(lab.socket("m1")))
    announced.sendall(b"POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: 104857600\r\n\r\n{")
    head = announced.recv(65536)
    assert b" 413 " in head.split(b"\r\n", 1)[0], head
    announced.close()
    status, text = raw(lab, "GET", "/v1.99/services", b"", {})
    assert (status, "too new" in text) == (400, True)
    assert raw(lab, "GET", "/no/such/page", b"", {}) == (404, '{"message":"page not found"}')


def test_a_client_killed_in_the_middle_of_a_request_leaves_the_daemon_well(lab: TestLab) -> None:
    for piece in (b'POST /services/create HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{"Name"', b"GET /ser"):
        half = socket.socket(socket.AF_UNIX)
        half.connect(str(lab.socket("m1")))
        half.sendall(piece)
        half.close()
    follower = subprocess.Popen(
        [*lab_command("service", "logs", "-f", "nobody")], env=lab.command_environment("m1"), stderr=subprocess.DEVNULL
    )
    follower.kill()
    follower.wait()
    assert lab.fleet("service", "ls", "-q").stdout == ""


def lab_command(*args: str) -> list[str]:
    import sys

    return [sys.executable, "-m", "fleet.cli.main", *args]


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def named(name: str, *, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (b"not a tar at all" * 100, "tar"),
        (layer((named("ok"), bytes(5000)))[:1500], "tar"),
        (layer((named("../../../outside"), b"x")), "outside"),
        (layer((named("d", kind=tarfile.SYMTYPE, link="/etc"), b""), (named("d/passwd"), b"x")), ""),
        (layer((named("h", kind=tarfile.LNKTYPE, link="/etc/passwd"), b"")), ""),
        (layer((named("sda", kind=tarfile.BLKTYPE), b"")), "sda"),
    ],
    ids=["garbage", "cut", "dotdot", "through-symlink", "hardlink-outside", "device"],
)
def test_hostile_archives_touch_nothing_outside(lab: TestLab, archive: bytes, says: str, tmp_path: Path) -> None:
    before = Path("/etc/passwd").stat()
    file = tmp_path / "image.tar"
    file.write_bytes(archive)
    done = lab.fleet("image", "import", str(file), "evil:1", check=False)
    if done.returncode == 0:
        assert says == "", "this archive should have been refused"
        lab.fleet("image", "rm", "evil:1")
    else:
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    after = Path("/etc/passwd").stat()
    assert (before.st_mtime_ns, before.st_size, before.st_nlink) == (after.st_mtime_ns, after.st_size, after.st_nlink)
    assert not (tmp_path.parent / "outside").exists()


def test_a_broken_compose_file_names_file_line_and_key(lab: TestLab, tmp_path: Path) -> None:
    file = tmp_path / "stack.yml"
    file.write_text("services:\n  web:\n    image: fleet/hello:1\n    replicsa: 3\n")
    done = lab.fleet("stack", "deploy", "-c", str(file), "s", check=False)
    assert done.returncode != 0
    assert "stack.yml:4" in done.stderr
    assert "replicsa" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_acknowledges_nothing_it_can_not_keep(small_disk: Path) -> None:
    lab = TestLab(f"e{os.environ['FLEET_TEST_RUN']}disk", root=small_disk)
    try:
        lab.up(managers=1, workers=0)
        filler = small_disk / "filler"
        with filler.open("wb") as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(bytes(1 << 16))
                file.flush()
        acknowledged = []
        refusal: errors.FleetError | None = None
        with lab.client("m1") as client:
            for number in range(2000):
                try:
                    body = {"Name": f"c{number}", "Data": "eHh4" * 4000}
                    acknowledged.append(client.post("/configs/create", body)["ID"])
                except errors.FleetError as cause:
                    refusal = cause
                    break
        assert isinstance(refusal, EngineError)
        assert refusal.status == 507
        assert "full" in str(refusal) or "space" in str(refusal)
        filler.unlink()
        lab.restart_daemon("m1")
        kept = {config["ID"] for config in lab.get("/configs")}
        assert set(acknowledged) == kept
        with lab.client("m1") as client:
            assert client.post("/configs/create", {"Name": "after", "Data": "eA=="})["ID"]
    finally:
        lab.down()


def test_the_engine_api_answers_json_errors_everywhere(lab: TestLab) -> None:
    for method, path in (("POST", "/services/x/update?version=1"), ("GET", "/nodes/x"), ("DELETE", "/secrets/x")):
        status, text = raw(lab, method, path, b"{}", {"Content-Type": "application/json"})
        assert status == 404
        assert json.loads(text)["message"]
