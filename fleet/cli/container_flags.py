"""The flags of ``fleet run`` and ``fleet container create``, one line each, with Docker's names and meanings.

Values stay text here; ``container_body`` reads them. That keeps one sentence a mistake, and ``--help`` free of imports.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

__all__ = ["ELSEWHERE", "EXEC_SETTINGS", "GoFlagsCommand", "container_options"]

R = TypeVar("R")

EXEC_SETTINGS: Final[dict[str, Any]] = {"allow_interspersed_args": False}
"""What follows the first argument belongs to the container's command."""

_MANY: Final = (
    ("--add-host", "HOST:ADDRESS", "Line of /etc/hosts."),
    ("--annotation", "NAME=VALUE", "Annotation handed to the runtime."),
    ("--attach/-a", "STREAM", "Attach to STDIN, STDOUT or STDERR."),
    ("--blkio-weight-device", "DEVICE:WEIGHT", "Block I/O weight of a device."),
    ("--cap-add", "CAPABILITY", "Add a capability."),
    ("--cap-drop", "CAPABILITY", "Drop a capability."),
    ("--device", "HOST[:CONTAINER[:RWM]]", "Device of the host."),
    ("--device-cgroup-rule", "RULE", "Device rule, such as 'c 1:3 mr'."),
    ("--device-read-bps", "DEVICE:RATE", "Limit of reading, bytes a second."),
    ("--device-read-iops", "DEVICE:RATE", "Limit of reading, operations a second."),
    ("--device-write-bps", "DEVICE:RATE", "Limit of writing, bytes a second."),
    ("--device-write-iops", "DEVICE:RATE", "Limit of writing, operations a second."),
    ("--dns", "ADDRESS", "DNS server."),
    ("--dns-option", "OPTION", "DNS option."),
    ("--dns-opt", "OPTION", "Same as --dns-option."),
    ("--dns-search", "DOMAIN", "DNS search domain."),
    ("--env/-e", "NAME[=VALUE]", "Environment variable."),
    ("--env-file", "FILE", "File of environment variables."),
    ("--expose", "PORT[/PROTOCOL]", "Expose a port or a range."),
    ("--gpus", "REQUEST", "GPUs: 'all', a number, or device=..."),
    ("--group-add", "GROUP", "Additional group."),
    ("--label/-l", "NAME[=VALUE]", "Label."),
    ("--label-file", "FILE", "File of labels."),
    ("--link", "CONTAINER[:ALIAS]", "Link to a container."),
    ("--link-local-ip", "ADDRESS", "Link-local address."),
    ("--log-opt", "NAME=VALUE", "Option of the log driver."),
    ("--mount", "FIELDS", "Mount: type=bind|volume|tmpfs|image,source=...,target=..."),
    ("--network/--net", "NETWORK", "Network, or name=NET,alias=A,ip=ADDRESS."),
    ("--network-alias/--net-alias", "NAME", "Name on the network."),
    ("--publish/-p", "[[IP:]HOST:]CONTAINER", "Publish a port or a range."),
    ("--security-opt", "OPTION", "Security option, such as seccomp=FILE or apparmor=PROFILE."),
    ("--storage-opt", "NAME=VALUE", "Option of the storage driver."),
    ("--sysctl", "NAME=VALUE", "Kernel setting."),
    ("--tmpfs", "PATH[:OPTIONS]", "Mount a tmpfs."),
    ("--ulimit", "NAME=SOFT[:HARD]", "Resource limit."),
    ("--volume/-v", "[SOURCE:]PATH[:OPTIONS]", "Mount a volume or a path of the host."),
    ("--volumes-from", "CONTAINER[:ro]", "Mount the volumes of a container."),
)
_TEXT: Final = (
    ("--cgroup-parent", "PATH", "Parent cgroup."),
    ("--cgroupns", "MODE", "Cgroup namespace: host or private."),
    ("--cidfile", "FILE", "Write the container's ID to a file."),
    ("--cpus", "NUMBER", "Number of CPUs."),
    ("--cpuset-cpus", "LIST", "CPUs it may run on, such as 0-3."),
    ("--cpuset-mems", "LIST", "Memory nodes it may use."),
    ("--domainname", "NAME", "NIS domain name."),
    ("--health-cmd", "COMMAND", "Command of the health check."),
    ("--health-interval", "DURATION", "Time between health checks."),
    ("--health-start-interval", "DURATION", "Time between health checks while it starts."),
    ("--health-start-period", "DURATION", "Time to start before failures count."),
    ("--health-timeout", "DURATION", "Time one health check may take."),
    ("--hostname/-h", "NAME", "Host name."),
    ("--ip", "ADDRESS", "IPv4 address."),
    ("--ip6", "ADDRESS", "IPv6 address."),
    ("--ipc", "MODE", "IPC namespace."),
    ("--isolation", "TECHNOLOGY", "Isolation technology."),
    ("--kernel-memory", "SIZE", "Accepted and ignored, as kernels do."),
    ("--log-driver", "DRIVER", "Log driver."),
    ("--mac-address", "ADDRESS", "MAC address."),
    ("--memory/-m", "SIZE", "Memory limit."),
    ("--memory-reservation", "SIZE", "Soft memory limit."),
    ("--memory-swap", "SIZE", "Limit of memory and swap together; -1 is unlimited."),
    ("--name", "NAME", "Name."),
    ("--pid", "MODE", "PID namespace."),
    ("--platform", "OS/ARCH", "Platform of the image."),
    ("--restart", "POLICY", "no, always, unless-stopped or on-failure[:N]."),
    ("--runtime", "NAME", "Runtime."),
    ("--shm-size", "SIZE", "Size of /dev/shm."),
    ("--stop-signal", "SIGNAL", "Signal that stops it."),
    ("--user/-u", "USER[:GROUP]", "User."),
    ("--userns", "MODE", "User namespace."),
    ("--uts", "MODE", "UTS namespace."),
    ("--volume-driver", "DRIVER", "Volume driver."),
    ("--workdir/-w", "PATH", "Working directory."),
)
_NUMBERS: Final = (
    ("--blkio-weight", "Block I/O weight, 10 to 1000."),
    ("--cpu-period", "CFS period in microseconds."),
    ("--cpu-quota", "CFS quota in microseconds."),
    ("--cpu-rt-period", "Real-time period in microseconds."),
    ("--cpu-rt-runtime", "Real-time runtime in microseconds."),
    ("--cpu-shares/-c", "CPU weight."),
    ("--health-retries", "Failures in a row that make it unhealthy."),
    ("--memory-swappiness", "Swappiness, 0 to 100."),
    ("--oom-score-adj", "OOM score adjustment."),
    ("--pids-limit", "Number of processes; -1 is unlimited."),
    ("--stop-timeout", "Seconds from the signal to the kill."),
)
_FLAGS: Final = (
    ("--init", "Run an init that forwards signals and reaps."),
    ("--interactive/-i", "Keep standard input open."),
    ("--no-healthcheck", "No health check."),
    ("--oom-kill-disable", "Disable the OOM killer."),
    ("--privileged", "Every privilege."),
    ("--publish-all/-P", "Publish all exposed ports."),
    ("--quiet/-q", "Show no progress of a pull."),
    ("--read-only", "Read-only root filesystem."),
    ("--rm", "Remove it when it ends."),
    ("--tty/-t", "A terminal."),
)


