"""The entry point: finds the command, sets the exit code, and turns every failure into one line.

Exit codes: 0 done; 1 the daemon said no, or something failed; 2 the command line or a file was wrong; 130 interrupted;
141 whoever read the output stopped reading; 70 a bug in fleet.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from fleet import errors
from fleet.cli.app import App, TlsOptions
from fleet.cli.lazy import LazyCommands

__all__ = ["cli", "main", "run"]

_COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    # name: (where, one line of help - written here so that --help imports nothing)
    "swarm": ("fleet.cli.swarm:swarm", "Manage the swarm"),
    "node": ("fleet.cli.node:node", "Manage nodes of the swarm"),
    "service": ("fleet.cli.service:service", "Manage services"),
    "stack": ("fleet.cli.stack:stack", "Manage stacks (Compose files)"),
    "job": ("fleet.cli.job:job", "Run jobs, once or at set times"),
    "quota": ("fleet.cli.quota:quota", "Look at quotas of stacks and labels"),
    "task": ("fleet.cli.task:task", "Look at tasks"),
    "network": ("fleet.cli.network:network", "Manage networks"),
    "secret": ("fleet.cli.objects:secret", "Manage secrets"),
    "config": ("fleet.cli.objects:config", "Manage configs"),
    "user": ("fleet.cli.access:user", "Manage users of the API and their roles"),
    "token": ("fleet.cli.access:token", "Manage tokens that users show to the API"),
    "volume": ("fleet.cli.volume:volume", "Manage volumes of this host"),
    "image": ("fleet.cli.image:image", "Manage images of this host"),
    "container": ("fleet.cli.container:container", "Manage containers of this host"),
    "system": ("fleet.cli.system:system", "Look at the daemon of this host"),
    "context": ("fleet.cli.context:context", "Keep names for daemons to talk to"),
    "lab": ("fleet.cli.lab:lab", "A cluster of many hosts on this machine, to try and to test"),
    "daemon": ("fleet.cli.system:daemon", "Run the fleet daemon in the foreground"),
    "info": ("fleet.cli.system:info", "Show this host and its swarm"),
    "version": ("fleet.cli.system:version", "Show versions of the command and the daemon"),
    "top": ("fleet.cli.top:top", "Watch the cluster: nodes, services, tasks in trouble, events"),
    "dashboard": ("fleet.cli.dashboard:dashboard", "Open the cluster's dashboard to a browser on this machine"),
    "events": ("fleet.cli.events:events", "Follow what happens"),
    "oci": ("fleet.cli.oci:oci", "Run containers from OCI bundles, without a daemon"),
    "completion": ("fleet.cli.completion:completion", "Print a completion script for bash, zsh or fish"),
    "man": ("fleet.cli.man:man", "Show or write manual pages"),
    "run": ("fleet.cli.run:run", "Create a container and start it"),
    "create": ("fleet.cli.run:create", "Create a container without starting it"),
    "exec": ("fleet.cli.exec:exec_", "Run a command in a running container"),
    "attach": ("fleet.cli.exec:attach", "Join this terminal to a running container"),
    "start": ("fleet.cli.container:start", "Start stopped containers"),
    "stop": ("fleet.cli.container:stop", "Stop containers"),
    "restart": ("fleet.cli.container:restart", "Stop containers and start them again"),
    "kill": ("fleet.cli.container:kill", "Send a signal to containers"),
    "pause": ("fleet.cli.container:pause", "Freeze all processes of containers"),
    "unpause": ("fleet.cli.container:unpause", "Let frozen processes go on"),
    "rm": ("fleet.cli.container:rm", "Remove containers"),
    "rename": ("fleet.cli.container:rename", "Give a container another name"),
    "update": ("fleet.cli.container:update", "Change limits and the restart policy"),
    "wait": ("fleet.cli.container:wait", "Wait until containers stop"),
    "port": ("fleet.cli.container:port", "Show where ports are published"),
    "diff": ("fleet.cli.container:diff", "Show what changed in a container's files"),
    "stats": ("fleet.cli.stats:stats", "Show what containers use"),
    "cp": ("fleet.cli.copy:cp", "Copy files between a container and this machine"),
    "export": ("fleet.cli.copy:export", "Write a container's file system as a tar archive"),
    "ps": ("fleet.cli.container:ls", "List containers (same as: container ls)"),
    "images": ("fleet.cli.image:ls", "List images (same as: image ls)"),
    "pull": ("fleet.cli.image:pull", "Pull an image (same as: image pull)"),
    "push": ("fleet.cli.image:push", "Push an image (same as: image push)"),
    "login": ("fleet.cli.login:login", "Log in to a registry"),
    "logout": ("fleet.cli.login:logout", "Forget the login to a registry"),
    "build": ("fleet.cli.build:build", "Build an image from a Dockerfile"),
    "commit": ("fleet.cli.build:commit", "Make an image of a container"),
    "load": ("fleet.cli.image:load", "Load images from an archive (same as: image load)"),
    "logs": ("fleet.cli.logs:logs", "Show logs of a container, service or task"),
}
_SECTIONS: Final = (
    (
        "Cluster",
        (
            "swarm",
            "node",
            "service",
            "stack",
            "job",
            "quota",
            "task",
            "network",
            "secret",
            "config",
            "user",
            "token",
            "top",
            "dashboard",
        ),
    ),
    ("This host", ("container", "image", "volume", "system", "info", "version", "events", "daemon")),
    ("Containers", ("run", "create", "exec", "attach", "start", "stop", "restart", "kill", "pause", "unpause", "rm")),
    ("More of containers", ("rename", "update", "wait", "port", "diff", "stats", "cp", "export")),
    ("Short forms", ("ps", "images", "pull", "push", "build", "commit", "load", "logs")),
    ("More", ("login", "logout", "context", "lab", "oci", "completion", "man")),
)


class LazyGroup(LazyCommands):
    """All of them; a name that is none is answered with the one that is meant."""

    def list_commands(self, _ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0] if args else ""
        if name not in _COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else "; see fleet --help"
            raise click.UsageError(f"'{name}' is not a fleet command{hint}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the command; a reader that went away ends it quietly (click would exit with 1)."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_output()
            return 141
        return result

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _SECTIONS:
            with formatter.section(title):
                formatter.write_dl([(name, _COMMANDS[name][1]) for name in names])


@click.group(
    cls=LazyGroup,
    elsewhere={name: where for name, (where, _) in _COMMANDS.items()},
    context_settings={"help_option_names": ["--help"], "max_content_width": 110},
)
@click.option("-H", "--host", metavar="URL", help="Daemon to talk to: unix:///path or tcp://HOST:PORT.")
@click.option("-c", "--context", "context", metavar="NAME", help="Context to use; see fleet context.")
@click.option("--tls", is_flag=True, help="Use TLS; implied by --tlsverify.")
@click.option("--tlsverify", is_flag=True, help="Use TLS and verify the daemon.")
@click.option("--tlscacert", metavar="FILE", help="Trust certificates signed only by this CA.")
@click.option("--tlscert", metavar="FILE", help="TLS certificate file.")
@click.option("--tlskey", metavar="FILE", help="TLS key file.")
@click.option("--token-file", metavar="FILE", help="File with the token to show to the daemon.")
@click.version_option(package_name="fleet", message="fleet version %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    *,
    host: str | None,
    context: str | None,
    tls: bool,
    tlsverify: bool,
    tlscacert: str | None,
    tlscert: str | None,
    tlskey: str | None,
    token_file: str | None,
) -> None:
    """Run containers on many hosts as if they were one.

    The daemon is that of --context or -H, else of $FLEET_HOST or $DOCKER_HOST, else of the context in $FLEET_CONTEXT or
    $DOCKER_CONTEXT, else of the one that fleet context use chose, else a daemon of your own ($XDG_RUNTIME_DIR/fleet/fleet.sock),
    else unix:///run/fleet/fleet.sock.
    The token is taken from --token-file, else $FLEET_TOKEN_FILE, else $FLEET_TOKEN; it is shown over verified TLS alone.
    """
    if host and context:
        raise click.UsageError("--host and --context exclude each other: a context names a host", ctx)
    environment: Mapping[str, str] = ctx.obj if ctx.obj is not None else {}
    app = App(
        host=host,
        context=context,
        tls=TlsOptions(enabled=tls, verify=tlsverify, ca_file=tlscacert, cert_file=tlscert, key_file=tlskey),
        environment=environment,
        token_file=token_file or environment.get("FLEET_TOKEN_FILE") or "",
    )
    ctx.obj = app
    ctx.call_on_close(app.close)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split("\n")).strip()
    click.echo(f"Error: {line}", err=True)
    return code


def _usage(cause: click.UsageError) -> int:
    if isinstance(cause, click.exceptions.NoArgsIsHelpError):  # a noun without a verb: its help is the answer
        click.echo(cause.format_message(), err=True)
        return 2
    code = _fail(cause.format_message(), 2)
    if cause.ctx is not None:
        click.echo(f"See '{cause.ctx.command_path} --help'.", err=True)
    return code


def _close_output() -> None:
    """Nobody reads any more: what is still buffered must not fail again at exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)


