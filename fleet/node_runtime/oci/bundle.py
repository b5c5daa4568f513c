"""An OCI bundle: ``config.json`` of the runtime specification (1.0 to 1.2), read and checked before anything is made.

What the specification has and this runtime has not is refused by name, never dropped: a container that runs with less
isolation than its bundle says would be worse than none.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
import resource

from fleet.errors import UserError
from fleet.node_runtime import apparmor
from fleet.node_runtime import process as process_
from fleet.node_runtime import syscalls as sys_
from fleet.node_runtime.capabilities import CAPABILITIES
from fleet.node_runtime.oci.reading import Reader, read_document
from fleet.node_runtime.oci.resources import parse_resources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Hooks = dict[str, list[dict[str, Any]]]

__all__ = ["HOOK_NAMES", "NAMESPACES", "VERSION", "Bundle", "OciMount", "OciProcess"]

VERSION = "1.2.0"
"""Of the runtime specification."""
NAMESPACES = {
    "mount": sys_.CLONE_NEWNS,
    "cgroup": sys_.CLONE_NEWCGROUP,
    "uts": sys_.CLONE_NEWUTS,
    "ipc": sys_.CLONE_NEWIPC,
    "pid": sys_.CLONE_NEWPID,
    "network": sys_.CLONE_NEWNET,
    "user": sys_.CLONE_NEWUSER,
}
HOOK_NAMES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
PROPAGATION = {
    "shared": sys_.MS_SHARED,
    "slave": sys_.MS_SLAVE,
    "private": sys_.MS_PRIVATE,
    "unbindable": 1 << 17,
}
"""Word to flag; each also with r before it, for everything below."""
_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}
_CAPABILITY_SETS = ("bounding", "effective", "permitted", "inheritable", "ambient")
_ID_MAX = (1 << 32) - 2
_ID_RANGES_MAX = 340
"""user_namespaces(7)."""
_ATIME = 0x70
ATTRIBUTES: dict[str, tuple[int, int]] = {
    # name: (attributes set, attributes cleared)
    "ro": (1, 0),
    "rw": (0, 1),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "relatime": (0, _ATIME),
    "norelatime": (0, 0),
    "noatime": (0x10, _ATIME),
    "atime": (0, _ATIME),
    "strictatime": (0x20, _ATIME),
    "nostrictatime": (0, _ATIME),
    "nodiratime": (0x80, 0),
    "diratime": (0, 0x80),
    "nosymfollow": (0x200000, 0),
    "symfollow": (0, 0x200000),
}
_IGNORED = {"defaults", "loud", "silent", "nomand", "nolazytime", "noiversion", "async", "nofail", "iversion"}
_SYSCTLS_OF = {"net.": "network", "fs.mqueue.": "ipc"}
_SYSCTLS_IPC = {"msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced"}


class OciMount:
    """One entry of ``mounts``, its options sorted into what each system call takes."""

    def __init__(self, entry: Reader, directory: str) -> None:
        target = entry.text("destination")
        if not target:
            raise UserError(f"{entry.place('destination')} is missing")
        self.target = posixpath.normpath("/" + target.lstrip("/"))
        self.kind = entry.text("type")
        self.source = entry.text("source")
        self.set = self.clear = self.deep_set = self.deep_clear = 0
        self.propagation: list[tuple[int, bool]] = []
        """(flag, whether for everything below) in order."""
        self.data: list[tuple[str, str | None]] = []
        self.id_maps = tuple("".join(_ranges(entry, name)) for name in ("uidMappings", "gidMappings"))
        """What a user namespace that maps its owners has in uid_map and gid_map; '' with `maps_ids` is as the container's."""
        self.maps_ids, self.maps_deep = any(self.id_maps), False
        self.is_bind = self.kind == "bind"
        self.recursive = self.copies_up = False
        for option in entry.texts("options"):
            self._take(option, entry.place("options"))
        if self.is_bind:
            if not self.source:
                raise UserError(f"{entry.place('source')}: a bind of {self.target} needs a source")
            self.source = os.path.join(directory, self.source)
        elif not self.kind:
            raise UserError(f"{entry.place('type')} is missing")
        elif self.maps_ids:
            raise UserError(f"{entry.place('options')}: ids of {self.target} can be mapped only where it is a bind")
        if any(self.id_maps) != all(self.id_maps):
            raise UserError(f"{entry.place('uidMappings')} and gidMappings go together")

    def _take(self, option: str, place: str) -> None:
        deep = option[1:] if option[:1] == "r" else ""
        if option in ATTRIBUTES:
            on, off = ATTRIBUTES[option]
            self.set, self.clear = self.set & ~off | on, self.clear & ~on | off
        elif deep in ATTRIBUTES:
            on, off = ATTRIBUTES[deep]
            self.deep_set, self.deep_clear = self.deep_set & ~off | on, self.deep_clear & ~on | off
        elif option in ("bind", "rbind"):
            self.is_bind, self.recursive = True, option == "rbind"
        elif option in PROPAGATION or deep in PROPAGATION:
            self.propagation.append((PROPAGATION[deep if deep in PROPAGATION else option], deep in PROPAGATION))
        elif option == "tmpcopyup":
            self.copies_up = True
        elif option in ("idmap", "ridmap"):
            self.maps_ids, self.maps_deep = True, option == "ridmap"
        elif option == "remount" or option.startswith(("idmap=", "ridmap=")):
            raise UserError(f"{place}: option {option!r} is not supported")
        elif option not in _IGNORED:
            key, equals, value = option.partition("=")
            self.data.append((key, value if equals else None))


