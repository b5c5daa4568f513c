"""The OCI command line with real containers: what the runtime specification says, and what podman relies on."""

from __future__ import annotations

import array
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fleet.node_runtime.cgroup_layout import detect_layout
from tests.support.images import busybox_rootfs_tar
from tests.support.oci_bundles import CONFIG, OciCommand, make_bundle, rewrite

pytestmark = pytest.mark.kernel


@pytest.fixture
def oci(tmp_path: Path) -> Iterator[OciCommand]:
    command = OciCommand(tmp_path)
    yield command
    command.delete_all()
    assert not groups("t")
    assert not groups("")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def groups(name: str) -> list[str]:
    """Directories of the default control group of a container, in any hierarchy."""
    layout = detect_layout()
    points = {*layout.v1.values(), layout.unified} - {""}
    return [path for point in points if os.path.isdir(path := f"{point}/fleet-oci/{name}")]


def until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return found


def test_run_ends_as_its_program_and_leaves_nothing(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "echo said; echo aside >&2; exit 7")
    done = oci("run", "--bundle", str(bundle), "t")
    assert (done.returncode, done.stdout, done.stderr) == (7, "said\n", "aside\n")
    assert not oci.root.exists() or not os.listdir(oci.root)
    assert not groups("t")


def test_a_containers_life(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "echo started; exec sleep 1000", annotations={"a.b": "c"})
    pid_file = tmp_path / "pid"
    done = oci("create", "--bundle", str(bundle), "--pid-file", str(pid_file), "t")
    assert done.returncode == 0, done.stderr
    created = 1
    state = oci.state("t")
    assert (state["status"], state["bundle"], state["annotations"]) == ("created", str(bundle), {"a.b": "c"})
    assert state["pid"] == int(pid_file.read_text())
    assert oci.output(created) == ""
    assert "exists already" in oci("create", "--bundle", str(bundle), "t").stderr
    assert "created, not stopped" in oci("delete", "t").stderr

    assert oci("start", "t").returncode == 0
    until(lambda: oci.output(created) == "started\n")
    assert oci.state("t")["status"] == "running"
    refused = oci("start", "t")
    assert (refused.returncode, "it is running" in refused.stderr) == (1, True)
    assert "running, not stopped" in oci("delete", "t").stderr
    assert oci.state("t")["status"] == "running"

    assert oci("kill", "t", "KILL").returncode == 0
    until(lambda: oci.state("t")["status"] == "stopped")
    assert oci("kill", "t", "TERM").returncode == 1
    assert oci("start", "t").returncode == 1
    assert oci("delete", "t").returncode == 0
    gone = oci("state", "t")
    assert (gone.returncode, gone.stderr) == (1, "fleet-oci: container t does not exist\n")
    assert oci("delete", "--force", "t").returncode == 0
    assert json.loads(oci.log.read_text().splitlines()[-1])["msg"] == "container t does not exist"


def test_it_is_alone(oci: OciCommand, tmp_path: Path) -> None:
    script = "hostname; echo $$; ls /proc | wc -l; ip -o link | wc -l; cat /proc/mounts; ls -l /dev; wc -c < /proc/keys"
    done = oci("run", "--bundle", str(make_bundle(tmp_path / "b", script)), "t")
    lines = done.stdout.splitlines()
    assert lines[:2] == ["box", "1"], done.stderr
    assert int(lines[3]) == 1
    assert str(tmp_path) not in done.stdout
    assert "tmpfs /dev tmpfs rw,nosuid,size=65536k,mode=755" in done.stdout
    assert "/proc/keys" in done.stdout
    assert lines[-1] == "0"  # masked
    assert "/proc/sys proc ro" in done.stdout
    for name in ("null", "zero", "full", "random", "urandom", "tty", "ptmx -> pts/ptmx", "fd -> /proc/self/fd"):
        assert name in done.stdout


