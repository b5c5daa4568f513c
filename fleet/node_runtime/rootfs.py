"""A container's file system, built by the container's own first process in its own mount namespace, so that the host
keeps no mount.

Order, and why. Sources of binds are cloned while host paths can still be seen. Then everything becomes private, the
root is mounted and becomes ``/`` at once (pivot_root), and the host is gone: whatever goes wrong below cannot reach
it. From there on every target is opened by openat2 inside the root without magic links, and mounted on through that
descriptor, never through a path, so a name swapped meanwhile by another container sharing a volume changes nothing
(CVE-2021-30465, CVE-2023-27561, CVE-2019-19921). ``/proc``, ``/sys`` and ``/dev`` must be real directories of the
image (CVE-2026-41579). Masks are clones of a null device made here and checked (CVE-2025-31133).

Runs after a raw clone: only system calls, nothing imported.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat

from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.overlay import TooManyLayersError, mount_mapped_overlay, mount_overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "DEVICE_LINKS",
    "DEVICE_NODES",
    "FileSystem",
    "RefusedError",
    "ensure_target",
    "new_mount",
    "new_proc",
    "open_inside",
    "read_inside",
]

_PATH = os.O_PATH | os.O_CLOEXEC
_INSIDE = sys_.RESOLVE_IN_ROOT | sys_.RESOLVE_NO_MAGICLINKS
_NSE = sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_NOEXEC
_NSDE = _NSE | sys_.MOUNT_ATTR_NODEV
_ACCOUNT_FILE_MAX = 4 << 20
DEVICE_NODES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
DEVICE_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
)
_PROPAGATION = {"private": sys_.MS_PRIVATE, "slave": sys_.MS_SLAVE, "shared": sys_.MS_SHARED}


class RefusedError(Exception):
    """The spec or the image asks for something that cannot be; the same again will not help."""


def open_inside(root: int, path: str, flags: int = _PATH) -> int:
    """Open ``path`` as a process whose root is ``root`` would, refusing magic links. Raises OSError."""
    return sys_.openat2(root, path, flags, resolve=_INSIDE)


def ensure_target(root: int, path: str, *, directory: bool, mode: int = 0o755) -> int:
    """O_PATH descriptor of ``path`` inside the root; what is missing is made (directories, then an empty file unless
    ``directory``).

    Raises `RefusedError` when a component is a dangling link or not a directory.
    """
    try:
        return open_inside(root, path)
    except FileNotFoundError:
        pass
    parts = [part for part in path.split("/") if part]
    fd = root
    try:
        for position, part in enumerate(parts):
            prefix = "/" + "/".join(parts[: position + 1])
            try:
                following = open_inside(root, prefix)
            except FileNotFoundError:
                if directory or position < len(parts) - 1:
                    os.mkdir(part, mode, dir_fd=fd)
                    following = sys_.openat2(
                        fd, part, _PATH | os.O_DIRECTORY, resolve=sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_SYMLINKS
                    )
                else:
                    following = os.open(part, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=fd)
            if fd != root:
                os.close(fd)
            fd = following
    except FileExistsError as error:
        raise RefusedError(f"{path}: {part} is a link that leads nowhere inside the container") from error
    except NotADirectoryError as error:
        raise RefusedError(f"{path}: {part} is below something that is not a directory") from error
    return fd


def read_inside(root: int, path: str) -> bytes:
    """A regular file of the image, b'' when there is none. A FIFO, a device or more than 4 MiB is refused, for the
    image is not trusted.
    """
    try:
        fd = open_inside(root, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise RefusedError(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedError(f"{path} in the image is not a regular file")
        data = os.read(fd, _ACCOUNT_FILE_MAX + 1)
    finally:
        os.close(fd)
    if len(data) > _ACCOUNT_FILE_MAX:
        raise RefusedError(f"{path} in the image is larger than {_ACCOUNT_FILE_MAX} bytes")
    return data


def _idmapped(mount: int, users: int, *, recursive: bool) -> bool:
    """Whether the detached mount (and, all or none, those below) is mapped now; a file system that cannot be is left as it is."""
    try:
        sys_.idmap_mount(mount, users, recursive=recursive)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EPERM):
            raise
        return False
    return True


def new_proc() -> int:
    """A procfs of this process's pid namespace, as a detached mount."""
    return new_mount("proc", _NSDE)


