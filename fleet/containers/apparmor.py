"""Which AppArmor profile the containers of this host run under, and fleet's own profile in the kernel.

Asked for by name, declined (``unconfined``; privileges decline too), or left to the host: then it is `DEFAULT_PROFILE`, where
the kernel has AppArmor and the profile could be loaded. Where it could not, containers start without one and `warning` says why:
what a host lacks is told, and is no reason to run nothing.

The text that was loaded last lies in ``<directory>/fleet-default``, root's alone. The kernel forgets profiles at boot, and
whoever stops the host's AppArmor service takes them away; so whether it is there is asked again at each start of a container.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fleet.containers.config import ContainerConfig
from fleet.errors import RuntimeFault, UnsupportedError
from fleet.logs import get_logger
from fleet.node_runtime.apparmor import is_enabled
from fleet.node_runtime.apparmor_profile import ABI, DEFAULT_PROFILE, profile_text

__all__ = ["UNCONFINED", "AppArmor"]

UNCONFINED: Final = "unconfined"
_LOAD_TIMEOUT_S: Final = 120.0  # a fraction of a second on a machine of today
_SAID_MAX: Final = 300

log = get_logger("fleet.containers.apparmor")


def _find_parser() -> str | None:
    """Also where a user's own path may not lead."""
    return shutil.which("apparmor_parser") or shutil.which("apparmor_parser", path="/usr/sbin:/sbin")


class AppArmor:
    """The host's choice. Lives on one event loop. Off until ``enable``."""

    def __init__(
        self,
        directory: Path,
        *,
        root: Path = Path("/"),
        find_parser: Callable[[], str | None] = _find_parser,
    ) -> None:
        """``root`` stands for ``/`` in everything that is looked up of the host."""
        self._directory = directory
        self._root = root
        self._find_parser = find_parser
        self._loading = asyncio.Lock()
        self.is_on = False
        """Whether containers can be run under profiles."""
        self.by_default = False
        """Whether a container that does not say runs under fleet's own."""
        self.why_not = ""
        """Why not, or why only under one that an earlier fleetd loaded; empty where there is nothing to do about it."""

    async def enable(self) -> None:
        """From now on, if the kernel has it. Never raises for what the host lacks."""
        self.is_on = await asyncio.to_thread(is_enabled, str(self._root))
        if self.is_on:
            await self._ensure_loaded()

    def warning(self) -> str:
        """What a person should know and can mend; empty when there is nothing."""
        if not self.why_not:
            return ""
        if self.by_default:
            return (
                f"containers run under an older AppArmor profile {DEFAULT_PROFILE} than this fleetd has: {self.why_not}"
            )
        return f"containers run without an AppArmor profile: {self.why_not}"

    def check(self, config: ContainerConfig) -> None:
        """Raises ``UnsupportedError`` when it names a profile and this host cannot apply any."""
        if config.apparmor not in ("", UNCONFINED) and not self.is_on:
            raise UnsupportedError(
                f"AppArmor profile '{config.apparmor}': fleetd applies none on this host, for its kernel has no AppArmor or has "
                "it switched off, or fleetd runs without root; leave the option out, or use unconfined"
            )

    async def choose(self, config: ContainerConfig) -> str:
        """What a container to be started runs under; empty when nothing is to be asked of the kernel. As in Docker, a name counts
        for a privileged container too. Raises as ``check``.
        """
        self.check(config)
        if not self.is_on:
            return ""
        if config.apparmor:
            return config.apparmor
        if config.privileged:
            return UNCONFINED
        await self._ensure_loaded()
        return DEFAULT_PROFILE if self.by_default else ""

    async def _ensure_loaded(self) -> None:
        async with self._loading:
            before = self.warning()
            try:
                await self._load()
                self.why_not = ""
            except (RuntimeFault, OSError) as cause:
                self.why_not = str(cause)
            self.by_default = await asyncio.to_thread(self._is_loaded)
        warning = self.warning()
        if warning and warning != before:
            log.warning("AppArmor profile not loaded", profile=DEFAULT_PROFILE, cause=warning)

    async def _load(self) -> None:
        """Load fleet's own, if it is not there or not of this text. Raises ``RuntimeFault``, ``OSError``."""
        if not await asyncio.to_thread(self._profiles.exists):
            raise RuntimeFault(f"{self._profiles} is not there: mount -t securityfs securityfs /sys/kernel/security")
        text = await asyncio.to_thread(self._text)
        if await asyncio.to_thread(self._is_up_to_date, text):
            return
        parser = self._find_parser()
        if parser is None:
            raise RuntimeFault("apparmor_parser is not installed (package apparmor)")
        new = await asyncio.to_thread(self._write_new, text)
        await _run(parser, "--replace", "--skip-cache", str(new))
        await asyncio.to_thread(new.replace, self._file)
        log.info("AppArmor profile loaded", profile=DEFAULT_PROFILE)

    @property
    def _file(self) -> Path:
        return self._directory / DEFAULT_PROFILE

    @property
    def _profiles(self) -> Path:
        return self._root / "sys/kernel/security/apparmor/profiles"

    def _text(self) -> str:
        own = _read(self._root / "proc/self/attr/apparmor/current") or _read(self._root / "proc/self/attr/current")
        label = own.rpartition(" (")[0] or own or UNCONFINED
        return profile_text(daemon=label, has_abi=(self._root / "etc/apparmor.d" / ABI).exists())

    def _is_up_to_date(self, text: str) -> bool:
        return _read(self._file) == text.strip() and self._is_loaded()

    def _is_loaded(self) -> bool:
        return any(line.rpartition(" (")[0] == DEFAULT_PROFILE for line in _read(self._profiles).splitlines())

    def _write_new(self, text: str) -> Path:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._file.with_suffix(".new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600, exist_ok=False)
        new.write_text(text)
        return new


async def _run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C"},
    )
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT_S):
            _, errors = await process.communicate()
    except TimeoutError:
        raise RuntimeFault(f"{command[0]} did not end within {_LOAD_TIMEOUT_S:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        said = " ".join(errors.decode("utf-8", "replace").split())[:_SAID_MAX]
        raise RuntimeFault(f"{command[0]} failed with exit code {process.returncode}: {said or 'it did not say why'}")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""
