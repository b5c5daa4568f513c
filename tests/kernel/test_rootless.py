"""``fleetd`` and ``fleet`` as an ordinary user: what a person does with it, what it refuses, what it leaves."""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.images import busybox_rootfs_tar
from support.ordinary_user import UID, UsersFleet, ordinary_user, why_impossible

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.story,
    pytest.mark.skipif(bool(why := why_impossible()), reason=f"not run: {why}"),
]

PORT = 28080
OUTSIDE = "192.0.2.77"
needs_way_out = pytest.mark.skipif(
    not (shutil.which("slirp4netns") or shutil.which("pasta")) or not Path("/dev/net/tun").exists(),
    reason="not run: needs slirp4netns or pasta, and /dev/net/tun",
)


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with ordinary_user() as home:
        yield home


@pytest.fixture(scope="module")
def image(home: Path) -> Path:
    path = home / "busybox.tar"
    busybox_rootfs_tar(path)
    path.chmod(0o644)
    return path


@pytest.fixture(scope="module")
def mine(home: Path, image: Path) -> Iterator[UsersFleet]:
    mine = UsersFleet(home)
    mine.start()
    try:
        mine.fleet("image", "import", str(image), "busybox")
        yield mine
    finally:
        mine.clear()


@pytest.fixture(scope="module")
def outside() -> Iterator[str]:
    """A web server of the host, at an address that is not loopback's."""
    subprocess.run(["ip", "link", "add", "outside0", "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", f"{OUTSIDE}/24", "dev", "outside0"], check=True)
    subprocess.run(["ip", "link", "set", "outside0", "up"], check=True)
    server = http.server.ThreadingHTTPServer((OUTSIDE, 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://{OUTSIDE}:{server.server_port}/"
    server.shutdown()
    server.server_close()
    subprocess.run(["ip", "link", "del", "outside0"], check=True)


def page(address: str = "127.0.0.1") -> str:
    try:
        with urllib.request.urlopen(f"http://{address}:{PORT}/index.html", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_the_folders_are_the_users_own_and_the_command_finds_the_socket(mine: UsersFleet) -> None:
    info = json.loads(mine.fleet("info", "--format", "json").stdout)
    assert info["DockerRootDir"] == str(mine.home / ".local/share/fleet")
    assert (mine.run_dir / "fleet/fleet.sock").is_socket()
    assert "name=rootless" in info["SecurityOptions"]
    assert info["CgroupDriver"] == "none"
    assert (mine.run_dir / "fleet/fleet.sock").stat().st_uid == UID


def test_a_container_runs_and_its_root_is_the_user(mine: UsersFleet) -> None:
    assert mine.fleet("run", "--rm", "busybox", "id", "-u").stdout == "0\n"
    assert "fleetd" not in mine.fleet("run", "--rm", "busybox", "ps").stdout
    script = "cat /dev/zero | head -c 3 | wc -c && dd if=/dev/urandom of=/dev/null bs=1 count=1 2>&1 && cat /sys/class/net/lo/mtu"
    assert mine.fleet("run", "--rm", "busybox", "sh", "-c", script).stdout.startswith("3\n")


def test_other_users_of_an_image_are_other_users_here(mine: UsersFleet) -> None:
    assert mine.fleet("run", "--rm", "-u", "1000:1000", "busybox", "id", "-u").stdout == "1000\n"
    made = mine.fleet("run", "--rm", "-u", "1000", "busybox", "sh", "-c", "touch /tmp/mine && stat -c %u /tmp/mine")
    assert made.stdout == "1000\n"


def test_volumes_keep_their_files(mine: UsersFleet) -> None:
    mine.fleet("volume", "create", "kept")
    mine.fleet("run", "--rm", "-v", "kept:/data", "busybox", "sh", "-c", "echo once > /data/file")
    assert mine.fleet("run", "--rm", "-v", "kept:/data:ro", "busybox", "cat", "/data/file").stdout == "once\n"


def test_exec_with_and_without_a_terminal_and_logs(mine: UsersFleet) -> None:
    mine.fleet("run", "-d", "--name", "talker", "busybox", "sh", "-c", "echo begun; exec sleep 1000")
    assert mine.fleet("exec", "talker", "sh", "-c", "exit 7", check=False).returncode == 7
    assert "/dev/pts/" in mine.fleet("exec", "-it", "talker", "tty", terminal=True).stdout
    assert mine.fleet("logs", "talker").stdout == "begun\n"
    assert "sleep 1000" in mine.fleet("run", "--rm", "--pid", "container:talker", "busybox", "ps").stdout
    assert "talker" in mine.fleet("stats", "--no-stream", "talker").stdout


def test_what_was_deleted_in_a_layer_stays_deleted_in_those_built_on_it(mine: UsersFleet) -> None:
    folder = mine.home / "build"
    folder.mkdir()
    (folder / "Dockerfile").write_text(
        "FROM busybox\nRUN mkdir /d && echo low > /d/low && echo gone > /gone\n"
        "RUN rm /gone && rm -r /d && mkdir /d && echo high > /d/high\nUSER 1000\n"
    )
    subprocess.run(["chown", "-R", str(UID), str(folder)], check=True)
    mine.fleet("build", "-t", "layered", str(folder))
    assert (
        mine.fleet("run", "--rm", "layered", "sh", "-c", "ls /d; id -u; ls /gone || echo none").stdout
        == "high\n1000\nnone\n"
    )


@needs_way_out
def test_the_outside_is_reached_and_loopback_of_the_host_is_not(mine: UsersFleet, outside: str) -> None:
    assert "<html" in mine.fleet("run", "--rm", "busybox", "wget", "-q", "-O", "-", outside).stdout
    with socket.create_server(("127.0.0.1", 0)) as server:
        there = f"http://10.0.2.2:{server.getsockname()[1]}/"
        mine.fleet("run", "--rm", "busybox", "timeout", "5", "wget", "-q", "-O", "-", there, check=False)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody came
            server.accept()


def test_a_published_port_answers_on_the_hosts_addresses(
    mine: UsersFleet, outside: str, wait_until: Callable[..., None]
) -> None:
    serve = "echo here > /index.html && exec httpd -f -p 80 -h /"
    mine.fleet("run", "-d", "--name", "web", "-p", f"{PORT}:80", "busybox", "sh", "-c", serve)
    wait_until(lambda: page() == "here\n", 30, what="the page at 127.0.0.1")
    assert page(OUTSIDE) == "here\n"


def test_ports_that_cannot_be_had_are_refused_with_the_reason(mine: UsersFleet) -> None:
    low = mine.fleet("run", "--rm", "-p", "80:80", "busybox", "true", check=False)
    assert low.returncode != 0 and "ip_unprivileged_port_start=80" in low.stderr
    taken = mine.fleet("run", "--rm", "-p", f"{PORT}:80", "busybox", "true", check=False)
    assert taken.returncode != 0 and "already allocated" in taken.stderr
    assert page() == "here\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("run", "--rm", "--pid", "host", "busybox", "true"), "without root"),
        (("swarm", "init"), "without root"),
        (("swarm", "join", "--token", "SWMTKN-1-a-b", "192.0.2.1"), "without root"),
        (("pause", "web"), "without root"),
        (
            ("run", "--rm", "--sysctl", "kernel.pid_max=4000000", "busybox", "true"),
            "is not allowed",
        ),
    ],
)
def test_what_needs_root_is_refused_with_the_reason(mine: UsersFleet, arguments: tuple[str, ...], words: str) -> None:
    done = mine.fleet(*arguments, check=False)
    assert done.returncode != 0
    assert words in done.stderr


def test_limits_are_discarded_with_a_warning(mine: UsersFleet) -> None:
    done = mine.fleet("run", "--rm", "--memory", "64m", "--cpus", "0.5", "busybox", "true")
    assert "Limitation discarded: memory" in done.stderr
    assert "Limitation discarded: CPU" in done.stderr


def test_a_second_daemon_is_refused_and_does_no_harm(mine: UsersFleet) -> None:
    second = UsersFleet(mine.home)
    second.log = mine.home / "second.log"
    with pytest.raises(AssertionError, match="another fleetd uses"):
        second.start()
    assert page() == "here\n"
    assert mine.fleet("exec", "web", "true").returncode == 0


def test_containers_and_ports_outlive_a_killed_daemon(mine: UsersFleet) -> None:
    mine.kill()
    assert page() == "here\n"
    mine.start()
    assert page() == "here\n"
    assert mine.fleet("exec", "web", "cat", "/index.html").stdout == "here\n"
    assert set(mine.fleet("ps", "--format", "{{.Names}}").stdout.split()) == {"web", "talker"}


def test_containers_outlive_a_daemon_that_was_stopped(mine: UsersFleet) -> None:
    assert "containers go on" in mine.stop()
    assert page() == "here\n"
    mine.start()
    mine.fleet("stop", "-t", "1", "web")
    assert page() == ""


def test_nothing_is_left_when_nothing_ran_at_the_end(mine: UsersFleet, wait_until: Callable[..., None]) -> None:
    mine.fleet("rm", "-f", "talker")
    mine.fleet("system", "prune", "-f", "--volumes")
    assert mine.fleet("ps", "-aq").stdout == ""
    assert "namespaces ended" in mine.stop()
    wait_until(lambda: mine.processes() == [], 30, what="no process of the user")
    assert {path.name for path in (mine.run_dir / "fleet/rootless").iterdir()} == {"lock", "rootless.log"}
    mine.start()  # and again from there
    assert mine.fleet("run", "--rm", "busybox", "echo", "again").stdout == "again\n"


def test_without_its_programs_there_is_one_id_and_no_network_and_it_says_so(home: Path, image: Path) -> None:
    bare = UsersFleet(home, name="bare", path="/nonexistent")
    bare.start()
    try:
        warnings = "\n".join(json.loads(bare.fleet("info", "--format", "json").stdout)["Warnings"])
        assert "newuidmap" in warnings
        assert "slirp4netns" in warnings
        bare.fleet("image", "import", str(image), "busybox")
        assert bare.fleet("run", "--rm", "busybox", "cat", "/proc/self/uid_map").stdout.split() == ["0", str(UID), "1"]
        assert bare.fleet("run", "--rm", "-u", "1000", "busybox", "true", check=False).returncode != 0
        pulled = bare.fleet("pull", "registry.example.com/some/thing", check=False)
        assert "no network beyond this host" in pulled.stderr + pulled.stdout
    finally:
        bare.clear()


@pytest.mark.skipif(
    not shutil.which("pasta") or not Path("/dev/net/tun").exists(), reason="not run: needs pasta (package passt)"
)
def test_pasta_is_a_way_out_where_slirp4netns_is_missing(home: Path, image: Path) -> None:
    programs = home / "programs"
    programs.mkdir()
    for name in ("pasta", "newuidmap", "newgidmap"):
        (programs / name).symlink_to(shutil.which(name) or "")
    home.chmod(0o755)
    commands = (
        ("ip", "link", "add", "outside1", "type", "bridge"),
        ("ip", "addr", "add", f"{OUTSIDE}/24", "dev", "outside1"),
        ("ip", "link", "set", "outside1", "up"),
        ("ip", "route", "add", "default", "via", "192.0.2.1"),  # pasta copies what the default route goes through
        ("ip", "addr", "add", "198.51.100.7/32", "dev", "lo"),
    )
    for command in commands:
        subprocess.run(command, check=True)
    server = http.server.ThreadingHTTPServer(("198.51.100.7", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    other = UsersFleet(home, name="pasta", path=str(programs))
    other.start()
    try:
        other.fleet("image", "import", str(image), "busybox")
        there = f"http://198.51.100.7:{server.server_port}/"
        assert "<html" in other.fleet("run", "--rm", "busybox", "wget", "-q", "-O", "-", there).stdout
    finally:
        other.clear()
        server.shutdown()
        server.server_close()
        subprocess.run(["ip", "link", "del", "outside1"], check=True)
        subprocess.run(["ip", "addr", "del", "198.51.100.7/32", "dev", "lo"], check=True)