def test_identity_and_rights_are_the_bundles(oci: OciCommand, tmp_path: Path) -> None:
    script = "id; umask; pwd; ulimit -n; grep -E 'Cap|NoNew|Groups' /proc/self/status; "
    script += "cat /proc/self/oom_score_adj; echo $HOME $X"
    bundle = make_bundle(
        tmp_path / "b",
        script,
        process__user={"uid": 1000, "gid": 1001, "umask": 0o77, "additionalGids": [5, 6]},
        process__cwd="/made/here",
        process__oomScoreAdj=500,
        process__env=["PATH=/bin", "X=a=b"],
        process__capabilities={
            "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_FROM_THE_FUTURE"],
            "effective": ["CAP_KILL"],
            "permitted": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_KILL"],
            "ambient": ["CAP_KILL"],
        },
    )
    done = oci("run", "--bundle", str(bundle), "t")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith("uid=1000 gid=1001"), done.stderr
    assert lines[1:4] == ["0077", "/made/here", "512"]
    assert "Groups: 5 6" in lines
    assert [line for line in lines if line.startswith("Cap")] == [
        "CapInh: 0000000000000020",
        "CapPrm: 0000000000000020",
        "CapEff: 0000000000000020",
        "CapBnd: 0000000000000021",
        "CapAmb: 0000000000000020",
    ]
    assert lines[-2:] == ["500", "/ a=b"]
    assert "NoNewPrivs: 1" in lines


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_seccomp(oci: OciCommand, tmp_path: Path, no_new_privileges: bool) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    }
    bundle = make_bundle(
        tmp_path / "b",
        "mkdir /x; echo $?; grep Seccomp: /proc/self/status",
        process__noNewPrivileges=no_new_privileges,
        linux__seccomp=profile,
    )
    done = oci("run", "--bundle", str(bundle), "t")
    assert done.stdout.split() == ["1", "Seccomp:", "2"]
    assert "No space left" in done.stderr


def test_mounts_and_paths(oci: OciCommand, tmp_path: Path) -> None:
    host = tmp_path / "host"
    (host / "below").mkdir(parents=True)
    (host / "file").write_text("of the host")
    bundle = make_bundle(
        tmp_path / "b",
        "cat /in/file /one; touch /in/x; touch /in/below/x; ls -l /etc2/a; touch /etc2/b && touch /y; "
        "ls -ln /dev/own; cat /dev/own; echo; stat -c %a /tmp2",
        root__readonly=True,
        linux__devices=[
            {"path": "/dev/own", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 7, "gid": 8}
        ],
    )
    (bundle / "rootfs/etc2").mkdir()
    (bundle / "rootfs/etc2/a").write_text("of the image")
    (bundle / "rootfs/tmp2").mkdir(mode=0o1777)
    (bundle / "rootfs/tmp2").chmod(0o1777)
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"] += [
        {"destination": "/in", "source": str(host), "options": ["rbind", "rro", "rprivate"]},
        {"destination": "/one", "type": "bind", "source": "../host/file", "options": ["bind", "ro"]},
        {"destination": "/etc2", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup", "size=1m"]},
        {"destination": "/tmp2", "type": "tmpfs", "source": "tmpfs"},
    ]
    config["process"]["args"][2] = config["process"]["args"][2].replace(
        "cat /dev/own", "head -c 2 /dev/own | od -An -tx1"
    )
    (bundle / "config.json").write_text(json.dumps(config))
    done = oci("run", "--bundle", str(bundle), "t")
    assert "of the hostof the host" in done.stdout, done.stderr
    assert done.stderr.count("Read-only file system") == 3
    assert "/etc2/a" in done.stdout
    assert "crw-r-----    1 7        8           1,   5" in done.stdout
    assert done.stdout.split()[-1] == "1777"
    assert os.listdir(bundle / "rootfs/etc2") == ["a"]


def test_links_of_the_image_lead_nowhere_else(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "true")
    os.rename(bundle / "rootfs/proc", bundle / "rootfs/elsewhere") if (bundle / "rootfs/proc").exists() else None
    (bundle / "rootfs/proc").symlink_to("/tmp")
    done = oci("run", "--bundle", str(bundle), "t")
    assert "the image's /proc is not a directory" in done.stderr
    (bundle / "rootfs/proc").unlink()
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"].append({"destination": "/proc/self", "type": "tmpfs", "source": "tmpfs"})
    (bundle / "config.json").write_text(json.dumps(config))
    assert "leads into /proc" in oci("run", "--bundle", str(bundle), "t").stderr
    victim = tmp_path / "victim"
    victim.mkdir()
    config["mounts"][-1] = {"destination": "/escape/x", "type": "tmpfs", "source": "tmpfs"}
    (bundle / "config.json").write_text(json.dumps(config))
    (bundle / "rootfs/escape").symlink_to(f"../../../../../../../..{victim}")
    oci("run", "--bundle", str(bundle), "t")
    assert os.listdir(victim) == []