class OciProcess:
    """``process`` of a bundle, or of an exec."""

    def __init__(self, entry: Reader) -> None:
        self.warnings: list[str] = []
        self.args = entry.texts("args")
        if not self.args:
            raise UserError(f"{entry.place('args')} is empty: there is nothing to execute")
        self.env = entry.texts("env")
        self.cwd = entry.text("cwd")
        if not self.cwd.startswith("/"):
            raise UserError(f"{entry.place('cwd')}: {self.cwd!r} is not an absolute path")
        self.terminal = entry.flag("terminal")
        size = entry.object("consoleSize")
        self.console_size = (size.number("height", most=0xFFFF, least=0), size.number("width", most=0xFFFF, least=0))
        user = entry.object("user")
        self.uid, self.gid = user.number("uid", least=0, most=_ID_MAX), user.number("gid", least=0, most=_ID_MAX)
        self.umask = user.number("umask", 0o022, least=0, most=0o777)
        self.additional_gids = user.numbers("additionalGids", most=_ID_MAX)
        self.no_new_privileges = entry.flag("noNewPrivileges")
        self.oom_score_adj = entry.number("oomScoreAdj", least=-1000, most=1000) if entry.has("oomScoreAdj") else None
        self.apparmor = entry.text("apparmorProfile")
        if self.apparmor and not apparmor.is_enabled():
            raise UserError(f"{entry.place('apparmorProfile')}: this kernel has no AppArmor, or it is switched off")
        _label(entry, "selinuxLabel", self.warnings)
        entry.refuse("scheduler", "scheduling policies are not supported")
        entry.refuse("execCPUAffinity", "CPU affinity of an exec is not supported")
        self.capabilities = self._capabilities(entry)
        self.rlimits = [_within(limit, self.warnings) for limit in _rlimits(entry)]
        self.io_priority = _io_priority(entry.object("ioPriority")) if entry.has("ioPriority") else None

    def _capabilities(self, entry: Reader) -> dict[str, int]:
        sets = entry.object("capabilities")
        found = {}
        for kind in _CAPABILITY_SETS:
            mask = 0
            for name in sets.texts(kind):
                number = _NUMBERS.get(name.upper().removeprefix("CAP_"))
                if number is None:
                    self.warnings.append(f"{sets.place(kind)}: no kernel has a capability {name!r}; it is left out")
                else:
                    mask |= 1 << number
            found[kind] = mask
        return found


def _label(entry: Reader, name: str, warnings: list[str]) -> None:
    """A kernel without SELinux has nothing that a label could mean; one with it must not have it dropped."""
    if os.path.exists("/sys/fs/selinux/enforce"):
        entry.refuse(name, "SELinux labels are not supported")
    elif entry.text(name):
        warnings.append(f"{entry.place(name)}: this kernel has no SELinux; the label is left out")


