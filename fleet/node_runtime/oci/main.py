"""The command line of an OCI runtime, with the words and flags of runc: ``fleet oci`` and ``fleet-oci``.

Exit codes: 0 done; 1 refused or failed; 126 and 127 when ``run`` or ``exec`` finds no program to execute; what the program
exits with, for ``run`` and ``exec`` in the foreground. Errors go to standard error and, with ``--log``, to that file.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time

from fleet.errors import FleetError, UserError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fleet.node_runtime.oci.lifecycle import Containers
    from fleet.node_runtime.oci.reading import Reader

__all__ = ["main"]

DEFAULT_ROOT = "/run/fleet-oci"
_FORWARDED = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)


def main(arguments: Sequence[str] | None = None, *, program: str = "fleet-oci") -> int:
    """Run one command; the exit status."""
    parser = _parser(program)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        options = parser.parse_args(_separated(given))
    except SystemExit as end:  # help, version, or a wrong command line, which has been explained
        return int(end.code or 0)
    if not hasattr(options, "what"):
        parser.print_help()
        return 1
    try:
        if options.systemd_cgroup:
            raise UserError("--systemd-cgroup: control groups are made by writing their files; leave the option out")
        if os.geteuid():
            raise UserError("only root can make containers by this command line; run it as root")
        return int(options.what(options) or 0)
    except FleetError as error:
        _tell(options, str(error))
        return getattr(error, "code", 1) if options.command in ("run", "exec") else 1
    except OSError as error:
        _tell(options, f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}")
        return 1
    except KeyboardInterrupt:
        return 130


def _tell(options: argparse.Namespace, text: str) -> None:
    print(f"fleet-oci: {text}", file=sys.stderr)
    if options.log:
        _note(options, "error", text)


def _warn(options: argparse.Namespace, text: str) -> None:
    """To the log alone where there is one: standard error is the container's too."""
    if options.log:
        _note(options, "warning", text)
    else:
        print(f"fleet-oci: warning: {text}", file=sys.stderr)