HOOK = """#!/bin/sh
read -r state
echo "$1 $state" >> "$2"
"""


def test_hooks_in_their_order_with_the_state(oci: OciCommand, tmp_path: Path) -> None:
    hook, told = tmp_path / "hook", tmp_path / "told"
    hook.write_text(HOOK)
    hook.chmod(0o755)
    names = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
    hooks = {name: [{"path": str(hook), "args": ["hook", name, str(told)]}] for name in names}
    bundle = make_bundle(tmp_path / "b", "exec sleep 1000", annotations={"k": "v"})
    inside = bundle / "rootfs" / str(hook).lstrip("/")  # startContainer hooks are found in the container
    inside.parent.mkdir(parents=True)
    inside.write_text(HOOK)
    inside.chmod(0o755)
    rewrite(bundle, "exec sleep 1000", hooks=hooks, annotations={"k": "v"})
    assert oci("create", "--bundle", str(bundle), "t").returncode == 0
    pid = oci.state("t")["pid"]
    assert oci("start", "t").returncode == 0
    oci("kill", "t", "KILL")
    until(lambda: oci.state("t")["status"] == "stopped")
    assert oci("delete", "t").returncode == 0
    seen = [line.split(" ", 1) for line in told.read_text().splitlines()]
    states = {name: json.loads(text) for name, text in seen}
    assert [name for name, _ in seen] == ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]
    assert states["createRuntime"] == {
        "ociVersion": "1.0.2",
        "id": "t",
        "pid": pid,
        "bundle": str(bundle),
        "annotations": {"k": "v"},
        "status": "creating",
    }
    assert [states[name]["status"] for name in ("prestart", "poststart", "poststop")] == [
        "created",
        "running",
        "stopped",
    ]
    within = (bundle / "rootfs" / str(told).lstrip("/")).read_text()
    assert json.loads(within.split(" ", 1)[1])["id"] == "t"


@pytest.mark.parametrize("when", ["prestart", "createRuntime", "createContainer"])
def test_a_failing_hook_leaves_nothing(oci: OciCommand, tmp_path: Path, when: str) -> None:
    hooks = {when: [{"path": "/bin/sh", "args": ["sh", "-c", "echo no room; exit 3"]}]}
    bundle = make_bundle(tmp_path / "b", "true", hooks=hooks)
    done = oci("create", "--bundle", str(bundle), "t")
    assert done.returncode == 1
    assert f"hooks.{when}[0], /bin/sh: exit status 3: no room" in done.stderr
    assert oci("state", "t").returncode == 1
    assert not groups("t")