def _rlimits(entry: Reader) -> list[tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    for limit in entry.objects("rlimits"):
        name = limit.text("type")
        number = getattr(resource, name, None) if re.fullmatch(r"RLIMIT_[A-Z]+", name) else None
        if number is None:
            raise UserError(f"{limit.place('type')}: {name!r} is no limit that this kernel has")
        if name in found:
            raise UserError(f"{limit.place('type')}: {name} stands there twice")
        soft, hard = limit.number("soft", least=0), limit.number("hard", least=0)
        if soft > hard:
            raise UserError(f"{limit.place('soft')}: {soft} is above the hard limit, {hard}")
        found[name] = (number, soft, hard)
    return list(found.values())


def _within(limit: tuple[int, int, int], warnings: list[str]) -> tuple[int, int, int]:
    """No more than this process may give: less than asked for is safe, and engines ask for more than hosts have."""
    number, soft, hard = limit
    own = resource.getrlimit(number)[1]
    if own == resource.RLIM_INFINITY or hard <= own:
        return limit
    process_.remember_permitted()
    if process_.permitted_at_start() >> _NUMBERS["SYS_RESOURCE"] & 1:
        return limit
    warnings.append(f"process.rlimits: limit {number} cannot be raised to {hard} here; it is {own}")
    return number, min(soft, own), own


def _io_priority(entry: Reader) -> int:
    classes = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
    name = entry.text("class")
    if name not in classes:
        raise UserError(f"{entry.place('class')}: {name!r} is not one of {', '.join(classes)}")
    return classes[name] << 13 | entry.number("priority", least=0, most=7)


class Bundle:
    """A directory with ``config.json``. Raises `UserError` naming what is wrong or not supported."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.realpath(directory)
        config = read_document(f"{self.directory}/config.json")
        self.version = config.text("ociVersion")
        if not re.fullmatch(r"1\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", self.version):
            raise UserError(f"{config.place('ociVersion')}: {self.version!r} is not a version 1.x.y")
        self.annotations = config.pairs("annotations")
        if not config.has("process"):
            raise UserError(f"{config.place('process')} is missing")
        self.process = OciProcess(config.object("process"))
        root = config.object("root")
        if not root.text("path"):
            raise UserError(f"{root.place('path')} is missing")
        self.root = os.path.realpath(os.path.join(self.directory, root.text("path")))
        if not os.path.isdir(self.root):
            raise UserError(f"{root.place('path')}: {self.root} is not a directory")
        self.root_read_only = root.flag("readonly")
        self.mounts = [OciMount(entry, self.directory) for entry in config.objects("mounts")]
        self.hostname, self.domainname = config.text("hostname"), config.text("domainname")
        self.hooks = _hooks(config.object("hooks"))
        for name in ("windows", "solaris", "vm", "zos"):
            config.refuse(name, "this is a runtime for Linux")
        self._read_linux(config.object("linux"))
        for name, value in (("hostname", self.hostname), ("domainname", self.domainname)):
            if value and "uts" not in self.namespaces:
                raise UserError(f"{config.place(name)} would be the host's: there is no namespace of type uts")
            if len(value.encode()) > 64:
                raise UserError(f"{config.place(name)} is longer than 64 bytes")

    def _read_linux(self, linux: Reader) -> None:
        linux.refuse("timeOffsets", "time namespaces are not supported")
        linux.refuse("intelRdt", "Intel RDT is not supported")
        _label(linux, "mountLabel", self.process.warnings)
        linux.refuse("netDevices", "moving network devices is not supported")
        linux.refuse("memoryPolicy", "memory policies are not supported")
        self.namespaces = _namespaces(linux)
        self.id_maps = _id_maps(linux, has_users="user" in self.namespaces)
        if self.id_maps is None and any(mount.maps_ids and not any(mount.id_maps) for mount in self.mounts):
            raise UserError("config.json: mounts: idmap without uidMappings needs a container with a user namespace")
        self.devices = [_device(entry) for entry in linux.objects("devices")]
        self.masked_paths = _absolutes(linux, "maskedPaths")
        self.read_only_paths = _absolutes(linux, "readonlyPaths")
        self.sysctls = [self._sysctl(linux, name, value) for name, value in sorted(linux.pairs("sysctl").items())]
        self.cgroups_path = linux.text("cgroupsPath")
        if ".." in self.cgroups_path.split("/"):
            raise UserError(f"{linux.place('cgroupsPath')}: .. leads out of it")
        resources = linux.object("resources")
        self.limits, self.device_rules, self.files = parse_resources(resources, warnings=self.process.warnings)
        word = linux.text("rootfsPropagation")
        if word and word.removeprefix("r") not in PROPAGATION and word not in PROPAGATION:
            raise UserError(f"{linux.place('rootfsPropagation')}: {word!r} is not one of {', '.join(PROPAGATION)}")
        self.propagation = word
        self.personality = _personality(linux.object("personality"))
        self.seccomp = ""
        if linux.has("seccomp"):
            profile = linux.object("seccomp")
            profile.refuse("listenerPath", "handing system calls to an agent is not supported")
            self.seccomp = json.dumps(linux.raw("seccomp"))

    def _sysctl(self, linux: Reader, name: str, value: str) -> tuple[str, str]:
        dotted = name.replace("/", ".") if "." not in name else name
        if not re.fullmatch(r"[A-Za-z0-9_./-]+", dotted) or ".." in dotted:
            raise UserError(f"{linux.place('sysctl')}: {name!r} is not a name of a kernel parameter")
        first, _, rest = dotted.partition(".")
        kind = next((kind for prefix, kind in _SYSCTLS_OF.items() if dotted.startswith(prefix)), "")
        if first == "kernel" and rest in _SYSCTLS_IPC:
            kind = "ipc"
        elif dotted == "kernel.domainname":
            kind = "uts"
        if not kind or kind not in self.namespaces:
            why = f"there is no namespace of type {kind}" if kind else "no namespace of the container has it"
            raise UserError(f"{linux.place('sysctl')}: {name} would change the host: {why}")
        return dotted, value

    @property
    def owns_mounts(self) -> bool:
        """Whether its mounts are in a namespace made for it; else in none, out of sight of the one it is in."""
        return self.namespaces.get("mount", "none") == ""

    def new_namespaces(self) -> int:
        """Clone flags of those that are to be made."""
        return sum(NAMESPACES[kind] for kind, path in self.namespaces.items() if not path)


def _namespaces(linux: Reader) -> dict[str, str]:
    """Kind to path; '' is a new one."""
    found: dict[str, str] = {}
    for entry in linux.objects("namespaces"):
        kind, path = entry.text("type"), entry.text("path")
        if kind == "time" or (kind == "user" and path):
            what = "time namespaces are" if kind == "time" else "joining a user namespace is"
            raise UserError(f"{entry.place('type')}: {what} not supported by this command line")
        if kind not in NAMESPACES:
            raise UserError(f"{entry.place('type')}: {kind!r} is not one of {', '.join(NAMESPACES)}")
        if kind in found:
            raise UserError(f"{entry.place('type')}: {kind} stands there twice")
        if path and not path.startswith("/"):
            raise UserError(f"{entry.place('path')}: {path!r} is not absolute")
        found[kind] = path
    if found.get("mount", "absent") and "user" in found:
        raise UserError(f"{linux.place('namespaces')}: a user namespace needs a new namespace of type mount beside it")
    return found


def _ranges(entry: Reader, name: str) -> list[str]:
    """Lines for uid_map or gid_map."""
    lines = []
    for each in entry.objects(name):
        inside, outside = (each.number(word, least=0, most=_ID_MAX) for word in ("containerID", "hostID"))
        lines.append(f"{inside} {outside} {each.number('size', least=1, most=_ID_MAX)}\n")
    if len(lines) > _ID_RANGES_MAX:
        raise UserError(f"{entry.place(name)}: {len(lines)} ranges; Linux takes at most {_ID_RANGES_MAX}")
    return lines


def _id_maps(linux: Reader, *, has_users: bool) -> tuple[str, str] | None:
    """What to write into uid_map and gid_map of the new user namespace; None without one."""
    maps = []
    for name in ("uidMappings", "gidMappings"):
        lines = _ranges(linux, name)
        if has_users != bool(lines):
            why = "is missing: there is a new user namespace" if has_users else "needs a namespace of type user"
            raise UserError(f"{linux.place(name)} {why}")
        maps.append("".join(lines))
    return (maps[0], maps[1]) if has_users else None


def _absolutes(entry: Reader, name: str) -> list[str]:
    paths = entry.texts(name)
    for path in paths:
        if not path.startswith("/"):
            raise UserError(f"{entry.place(name)}: {path!r} is not absolute")
    return [posixpath.normpath(path) for path in paths]


def _device(entry: Reader) -> tuple[str, str, int, int, int, int, int]:
    """(path, kind, major, minor, mode, uid, gid)"""
    kind, path = entry.text("type"), entry.text("path")
    if kind not in ("c", "b", "u", "p"):
        raise UserError(f"{entry.place('type')}: {kind!r} is not one of c, b, u, p")
    if not path.startswith("/"):
        raise UserError(f"{entry.place('path')}: {path!r} is not absolute")
    if kind != "p" and not (entry.has("major") and entry.has("minor")):
        raise UserError(f"{entry.place('major')} and minor are needed")
    major, minor = entry.number("major", least=0, most=0xFFF), entry.number("minor", least=0, most=0xFFFFF)
    return (
        posixpath.normpath(path),
        "c" if kind == "u" else kind,
        major,
        minor,
        entry.number("fileMode", 0o666, least=0, most=0xFFFFFFFF) & 0o7777,
        entry.number("uid", least=0, most=_ID_MAX),
        entry.number("gid", least=0, most=_ID_MAX),
    )


def _hooks(entry: Reader) -> Hooks:
    found: Hooks = {}
    for name in HOOK_NAMES:
        found[name] = []
        for hook in entry.objects(name):
            path = hook.text("path")
            if not path.startswith("/"):
                raise UserError(f"{hook.place('path')}: {path!r} is not absolute")
            timeout = hook.number("timeout", 0, least=1, most=1 << 31) if hook.has("timeout") else 0
            found[name].append(
                {"path": path, "args": hook.texts("args") or [path], "env": hook.texts("env"), "timeout": timeout}
            )
    return found


def _personality(entry: Reader) -> int | None:
    domain = entry.text("domain")
    if not domain:
        return None
    if domain not in ("LINUX", "LINUX32") or entry.raw("flags"):
        raise UserError(f"{entry.place('domain')}: only LINUX and LINUX32, without flags, are supported")
    return 8 if domain == "LINUX32" else 0