def new_mount(kind: str, attributes: int, *options: tuple[str, str | None]) -> int:
    """A new file system as a detached mount; an option without value is a flag. Its source is its kind, unless one is given."""
    fd = sys_.fsopen(kind)
    try:
        if all(key != "source" for key, _ in options):
            sys_.fsconfig_string(fd, "source", kind)  # programs look for "proc" in mountinfo, as mount(8) makes it
        for key, value in options:
            if value is None:
                sys_.fsconfig_flag(fd, key)
            else:
                sys_.fsconfig_string(fd, key, value)
        sys_.fsconfig_create(fd)
        return sys_.fsmount(fd, attributes)
    finally:
        os.close(fd)


class FileSystem:
    """One building of one root; steps are called in the order they stand in."""

    def __init__(self, plan: dict[str, Any], staging: str) -> None:
        self._plan = plan
        self._staging = staging
        self._sources: list[int] = []
        self.at = "prepare mounts"
        """What is being done, for the message when it fails."""
        self.root = -1
        self.proc = -1
        """Our own procfs, not reachable by any path yet when it is used: nothing can be mounted over it
        (CVE-2025-52881).
        """
        self._null = -1
        self._dev = -1
        self._prepared = -1
        """In a user namespace of its own: the root, mounted outside by `prepare_for`."""
        self._devices: list[int] = []
        """Device nodes of the host, to bind where none can be made: `DEVICE_NODES`, then the spec's."""
        self._sys = -1
        self._shm = -1

    def take_sources(self) -> None:
        """Clone every bind's source, as seen from the host."""
        for mount in self._plan["mounts"]:
            if mount["kind"] != "bind":
                self._sources.append(-1)
                continue
            self.at = f"bind {mount['source']}"
            flags = sys_.OPEN_TREE_CLONE | (sys_.AT_RECURSIVE if mount["recursive"] else 0)
            try:
                self._sources.append(sys_.open_tree(sys_.AT_FDCWD, mount["source"], flags))
            except FileNotFoundError as error:
                raise RefusedError(f"bind source path does not exist: {mount['source']}") from error

        if self._plan["rootless"]:
            self._devices = self._clone_devices()
            # The kernel gives a user namespace these only while it sees the host's whole ones (mount_too_revealing).
            self.at = "mount /proc"
            self.proc = new_mount("proc", _NSDE)
            self.at = "mount /sys"
            self._sys = self._new_sys()
        if self._plan["ipc"] == "host":
            self.at = "bind the host's /dev/shm"
            self._shm = sys_.open_tree(sys_.AT_FDCWD, "/dev/shm", sys_.OPEN_TREE_CLONE)  # noqa: S108 - the host's own

    def prepare_for(self, users: int, first_id: int) -> None:
        """Mount what a process in the user namespace ``users`` may not mount itself: procfs, root, sysfs, device nodes, binds.
        Called before it is entered, in the container's network and pid namespace.
        """
        self.at = "mount /proc"
        self.proc = new_proc()
        root = self._plan["root"]
        if root["plain"]:
            self.at = f"bind root {root['plain']}"
            self._prepared = sys_.open_tree(sys_.AT_FDCWD, root["plain"], sys_.OPEN_TREE_CLONE | sys_.AT_RECURSIVE)
            sys_.idmap_mount(self._prepared, users, recursive=True)
        else:
            self.at = f"mount overlay of {len(root['lower'])} layers"
            self._prepared = mount_mapped_overlay(
                root["lower"], upper=root["upper"], work=root["work"], users=users, first_id=first_id
            )
        self.at = "mount /sys"
        self._sys = self._new_sys()
        self._devices = self._clone_devices()
        self.take_sources()
        for mount, source in zip(self._plan["mounts"], self._sources, strict=True):
            if source < 0:
                continue
            self.at = f"bind {mount['source']}"
            if not _idmapped(source, users, recursive=mount["recursive"]) and mount["recursive"]:
                _idmapped(
                    source, users, recursive=False
                )  # something mounted below cannot: that alone has the host's owners
            if mount["set"]:
                sys_.mount_setattr(source, set_=mount["set"], recursive=mount["recursive"])

    def _new_sys(self) -> int:
        return new_mount("sysfs", _NSDE | (sys_.MOUNT_ATTR_RDONLY if self._plan["sys_read_only"] else 0))

    def _clone_devices(self) -> list[int]:
        nodes = []
        for source in (*(f"/dev/{name}" for name, _, _ in DEVICE_NODES), *self._plan["device_sources"]):
            self.at = f"bind device {source}"
            nodes.append(sys_.open_tree(sys_.AT_FDCWD, source, sys_.OPEN_TREE_CLONE))
        return nodes

    def take_shared_memory(self, donor: int) -> None:
        """Clone /dev/shm of the container whose first process ``donor`` (a pidfd) is. A mount can be cloned only inside
        its own mount namespace, so this process goes there and comes back.
        """
        self.at = "share the other container's /dev/shm"
        home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        sys_.setns(donor, sys_.CLONE_NEWNS)
        root = os.open("/", _PATH | os.O_DIRECTORY)
        resolve = sys_.RESOLVE_IN_ROOT | sys_.RESOLVE_NO_MAGICLINKS | sys_.RESOLVE_NO_SYMLINKS
        try:
            found = sys_.openat2(root, "dev/shm", _PATH | os.O_DIRECTORY, resolve=resolve)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RefusedError("the other container has no /dev/shm to share") from error
        if os.fstat(found).st_dev == os.stat("dev", dir_fd=root, follow_symlinks=False).st_dev:
            raise RefusedError("the other container has no /dev/shm to share")
        self._shm = sys_.open_tree(found, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH)
        os.close(found)
        os.close(root)
        sys_.setns(home, sys_.CLONE_NEWNS)
        os.close(home)

    def enter_root(self) -> None:
        """Mount the root and make it ``/``; the host's mounts are gone afterwards."""
        root = self._plan["root"]
        self.at = "make mounts private"
        sys_.mount("", "/", "", sys_.MS_REC | sys_.MS_PRIVATE)
        if self._prepared >= 0:
            sys_.move_mount(self._prepared, os.open(self._staging, _PATH))
        elif root["plain"]:
            self.at = f"bind root {root['plain']}"
            sys_.mount(root["plain"], self._staging, "", sys_.MS_BIND | sys_.MS_REC)
            sys_.mount("", self._staging, "", sys_.MS_REC | sys_.MS_PRIVATE)
        else:
            self.at = f"mount overlay of {len(root['lower'])} layers"
            try:
                mount_overlay(
                    self._staging,
                    root["lower"],
                    upper=root["upper"],
                    work=root["work"],
                    user_marks=self._plan["rootless"],
                )
            except TooManyLayersError as error:
                raise RefusedError(str(error)) from error
        self.at = "pivot into the root"
        os.chdir(self._staging)
        sys_.pivot_root(".", ".")
        sys_.umount2(".", sys_.MNT_DETACH)
        os.chdir("/")
        self.root = os.open("/", _PATH | os.O_DIRECTORY)

    def _own_directory(self, name: str) -> int:
        """``/name`` as a real directory, made if missing; a link is refused."""
        resolve = sys_.RESOLVE_NO_SYMLINKS | sys_.RESOLVE_BENEATH
        flags = _PATH | os.O_DIRECTORY
        try:
            return sys_.openat2(self.root, name, flags, resolve=resolve)
        except FileNotFoundError:
            os.mkdir(name, 0o755, dir_fd=self.root)
            return sys_.openat2(self.root, name, flags, resolve=resolve)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise RefusedError(f"the image's /{name} is not a directory") from error
            raise

    def mount_proc(self) -> None:
        """A procfs of the container's pid namespace."""
        self.at = "mount /proc"
        if self.proc < 0:
            self.proc = new_proc()
        sys_.move_mount(self.proc, self._own_directory("proc"))

    def mount_dev(self) -> None:
        """/dev with the standard nodes and the spec's, pts, shm and mqueue."""
        self.at = "mount /dev"
        dev = self._dev = new_mount(
            "tmpfs", sys_.MOUNT_ATTR_NOSUID | sys_.MOUNT_ATTR_STRICTATIME, ("mode", "755"), ("size", "65536k")
        )
        sys_.move_mount(dev, self._own_directory("dev"))
        for index, (name, major, minor) in enumerate(DEVICE_NODES):
            if self._devices:
                self._bind_device(self._devices[index], dev, name)
                continue
            os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
        for name, destination in DEVICE_LINKS:
            os.symlink(destination, name, dir_fd=dev)
        terminal_group = (("gid", "5"),) if self._plan["terminal_group"] else ()
        for name, kind, options in (
            ("pts", "devpts", (("ptmxmode", "0666"), ("mode", "0620"), *terminal_group)),
            ("shm", "tmpfs", (("mode", "1777"), ("size", str(self._plan["shm_size"])))),
            ("mqueue", "mqueue", ()),
        ):
            if name == "shm" and self._plan["ipc"] == "none":
                continue
            self.at = f"mount /dev/{name}"
            os.mkdir(name, 0o755, dir_fd=dev)
            attributes = _NSE if kind == "devpts" else _NSDE
            mount = self._shm if name == "shm" and self._shm >= 0 else new_mount(kind, attributes, *options)
            target = os.open(name, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=dev)
            sys_.move_mount(mount, target)
            os.close(mount)
            os.close(target)
        for index, (path, kind, major, minor, mode, uid, gid) in enumerate(self._plan["device_nodes"]):
            self.at = f"make device {path}"
            parent, _, name = path.rpartition("/")
            directory = ensure_target(self.root, parent or "/", directory=True)
            if self._devices:
                self._bind_device(self._devices[len(DEVICE_NODES) + index], directory, name)
                os.close(directory)
                continue
            try:
                os.mknod(
                    name,
                    (stat.S_IFBLK if kind == "b" else stat.S_IFCHR) | mode,
                    os.makedev(major, minor),
                    dir_fd=directory,
                )
                os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
            except FileExistsError:
                if parent != "/dev":
                    raise
            os.close(directory)
        self._null = os.open("null", _PATH | os.O_NOFOLLOW, dir_fd=dev)
        if os.fstat(self._null).st_rdev != os.makedev(1, 3):
            raise RefusedError("/dev/null of the container is not the null device")

    def _bind_device(self, node: int, directory: int, name: str) -> None:
        """In a user namespace no device can be made, but the host's be mounted."""
        try:
            target = os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        except FileExistsError as error:
            raise RefusedError(f"device {name}: the container has a file of that name") from error
        sys_.move_mount(node, target)
        os.close(target)

    def open_null(self) -> int:
        """The container's own null device, for standard input."""
        return os.open("null", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._dev)

    def bind_console(self, terminal: int) -> None:
        """The terminal as /dev/console, by descriptor (CVE-2025-52565)."""
        self.at = "bind /dev/console"
        mount = sys_.open_tree(terminal, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH)
        target = os.open("console", os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self._dev)
        sys_.move_mount(mount, target)

    def open_terminal(self) -> tuple[int, int]:
        """(master, terminal) of the container's own devpts; the terminal comes from the master (TIOCGPTPEER), not
        from a path.
        """
        self.at = "open a terminal"
        master = os.open("pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self._dev)
        fcntl.ioctl(master, 0x40045431, b"\0\0\0\0")  # TIOCSPTLCK
        terminal = fcntl.ioctl(master, 0x5441, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)  # TIOCGPTPEER
        return master, terminal

    def mount_sys(self) -> None:
        """sysfs of the container's network namespace, read-only; on cgroup v2 also its own part of the tree,
        read-only.
        """
        self.at = "mount /sys"
        mount = self._sys if self._sys >= 0 else self._new_sys()
        sys_.move_mount(mount, self._own_directory("sys"))
        if self._plan["cgroup2"]:
            target = open_inside(mount, "fs/cgroup")
            read_only = sys_.MOUNT_ATTR_RDONLY if self._plan["sys_read_only"] else 0
            sys_.move_mount(new_mount("cgroup2", _NSDE | read_only), target)

    def mount_all(self) -> None:
        """The spec's mounts, shallow targets first so that none hides another."""
        proc_device = os.fstat(self.proc).st_dev
        order = sorted(range(len(self._sources)), key=lambda index: self._plan["mounts"][index]["target"].count("/"))
        for index in order:
            mount, source = self._plan["mounts"][index], self._sources[index]
            self.at = f"mount {mount['target']}"
            if mount["kind"] == "tmpfs":
                source = new_mount("tmpfs", mount["set"], *((key, value) for key, value in mount["options"]))
                directory = True
            else:
                directory = stat.S_ISDIR(os.fstat(source).st_mode)
                if mount["set"] and self._prepared < 0:
                    sys_.mount_setattr(source, set_=mount["set"], recursive=mount["recursive"])
            target = ensure_target(self.root, mount["target"], directory=directory)
            found = os.fstat(target)
            if found.st_dev == proc_device:
                raise RefusedError(f"mount target {mount['target']} leads into /proc")
            if stat.S_ISDIR(found.st_mode) != directory:
                kinds = ("directory", "file") if directory else ("file", "directory")
                raise RefusedError(
                    f"cannot mount a {kinds[0]} on {mount['target']}, which is a {kinds[1]} in the container"
                )
            sys_.move_mount(source, target)
            name = mount["propagation"]
            sys_.mount_setattr(source, propagation=_PROPAGATION[name.removeprefix("r")], recursive=name.startswith("r"))
            os.close(target)
            os.close(source)

    def write_sysctls(self) -> None:
        """Through our own procfs, where no symlink and no mount can lead elsewhere."""
        resolve = sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_SYMLINKS | sys_.RESOLVE_NO_XDEV
        for name, value in self._plan["sysctls"]:
            if self._prepared >= 0 and name.startswith("net."):
                continue  # written before
            self.at = f"sysctl {name}"
            try:
                fd = sys_.openat2(self.proc, "sys/" + name.replace(".", "/"), os.O_WRONLY, resolve=resolve)
            except FileNotFoundError as error:
                raise RefusedError(f"sysctl {name} does not exist on this kernel") from error
            try:
                os.write(fd, value.encode())
            except OSError as error:
                raise RefusedError(f"sysctl {name}={value}: {error.strerror}") from error
            os.close(fd)

    def restrict_paths(self) -> None:
        """Mask and write-protect the parts of /proc and /sys that speak of the host."""
        empty = -1
        for path in self._plan["masked_paths"]:
            self.at = f"mask {path}"
            try:
                target = open_inside(self.root, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if stat.S_ISDIR(os.fstat(target).st_mode):
                if empty < 0:
                    empty = mount = new_mount(
                        "tmpfs", _NSDE | sys_.MOUNT_ATTR_RDONLY, ("size", "4k"), ("nr_inodes", "2")
                    )
                else:
                    mount = sys_.open_tree(empty, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH)
            else:
                mount = sys_.open_tree(self._null, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH)
            sys_.move_mount(mount, target)
            os.close(target)
            if mount != empty:
                os.close(mount)
        for path in self._plan["read_only_paths"]:
            self.at = f"write-protect {path}"
            try:
                target = open_inside(self.root, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            mount = sys_.open_tree(target, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH | sys_.AT_RECURSIVE)
            sys_.mount_setattr(mount, set_=_NSDE | sys_.MOUNT_ATTR_RDONLY, recursive=True)
            sys_.move_mount(mount, target)
            os.close(target)
            os.close(mount)
        if self._plan["root"]["read_only"]:
            self.at = "make the root read-only"
            fd = os.open("/", _PATH | os.O_DIRECTORY)
            sys_.mount_setattr(fd, set_=sys_.MOUNT_ATTR_RDONLY)
            os.close(fd)