def test_a_hook_that_hangs_is_killed(oci: OciCommand, tmp_path: Path) -> None:
    hooks = {"createRuntime": [{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]}
    done = oci("create", "--bundle", str(make_bundle(tmp_path / "b", "true", hooks=hooks)), "t")
    assert "not done within 1 s" in done.stderr


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["absent"], 127, 'exec: "absent": executable file not found in $PATH'),
        (["/absent"], 127, "exec /absent: no such file or directory"),
        (["/etc/passwd"], 126, "exec /etc/passwd: permission denied"),
    ],
)
def test_a_program_that_is_not_there(oci: OciCommand, tmp_path: Path, args: list[str], code: int, text: str) -> None:
    bundle = make_bundle(tmp_path / "b", process__args=args)
    (bundle / "rootfs/etc").mkdir(exist_ok=True)
    (bundle / "rootfs/etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    done = oci("run", "--bundle", str(bundle), "t")
    assert (done.returncode, done.stderr) == (code, f"fleet-oci: {text}\n")
    assert oci("create", "--bundle", str(bundle), "t").returncode == 1
    assert not groups("t")


def started(oci: OciCommand, tmp_path: Path, script: str = "exec sleep 1000", **changes: Any) -> int:
    bundle = make_bundle(tmp_path / "b", script, **changes)
    done = oci("run", "--detach", "--bundle", str(bundle), "t")
    assert done.returncode == 0, done.stderr
    return int(oci.state("t")["pid"])


def test_exec(oci: OciCommand, tmp_path: Path) -> None:
    pid = started(oci, tmp_path)
    done = oci(
        "exec", "--env", "A=1", "--cwd", "/bin", "t", "sh", "-c", "hostname; echo $A; pwd; ls -d /proc/1/exe; exit 5"
    )
    assert (done.returncode, done.stdout.split()[:3]) == (5, ["box", "1", "/bin"]), done.stderr
    process = {"args": ["sleep", "999"], "cwd": "/", "user": {"uid": 9, "gid": 9}}
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid_file = tmp_path / "exec.pid"
    done = oci("exec", "--detach", "--process", str(tmp_path / "process.json"), "--pid-file", str(pid_file), "t")
    assert done.returncode == 0, done.stderr
    joined = int(pid_file.read_text())
    assert os.readlink(f"/proc/{joined}/ns/pid") == os.readlink(f"/proc/{pid}/ns/pid")
    assert os.stat(f"/proc/{joined}").st_uid == 9
    assert sorted(json.loads(oci("ps", "--format", "json", "t").stdout)) == sorted([pid, joined])
    assert oci("exec", "t", "absent").returncode == 127
    assert oci("exec", "t").returncode == 1
    oci("kill", "t", "KILL")
    until(lambda: oci.state("t")["status"] == "stopped")
    assert not os.path.exists(f"/proc/{joined}") or Path(f"/proc/{joined}/stat").read_text().split()[2] == "Z"
    assert "is stopped" in oci("exec", "t", "true").stderr


def test_pause_limits_and_lists(oci: OciCommand, tmp_path: Path) -> None:
    resources = {"memory": {"limit": 64 << 20}, "pids": {"limit": 50}, "cpu": {"shares": 512}}
    started(oci, tmp_path, linux__resources=resources, linux__cgroupsPath="/fleet-oci/t")
    layout = detect_layout()
    memory = (
        f"{layout.unified}/fleet-oci/t/memory.max"
        if layout.is_v2
        else f"{layout.v1['memory']}/fleet-oci/t/memory.limit_in_bytes"
    )
    assert int(Path(memory).read_text()) == 64 << 20
    assert oci("update", "--memory", str(128 << 20), "t").returncode == 0
    assert int(Path(memory).read_text()) == 128 << 20
    assert oci("update", "--resources", "-", "t", stdin='{"memory": {"limit": 67108864}}').returncode == 0
    assert int(Path(memory).read_text()) == 64 << 20
    assert oci("pause", "t").returncode == 0
    assert oci.state("t")["status"] == "paused"
    assert "is paused" in oci("exec", "t", "true").stderr
    assert [entry["status"] for entry in json.loads(oci("list", "--format", "json").stdout)] == ["paused"]
    assert oci("resume", "t").returncode == 0
    assert oci("resume", "t").returncode == 1
    assert oci("list", "-q").stdout == "t\n"
    oci("pause", "t")
    oci("kill", "t", "KILL")  # a frozen container ends too
    until(lambda: oci.state("t")["status"] == "stopped")


def test_a_terminal_by_the_console_socket(oci: OciCommand, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b", "tty; stty size", process__terminal=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["consoleSize"] = {"height": 30, "width": 90}
    (bundle / "config.json").write_text(json.dumps(config))
    assert "needs --console-socket" in oci("create", "--bundle", str(bundle), "t").stderr
    path = tmp_path / "console"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        done = oci("create", "--bundle", str(bundle), "--console-socket", str(path), "t")
        assert done.returncode == 0, done.stderr
        connection, _ = listening.accept()
        with connection:
            _, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(4))
    master = array.array("i", ancillary[0][2])[0]
    oci("start", "t")
    said = b""
    while b"90" not in said:
        said += os.read(master, 1000)
    os.close(master)
    assert said.split() == [b"/dev/pts/0", b"30", b"90"]


def test_shared_namespaces(oci: OciCommand, tmp_path: Path) -> None:
    pid = started(oci, tmp_path)
    shared = [{"type": kind, "path": f"/proc/{pid}/ns/{name}"} for kind, name in (("network", "net"), ("ipc", "ipc"))]
    spaces = [*shared, {"type": "pid", "path": f"/proc/{pid}/ns/pid"}, {"type": "mount"}]
    script = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc; ps -o args | grep -c 'sleep 1000'"
    other = make_bundle(tmp_path / "o", script, linux__namespaces=spaces)
    config = json.loads((other / "config.json").read_text())
    del config["hostname"]
    (other / "config.json").write_text(json.dumps(config))
    done = oci("run", "--bundle", str(other), "other")
    net, ipc, seen = done.stdout.split()
    assert (net, ipc) == (os.readlink(f"/proc/{pid}/ns/net"), os.readlink(f"/proc/{pid}/ns/ipc"))
    assert int(seen) >= 1
    config["linux"]["namespaces"][0]["path"] = f"/proc/{pid}/ns/uts"
    (other / "config.json").write_text(json.dumps(config))
    assert "is not a namespace of type network" in oci("run", "--bundle", str(other), "other").stderr


def mapped(tmp_path: Path, script: str, **changes: Any) -> Path:
    """A bundle with ids of its own; its files belong to the first of them, in a directory that is closed to them."""
    maps = [{"containerID": 0, "hostID": 200_000, "size": 65536}]
    spaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "cgroup", "user")]
    own = {"linux__uidMappings": maps, "linux__gidMappings": maps, "linux__namespaces": spaces}
    bundle = make_bundle(tmp_path / "mapped", script, **{**own, **changes})
    for path in (bundle / "rootfs", *(bundle / "rootfs").rglob("*")):
        os.lchown(path, 200_000, 200_000)
    bundle.chmod(0o700)
    return bundle