def _note(options: argparse.Namespace, level: str, text: str) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    line = f'time="{now}" level={level} msg={json.dumps(text)}'
    if options.log_format == "json":
        line = json.dumps({"level": level, "msg": text, "time": now})
    try:
        with open(options.log, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")
    except OSError as error:
        print(f"fleet-oci: cannot write to {options.log}: {error.strerror}", file=sys.stderr)


def _separated(arguments: list[str]) -> list[str]:
    """A marker before the command of exec, so that its own flags stay its own: all after the container's name."""
    if "exec" not in arguments or "--" in arguments:
        return arguments
    position = arguments.index("exec") + 1
    takes = {"--cwd", "--env", "-e", "--user", "-u", "--additional-gids", "-g", "--process", "-p", "--pid-file"}
    takes |= {"--console-socket", "--cap", "-c", "--preserve-fds", "--apparmor"}
    while position < len(arguments) and arguments[position].startswith("-"):
        position += 2 if arguments[position] in takes else 1
    return [*arguments[:position], "--", *arguments[position:]]


def _parser(program: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description="Run containers from bundles, as the OCI runtime specification says.",
        allow_abbrev=False,
    )
    parser.add_argument("--root", default=DEFAULT_ROOT, metavar="DIR", help="Where the state of containers is kept.")
    parser.add_argument("--log", default="", metavar="FILE", help="Errors are written there too.")
    parser.add_argument("--log-format", choices=("text", "json"), default="text")
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--systemd-cgroup", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rootless", default="false", help=argparse.SUPPRESS)
    parser.add_argument("--version", "-v", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, what: Any, text: str, *, has_id: bool = True) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(what=what)
        if has_id:
            made.add_argument("id", metavar="ID")
        return made

    for name, what, text in (
        ("create", _create, "Make a container from a bundle; its program waits for start."),
        ("run", _run, "Make a container, start it, and wait for it."),
    ):
        made = command(name, what, text)
        made.add_argument("--bundle", "-b", default=".", metavar="DIR", help="The bundle (default: here).")
        made.add_argument("--console-socket", default="", metavar="PATH", help="Gets the terminal's master.")
        made.add_argument("--pid-file", default="", metavar="FILE", help="Gets the first process's pid.")
        made.add_argument(
            "--preserve-fds", type=int, default=0, metavar="N", help="Give the program N more descriptors."
        )
        made.add_argument("--no-new-keyring", action="store_true", help="Keep the caller's session keyring.")
        made.add_argument("--no-pivot", action="store_true", help=argparse.SUPPRESS)
        made.add_argument("--no-subreaper", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--detach", "-d", action="store_true", help="Do not wait.")
    made.add_argument("--keep", action="store_true", help="Do not delete it when it ends.")
    command("start", _start, "Start the program of a created container.")
    command("state", _state, "Print a container's state.")
    made = command("kill", _kill, "Send a signal (default: TERM) to a container's first process.")
    made.add_argument("signal", nargs="?", default="TERM", metavar="SIGNAL")
    made.add_argument("--all", "-a", action="store_true", help="To all its processes.")
    command("delete", _delete, "Remove a stopped container.").add_argument(
        "--force", "-f", action="store_true", help="Kill it first, if it runs."
    )
    _add_exec(command("exec", _exec, "Run a further program in a running container."))
    command("pause", lambda options: _containers(options).pause(options.id), "Freeze a container's processes.")
    command("resume", lambda options: _containers(options).resume(options.id), "Let frozen processes go on.")
    command("ps", _ps, "List a container's processes.").add_argument(
        "--format", "-f", choices=("table", "json"), default="table"
    )
    made = command("list", _list, "List containers.", has_id=False)
    made.add_argument("--format", "-f", choices=("table", "json"), default="table")
    made.add_argument("--quiet", "-q", action="store_true", help="Only ids.")
    _add_update(command("update", _update, "Change a container's limits."))
    command("features", _features, "Print what this runtime can.", has_id=False)
    return parser


def _add_exec(made: argparse.ArgumentParser) -> None:
    made.add_argument("arguments", nargs="*", metavar="COMMAND [ARG...]")
    made.add_argument("--process", "-p", default="", metavar="FILE", help="The process as JSON.")
    made.add_argument("--detach", "-d", action="store_true", help="Do not wait.")
    made.add_argument("--tty", "-t", action="store_true", help="With a terminal.")
    made.add_argument("--console-socket", default="", metavar="PATH", help="Gets the terminal's master.")
    made.add_argument("--pid-file", default="", metavar="FILE", help="Gets the process's pid.")
    made.add_argument("--cwd", default="", metavar="DIR")
    made.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument("--user", "-u", default="", metavar="UID[:GID]")
    made.add_argument("--additional-gids", "-g", action="append", type=int, default=[], metavar="GID")
    made.add_argument("--cap", "-c", action="append", default=[], metavar="CAPABILITY")
    made.add_argument("--no-new-privs", action="store_true")
    made.add_argument("--apparmor", default="", metavar="PROFILE", help="Instead of the container's profile.")
    made.add_argument("--preserve-fds", type=int, default=0, metavar="N")


_UPDATES = {
    "--memory": ("memory", "limit"),
    "--memory-reservation": ("memory", "reservation"),
    "--memory-swap": ("memory", "swap"),
    "--cpu-shares": ("cpu", "shares"),
    "--cpu-quota": ("cpu", "quota"),
    "--cpu-period": ("cpu", "period"),
    "--pids-limit": ("pids", "limit"),
    "--blkio-weight": ("blockIO", "weight"),
}
_UPDATES_TEXT = {"--cpuset-cpus": ("cpu", "cpus"), "--cpuset-mems": ("cpu", "mems")}


def _add_update(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--resources", "-r", default="", metavar="FILE", help="linux.resources as JSON; - is standard input."
    )
    for name in _UPDATES:
        made.add_argument(name, type=int, metavar="N")
    for name in _UPDATES_TEXT:
        made.add_argument(name, metavar="LIST")


def _version() -> str:
    from fleet import __version__
    from fleet.node_runtime.oci.bundle import VERSION

    return f"fleet-oci version {__version__}\nspec: {VERSION}"


def _containers(options: argparse.Namespace) -> Containers:
    from fleet.node_runtime.oci.lifecycle import Containers

    return Containers(os.path.abspath(options.root))


def _create(options: argparse.Namespace) -> int:
    from fleet.node_runtime.oci.bundle import Bundle

    bundle = Bundle(options.bundle)
    for warning in bundle.process.warnings:
        _warn(options, warning)
    return (
        _containers(options).create(
            options.id,
            bundle,
            pid_file=options.pid_file,
            console=options.console_socket,
            kept=options.preserve_fds,
            keyring=not options.no_new_keyring,
        )
        and 0
    )


def _run(options: argparse.Namespace) -> int:
    from fleet.node_runtime.oci.bundle import Bundle

    containers = _containers(options)
    bundle = Bundle(options.bundle)
    for warning in bundle.process.warnings:
        _warn(options, warning)
    pid = containers.create(
        options.id,
        bundle,
        pid_file=options.pid_file,
        console=options.console_socket,
        kept=options.preserve_fds,
        keyring=not options.no_new_keyring,
    )
    containers.start(options.id)
    if options.detach:
        return 0
    status = _wait(pid)
    if not options.keep:
        containers.delete(options.id, force=True)
    return status


def _wait(pid: int) -> int:
    """Until the child ends, handing on the signals that come meanwhile; its exit status as a shell tells it."""
    for number in _FORWARDED:
        signal.signal(number, lambda received, _frame: os.kill(pid, received))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_DFL)
    return code if code >= 0 else 128 - code


