"""Containers of the command line: what is kept of each, and each operation of the runtime specification.

One directory a container below the root directory, ``<id>/``: ``state.json`` (written whole, by rename) and ``start``, a
fifo that the waiting first process reads; it is removed by ``start``, so its presence is *created*. Operations on one
container take a lock on its directory. What is true is asked of the kernel each time: the process by pid and start time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import time
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM
from _socket import socket as Socket  # noqa: N812 - as in `fleet.node_runtime.process`

from fleet.errors import ConflictError, NotFoundError, RejectedFault, UserError
from fleet.node_runtime import process as process_
from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.cgroup_layout import detect_layout
from fleet.node_runtime.cgroups import CgroupTree
from fleet.node_runtime.oci.bundle import NAMESPACES, Bundle, OciProcess
from fleet.node_runtime.oci.hooks import run_hooks, try_hooks
from fleet.node_runtime.oci.init import MADE, MAPPED, READY, Entry, become_first, become_joined
from fleet.node_runtime.oci.mounts import BundleFileSystem
from fleet.node_runtime.oci.reading import Reader
from fleet.node_runtime.oci.resources import parse_resources
from fleet.node_runtime.state import start_ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from fleet.node_runtime.oci.resources import GroupFile

__all__ = ["CommandFault", "Containers"]

_ID = re.compile(r"[A-Za-z0-9_+.-]{1,255}")
_DEFAULT_PARENT = "/fleet-oci"
_GONE_S = 10.0
_CLONED = sum(flag for kind, flag in NAMESPACES.items() if kind != "cgroup")  # that one is made from inside the group
_NAMES = {"mount": "mnt", "network": "net"}


class CommandFault(RejectedFault):
    """The program cannot be executed; ``code`` is the exit status a shell would give: 126 or 127."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Containers:
    """All containers below one root directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._layout = detect_layout()

    # --- making -------------------------------------------------------------------------------------------------

    def create(
        self,
        container_id: str,
        bundle: Bundle,
        *,
        pid_file: str = "",
        console: str = "",
        kept: int = 0,
        keyring: bool = True,
    ) -> int:
        """Everything up to the program itself; the pid of the process that waits. Raises a `FleetError`; then nothing remains."""
        directory = self._path(container_id)
        if bundle.process.terminal != bool(console):
            need = (
                "needs --console-socket" if bundle.process.terminal else "was not asked for, but a console socket given"
            )
            raise UserError(f"process.terminal: a terminal {need}")
        program = _seccomp(bundle.seccomp, bundle.process)
        os.makedirs(self._directory, mode=0o711, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            raise ConflictError(f"container {container_id} exists already") from None
        cgroup = "/" + os.path.normpath(bundle.cgroups_path or f"{_DEFAULT_PARENT}/{container_id}").strip("/")
        state: dict[str, Any] = {
            "ociVersion": bundle.version,
            "id": container_id,
            "pid": 0,
            "ticks": 0,
            "bundle": bundle.directory,
            "rootfs": bundle.root,
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "annotations": bundle.annotations,
            "cgroup": cgroup,
            "above": "",
            "owns_pids": bundle.namespaces.get("pid", "none") == "",
            "owns_users": bundle.id_maps is not None,
            "owns_mounts": bundle.owns_mounts,
            "seccomp": bundle.seccomp,
            "poststart": bundle.hooks["poststart"],
            "poststop": bundle.hooks["poststop"],
        }
        made_cgroup = False
        try:
            with _locked(directory) as lock:
                tree, leaf = self._tree(cgroup)
                state["above"] = self._first_missing(cgroup) if bundle.cgroups_path else _DEFAULT_PARENT
                if tree.pids(leaf):
                    raise ConflictError(f"control group {cgroup} is in use by other processes")
                made_cgroup = True
                tree.prepare()
                self._limit(tree, leaf, bundle)
                _write_state(directory, state)
                entry = Entry(tree.open_entrances(leaf), program)
                entry.kept, entry.keyring = kept, keyring
                entry.console = _connect(console) if console else -1
                self._launch(directory, state, bundle, entry, lock=lock)
                if pid_file:
                    _write_whole(pid_file, str(state["pid"]).encode(), mode=0o644)
        except BaseException:
            self._discard(directory, state, kill=made_cgroup)
            raise
        return int(state["pid"])

    def _limit(self, tree: CgroupTree, leaf: str, bundle: Bundle) -> None:
        try:
            tree.create(leaf, limits=bundle.limits, devices=bundle.device_rules)
            self._write_files(f"{tree.parent.rstrip('/')}/{leaf}", bundle.files)
        except OSError as error:
            raise RejectedFault(f"linux.resources: {error.strerror} ({error.filename})") from error

    def _write_files(self, cgroup: str, files: list[GroupFile]) -> None:
        for file in files:
            root = self._layout.unified if self._layout.is_v2 else self._layout.v1.get(file.controller, "")
            name = file.v2 if self._layout.is_v2 else file.v1
            if not (root and name):
                version = 2 if self._layout.is_v2 else 1
                raise UserError(
                    f"{file.place}: control groups of version {version}, which this host has, have no such limit"
                )
            _put(f"{root}{cgroup}/{name}", file.value)

    def _launch(self, directory: str, state: dict[str, Any], bundle: Bundle, entry: Entry, *, lock: int) -> None:
        os.mkfifo(f"{directory}/start", 0o600)
        started = os.open(f"{directory}/start", os.O_RDWR | os.O_CLOEXEC)
        for kind, path in bundle.namespaces.items():
            if path and kind == "pid":
                entry.pids = _open_namespace(kind, path)
            elif path and kind == "mount":
                entry.mounts = _open_namespace(kind, path)
            elif path:
                entry.joins.append((_open_namespace(kind, path), NAMESPACES[kind]))
        files = BundleFileSystem(bundle, layout=self._layout, cgroup=state["cgroup"])
        for mount in bundle.mounts:
            if mount.maps_ids:
                maps = mount.id_maps if any(mount.id_maps) else bundle.id_maps
                files.users[mount.target] = _new_users(maps or ("", ""))
        if bundle.id_maps is not None:
            try:
                files.take_from_host()
            except OSError as error:
                raise RejectedFault(f"{files.at}: {error.strerror}") from error
        process_.remember_permitted()
        sys_.prctl(sys_.PR_SET_DUMPABLE, 0)
        if entry.pids >= 0:
            sys_.setns(entry.pids, sys_.CLONE_NEWPID)
        # Root of a new user namespace may not enter those of others: it is born there.
        with _standing_in(entry.joins if bundle.id_maps is not None else []):
            pid, _ = sys_.clone3(bundle.new_namespaces() & _CLONED)
        if not pid:
            try:
                os.close(lock)
                entry.answers.close()
                become_first(bundle, files, entry, started=started)
            finally:  # whatever happens, the child must not return
                os._exit(70)
        entry.report.close()
        os.close(started)
        try:
            state["pid"], state["ticks"] = pid, start_ticks(pid)
            _write_state(directory, state)
            if bundle.id_maps is not None:
                _map_ids(pid, bundle.id_maps)
                if bundle.process.oom_score_adj is not None:
                    score = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
                    process_.set_oom_score(score, bundle.process.oom_score_adj)
                entry.answers.send(MAPPED)
            _expect(entry.answers, READY)
            # Prestart hooks are specified as part of start, though always run before.
            run_hooks(bundle.hooks["prestart"], _told(state, "created"), name="prestart")
            run_hooks(bundle.hooks["createRuntime"], _told(state, "creating"), name="createRuntime")
            entry.answers.send(_told(state, "creating"))
            _expect(entry.answers, MADE)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise
        finally:
            entry.answers.close()

    def _discard(self, directory: str, state: dict[str, Any], *, kill: bool) -> None:
        if kill:
            with contextlib.suppress(RejectedFault, OSError):
                self._remove_cgroup(state)
        _remove_directory(directory)

    # --- the specification's operations ---------------------------------------------------------------------------

    def start(self, container_id: str) -> None:
        """Let the program begin. Raises `ConflictError` unless the container is *created*."""
        directory = self._existing(container_id)
        with _locked(directory):
            state = _read_state(directory)
            status = self._status(directory, state)
            if status != "created":
                raise ConflictError(f"container {container_id} cannot be started: it is {status}")
            try:
                fd = os.open(f"{directory}/start", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError as error:
                raise ConflictError(f"container {container_id}: its process has ended before it was started") from error
            os.unlink(f"{directory}/start")
            os.write(fd, b"s")
        if state["poststart"]:
            self._await_exec(state, fd)
        os.close(fd)
        try_hooks(state["poststart"], _told(state, "running"), name="poststart")

    def _await_exec(self, state: dict[str, Any], fd: int) -> None:
        """Until the program is executed, or its process has ended: either closes the reader of the fifo."""
        tree, leaf = self._tree(state["cgroup"])
        poll = select.poll()
        poll.register(fd, 0)
        while not poll.poll(1000) and not tree.is_frozen(leaf):
            pass

    def state(self, container_id: str) -> dict[str, Any]:
        """As the specification prints it, and ``rootfs`` and ``created`` as runc does."""
        directory = self._existing(container_id)
        state = _read_state(directory)
        status = self._status(directory, state)
        shown = {
            "ociVersion": state["ociVersion"],
            "id": state["id"],
            "status": status,
            "pid": 0 if status == "stopped" else state["pid"],
            "bundle": state["bundle"],
            "rootfs": state["rootfs"],
            "created": state["created"],
        }
        if state["annotations"]:
            shown["annotations"] = state["annotations"]
        return shown

    def kill(self, container_id: str, number: int, *, everything: bool = False) -> None:
        """Send a signal to the first process, or to all. Raises `ConflictError` when the container does not run."""
        directory = self._existing(container_id)
        with _locked(directory):
            state = _read_state(directory)
            status = self._status(directory, state)
            if status == "stopped":
                if everything and self._leftovers(state):
                    self._signal_all(state, number)
                    return
                raise ConflictError(f"container {container_id} is not running")
            if everything or (number == signal.SIGKILL and not state["owns_pids"]):
                self._signal_all(state, number)
            else:
                _signal(state, number)
            if number == signal.SIGKILL and status == "paused":
                tree, leaf = self._tree(state["cgroup"])
                tree.thaw(leaf)

    def delete(self, container_id: str, *, force: bool = False) -> None:
        """Remove what ``create`` made. Raises `ConflictError` unless it is stopped; ``force`` kills first."""
        try:
            directory = self._existing(container_id)
        except NotFoundError:
            if force:
                return
            raise
        with _locked(directory):
            state = _read_state(directory)
            status = self._status(directory, state)
            if status != "stopped":
                if not force:
                    raise ConflictError(
                        f"container {container_id} is {status}, not stopped; kill it first, or use --force"
                    )
                if status == "paused":
                    tree, leaf = self._tree(state["cgroup"])
                    tree.thaw(leaf)
                _signal(state, signal.SIGKILL)
                _await_end(state)
            self._remove_cgroup(state)
            _remove_directory(directory)
        try_hooks(state["poststop"], _told(state, "stopped"), name="poststop")

    # --- beyond the specification, as runc and crun have them -------------------------------------------------------

    def exec(
        self, container_id: str, process: OciProcess, *, pid_file: str = "", console: str = "", kept: int = 0
    ) -> int:
        """Start a further process; its pid. It is a child of this one."""
        directory = self._existing(container_id)
        state = _read_state(directory)
        status = self._status(directory, state)
        if status != "running":
            raise ConflictError(f"container {container_id} is {status}: nothing can be executed in it")
        if process.terminal != bool(console):
            raise UserError("a terminal and --console-socket come together")
        program = _seccomp(state["seccomp"], process)
        tree, leaf = self._tree(state["cgroup"])
        entry = Entry(tree.open_entrances(leaf), program)
        entry.kept = kept
        entry.console = _connect(console) if console else -1
        base = f"/proc/{state['pid']}/ns"
        owns_mounts = state.get("owns_mounts", True)  # not in what earlier versions wrote
        kinds = ["cgroup", "uts", "ipc", "network", *(["mount"] if owns_mounts else [])]
        try:
            # The user namespace last: its root may not enter those that are not its own.
            for kind in (*kinds, *(["user"] if state["owns_users"] else [])):
                entry.joins.append((_open_namespace(kind, f"{base}/{_NAMES.get(kind, kind)}"), NAMESPACES[kind]))
            pids = _open_namespace("pid", f"{base}/pid")
        except UserError:
            raise ConflictError(f"container {container_id} has ended") from None
        if not owns_mounts:
            entry.root = os.open(f"/proc/{state['pid']}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if start_ticks(state["pid"]) != state["ticks"]:
            raise ConflictError(f"container {container_id} has ended")
        process_.remember_permitted()
        sys_.prctl(sys_.PR_SET_DUMPABLE, 0)
        sys_.setns(pids, sys_.CLONE_NEWPID)
        pid, _ = sys_.clone3(0)
        if not pid:
            try:
                entry.answers.close()
                become_joined(process, entry)
            finally:
                os._exit(70)
        entry.report.close()
        try:
            _expect(entry.answers, b"")
        except BaseException:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            raise
        finally:
            entry.answers.close()
        if pid_file:
            _write_whole(pid_file, str(pid).encode(), mode=0o644)
        return pid

    def process_for(self, container_id: str) -> Reader:
        """``process`` of the container's bundle: what an exec without a file of its own begins with."""
        from fleet.node_runtime.oci.reading import read_document

        state = _read_state(self._existing(container_id))
        return read_document(f"{state['bundle']}/config.json").object("process")

    def pause(self, container_id: str) -> None:
        """Freeze all processes."""
        self._running_group(container_id, "running", CgroupTree.freeze)

    def resume(self, container_id: str) -> None:
        """Let them go on."""
        self._running_group(container_id, "paused", CgroupTree.thaw)

    def _running_group(self, container_id: str, wanted: str, what: Any) -> None:
        directory = self._existing(container_id)
        with _locked(directory):
            state = _read_state(directory)
            status = self._status(directory, state)
            if status != wanted and not (wanted == "running" and status == "created"):
                raise ConflictError(f"container {container_id} is {status}, not {wanted}")
            tree, leaf = self._tree(state["cgroup"])
            try:
                what(tree, leaf)
            except OSError as error:
                raise RejectedFault(f"container {container_id}: {error.strerror} ({error.filename})") from error

    def update(self, container_id: str, resources: Reader) -> None:
        """Change the limits named; the others stay."""
        directory = self._existing(container_id)
        limits, _, files = parse_resources(resources, warnings=[])
        with _locked(directory):
            state = _read_state(directory)
            status = self._status(directory, state)
            if status == "stopped":
                raise ConflictError(f"container {container_id} is stopped")
            tree, leaf = self._tree(state["cgroup"])
            try:
                tree.apply_limits(leaf, limits, fresh=True)
                self._write_files(f"{tree.parent.rstrip('/')}/{leaf}", files)
            except OSError as error:
                raise RejectedFault(f"container {container_id}: {error.strerror} ({error.filename})") from error

    def pids(self, container_id: str) -> list[int]:
        """Of all its processes."""
        state = _read_state(self._existing(container_id))
        tree, leaf = self._tree(state["cgroup"])
        return tree.pids(leaf)

    def all(self) -> list[dict[str, Any]]:
        """The state of each."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._directory)):
                with contextlib.suppress(NotFoundError, UserError):
                    found.append(self.state(name))
        return found

    # --- inside ------------------------------------------------------------------------------------------------------

    def _path(self, container_id: str) -> str:
        if not _ID.fullmatch(container_id) or container_id in (".", ".."):
            raise UserError(f"container id {container_id!r}: letters, digits, '_', '+', '-', '.', at most 255 of them")
        return f"{self._directory}/{container_id}"

    def _existing(self, container_id: str) -> str:
        directory = self._path(container_id)
        if not os.path.isdir(directory):
            raise NotFoundError(f"container {container_id} does not exist")
        return directory

    def _status(self, directory: str, state: dict[str, Any]) -> str:
        if not state["pid"] or not _is_alive(state):
            return "stopped"
        if os.path.exists(f"{directory}/start"):
            return "created"
        tree, leaf = self._tree(state["cgroup"])
        return "paused" if tree.is_frozen(leaf) else "running"

    def _tree(self, cgroup: str) -> tuple[CgroupTree, str]:
        parent, _, leaf = cgroup.rpartition("/")
        return CgroupTree(self._layout, parent or "/"), leaf

    def _first_missing(self, cgroup: str) -> str:
        """The outermost group above that ``create`` will make, so that ``delete`` removes no other's."""
        root = self._layout.unified if self._layout.is_v2 else next(iter(self._layout.v1.values()), "")
        path = ""
        for part in cgroup.strip("/").split("/")[:-1]:
            path += f"/{part}"
            if not os.path.isdir(root + path):
                return path
        return ""

    def _remove_cgroup(self, state: dict[str, Any]) -> None:
        tree, leaf = self._tree(state["cgroup"])
        deadline = time.monotonic() + _GONE_S
        while True:
            tree.kill(leaf)
            if tree.remove(leaf):
                break
            if time.monotonic() > deadline:
                raise RejectedFault(f"control group {state['cgroup']} cannot be removed: processes in it do not end")
            time.sleep(0.005)
        above, outermost = os.path.dirname(state["cgroup"]), state["above"]
        while outermost and above.startswith(outermost):
            inner, name = self._tree(above)
            if not inner.remove_if_empty(name):
                break
            above = os.path.dirname(above)

    def _leftovers(self, state: dict[str, Any]) -> bool:
        tree, leaf = self._tree(state["cgroup"])
        return bool(tree.pids(leaf))

    def _signal_all(self, state: dict[str, Any], number: int) -> None:
        tree, leaf = self._tree(state["cgroup"])
        if number == signal.SIGKILL:
            tree.kill(leaf)
            return
        for pid in tree.pids(leaf):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _seccomp(profile: str, process: OciProcess) -> bytes:
    if not profile:
        return b""
    from fleet.node_runtime import seccomp, seccomp_profile
    from fleet.node_runtime.capabilities import CAPABILITIES

    held = [name for number, name in enumerate(CAPABILITIES) if process.capabilities["bounding"] >> number & 1]
    return seccomp.assemble(seccomp_profile.parse_profile(profile, held, machine=os.uname().machine))


