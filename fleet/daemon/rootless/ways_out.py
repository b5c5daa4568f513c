"""Programs that give a network namespace a way out without root: slirp4netns, else pasta. They translate what comes out of it
into ordinary connections of the user.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Final, Protocol

__all__ = ["Network", "choose_network"]

_READY_TIMEOUT_S: Final = 15.0
_DEVICE: Final = "tap0"
_MTU: Final = 65520
"""Bytes. The path is memory within this host, where large packets cost least; what both programs recommend."""


class Network(Protocol):
    """One of the programs."""

    name: str

    def resolv_conf(self) -> str:
        """For the namespaces: the name server that the program answers as, with the host's search list."""
        ...

    def start(self, pid: int) -> tuple[subprocess.Popen[bytes] | None, str]:
        """Connect the network namespace of ``pid``; its process, and why it is not connected ("" when it is). Blocks."""
        ...


def choose_network(folder: Path) -> tuple[Network | None, str]:
    """What is installed and could work, else why there is nothing."""
    found = next((made for made in (_Slirp(folder), _Pasta(folder)) if shutil.which(made.name)), None)
    if found is None:
        return None, "neither slirp4netns nor pasta is installed; install the package slirp4netns or passt"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return None, (
            f"{found.name} needs /dev/net/tun, which you may not open; root can change that: chmod 0666 /dev/net/tun "
            "(with modprobe tun, if it is missing)"
        )
    return found, ""


def _search_list() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace").splitlines()
        return "".join(f"{line}\n" for line in lines if line.split()[:1] in (["search"], ["options"]))
    return ""


class _Slirp:
    name = "slirp4netns"

    def __init__(self, folder: Path) -> None:
        self._log = folder / "rootless.log"

    def resolv_conf(self) -> str:
        return f"nameserver 10.0.2.3\n{_search_list()}"

    def start(self, pid: int) -> tuple[subprocess.Popen[bytes] | None, str]:
        ready, tell = os.pipe()
        command = [self.name, "--configure", f"--mtu={_MTU}", "--disable-host-loopback", "--enable-sandbox"]
        command += ["--enable-seccomp", f"--ready-fd={tell}", str(pid), _DEVICE]
        try:
            with self._log.open("ab") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(tell,), start_new_session=True
                )
        finally:
            os.close(tell)
        try:
            waiting = select.poll()
            waiting.register(ready, select.POLLIN)
            if waiting.poll(_READY_TIMEOUT_S * 1000) and os.read(ready, 1) == b"1":
                return process, ""
        finally:
            os.close(ready)
        return _failed(process, self.name, self._log)


class _Pasta:
    name = "pasta"
    _RESOLVER: Final = "169.254.1.1"

    def __init__(self, folder: Path) -> None:
        self._log = folder / "rootless.log"

    def resolv_conf(self) -> str:
        return f"nameserver {self._RESOLVER}\n{_search_list()}"

    def start(self, pid: int) -> tuple[subprocess.Popen[bytes] | None, str]:
        # No ports of either side are opened to the other; by default it would offer the host's loopback inside.
        command = [self.name, "--config-net", "--foreground", "--quiet", "--no-map-gw", "-4", "-I", _DEVICE]
        command += ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--dns-forward", self._RESOLVER, str(pid)]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError):
                if f"{_DEVICE}\t" in Path(f"/proc/{pid}/net/route").read_text():  # it says nothing when it is ready
                    return process, ""
            time.sleep(0.02)
        return _failed(process, self.name, self._log)


def _failed(process: subprocess.Popen[bytes], name: str, log: Path) -> tuple[None, str]:
    if process.poll() is None:
        process.kill()
    process.wait()
    said = log.read_text(errors="replace").strip().splitlines()[-1:] or [f"exit status {process.returncode}"]
    return None, f"{name} does not work here: {said[0]} (more in {log})"