def run(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run one command in this process; returns the exit code and never raises."""
    try:
        result: Any = cli.main(args=list(arguments), prog_name="fleet", standalone_mode=False, obj=environment)
    except click.UsageError as cause:
        return _usage(cause)
    except click.ClickException as cause:
        return _fail(cause.format_message(), 1)
    except click.exceptions.Exit as cause:
        return cause.exit_code
    except click.Abort as cause:
        if isinstance(cause.__cause__ or cause.__context__, EOFError):
            return _fail("the input ended early", 1)
        return 130
    except KeyboardInterrupt:
        return 130
    except errors.FleetError as cause:
        return _fail(str(cause), cause.exit_code)
    except Exception as cause:  # noqa: BLE001 - a command line ends in one sentence, not in a traceback
        return _unexpected(cause)
    return result if isinstance(result, int) else 0


def _unexpected(cause: Exception) -> int:
    """The connection broke in the middle of an answer, or fleet has a bug."""
    import http.client

    if isinstance(cause, http.client.HTTPException):
        return _fail("the connection to the daemon was lost in the middle of an answer", 1)
    if isinstance(cause, ConnectionError | TimeoutError):
        return _fail(f"the connection to the daemon was lost: {cause or type(cause).__name__}", 1)
    if isinstance(cause, OSError):
        return _fail(str(cause), 1)
    import traceback

    frame = traceback.extract_tb(cause.__traceback__)[-1]
    place = f"{frame.filename}:{frame.lineno}"
    return _fail(f"a bug in fleet ({type(cause).__name__} at {place}): {cause}; please report it", 70)


def main() -> None:
    """The ``fleet`` command."""
    code = run(sys.argv[1:], os.environ)
    try:
        sys.stdout.flush()
    except OSError:  # told already; the interpreter must not try again at exit
        _close_output()
    sys.exit(code)


if __name__ == "__main__":
    main()
