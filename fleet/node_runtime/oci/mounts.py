"""A bundle's file system: root, mounts in the bundle's order, devices, masks.

The means are those of `fleet.node_runtime.rootfs`: sources are cloned while the host can be seen, the root is entered
first, and each target is opened inside it and mounted on by descriptor. What differs is who decides: here the bundle
says what /proc, /dev and /sys are, or that they are not there.

Runs after a raw clone: only system calls, nothing imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.oci.bundle import PROPAGATION
from fleet.node_runtime.rootfs import (
    DEVICE_LINKS,
    DEVICE_NODES,
    FileSystem,
    RefusedError,
    ensure_target,
    new_mount,
    open_inside,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fleet.node_runtime.cgroup_layout import Layout
    from fleet.node_runtime.oci.bundle import Bundle, OciMount

__all__ = ["BundleFileSystem"]

_PATH = os.O_PATH | os.O_CLOEXEC
_REAL = sys_.RESOLVE_BENEATH | sys_.RESOLVE_NO_SYMLINKS
_PROC_TARGETS = frozenset(
    f"/proc/{name}"
    for name in (
        "cpuinfo",
        "diskstats",
        "loadavg",
        "meminfo",
        "net/dev",
        "slabinfo",
        "stat",
        "swaps",
        "sys/crypto/fips_enabled",
        "sys/kernel/ns_last_pid",
        "uptime",
    )
)
"""What may be mounted on inside /proc, as runc lets it: files that say less than the kernel's own."""
_KINDS = {"b": stat.S_IFBLK, "c": stat.S_IFCHR, "p": stat.S_IFIFO}
_COPIED_MAX = 10_000