def _expect(answers: Socket, word: bytes) -> None:
    """The word, or silence for ``b""`` (the program runs). Raises what the process reports."""
    data = answers.recv(8192)
    if data == word:
        return
    if not data:
        raise RejectedFault("the container's first process ended without a word while it was being made")
    kind, code, text = process_.parse_report(data)
    if kind == "command":
        raise CommandFault(text, code)
    if kind == "fault" and code:
        raise RejectedFault(f"{text} ({errno.errorcode.get(code, code)})")
    raise RejectedFault(text)


def _told(state: dict[str, Any], status: str) -> bytes:
    """The state as hooks get it."""
    shown = {key: state[key] for key in ("ociVersion", "id", "pid", "bundle", "annotations")}
    if status == "stopped":
        shown["pid"] = 0
    return json.dumps({**shown, "status": status}).encode()


def _open_namespace(kind: str, path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"linux.namespaces: {kind} at {path}: {error.strerror}") from None
    try:
        found = fcntl.ioctl(fd, 0xB703)  # NS_GET_NSTYPE
    except OSError:
        found = -1
    if found != NAMESPACES[kind]:
        os.close(fd)
        raise UserError(f"linux.namespaces: {path} is not a namespace of type {kind}")
    return fd


@contextlib.contextmanager
def _standing_in(joins: list[tuple[int, int]]) -> Iterator[None]:
    """This process is in those namespaces meanwhile; whoever is cloned stays there."""
    homes = []
    try:
        for fd, flag in joins:
            kind = next(kind for kind, each in NAMESPACES.items() if each == flag)
            homes.append((os.open(f"/proc/self/ns/{_NAMES.get(kind, kind)}", os.O_RDONLY | os.O_CLOEXEC), flag))
            sys_.setns(fd, flag)
        yield
    finally:
        for fd, flag in homes:
            with contextlib.suppress(PermissionError):  # the child
                sys_.setns(fd, flag)
            os.close(fd)


