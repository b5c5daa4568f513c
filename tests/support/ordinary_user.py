"""An ordinary user of this host, for tests: known only inside this run's mount namespace, so nothing stays in /etc.

``fleetd`` and ``fleet`` are run as that user with setpriv, by an interpreter that the user may execute.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fleet.lab.hostinit import mount
from fleet.node_runtime import syscalls

UID = 50_000 + os.getpid() % 10_000
"""Another one in each process of a run, and most likely in another run: what is this user's is ended at the end."""
COUNT = 65536
SUBORDINATE = 2_000_000_000 + os.getpid() % 1000 * COUNT
REPOSITORY = Path(__file__).parents[2]
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"


def why_impossible() -> str:
    """Why this host lets no ordinary user run fleetd; "" when it does."""
    for name, forbidding in (
        ("kernel/unprivileged_userns_clone", "0"),
        ("user/max_user_namespaces", "0"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1"),
    ):
        path = Path("/proc/sys") / name
        if path.exists() and path.read_text().strip() == forbidding:
            return f"{name.replace('/', '.')} is {forbidding}: no user namespaces for ordinary users"
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            return f"needs {program} (package uidmap; scripts/setup installs it)"
    if not interpreter():
        return "no python3 with fleet's dependencies that an ordinary user may execute"
    return ""


def interpreter() -> str:
    """This one's path, or the distribution's of the same version where this one lies in a closed folder; "" without."""
    again = "import os, sys; os.execv(sys.executable, [sys.executable, '-c', ''])"  # setpriv itself starts it with root's rights
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        if subprocess.run([*_as_user(), candidate, "-c", again], capture_output=True, check=False).returncode == 0:
            return candidate
    return ""


def _as_user() -> list[str]:
    return [shutil.which("setpriv") or "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]


@contextlib.contextmanager
def ordinary_user() -> Iterator[Path]:
    """The user exists while this is open; yields its home, which is removed at the end."""
    home = Path(tempfile.mkdtemp(prefix="fleet-user-", dir="/tmp"))
    lines = {
        "passwd": f"fleettest:x:{UID}:{UID}::{home}:/bin/sh\n",
        "group": f"fleettest:x:{UID}:\n",
        "subuid": f"fleettest:{SUBORDINATE}:{COUNT}\n",
        "subgid": f"fleettest:{SUBORDINATE}:{COUNT}\n",
    }
    bound: list[Path] = []
    aside = Path(tempfile.mkdtemp(prefix="fleet-etc-", dir="/tmp"))
    aside.chmod(0o755)
    try:
        for name, line in lines.items():
            original = Path("/etc") / name
            (aside / name).write_text((original.read_text() if original.exists() else "") + line)
            if original.exists():
                mount(str(aside / name), str(original), "", syscalls.MS_BIND)
                bound.append(original)
        if Path("/dev/net/tun").exists():  # as udev has it; here it may be root's alone
            os.mknod(aside / "tun", 0o020666, os.stat("/dev/net/tun").st_rdev)
            (aside / "tun").chmod(0o666)
            mount(str(aside / "tun"), "/dev/net/tun", "", syscalls.MS_BIND)
            bound.append(Path("/dev/net/tun"))
        for folder in (home, home / "run"):
            folder.mkdir(exist_ok=True)
            os.chown(folder, UID, UID)
            folder.chmod(0o700)
        yield home
    finally:
        for path in reversed(bound):
            syscalls.umount2(str(path), syscalls.MNT_DETACH)
        for folder in (aside, home):
            subprocess.run(["rm", "-rf", "--one-file-system", str(folder)], check=False)


class UsersFleet:
    """fleetd of the user, and the command. ``name``: a part of the home, so that one user can have several. ``group``: the
    folder of the control group that fleetd is started in; otherwise in this process's."""

    def __init__(self, home: Path, *, name: str = "", path: str = _PATH, group: Path | None = None) -> None:
        self.home = home / name if name else home
        self.run_dir = self.home / "run"
        self.log = self.home / "fleetd.log"
        for folder in (self.home, self.run_dir):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                os.chown(folder, UID, UID)
        self._python = interpreter()
        self._enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)] if group else []
        self._environment = {
            "HOME": str(self.home),
            "PATH": path,
            "XDG_RUNTIME_DIR": str(self.run_dir),
            "PYTHONPATH": ":".join([str(REPOSITORY), *site.getsitepackages()]),
            "TERM": "xterm",
            **{key: value for key, value in os.environ.items() if key.startswith("FLEET_TEST_RUN")},
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Until it is ready. Fails with its log."""
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*self._enter, *_as_user(), self._python, "-P", "-m", "fleet.daemon.main"],
                env=self._environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 180
        while b" ready " not in self.log.read_bytes():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL to fleetd alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> str:
        """SIGTERM; what it said."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait(120)
        return self.log.read_text()

    def clear(self) -> None:
        """Remove all containers and stop; whatever of the user lives after that is killed."""
        assert self._process is not None
        if self._process.poll() is None:
            if ids := self.fleet("ps", "-aq", check=False).stdout.split():
                self.fleet("rm", "-f", *ids, check=False)
            self.stop()
        for text in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(text.split()[0]), signal.SIGKILL)

    def fleet(self, *arguments: str, check: bool = True, terminal: bool = False) -> subprocess.CompletedProcess[str]:
        """Run the command as the user; ``terminal``: with one (util-linux's script)."""
        command = [self._python, "-P", "-m", "fleet.cli.main", *arguments]
        if terminal:
            command = ["script", "-qec", subprocess.list2cmdline(command), "/dev/null"]
        done = subprocess.run(
            [*_as_user(), *command],
            env=self._environment, cwd=self.home, capture_output=True, text=True, timeout=180, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        said = f"{arguments}: {done.returncode}: {done.stdout}{done.stderr}\n{self.log.read_text()}"
        assert done.returncode == 0 or not check, said
        return done

    def processes(self) -> list[str]:
        """Living processes of the user and of its subordinate ids: pid and command."""
        owned: Sequence[range] = (range(UID, UID + 1), range(SUBORDINATE, SUBORDINATE + COUNT))
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                status = (entry / "status").read_text()
                uid = int(status.split("Uid:", 1)[1].split()[0])
                if any(uid in ids for ids in owned) and "State:\tZ" not in status:
                    found.append(f"{entry.name} {(entry / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()}")
        return found
