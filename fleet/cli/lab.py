"""``fleet lab``: a cluster of several hosts on this machine.

Translates and prints; everything real is in ``fleet.lab``, imported only once a command runs, because ``fleet --help`` lists the
group too. Progress goes to standard error, results to standard output.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from fleet import errors

if TYPE_CHECKING:
    from fleet.lab import Lab

__all__ = ["lab"]

_DEFAULT_ROOT: Final = Path("/var/lib/fleet-lab")
_F = TypeVar("_F", bound=Callable[..., Any])


def _which_lab(command: _F) -> _F:
    """The options every verb takes: which lab, and where labs keep their data."""
    root = click.option(
        "--root",
        type=click.Path(path_type=Path),
        envvar="FLEET_LAB_ROOT",
        default=_DEFAULT_ROOT,
        show_default=True,
        show_envvar=True,
        help="Folder of all labs.",
    )
    name = click.option("--name", default="lab", show_default=True, help="Which lab; several live side by side.")
    return name(root(command))


def _lab(name: str, root: Path, *, daemon_args: tuple[str, ...] = (), disk_bytes: int = 0) -> Lab:
    from fleet.lab import Lab

    def say(text: str) -> None:
        click.echo(text, err=True)

    return Lab(name, root=root, say=say, daemon_args=daemon_args, disk_bytes=disk_bytes)


def _signal_number(_: click.Context, __: click.Parameter, value: str) -> int:
    """``KILL``, ``SIGKILL`` or ``9``."""
    try:
        return (
            signal.Signals(int(value)) if value.isdigit() else signal.Signals["SIG" + value.upper().removeprefix("SIG")]
        )
    except (KeyError, ValueError) as cause:
        raise click.BadParameter(f"{value!r} is no signal; use for example KILL or TERM") from cause


@click.group()
def lab() -> None:
    """A cluster of several hosts on this one machine, to try things out and to break them.

    Each host is a set of namespaces with its own address, data and fleetd. Needs root.
    """


@lab.command()
@_which_lab
@click.option("--managers", type=int, default=1, show_default=True, help="Hosts m1, m2, ...")
@click.option("--workers", type=int, default=2, show_default=True, help="Hosts w1, w2, ...")
@click.option("--no-swarm", is_flag=True, help="Only start the hosts and their daemons; do not join them.")
@click.option("--subnet", metavar="CIDR", help="The hosts' /24; a free one in 10/8 is chosen otherwise.")
@click.option(
    "--disk", metavar="SIZE", help="Give each host of a new lab a disk of its own, such as 2g, that can be full."
)
@click.option(
    "--daemon-arg", "daemon_args", multiple=True, help="One more argument for every fleetd of a new lab; repeatable."
)
@click.option(
    "--timeout", "timeout_s", type=float, default=60.0, show_default=True, help="Seconds to wait for daemons and nodes."
)
def up(
    *,
    name: str,
    root: Path,
    managers: int,
    workers: int,
    no_swarm: bool,
    subnet: str | None,
    disk: str | None,
    daemon_args: tuple[str, ...],
    timeout_s: float,
) -> None:
    """Make the lab, or bring it there: add missing hosts, start those that are off, join those outside."""
    from fleet.model.units import parse_bytes

    size = parse_bytes(disk, what="--disk") if disk else 0
    chosen = _lab(name, root, daemon_args=daemon_args, disk_bytes=size)
    chosen.up(managers=managers, workers=workers, swarm=not no_swarm, subnet=subnet, timeout_s=timeout_s)
    _print_table(chosen.status())
    click.echo(f'\nnext:  eval "$(fleet lab env{_suffix(name)})"  and then  fleet node ls', err=True)


@lab.command(name="ls")
@_which_lab
@click.option("-q", "--quiet", is_flag=True, help="Only names of labs.")
@click.option("--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.pass_context
def list_hosts(context: click.Context, name: str, root: Path, quiet: bool, output: str) -> None:
    """List the hosts of all labs, or of the one given with --name."""
    from fleet.lab import list_labs

    given = context.get_parameter_source("name") is not click.core.ParameterSource.DEFAULT
    names = [name] if given else list_labs(root)
    if quiet:
        click.echo("".join(f"{each}\n" for each in names), nl=False)
        return
    rows = [row for each in names for row in _lab(each, root).status()]
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print_table(rows)


@lab.command()
@_which_lab
@click.argument("host", required=False)
def env(name: str, root: Path, host: str | None) -> None:
    """Print what points fleet and docker at a host, the first by default: eval "$(fleet lab env)"."""
    chosen = _lab(name, root)
    for key, value in chosen.env(host or chosen.hosts()[0]).items():
        click.echo(f"export {key}={shlex.quote(value)}")


@lab.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_which_lab
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def execute(name: str, root: Path, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST, in all its namespaces; its exit code is the command's."""
    command = command[1:] if command[0] == "--" else command
    if not command:
        raise click.UsageError("give the command to run: fleet lab exec HOST -- COMMAND")
    argv = _lab(name, root).command(host, command)
    os.execvp(argv[0], argv)  # noqa: S606 - becoming the command keeps terminal, signals and exit code as they are