def test_a_user_namespace_of_its_own(oci: OciCommand, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    os.chown(kept, 200_000, 200_000)
    script = """
        cat /proc/self/uid_map; id -u; cut -d' ' -f1-2 /proc/1/gid_map | head -1; echo x > /data/made; mknod /n c 1 3
        echo done > /dev/null && head -c 4 /dev/zero | wc -c; hostname; ls -ld /sys/kernel > /dev/null && exec sleep 1000
    """
    mounts = [*CONFIG["mounts"], {"destination": "/data", "source": str(kept), "options": ["bind"]}]
    bundle = mapped(tmp_path, script, mounts=mounts)
    assert oci("create", "--bundle", str(bundle), "t").returncode == 0
    created = 1
    assert oci("start", "t").returncode == 0
    said = until(lambda: len(found := oci.output(created).split()) >= 6 and found)
    assert said == ["0", "200000", "65536", "0", "4", "box"]
    pid = oci.state("t")["pid"]
    assert Path(f"/proc/{pid}/status").read_text().split("Uid:")[1].split()[0] == "200000"
    assert os.stat(kept / "made").st_uid == 200_000
    done = oci("exec", "t", "sh", "-c", "id -u; readlink /proc/self/ns/user; cat /data/made")
    assert done.stdout.split() == ["0", os.readlink(f"/proc/{pid}/ns/user"), "x"], done.stderr


def test_a_user_namespace_in_the_network_of_another_container(oci: OciCommand, tmp_path: Path) -> None:
    pid = started(oci, tmp_path)
    spaces = [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "user")]
    spaces.append({"type": "network", "path": f"/proc/{pid}/ns/net"})
    bundle = mapped(tmp_path, "readlink /proc/self/ns/net; exec sleep 1000", linux__namespaces=spaces)
    config = json.loads((bundle / "config.json").read_text())
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "sysfs"]  # the network's owner's alone
    config["linux"]["maskedPaths"] = []
    (bundle / "config.json").write_text(json.dumps(config))
    before = os.readlink("/proc/self/ns/net")
    done = oci("create", "--bundle", str(bundle), "other")
    created = oci.count
    assert done.returncode == 0, done.stderr
    assert oci("start", "other").returncode == 0
    assert until(lambda: oci.output(created).strip()) == os.readlink(f"/proc/{pid}/ns/net") != before
    assert oci("exec", "other", "true").returncode == 0


def test_devices_and_ids_that_a_user_namespace_cannot_have(oci: OciCommand, tmp_path: Path) -> None:
    device = {"type": "c", "path": "/dev/mine", "major": 1, "minor": 3}
    bundle = mapped(tmp_path, "true", linux__devices=[device])
    assert "device /dev/mine: in a user namespace no device can be made" in oci("run", "-b", str(bundle), "t").stderr
    config = json.loads((bundle / "config.json").read_text())
    config["linux"]["devices"] = []
    config["process"]["user"]["uid"] = 100_000
    (bundle / "config.json").write_text(json.dumps(config))
    done = oci("run", "-b", str(bundle), "t")
    assert done.returncode != 0 and done.stderr
    config["linux"]["uidMappings"] *= 2
    (bundle / "config.json").write_text(json.dumps(config))
    assert "linux.uidMappings: Invalid argument" in oci("run", "-b", str(bundle), "t").stderr