ELSEWHERE: Final = ("--cpu-count", "--cpu-percent", "--io-maxbandwidth", "--io-maxiops", "--use-api-socket")
"""Flags docker's help lists and no Linux host of ours honours; they are refused by name."""


def _names(text: str) -> tuple[str, ...]:
    names = text.split("/")
    return (*names, names[0].lstrip("-").replace("-", "_"))


def _expand(arguments: list[str]) -> list[str]:
    """Go's ``--flag=true|false`` as click's presence or absence; ``--init=false`` is told apart from silence."""
    switches = {name: names.split("/")[0] for names, _ in _FLAGS for name in names.split("/")}
    switches |= {
        "--detach": "--detach",
        "--sig-proxy": "--sig-proxy",
        "--disable-content-trust": "--disable-content-trust",
    }
    found: list[str] = []
    for position, argument in enumerate(arguments):
        if argument == "--":
            return found + arguments[position:]
        name, separator, value = argument.partition("=")
        if separator and name in switches and value.lower() in ("true", "1", "t"):
            found.append(name)
        elif separator and name in switches and value.lower() in ("false", "0", "f"):
            if name in ("--init", "--sig-proxy"):
                found.append(f"--no-{name[2:]}")
        else:
            found.append(argument)
    return found


class GoFlagsCommand(click.Command):
    """Understands ``--flag=false`` before the image's name; what comes after is the container's own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        taking = {
            name: option
            for option in self.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
        }
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
            option = taking.get(args[at])
            short = args[at] if not args[at].startswith("--") else ""
            if option is None and short:
                for place, letter in enumerate(short[1:], start=1):
                    inner = taking.get(f"-{letter}")
                    if inner is not None and not inner.is_flag:
                        option = inner if place == len(short) - 1 else None
                        break
            at += 2 if option is not None and not option.is_flag else 1
        return super().parse_args(ctx, _expand(args[:at]) + args[at:])


def container_options(command: Callable[..., R]) -> Callable[..., R]:
    """All flags that ``run`` and ``create`` share."""
    for names, metavar, text in reversed(_MANY):
        command = click.option(*_names(names), multiple=True, metavar=metavar, help=text)(command)
    for names, metavar, text in reversed(_TEXT):
        command = click.option(*_names(names), default=None, metavar=metavar, help=text)(command)
    for names, text in reversed(_NUMBERS):
        command = click.option(*_names(names), type=int, default=None, metavar="N", help=text)(command)
    for names, text in reversed(_FLAGS):
        if names == "--init":
            command = click.option("--init/--no-init", "init", default=None, help=text)(command)
        else:
            command = click.option(*_names(names), is_flag=True, help=text)(command)
    for name in ELSEWHERE:
        command = click.option(name, default=None, hidden=True, is_flag=name == "--use-api-socket")(command)
    command = click.option("--disable-content-trust", is_flag=True, hidden=True)(command)
    command = click.option("--entrypoint", default=None, metavar="COMMAND", help="Instead of the image's.")(command)
    return click.option("--pull", default="missing", metavar="WHEN", help="always, missing or never.")(command)