@lab.command()
@_which_lab
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
def kill(name: str, root: Path, hosts: tuple[str, ...]) -> None:
    """Power loss: every process of the hosts is gone at once, and the other hosts hear nothing of it."""
    _lab(name, root).kill(*hosts)


@lab.command()
@_which_lab
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds until it is simply over.",
)
def stop(name: str, root: Path, hosts: tuple[str, ...], grace_s: float) -> None:
    """Shut hosts down in order."""
    _lab(name, root).stop(*hosts, grace_s=grace_s)


@lab.command()
@_which_lab
@click.argument("hosts", metavar="HOST...", nargs=-1, required=True)
def start(name: str, root: Path, hosts: tuple[str, ...]) -> None:
    """Switch hosts on again, with their data, and wait until their daemons answer."""
    _lab(name, root).start(*hosts)


@lab.command(name="restart-daemon")
@_which_lab
@click.argument("host")
@click.option(
    "--signal", "-s", "signum", default="KILL", show_default=True, callback=_signal_number, help="How fleetd is ended."
)
def restart_daemon(name: str, root: Path, host: str, signum: int) -> None:
    """End only fleetd of HOST and start it again; containers live on."""
    _lab(name, root).restart_daemon(host, signum=signum)


@lab.command()
@_which_lab
@click.argument("one", metavar="HOSTS")
@click.argument("other", metavar="OTHERS")
@click.option("--one-way", is_flag=True, help="Lose only what HOSTS send to OTHERS.")
def partition(name: str, root: Path, one: str, other: str, one_way: bool) -> None:
    """Silently cut HOSTS off from OTHERS; both are lists such as m1,w1. Adds to earlier partitions."""
    _lab(name, root).partition(_host_list(one), _host_list(other), one_way=one_way)


@lab.command()
@_which_lab
def heal(name: str, root: Path) -> None:
    """End all partitions."""
    _lab(name, root).heal()


@lab.command()
@_which_lab
@click.argument("host")
@click.option("-f", "--follow", is_flag=True, help="Keep printing what is added.")
@click.option(
    "-n",
    "--tail",
    "lines",
    type=click.IntRange(min=0),
    default=100,
    show_default=True,
    help="How many lines from the end.",
)
def logs(name: str, root: Path, host: str, follow: bool, lines: int) -> None:
    """Print the log of HOST's fleetd."""
    path = _lab(name, root).log_path(host)
    if not path.exists():
        raise errors.NotFoundError(f"fleetd of {host} has not written a log yet ({path})")
    argv = ["tail", "-n", str(lines), *(["-F"] if follow else []), str(path)]
    os.execvp(argv[0], argv)  # noqa: S606 - tail(1) does this well


@lab.command()
@_which_lab
def down(name: str, root: Path) -> None:
    """Remove the lab: hosts, links, cgroups and data. Fine when there is none, and after a crash half way."""
    _lab(name, root).down()


def _suffix(name: str) -> str:
    return "" if name == "lab" else f" --name {name}"


def _host_list(text: str) -> list[str]:
    names = [part for part in text.split(",") if part]
    if not names:
        raise errors.UserError(f"{text!r} names no host; give a list such as m1,w1")
    return names


def _print_table(rows: list[Any]) -> None:
    head = ("LAB", "HOST", "ROLE", "ADDRESS", "STATE", "DAEMON", "SOCKET")
    cells = [head, *((r.lab, r.name, r.role, r.address, r.state, r.daemon, r.socket) for r in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