def test_mounts_of_a_container_stay_its_own_where_the_hosts_are_shared(oci: OciCommand, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    (kept / "at").mkdir(parents=True)
    mounts = [*CONFIG["mounts"], {"destination": "/data", "source": str(kept), "options": ["rbind"]}]
    sets = {kind: ["CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}
    script = "mount -t tmpfs inner /data/at && mount -t tmpfs inner2 /tmp && grep -c inner /proc/self/mountinfo"
    bundle = make_bundle(tmp_path / "b", script, mounts=mounts, process__capabilities=sets)
    ran = " ".join(oci.line("run", "--bundle", str(bundle), "t"))
    host = f"mount --make-rshared / && {ran} && ! grep inner /proc/self/mountinfo"
    done = subprocess.run(["unshare", "-m", "sh", "-c", host], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr


def test_mountinfo_lists_root_and_mounts_in_the_bundles_order(oci: OciCommand, tmp_path: Path) -> None:
    mounts = [*CONFIG["mounts"], {"destination": "/b", "source": "/etc", "options": ["bind", "ro"]}]
    mounts.append({"destination": "/t", "type": "tmpfs", "options": ["ro", "tmpcopyup"]})
    bundle = make_bundle(tmp_path / "b", "cut -d' ' -f5 /proc/self/mountinfo; stat -c %a /t; ls /t", mounts=mounts)
    (bundle / "rootfs/t").mkdir(mode=0o710)
    (bundle / "rootfs/t/copied").touch()
    *points, mode, copied = oci("run", "--bundle", str(bundle), "t").stdout.split()
    wanted = ["/", *(mount["destination"] for mount in mounts)]
    assert [point for point in points if point in wanted] == wanted
    assert (mode, copied) == ("710", "copied")
    assert " proc proc " in oci("run", "--bundle", str(rewritten(bundle, "cat /proc/self/mountinfo")), "t").stdout


def test_a_filter_that_knows_no_newer_calls(oci: OciCommand, tmp_path: Path) -> None:
    newer = ["close_range", "faccessat2", "openat2", "clone3", "statx", "mount_setattr", "move_mount", "open_tree"]
    refused = {"names": newer, "action": "SCMP_ACT_ERRNO"}
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [refused]}
    bundle = make_bundle(tmp_path / "b", "echo runs", linux__seccomp=profile, process__noNewPrivileges=False)
    assert oci("run", "--bundle", str(bundle), "t").stdout == "runs\n"


def rewritten(bundle: Path, script: str) -> Path:
    rewrite(bundle, script)
    return bundle


def test_a_killed_create_leaves_no_process_and_is_deleted(oci: OciCommand, tmp_path: Path) -> None:
    at, hook = tmp_path / "at", tmp_path / "hook"
    script = f"echo $$ > {hook}; cat > {at}; exec sleep 60"
    hooks = {"createRuntime": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]}
    bundle = make_bundle(tmp_path / "b", "exec sleep 1000", hooks=hooks)
    with subprocess.Popen(oci.line("create", "--bundle", str(bundle), "t")) as creating:
        pid = json.loads(until(lambda: at.exists() and at.read_text()))["pid"]
        creating.send_signal(signal.SIGKILL)
        creating.wait()
    os.kill(int(hook.read_text()), signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{pid}/exe") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z")
    assert oci.state("t")["status"] == "stopped"
    assert oci("delete", "t").returncode == 0
    assert not groups("t")


def test_sysctls_and_host_names_are_its_own(oci: OciCommand, tmp_path: Path) -> None:
    host = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    other = "0" if host.strip() == "1" else "1"
    bundle = make_bundle(
        tmp_path / "b", "cat /proc/sys/net/ipv4/ip_forward", linux__sysctl={"net.ipv4.ip_forward": other}
    )
    assert oci("run", "--bundle", str(bundle), "t").stdout.strip() == other
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == host
    rewrite(bundle, "true", linux__sysctl={"vm.swappiness": "1"})
    assert "would change the host" in oci("run", "--bundle", str(bundle), "t").stderr


def test_the_interpreter_is_out_of_reach(oci: OciCommand, tmp_path: Path) -> None:
    """While a container is created, another in its pid namespace cannot open what the waiting process holds."""
    pid = started(oci, tmp_path)
    spaces = [{"type": "pid", "path": f"/proc/{pid}/ns/pid"}, {"type": "mount"}]
    bundle = make_bundle(tmp_path / "o", "true", linux__namespaces=spaces)
    config = json.loads((bundle / "config.json").read_text())
    del config["hostname"]
    (bundle / "config.json").write_text(json.dumps(config))
    assert oci("create", "--bundle", str(bundle), "other").returncode == 0
    looked = oci("exec", "t", "sh", "-c", "for p in /proc/[0-9]*; do ls -l $p/exe; ls $p/fd | wc -l; done 2>&1")
    assert "python" not in looked.stdout
    assert "ermission denied" in looked.stdout


def test_command_lines_that_are_wrong(oci: OciCommand, tmp_path: Path) -> None:
    for arguments, text in (
        (("create", "--bundle", str(tmp_path), "t"), "cannot read"),
        (("create", "--bundle", str(tmp_path), "../t"), "cannot read"),
        (("state", "../t"), "container id '../t'"),
        (("kill", "t", "NOSUCH"), "'NOSUCH' is no signal"),
        (("--systemd-cgroup", "state", "t"), "--systemd-cgroup"),
        (("update", "t"), "no limit was named"),
    ):
        done = oci(*arguments)
        assert (done.returncode, text in done.stderr) == (1, True), (arguments, done.stderr)
    assert oci("--version").stdout.startswith("fleet-oci version")
    assert json.loads(oci("features").stdout)["ociVersionMax"] == "1.2.0"


def test_no_mount_namespace_of_its_own(oci: OciCommand, tmp_path: Path) -> None:
    """None, then another's: the container sees its mounts alone, its host sees none of them, and exec finds them."""
    before = Path("/proc/self/mountinfo").read_text()
    script = "readlink /proc/self/ns/mnt; ls /; cat /proc/keys; touch /proc/sys/x; exec sleep 1000"
    spaces: list[dict[str, str]] = [{"type": kind} for kind in ("pid", "ipc", "uts")]
    bundle = make_bundle(tmp_path / "b", script, linux__namespaces=spaces)
    assert oci("create", "--bundle", str(bundle), "t").returncode == 0
    created = oci.count
    assert oci("start", "t").returncode == 0
    said = until(lambda: "sys" in (found := oci.output(created)).split() and found.split())
    assert said[0] == os.readlink("/proc/self/ns/mnt")
    assert {"bin", "dev", "proc"} <= set(said) and "work" not in said
    assert oci("exec", "t", "sh", "-c", "ls -d /proc/1 && ls /dev/shm && ls /root.tar").stdout == "/proc/1\n"
    assert Path("/proc/self/mountinfo").read_text() == before
    with subprocess.Popen(["unshare", "-m", "sleep", "1000"]) as other:
        until(lambda: os.readlink(f"/proc/{other.pid}/ns/mnt") != said[0])
        spaces.append({"type": "mount", "path": f"/proc/{other.pid}/ns/mnt"})
        rewrite(bundle, "readlink /proc/self/ns/mnt; ls -d /proc/1", linux__namespaces=spaces)
        assert oci("run", "--bundle", str(bundle), "joined").stdout.split() == [
            os.readlink(f"/proc/{other.pid}/ns/mnt"),
            "/proc/1",
        ]
        other.kill()


def test_hooks_after_the_start_only_warn_and_follow_the_program(oci: OciCommand, tmp_path: Path) -> None:
    told = tmp_path / "told"
    fails, tells = (
        {"path": "/bin/sh", "args": ["sh", "-c", script]}
        for script in ("exit 3", f"readlink /proc/$(sed 's/.*\"pid\": \\([0-9]*\\).*/\\1/')/exe >> {told}")
    )
    hooks = {
        "poststart": [fails, tells],
        "poststop": [fails, {"path": "/bin/sh", "args": ["sh", "-c", f"echo >> {told}"]}],
    }
    bundle = make_bundle(tmp_path / "b", process__args=["/bin/sleep", "1000"], hooks=hooks)
    assert oci("create", "--bundle", str(bundle), "t").returncode == 0
    done = oci("start", "t")
    assert (done.returncode, "warning: hooks.poststart[0], /bin/sh: exit status 3" in done.stderr) == (0, True)
    assert told.read_text().strip().endswith("/busybox")  # executed by then
    assert oci("delete", "--force", "t").returncode == 0
    assert told.read_text().count("\n") == 2


def test_single_files_of_the_control_group(oci: OciCommand, tmp_path: Path) -> None:
    layout = detect_layout()
    resources = {"cpu": {"quota": 50000, "period": 100000, "burst": 20000}}
    started(oci, tmp_path, linux__resources=resources)
    at = (
        f"{layout.unified}/fleet-oci/t/cpu.max.burst"
        if layout.is_v2
        else f"{layout.v1['cpu']}/fleet-oci/t/cpu.cfs_burst_us"
    )
    assert Path(at).read_text().strip() == "20000"
    other = {"memory": {"kernelTCP": 1 << 20}} if layout.is_v2 else {"unified": {"memory.high": "1000000"}}
    done = oci("update", "--resources", "-", "t", stdin=json.dumps(other))
    assert (done.returncode, "have no such limit" in done.stderr) == (1, True)


PODMAN = """
set -e
ip link set lo up
umount /sys/fs/cgroup/unified 2>/dev/null || true
podman() { command podman --root root --runroot run --tmpdir tmp $OPTIONS "$@"; }
tidy() {
    podman rm --all --force > /dev/null
    podman rmi --all --force > /dev/null
    umount root/overlay 2>/dev/null || true
    find /sys/fs/cgroup -depth -type d -path "*/libpod_parent*" -exec rmdir {} + 2>/dev/null || true
}
trap tidy EXIT
podman import rootfs.tar box:1 2>/dev/null
podman run --rm --network none box:1 /bin/sh -c "echo ran; exit 3" || echo $?
podman run --detach --name a --network none --memory 64m box:1 /bin/sh -c "echo logged; exec sleep 1000" > /dev/null
podman inspect --format "{{.State.Status}}" a
podman logs a
podman exec --env X=1 a /bin/sh -c 'echo "within $X"; exit 4' || echo $?
podman pause a
podman unpause a
podman stop --time 0 a
podman inspect --format "{{.State.Status}}" a
podman start a
podman kill a
podman rm --force a
podman ps --all --quiet
"""


@pytest.mark.skipif(shutil.which("podman") is None, reason="podman is not installed")
def test_podman_drives_it(tmp_path: Path) -> None:
    busybox_rootfs_tar(tmp_path / "rootfs.tar")
    runtime = Path(sys.executable).with_name("fleet-oci")
    done = subprocess.run(
        ["unshare", "-m", "-n", "bash", "-c", PODMAN],
        cwd=tmp_path,
        env={**os.environ, "OPTIONS": f"--cgroup-manager cgroupfs --events-backend file --runtime {runtime}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    said = [line for line in done.stdout.splitlines() if not line.startswith("sha256:")]
    expected = ["ran", "3", "running", "logged", "within 1", "4", "a", "a", "a", "exited", "a", "a", "a"]
    assert (done.returncode, said) == (0, expected), done.stderr


def test_binds_with_mapped_ids(oci: OciCommand, tmp_path: Path) -> None:
    """Of their own, without and with a user namespace, and the container's."""
    shown = tmp_path / "shown"
    shown.mkdir()
    (shown / "file").write_text("x")
    os.chown(shown / "file", 1000, 1001)
    own = {
        "uidMappings": [
            {"containerID": 1000, "hostID": 5, "size": 1},
            {"containerID": 0, "hostID": 70_000, "size": 10},
        ],
        "gidMappings": [
            {"containerID": 1001, "hostID": 6, "size": 1},
            {"containerID": 0, "hostID": 70_000, "size": 10},
        ],
    }
    bind = {"destination": "/shown", "type": "bind", "source": str(shown), "options": ["rbind", "ridmap"], **own}
    bundle = make_bundle(tmp_path / "b", "stat -c %u:%g /shown/file", mounts=[*CONFIG["mounts"], bind])
    done = oci("run", "--bundle", str(bundle), "t")
    if "ids cannot be mapped" in done.stderr:
        pytest.skip(f"the file system of {tmp_path} cannot map ids")
    assert done.stdout == "5:6\n", done.stderr
    bind = {"destination": "/shown", "source": str(shown), "options": ["bind", "idmap"]}
    script = "stat -c %u:%g /shown/file; touch /shown/made"
    done = oci("run", "--bundle", str(mapped(tmp_path, script, mounts=[*CONFIG["mounts"], bind])), "t")
    assert done.stdout == "1000:1001\n" or "ermission" in done.stderr, done.stderr
    os.chmod(shown, 0o777)
    done = oci("run", "--bundle", str(tmp_path / "mapped"), "t")
    assert (done.stdout, os.stat(shown / "made").st_uid) == ("1000:1001\n", 0), done.stderr