class BundleFileSystem(FileSystem):
    """One building of one bundle's root."""

    def __init__(self, bundle: Bundle, *, layout: Layout, cgroup: str) -> None:
        super().__init__(
            {
                "masked_paths": bundle.masked_paths,
                "read_only_paths": (),
                "root": {"read_only": bundle.root_read_only},
                "sysctls": bundle.sysctls,
            },
            "",
        )
        self._bundle = bundle
        self._layout = layout
        self._cgroup = cgroup
        """Path in every hierarchy."""
        self._root = -1
        self.users: dict[str, int] = {}
        """By target: the user namespace whose maps a bind's owners are shown by."""
        self._nodes: dict[str, int] = {}
        """In a user namespace: the host's device nodes, by path in the container."""

    def take_from_host(self) -> None:
        """For a container in a user namespace, before it is cloned: what its own root may not take."""
        self._take_root()
        self._sources = [self._clone(mount) if mount.is_bind else -1 for mount in self._bundle.mounts]
        for path, _, number in self._device_numbers():
            self.at = f"bind device {path}"
            try:
                found = os.stat(path, follow_symlinks=False).st_rdev
            except FileNotFoundError:
                found = 0
            if found != number:
                raise RefusedError(
                    f"device {path}: in a user namespace no device can be made, and the host has not this one there"
                )
            self._nodes[path] = _clone(path, recursive=False)

    def _device_numbers(self) -> list[tuple[str, str, int]]:
        """(path, kind, device number) of every node to be made."""
        standard = [(f"/dev/{name}", "c", os.makedev(major, minor)) for name, major, minor in DEVICE_NODES]
        wanted = [(path, kind, os.makedev(major, minor)) for path, kind, major, minor, *_ in self._bundle.devices]
        return [*standard, *(each for each in wanted if each[1] != "p")]

    def take_sources(self) -> None:
        """Clone every bind's source, and make every other mount, while the host can be seen: without a visible procfs the
        kernel gives a user namespace none. In the bundle's order, in which mountinfo lists them.
        """
        if self._root < 0:
            self._take_root()
        taken = self._sources or [-1] * len(self._bundle.mounts)
        self._sources = [
            source if source >= 0 else self._take(mount)
            for mount, source in zip(self._bundle.mounts, taken, strict=True)
        ]

    def _take_root(self) -> None:
        self.at = f"bind root {self._bundle.root}"
        self._root = _clone(self._bundle.root, recursive=True)
        sys_.mount_setattr(self._root, propagation=sys_.MS_SLAVE, recursive=True)

    def _take(self, mount: OciMount) -> int:
        if mount.is_bind:
            return self._clone(mount)
        if mount.kind in ("cgroup", "cgroup2"):
            return -1
        self.at = f"mount {mount.target}"
        data = [*mount.data, ("source", mount.source)] if mount.source else mount.data
        return new_mount(mount.kind, mount.set & ~self._later(mount), *data)

    def _later(self, mount: OciMount) -> int:
        """Attributes that would be in the way of `_fill`."""
        return sys_.MOUNT_ATTR_RDONLY if mount.kind == "tmpfs" else 0

    def _clone(self, mount: OciMount) -> int:
        self.at = f"bind {mount.source}"
        try:
            made = _clone(mount.source, recursive=mount.recursive)
        except FileNotFoundError as error:
            raise RefusedError(f"bind source {mount.source}: no such file or directory") from error
        if mount.maps_ids:
            try:
                sys_.idmap_mount(made, self.users[mount.target], recursive=mount.maps_deep)
            except OSError as error:
                raise RefusedError(
                    f"bind source {mount.source}: ids cannot be mapped there: {error.strerror}"
                ) from error
        if all(
            flag != sys_.MS_SHARED for flag, _ in mount.propagation
        ):  # else it stays in the host's peer group, as asked
            sys_.mount_setattr(made, propagation=sys_.MS_SLAVE, recursive=True)
        return made

    def make_slave(self) -> None:
        """From now on nothing mounted here is seen by the host."""
        self.at = "separate the mounts"
        sys_.mount("", "/", "", sys_.MS_REC | sys_.MS_SLAVE)

    def enter_root(self) -> None:
        """Make the bundle's root ``/``; the host's mounts are gone afterwards."""
        self.at = "pivot into the root"
        sys_.move_mount(self._root, os.open("/", _PATH | os.O_DIRECTORY))
        os.fchdir(self._root)
        sys_.pivot_root(".", ".")
        sys_.mount("", ".", "", sys_.MS_REC | sys_.MS_SLAVE)
        sys_.umount2(".", sys_.MNT_DETACH)
        os.chdir("/")
        if self._bundle.propagation:
            flag, deep = self._propagation()
            sys_.mount("", "/", "", flag | (sys_.MS_REC if deep else 0))
        self.root = os.open("/", _PATH | os.O_DIRECTORY)

    def _propagation(self) -> tuple[int, bool]:
        word = self._bundle.propagation
        deep = word not in PROPAGATION
        return PROPAGATION[word[1:] if deep else word], deep

    def enter_root_alone(self) -> None:
        """As `enter_root` where the mount namespace is others' too: the root and what is mounted on it stay out of every
        namespace, so nothing of it is ever seen there, and it goes with its last process.
        """
        self.at = "enter the root outside of the mount namespace"
        if _kernel() < (6, 15):
            raise RefusedError("without a mount namespace of its own a container needs Linux 6.15")
        if self._bundle.propagation:
            flag, deep = self._propagation()
            sys_.mount_setattr(self._root, propagation=flag, recursive=deep)
        os.fchdir(self._root)
        os.chroot(".")
        self.root = os.open("/", _PATH | os.O_DIRECTORY)

    def join(self, mounts: int) -> None:
        """Be in that mount namespace, in the root that was made; from here Linux lets nothing more be mounted on it."""
        self.at = "join the mount namespace"
        sys_.setns(mounts, sys_.CLONE_NEWNS)
        os.fchdir(self.root)
        os.chroot(".")

    def mount_bundle(self) -> None:
        """The bundle's mounts, then what every container finds in /dev."""
        for mount, source in zip(self._bundle.mounts, self._sources, strict=True):
            self.at = f"mount {mount.target}"
            if mount.kind in ("cgroup", "cgroup2"):
                self._mount_cgroups(mount)
                continue
            if not mount.is_bind:
                self._fill(mount, source)
            is_directory = not mount.is_bind or stat.S_ISDIR(os.fstat(source).st_mode)
            self._attach(mount, source, directory=is_directory)
        if not any(mount.is_bind and mount.target == "/dev" for mount in self._bundle.mounts):
            self._furnish_dev()
        self._make_devices()
        self._open_dev()

    def _fill(self, mount: OciMount, made: int) -> None:
        """A tmpfs gets the mode of what it covers, unless one was named, and its content if that was asked for."""
        if mount.kind != "tmpfs":
            return
        if all(name != "mode" for name, _ in mount.data):
            with contextlib.suppress(OSError):
                there = open_inside(self.root, mount.target)
                into = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=made)
                os.fchmod(into, stat.S_IMODE(os.fstat(there).st_mode))
                os.close(into)
                os.close(there)
        if mount.copies_up:
            self._copy_up(mount.target, made)
        if mount.set & self._later(mount):
            sys_.mount_setattr(made, set_=self._later(mount))

    def _attach(self, mount: OciMount, made: int, *, directory: bool) -> None:
        if mount.is_bind and (mount.set or mount.clear):
            sys_.mount_setattr(made, set_=mount.set, clear=mount.clear)
        if mount.deep_set or mount.deep_clear:
            sys_.mount_setattr(made, set_=mount.deep_set, clear=mount.deep_clear, recursive=True)
        target = self._open_target(mount, directory=directory)
        sys_.move_mount(made, target)
        for flag, deep in mount.propagation:
            sys_.mount_setattr(made, propagation=flag, recursive=deep)
        if mount.kind == "proc" and mount.target == "/proc":
            self.proc = made
        else:
            os.close(made)
        os.close(target)

    def _open_target(self, mount: OciMount, *, directory: bool) -> int:
        if mount.target == "/":
            raise RefusedError("a mount on / would hide the root")
        target = ensure_target(self.root, mount.target, directory=directory)
        if mount.kind in ("proc", "sysfs") and not mount.is_bind:
            os.close(target)
            try:  # a link there would lead somewhere else (CVE-2019-19921)
                return sys_.openat2(self.root, mount.target[1:], _PATH | os.O_DIRECTORY, resolve=_REAL)
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise RefusedError(f"the image's {mount.target} is not a directory") from error
                raise
        found = os.fstat(target)
        if (
            self.proc >= 0
            and found.st_dev == os.fstat(self.proc).st_dev
            and (mount.target not in _PROC_TARGETS or stat.S_ISDIR(found.st_mode))
        ):
            raise RefusedError(f"mount target {mount.target} leads into /proc")
        if stat.S_ISDIR(found.st_mode) != directory:
            kinds = ("directory", "file") if directory else ("file", "directory")
            raise RefusedError(f"cannot mount a {kinds[0]} on {mount.target}, which is a {kinds[1]} in the container")
        return target

    def _copy_up(self, path: str, into: int) -> None:
        try:
            start = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=open_inside(self.root, path))
        except OSError:
            return
        left = [_COPIED_MAX]
        _copy_directory(start, into, left)
        os.close(start)

    def _mount_cgroups(self, mount: OciMount) -> None:
        """What the container may see of its control groups, as the host's layout has them."""
        attributes = mount.set
        if self._layout.is_v2:
            self._attach(mount, self._own_cgroup("cgroup2", "", self._layout.unified, attributes), directory=True)
            return
        base = new_mount("tmpfs", attributes & ~sys_.MOUNT_ATTR_RDONLY, ("mode", "755"), ("source", "cgroup"))
        target = self._open_target(mount, directory=True)
        sys_.move_mount(base, target)
        for point in sorted(set(self._layout.v1.values())):
            name = os.path.basename(point)
            os.mkdir(name, 0o755, dir_fd=base)
            controllers = [word for word, where in self._layout.v1.items() if where == point]
            try:
                made = self._own_cgroup("cgroup", ",".join(controllers), point, attributes)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.EBUSY):
                    raise
                continue  # a hierarchy that this container has no group in
            place = os.open(name, _PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=base)
            sys_.move_mount(made, place)
            os.close(place)
            os.close(made)
        if attributes & sys_.MOUNT_ATTR_RDONLY:
            sys_.mount_setattr(base, set_=sys_.MOUNT_ATTR_RDONLY)
        os.close(target)
        os.close(base)

    def _own_cgroup(self, kind: str, controllers: str, point: str, attributes: int) -> int:
        if "cgroup" not in self._bundle.namespaces:
            return self._cgroup_clones[point] if point in self._cgroup_clones else self._missing(point)
        data: list[tuple[str, str | None]] = []
        for controller in filter(None, controllers.split(",")):
            name, equals, value = controller.partition("=")
            data += [("none", None), (name, value)] if equals else [(controller, None)]
        return new_mount(kind, attributes, *data)

    def _missing(self, point: str) -> int:
        raise FileNotFoundError(errno.ENOENT, "no such control group", point)

    def take_cgroups(self) -> None:
        """Clone the container's groups, for a container that keeps the host's cgroup namespace."""
        self._cgroup_clones: dict[str, int] = {}
        wanted = [mount for mount in self._bundle.mounts if mount.kind in ("cgroup", "cgroup2")]
        if not wanted or "cgroup" in self._bundle.namespaces:
            return
        points = {self._layout.unified} if self._layout.is_v2 else set(self._layout.v1.values())
        for point in points:
            with contextlib.suppress(OSError):
                clone = sys_.open_tree(sys_.AT_FDCWD, point + self._cgroup, sys_.OPEN_TREE_CLONE)
                sys_.mount_setattr(clone, set_=wanted[0].set)
                self._cgroup_clones[point] = clone

    def _furnish_dev(self) -> None:
        self.at = "furnish /dev"
        dev = ensure_target(self.root, "/dev", directory=True)
        for name, major, minor in DEVICE_NODES:
            with contextlib.suppress(FileExistsError):
                if self._nodes:
                    self._bind_node(self._nodes[f"/dev/{name}"], dev, name)
                else:
                    os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(major, minor), dir_fd=dev)
        for name, destination in DEVICE_LINKS:
            if name == "ptmx":
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=dev)
            elif name == "core" and not os.path.exists("/proc/kcore"):
                continue
            with contextlib.suppress(FileExistsError):
                os.symlink(destination, name, dir_fd=dev)
        os.close(dev)

    def _make_devices(self) -> None:
        for path, kind, major, minor, mode, uid, gid in self._bundle.devices:
            self.at = f"make device {path}"
            parent, _, name = path.rpartition("/")
            directory = ensure_target(self.root, parent or "/", directory=True)
            number = os.makedev(major, minor)
            try:
                if kind != "p" and self._nodes:
                    self._bind_node(self._nodes[path], directory, name)
                    os.close(directory)
                    continue
                os.mknod(name, _KINDS[kind] | mode, number, dir_fd=directory)
            except FileExistsError:
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_IFMT(found.st_mode) != _KINDS[kind] or (kind != "p" and found.st_rdev != number):
                    raise RefusedError(f"device {path}: the container has another file of that name") from None
                os.chmod(f"/{path.lstrip('/')}", mode)
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)
            os.close(directory)

    def _bind_node(self, node: int, directory: int, name: str) -> None:
        target = os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
        sys_.move_mount(node, target)
        os.close(target)

    def _open_dev(self) -> None:
        self.at = "look at /dev/null"
        self._dev = open_inside(self.root, "/dev", _PATH | os.O_DIRECTORY)
        self._null = os.open("null", _PATH | os.O_NOFOLLOW, dir_fd=self._dev)
        if os.fstat(self._null).st_rdev != os.makedev(1, 3):
            raise RefusedError("/dev/null of the container is not the null device")

    def write_protect(self) -> None:
        """The bundle's read-only paths, with what is mounted below; other attributes stay."""
        for path in self._bundle.read_only_paths:
            self.at = f"write-protect {path}"
            try:
                target = open_inside(self.root, path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            made = sys_.open_tree(target, "", sys_.OPEN_TREE_CLONE | sys_.AT_EMPTY_PATH | sys_.AT_RECURSIVE)
            sys_.mount_setattr(made, set_=sys_.MOUNT_ATTR_RDONLY, recursive=True)
            sys_.move_mount(made, target)
            os.close(target)
            os.close(made)

    def write_sysctls(self) -> None:
        """Through a procfs of our own: the bundle's may be missing, or not be one."""
        if not self._bundle.sysctls:
            return
        shown, self.proc = self.proc, new_mount("proc", 0)
        super().write_sysctls()
        os.close(self.proc)
        self.proc = shown


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()) or 0)


def _clone(path: str, *, recursive: bool) -> int:
    flags = sys_.OPEN_TREE_CLONE | (sys_.AT_RECURSIVE if recursive else 0)
    return sys_.open_tree(sys_.AT_FDCWD, path, flags)


def _copy_directory(source: int, target: int, left: list[int]) -> None:
    for name in os.listdir(source):
        left[0] -= 1
        if left[0] < 0:
            raise RefusedError(f"tmpcopyup: more than {_COPIED_MAX} files")
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            inner, copy = os.open(name, flags, dir_fd=source), os.open(name, flags, dir_fd=target)
            _copy_directory(inner, copy, left)
            os.fchmod(copy, stat.S_IMODE(found.st_mode))
            os.close(inner)
            os.close(copy)
        elif stat.S_ISREG(found.st_mode):
            reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
            writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
            while data := os.read(reader, 1 << 20):
                view = memoryview(data)
                while view:
                    view = view[os.write(writer, view) :]
            os.fchmod(writer, stat.S_IMODE(found.st_mode))
            os.close(reader)
            os.close(writer)
        else:
            continue
        os.chown(name, found.st_uid, found.st_gid, dir_fd=target, follow_symlinks=False)