def _map_ids(pid: int, maps: tuple[str, ...]) -> None:
    for name, lines in zip(("uid", "gid"), maps, strict=True):
        try:
            _put(f"/proc/{pid}/{name}_map", lines)
        except OSError as error:
            raise RejectedFault(f"linux.{name}Mappings: {error.strerror}") from error


def _new_users(maps: tuple[str, ...]) -> int:
    """A user namespace with those maps that no process is in: it says how a mount shows its owners."""
    pid, _ = sys_.clone3(sys_.CLONE_NEWUSER)
    if not pid:
        sys_.prctl(sys_.PR_SET_PDEATHSIG, signal.SIGKILL)
        while True:
            signal.pause()
    try:
        _map_ids(pid, maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _connect(path: str) -> int:
    console = Socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        console.connect(path)
    except OSError as error:
        raise UserError(f"--console-socket {path}: {error.strerror}") from None
    return console.detach()


def _is_alive(state: dict[str, Any]) -> bool:
    """Whether the first process is there and no zombie."""
    try:
        with open(f"/proc/{state['pid']}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(fields[19]) == state["ticks"] and fields[0] not in (b"Z", b"X")


def _signal(state: dict[str, Any], number: int) -> None:
    try:
        pidfd = os.pidfd_open(state["pid"])
    except ProcessLookupError:
        return
    if _is_alive(state):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
    os.close(pidfd)


def _await_end(state: dict[str, Any]) -> None:
    try:
        pidfd = os.pidfd_open(state["pid"])
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    ended = not _is_alive(state) or poll.poll(_GONE_S * 1000)
    os.close(pidfd)
    if not ended:
        raise RejectedFault(f"process {state['pid']} does not end")


@contextlib.contextmanager
def _locked(directory: str) -> Iterator[int]:
    """Yields the descriptor that holds the lock: a process cloned meanwhile must close it."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"container {os.path.basename(directory)} does not exist") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _read_state(directory: str) -> dict[str, Any]:
    name = os.path.basename(directory)
    try:
        with open(f"{directory}/state.json", "rb") as file:
            state: dict[str, Any] = json.loads(file.read())
    except FileNotFoundError:  # its creation was cut off, or goes on and holds the lock
        if not os.path.isdir(directory):
            raise NotFoundError(f"container {name} does not exist") from None
        empty: dict[str, Any] = {"annotations": {}, "poststart": [], "poststop": [], "seccomp": ""}
        empty |= {"owns_pids": True, "owns_users": False}
        told = {"ociVersion": "1.0.0", "id": name, "pid": 0, "ticks": 0, "bundle": "", "rootfs": "", "created": ""}
        return {**empty, **told, "cgroup": f"{_DEFAULT_PARENT}/{name}", "above": _DEFAULT_PARENT}
    except ValueError as error:
        raise UserError(f"{directory}/state.json is broken: {error}") from None
    return state


def _write_state(directory: str, state: dict[str, Any]) -> None:
    _write_whole(f"{directory}/state.json", json.dumps(state).encode(), mode=0o600)


def _write_whole(path: str, data: bytes, *, mode: int) -> None:
    temporary = f"{os.path.dirname(path) or '.'}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError as error:
        raise RejectedFault(f"cannot write {path}: {error.strerror}") from error


def _put(path: str, value: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def _remove_directory(directory: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            os.unlink(f"{directory}/{name}")
        os.rmdir(directory)