def _start(options: argparse.Namespace) -> None:
    _containers(options).start(options.id)


def _state(options: argparse.Namespace) -> None:
    print(json.dumps(_containers(options).state(options.id), indent=2))


def _kill(options: argparse.Namespace) -> None:
    word = options.signal.upper().removeprefix("SIG")
    if word.isdigit() and 1 <= int(word) < signal.NSIG:
        number = int(word)
    elif f"SIG{word}" in signal.Signals.__members__:
        number = signal.Signals[f"SIG{word}"]
    else:
        raise UserError(f"{options.signal!r} is no signal; kill -l lists them")
    _containers(options).kill(options.id, number, everything=options.all)


def _delete(options: argparse.Namespace) -> None:
    _containers(options).delete(options.id, force=options.force)


def _exec(options: argparse.Namespace) -> int:
    from fleet.node_runtime.oci.bundle import OciProcess
    from fleet.node_runtime.oci.reading import read_document

    containers = _containers(options)
    if options.process:
        process = OciProcess(read_document(options.process))
    else:
        process = OciProcess(_described(options, containers.process_for(options.id)))
    pid = containers.exec(
        options.id, process, pid_file=options.pid_file, console=options.console_socket, kept=options.preserve_fds
    )
    return 0 if options.detach else _wait(pid)


def _described(options: argparse.Namespace, own: Reader) -> Reader:
    """The container's own process with what the flags say instead."""
    from fleet.node_runtime.oci.reading import Reader

    if not options.arguments:
        raise UserError("exec needs a command, or --process")
    user: dict[str, Any] = dict(own.raw("user") or {})
    if options.user:
        uid, _, gid = options.user.partition(":")
        if not uid.isdigit() or (gid and not gid.isdigit()):
            raise UserError(f"--user {options.user!r} is not UID[:GID]")
        user |= {"uid": int(uid), "gid": int(gid or 0)}
    user["additionalGids"] = [*(user.get("additionalGids") or ()), *options.additional_gids]
    sets = {kind: [*names, *options.cap] for kind, names in (own.raw("capabilities") or {}).items()}
    made = {
        "args": options.arguments,
        "terminal": options.tty,
        "user": user,
        "cwd": options.cwd or own.text("cwd"),
        "env": [*own.texts("env"), *options.env],
        "noNewPrivileges": options.no_new_privs or own.flag("noNewPrivileges"),
        "capabilities": sets,
    }
    for name in ("rlimits", "apparmorProfile", "oomScoreAdj"):
        if own.has(name):
            made[name] = own.raw(name)
    if options.apparmor:
        made["apparmorProfile"] = options.apparmor
    return Reader(made, "exec: ")


def _ps(options: argparse.Namespace) -> None:
    pids = _containers(options).pids(options.id)
    if options.format == "json":
        print(json.dumps(pids))
        return
    from fleet.node_runtime.processes import read_processes

    print(f"{'UID':<8} {'PID':<8} {'PPID':<8} CMD")
    for process in read_processes(pids):
        command = "".join(char if char.isprintable() else "?" for char in process.command)
        print(f"{process.uid:<8} {process.pid:<8} {process.parent_pid:<8} {command}")


def _list(options: argparse.Namespace) -> None:
    found = _containers(options).all()
    if options.quiet:
        for state in found:
            print(state["id"])
    elif options.format == "json":
        print(json.dumps(found))
    else:
        print(f"{'ID':<24} {'PID':<8} {'STATUS':<9} {'CREATED':<21} BUNDLE")
        for state in found:
            row = f"{state['id']:<24} {state['pid']:<8} {state['status']:<9} {state['created']:<21} {state['bundle']}"
            print("".join(char if char.isprintable() else "?" for char in row))


def _update(options: argparse.Namespace) -> None:
    from fleet.node_runtime.oci.reading import Reader, read_document

    if options.resources:
        resources = read_document("/dev/stdin" if options.resources == "-" else options.resources)
    else:
        wanted: dict[str, dict[str, Any]] = {}
        for name, (part, key) in {**_UPDATES, **_UPDATES_TEXT}.items():
            value = getattr(options, name[2:].replace("-", "_"))
            if value is not None:
                wanted.setdefault(part, {})[key] = value
        if not wanted:
            raise UserError("update: no limit was named; --resources FILE or flags like --memory name some")
        resources = Reader(wanted, "update: ")
    _containers(options).update(options.id, resources)


def _features(_options: argparse.Namespace) -> None:
    from fleet.node_runtime.oci.features import features

    print(json.dumps(features(), indent=2))


if __name__ == "__main__":
    sys.exit(main())
