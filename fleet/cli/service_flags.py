"""The flags that describe a service, declared once for ``service create`` and ``service update``.

A *value* flag sets one place of the spec, a *list* flag appends to a list (``--x`` on create; ``--x-add``, ``--x-rm`` on
update), a *map* flag the same for labels and the like. Names, meaning and values: ``docker service create --help``.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

import click

from fleet import errors
from fleet.compose import values

__all__ = [
    "LABEL_FLAGS",
    "LIST_FLAGS",
    "MAP_FLAGS",
    "VALUE_FLAGS",
    "LabelFlag",
    "ListFlag",
    "MapFlag",
    "ValueFlag",
    "create_options",
    "update_options",
]

T = TypeVar("T")
Command = Callable[..., Any]


class Parsed(click.ParamType[Any]):
    """A flag's value read by one of our parsers; what they refuse becomes a usage error naming the flag."""

    def __init__(self, parse: Callable[[str], object], *, name: str) -> None:
        self.parse = parse
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except errors.UserError as cause:
            self.fail(str(cause), param, ctx)


def _integer(text: str, *, low: int, high: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise errors.UserError(f"{text!r} is not {what}; expected a whole number from {low} to {high}")
    return number


def _count(text: str) -> int:
    return _integer(text, low=0, high=2**31 - 1, what="a count")


def _oom_score(text: str) -> int:
    return _integer(text, low=-1000, high=1000, what="an OOM score adjustment")


def _ratio(text: str) -> float:
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise errors.UserError(f"{text!r} is not a ratio; expected a number from 0 to 1")
    return ratio


def _one_of(*accepted: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        lowered = text.strip().lower()
        if lowered not in accepted:
            raise errors.UserError(f"{text!r} is not known; expected {', '.join(accepted)}")
        return lowered

    return parse


def split_words(text: str) -> list[str]:
    """A command line as words; no shell runs it."""
    try:
        return shlex.split(text)
    except ValueError as cause:
        raise errors.UserError(f"{text!r}: {str(cause).lower()}") from cause


def _env(text: str) -> str:
    if not text or text.startswith("="):
        raise errors.UserError(f"{text!r} has no name before '='; expected NAME=VALUE")
    return text


def image_name(text: str) -> str:
    if not text.strip():
        raise errors.UserError("an empty image name; expected NAME[:TAG|@DIGEST]")
    return text


def _generic_resource(text: str) -> dict[str, Any]:
    kind, _, value = text.partition("=")
    if not kind or not value:
        raise errors.UserError(f"{text!r} is not a resource; expected KIND=COUNT or KIND=NAME")
    if value.isdecimal():
        return {"DiscreteResourceSpec": {"Kind": kind, "Value": int(value)}}
    return {"NamedResourceSpec": {"Kind": kind, "Value": value}}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ValueFlag:
    """``path`` in the spec is set to what ``parse`` makes of the text; a flag without ``parse`` is a switch."""

    name: str
    path: str
    help: str
    parse: Callable[[str], object] | None = None
    metavar: str = "VALUE"
    short: str | None = None

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")


_CONTAINER: Final = "TaskTemplate.ContainerSpec"
_LIMITS: Final = "TaskTemplate.Resources.Limits"
_RESERVED: Final = "TaskTemplate.Resources.Reservations"
_RESTART: Final = "TaskTemplate.RestartPolicy"


def _update_flags(prefix: str, path: str, actions: tuple[str, ...]) -> list[ValueFlag]:
    what = "updated" if prefix == "update" else "rolled back"
    return [
        ValueFlag(name=f"{prefix}-parallelism", path=f"{path}.Parallelism", parse=_count, metavar="N",
                  help=f"Tasks {what} at once (0: all of them; default 1)."),
        ValueFlag(name=f"{prefix}-delay", path=f"{path}.Delay", parse=values.parse_duration_ns, metavar="DURATION",
                  help=f"Time between tasks being {what} (default 0s)."),
        ValueFlag(name=f"{prefix}-failure-action", path=f"{path}.FailureAction", parse=_one_of(*actions),
                  metavar="|".join(actions), help="What to do when tasks fail (default pause)."),
        ValueFlag(name=f"{prefix}-monitor", path=f"{path}.Monitor", parse=values.parse_duration_ns,
                  metavar="DURATION", help="How long each task is watched for failure (default 5s)."),
        ValueFlag(name=f"{prefix}-max-failure-ratio", path=f"{path}.MaxFailureRatio", parse=_ratio, metavar="RATIO",
                  help="Share of failed tasks that is tolerated (default 0)."),
        ValueFlag(name=f"{prefix}-order", path=f"{path}.Order", parse=_one_of("stop-first", "start-first"),
                  metavar="start-first|stop-first", help="Stop the old task first, or start the new one first."),
        ValueFlag(name=f"{prefix}-progress-deadline", path=f"{path}.ProgressDeadline", parse=values.parse_duration_ns,
                  metavar="DURATION", help="A task that does not run after so long has failed (default 0s: never)."),
    ]  # fmt: skip


VALUE_FLAGS: Final[tuple[ValueFlag, ...]] = (
    ValueFlag(name="limit-cpu", path=f"{_LIMITS}.NanoCPUs", parse=values.parse_nano_cpus, metavar="CPUS",
              help="Most CPUs a task may use (0: no limit)."),
    ValueFlag(name="limit-memory", path=f"{_LIMITS}.MemoryBytes", parse=values.parse_bytes, metavar="SIZE",
              help="Most memory a task may use (0: no limit)."),
    ValueFlag(name="limit-pids", path=f"{_LIMITS}.Pids", parse=_count, metavar="N",
              help="Most processes a task may have (0: no limit)."),
    ValueFlag(name="reserve-cpu", path=f"{_RESERVED}.NanoCPUs", parse=values.parse_nano_cpus, metavar="CPUS",
              help="CPUs a node must have free for a task."),
    ValueFlag(name="reserve-memory", path=f"{_RESERVED}.MemoryBytes", parse=values.parse_bytes, metavar="SIZE",
              help="Memory a node must have free for a task."),
    ValueFlag(name="restart-condition", path=f"{_RESTART}.Condition", parse=_one_of("none", "on-failure", "any"),
              metavar="none|on-failure|any", help="When a task that ended is replaced (default any)."),
    ValueFlag(name="restart-delay", path=f"{_RESTART}.Delay", parse=values.parse_duration_ns, metavar="DURATION",
              help="Time before a task is replaced (default 5s)."),
    ValueFlag(name="restart-max-attempts", path=f"{_RESTART}.MaxAttempts", parse=_count, metavar="N",
              help="Most replacements (0: no limit)."),
    ValueFlag(name="restart-window", path=f"{_RESTART}.Window", parse=values.parse_duration_ns, metavar="DURATION",
              help="Window in which replacements are counted."),
    *_update_flags("update", "UpdateConfig", ("pause", "continue", "rollback")),
    *_update_flags("rollback", "RollbackConfig", ("pause", "continue")),
    ValueFlag(name="replicas-max-per-node", path="TaskTemplate.Placement.MaxReplicas", parse=_count, metavar="N",
              help="Most tasks on one node (0: no limit)."),
    ValueFlag(name="stop-grace-period", path=f"{_CONTAINER}.StopGracePeriod", parse=values.parse_duration_ns,
              metavar="DURATION", help="Time from the stop signal to the kill (default 10s)."),
    ValueFlag(name="stop-signal", path=f"{_CONTAINER}.StopSignal", parse=str, metavar="SIGNAL",
              help="Signal that stops a container."),
    ValueFlag(name="health-interval", path=f"{_CONTAINER}.Healthcheck.Interval", parse=values.parse_duration_ns,
              metavar="DURATION", help="Time between health checks."),
    ValueFlag(name="health-timeout", path=f"{_CONTAINER}.Healthcheck.Timeout", parse=values.parse_duration_ns,
              metavar="DURATION", help="Longest time a health check may take."),
    ValueFlag(name="health-retries", path=f"{_CONTAINER}.Healthcheck.Retries", parse=_count, metavar="N",
              help="Failures in a row that mean unhealthy."),
    ValueFlag(name="health-start-period", path=f"{_CONTAINER}.Healthcheck.StartPeriod",
              parse=values.parse_duration_ns, metavar="DURATION", help="Time in which failures do not count yet."),
    ValueFlag(name="health-start-interval", path=f"{_CONTAINER}.Healthcheck.StartInterval",
              parse=values.parse_duration_ns, metavar="DURATION", help="Time between checks in the start period."),
    ValueFlag(name="hostname", path=f"{_CONTAINER}.Hostname", parse=str, metavar="NAME", help="Host name of the containers."),
    ValueFlag(name="user", path=f"{_CONTAINER}.User", parse=str, metavar="NAME|UID[:GROUP|GID]", short="-u",
              help="User of the containers' processes."),
    ValueFlag(name="workdir", path=f"{_CONTAINER}.Dir", parse=str, metavar="DIR", short="-w",
              help="Working directory in the containers."),
    ValueFlag(name="entrypoint", path=f"{_CONTAINER}.Command", parse=split_words, metavar="COMMAND",
              help="Replace the image's ENTRYPOINT."),
    ValueFlag(name="oom-score-adj", path=f"{_CONTAINER}.OomScoreAdj", parse=_oom_score, metavar="N",
              help="Preference of the kernel's OOM killer (-1000 to 1000)."),
    ValueFlag(name="tty", path=f"{_CONTAINER}.TTY", short="-t", help="Give the containers a terminal."),
    ValueFlag(name="read-only", path=f"{_CONTAINER}.ReadOnly", help="Mount the root filesystem read only."),
    ValueFlag(name="endpoint-mode", path="EndpointSpec.Mode", parse=_one_of("vip", "dnsrr"), metavar="vip|dnsrr",
              help="How the service's name resolves (default vip)."),
    ValueFlag(name="log-driver", path="TaskTemplate.LogDriver.Name", parse=str, metavar="NAME", help="Logging driver."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ListFlag:
    """Entries of the list at ``path``. ``name_of`` an entry is what ``--x-rm`` takes and what a new one replaces."""

    name: str
    path: str
    help: str
    metavar: str
    parse: Callable[[str], object] = str
    name_of: Callable[[Any], str] = str
    short: str | None = None
    expands: bool = False
    """One text may stand for several entries."""

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")


def _key(name: str) -> Callable[[Any], str]:
    return lambda entry: str(entry.get(name, ""))


def _port_name(entry: Any) -> str:
    return f"{entry.get('PublishedPort', 0)}:{entry['TargetPort']}/{entry.get('Protocol', 'tcp')}"


def _resource_name(entry: Mapping[str, Any]) -> str:
    resource: Mapping[str, Any] = next(iter(entry.values()), {})
    return str(resource.get("Kind", ""))


LIST_FLAGS: Final[tuple[ListFlag, ...]] = (
    ListFlag(name="env", path=f"{_CONTAINER}.Env", parse=_env, name_of=lambda entry: str(entry).partition("=")[0],
             short="-e", metavar="NAME=VALUE", help="Environment variable."),
    ListFlag(name="constraint", path="TaskTemplate.Placement.Constraints", metavar="EXPR",
             name_of=lambda entry: "".join(str(entry).split()),
             help="Where tasks may run, such as node.role==worker."),
    ListFlag(name="placement-pref", path="TaskTemplate.Placement.Preferences", parse=values.parse_preference,
             name_of=lambda entry: f"spread={(entry.get('Spread') or {}).get('SpreadDescriptor', '')}",
             metavar="spread=LABEL", help="Spread tasks evenly over values of a node label."),
    ListFlag(name="publish", path="EndpointSpec.Ports", parse=values.parse_ports, name_of=_port_name, short="-p",
             expands=True, metavar="PORT", help="Publish a port: 8080:80[/udp] or published=8080,target=80,mode=host; "
             "with source=client tasks see the clients' own addresses."),
    ListFlag(name="network", path="TaskTemplate.Networks", parse=values.parse_network, name_of=_key("Target"),
             metavar="NETWORK", help="Join a network: NAME or name=NAME,alias=ALIAS."),
    ListFlag(name="mount", path=f"{_CONTAINER}.Mounts", parse=values.parse_mount, name_of=_key("Target"),
             metavar="MOUNT", help="Mount: type=bind|volume|tmpfs,source=...,target=...[,readonly]."),
    ListFlag(name="secret", path=f"{_CONTAINER}.Secrets", parse=values.parse_file_reference,
             name_of=_key("SecretName"), metavar="SECRET", help="Give a secret: NAME or source=NAME,target=FILE,mode=0400."),
    ListFlag(name="config", path=f"{_CONTAINER}.Configs", parse=values.parse_file_reference,
             name_of=_key("ConfigName"), metavar="CONFIG", help="Give a config: NAME or source=NAME,target=/path."),
    ListFlag(name="group", path=f"{_CONTAINER}.Groups", metavar="GROUP", help="Supplementary group."),
    ListFlag(name="host", path=f"{_CONTAINER}.Hosts", parse=values.parse_host, metavar="NAME:ADDRESS",
             help="Line for /etc/hosts."),
    ListFlag(name="dns", path=f"{_CONTAINER}.DNSConfig.Nameservers", metavar="ADDRESS", help="Name server."),
    ListFlag(name="dns-option", path=f"{_CONTAINER}.DNSConfig.Options", metavar="OPTION", help="Resolver option."),
    ListFlag(name="dns-search", path=f"{_CONTAINER}.DNSConfig.Search", metavar="DOMAIN", help="DNS search domain."),
    ListFlag(name="ulimit", path=f"{_CONTAINER}.Ulimits", parse=values.parse_ulimit, name_of=_key("Name"),
             metavar="NAME=SOFT[:HARD]", help="Limit of the containers' processes, such as nofile=1024:2048."),
    ListFlag(name="generic-resource", path=f"{_RESERVED}.GenericResources", parse=_generic_resource,
             name_of=_resource_name, metavar="KIND=VALUE", help="Reserve a user-defined resource."),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MapFlag:
    """Entries of the mapping at ``path``."""

    name: str
    path: str
    help: str
    short: str | None = None

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")


MAP_FLAGS: Final[tuple[MapFlag, ...]] = (
    MapFlag(name="label", path="Labels", short="-l", help="Label of the service."),
    MapFlag(name="container-label", path=f"{_CONTAINER}.Labels", help="Label of its containers."),
    MapFlag(name="sysctl", path=f"{_CONTAINER}.Sysctls", help="Kernel parameter of its containers."),
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LabelFlag:
    """One label of the service, which fleet's scheduler reads (``fleet/scheduler/README.md``), or one of its containers; an empty
    value takes it away.
    """

    name: str
    label: str
    metavar: str
    help: str
    path: str = "Labels"

    @property
    def parameter(self) -> str:
        return self.name.replace("-", "_")


LABEL_FLAGS: Final[tuple[LabelFlag, ...]] = (
    LabelFlag(name="placement-strategy", label="fleet.placement.strategy", metavar="spread|binpack|balanced",
              help="How its tasks are placed."),
    LabelFlag(name="placement-prefer", label="fleet.placement.prefer", metavar="EXPR:WEIGHT[;...]",
              help="Nodes to take first, such as 'node.labels.disk==ssd:10'."),
    LabelFlag(name="affinity", label="fleet.placement.affinity", metavar="SERVICE[:WEIGHT][,...]",
              help="Only (with a weight: rather) on nodes with tasks of these services."),
    LabelFlag(name="anti-affinity", label="fleet.placement.anti-affinity", metavar="SERVICE[:WEIGHT][,...]",
              help="Only (with a weight: rather) on nodes without tasks of these services."),
    LabelFlag(name="priority", label="fleet.placement.priority", metavar="N",
              help="From -1000 to 1000: its tasks take the room of tasks of less when there is none (default 0)."),
    LabelFlag(name="schedule", label="fleet.schedule.cron", metavar="CRON",
              help="When a job runs, such as '0 3 * * *' or @hourly; not when it is created."),
    LabelFlag(name="schedule-timezone", label="fleet.schedule.timezone", metavar="ZONE",
              help="Whose clocks --schedule means, such as Europe/Berlin (default UTC)."),
    LabelFlag(name="schedule-concurrency", label="fleet.schedule.concurrency", metavar="forbid|replace",
              help="What becomes of a run that is due while the one before still runs (default forbid: skipped)."),
    LabelFlag(name="schedule-deadline", label="fleet.schedule.deadline", metavar="DURATION",
              help="How late a run may still begin (default 10m)."),
    LabelFlag(name="autoscale-min", label="fleet.autoscale.min", metavar="N",
              help="Fewest tasks when their number is left to the cluster (default 1)."),
    LabelFlag(name="autoscale-max", label="fleet.autoscale.max", metavar="N",
              help="Most tasks; with it and a target the cluster chooses their number."),
    LabelFlag(name="autoscale-cpu", label="fleet.autoscale.cpu", metavar="PERCENT",
              help="CPU a task should use, of its limit, else its reservation, else one core."),
    LabelFlag(name="autoscale-memory", label="fleet.autoscale.memory", metavar="PERCENT",
              help="Memory a task should use, of its limit, else its reservation."),
    LabelFlag(name="autoscale-query", label="fleet.autoscale.query", metavar="PROMQL",
              help="Query whose number is shared among the tasks, such as 'sum(jobs_waiting)'."),
    LabelFlag(name="autoscale-query-target", label="fleet.autoscale.query-target", metavar="NUMBER",
              help="How much of the query's number one task should have."),
    LabelFlag(name="autoscale-prometheus", label="fleet.autoscale.prometheus", metavar="URL",
              help="Prometheus that managers ask: a published port, or see swarm update --prometheus-allow."),
    LabelFlag(name="autoscale-up-window", label="fleet.autoscale.up-window", metavar="DURATION",
              help="How long more must be needed before tasks are added (default 0s)."),
    LabelFlag(name="autoscale-down-window", label="fleet.autoscale.down-window", metavar="DURATION",
              help="How long fewer must do before tasks are taken away (default 5m)."),
    LabelFlag(name="autoscale-up-step", label="fleet.autoscale.up-step", metavar="N|PERCENT%|N,PERCENT%",
              help="Most tasks added at once (default 4,100%: 4, or as many as there are)."),
    LabelFlag(name="autoscale-down-step", label="fleet.autoscale.down-step", metavar="N|PERCENT%|N,PERCENT%",
              help="Most tasks taken away at once (default 100%)."),
    LabelFlag(name="autoscale-interval", label="fleet.autoscale.interval", metavar="DURATION",
              help="Time between two decisions (default 15s)."),
    LabelFlag(name="autoscale-warmup", label="fleet.autoscale.warmup", metavar="DURATION",
              help="How long what a new task uses does not count (default 30s)."),
    LabelFlag(name="rebalance", label="fleet.rebalance", metavar="off|manual|automatic",
              help="Whether its tasks move to balance nodes (default: as the swarm says)."),
    LabelFlag(name="userns", label="fleet.userns", metavar="host|remap", path=f"{_CONTAINER}.Labels",
              help="User ids of its containers: the host's, or their own for certain (default: as the node is set up)."),
)  # fmt: skip


def _toleration(text: str) -> str:
    from fleet.model.taints import parse_toleration  # only those who give the flag pay for it

    parse_toleration(text)
    return "".join(text.split())


def _tolerations(name: str, text: str) -> Callable[[Command], Command]:
    """They are entries of one label, and written like a list."""
    metavar = "KEY[=VALUE][:EFFECT]"
    kind = Parsed(_toleration, name="TOLERATION")
    return click.option(f"--{name}", type=kind, multiple=True, metavar=metavar, help=text)


def _pair(text: str) -> tuple[str, str]:
    return values.parse_pair(text, what="NAME=VALUE")


def _value_option(flag: ValueFlag, *, update: bool) -> Callable[[Command], Command]:
    names = [f"--{flag.name}", *([flag.short] if flag.short else [])]
    if flag.parse is None:
        switch = f"--{flag.name}/--no-{flag.name}" if update else f"--{flag.name}"
        return click.option(switch, *names[1:], flag.parameter, default=None, is_flag=True, help=flag.help)
    return click.option(
        *names, flag.parameter, type=Parsed(flag.parse, name=flag.metavar), metavar=flag.metavar, help=flag.help
    )


def _shared(command: Command, *, update: bool) -> Command:
    options = [_value_option(flag, update=update) for flag in VALUE_FLAGS]
    options += [click.option(f"--{flag.name}", metavar=flag.metavar, help=flag.help) for flag in LABEL_FLAGS]
    capability = Parsed(values.parse_capability, name="CAPABILITY")
    options += [
        click.option("--replicas", type=Parsed(_count, name="N"), metavar="N", help="Number of tasks."),
        click.option("--max-concurrent", type=Parsed(_count, name="N"), metavar="N", help="Tasks of a job at once."),
        click.option("--init/--no-init", "init", default=None, help="Run a small init as process 1 of the containers."),
        click.option("--health-cmd", metavar="COMMAND", help="Health check, run by the shell in the container."),
        click.option("--no-healthcheck", is_flag=True, help="Turn the image's health check off."),
        click.option("--log-opt", type=Parsed(_pair, name="NAME=VALUE"), multiple=True, metavar="NAME=VALUE",
                     help="Option of the logging driver."),
        click.option("--cap-add", type=capability, multiple=True, metavar="CAPABILITY",
                     help="Add a Linux capability."),
        click.option("--cap-drop", type=capability, multiple=True, metavar="CAPABILITY",
                     help="Drop a Linux capability."),
        click.option("--with-registry-auth", is_flag=True, help="Send this user's registry login to the nodes."),
        click.option("--no-resolve-image", is_flag=True,
                     help="Take the image's name as it is, without the digest it has now."),
        *wait_options(),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def wait_options() -> list[Callable[[Command], Command]]:
    """--detach, --quiet, --timeout, --stable: how to wait for the service."""
    duration = Parsed(values.parse_duration_ns, name="DURATION")
    return [
        click.option("-d", "--detach", is_flag=True, help="Do not wait until the service has converged."),
        click.option("-q", "--quiet", is_flag=True, help="Wait without showing progress."),
        click.option("--timeout", type=duration, metavar="DURATION", help="Give up waiting after this time (exit code 1)."),
        click.option("--stable", type=duration, metavar="DURATION", default="0",
                     help="Keep watching this long after all tasks run (default 0s)."),
    ]  # fmt: skip


def create_options(command: Command) -> Command:
    """All flags of ``service create``."""
    command = _shared(command, update=False)
    for item in reversed(LIST_FLAGS):
        kind = Parsed(item.parse, name=item.metavar)
        names = [f"--{item.name}", *([item.short] if item.short else [])]
        command = click.option(*names, item.parameter, type=kind, multiple=True, metavar=item.metavar, help=item.help)(
            command
        )
    for entry in reversed(MAP_FLAGS):
        names = [f"--{entry.name}", *([entry.short] if entry.short else [])]
        command = click.option(
            *names, entry.parameter, type=Parsed(_pair, name="NAME=VALUE"), multiple=True, metavar="NAME=VALUE",
            help=entry.help,
        )(command)  # fmt: skip
    modes = ("replicated", "global", "replicated-job", "global-job")
    command = _tolerations("toleration", "Taints of nodes that do not keep its tasks away; key * is any.")(command)
    command = click.option("--env-file", multiple=True, metavar="FILE", help="File of environment variables.")(command)
    command = click.option(
        "--mode", type=Parsed(_one_of(*modes), name="MODE"), default="replicated", metavar="|".join(modes),
        help="How tasks are made (default replicated).",
    )(command)  # fmt: skip
    return click.option("--name", metavar="NAME", default="", help="Name of the service.")(command)


def update_options(command: Command) -> Command:
    """All flags of ``service update``."""
    command = _shared(command, update=True)
    for item in reversed(LIST_FLAGS):
        command = click.option(
            f"--{item.name}-rm",
            multiple=True,
            metavar=_removed(item.metavar),
            help=f"Remove: {item.help.split(':')[0].rstrip('.')}.",
        )(command)
        command = click.option(
            f"--{item.name}-add", type=Parsed(item.parse, name=item.metavar), multiple=True, metavar=item.metavar,
            help=f"Add or change: {item.help}",
        )(command)  # fmt: skip
    for entry in reversed(MAP_FLAGS):
        command = click.option(f"--{entry.name}-rm", multiple=True, metavar="NAME", help=f"Remove: {entry.help}")(
            command
        )
        command = click.option(
            f"--{entry.name}-add", type=Parsed(_pair, name="NAME=VALUE"), multiple=True, metavar="NAME=VALUE",
            help=f"Add or change: {entry.help}",
        )(command)  # fmt: skip
    command = _tolerations("toleration-rm", "Remove: what it tolerates, by key alone or as it was written.")(command)
    command = _tolerations("toleration-add", "Add: taints of nodes that do not keep its tasks away.")(command)
    command = click.option("--no-autoscale", is_flag=True, help="Scale by hand again: remove all of --autoscale-*.")(
        command
    )
    command = click.option("--force", is_flag=True, help="Replace the tasks even if nothing changed.")(command)
    command = click.option("--rollback", is_flag=True, help="Go back to the previous specification.")(command)
    command = click.option(
        "--args", type=Parsed(split_words, name="COMMAND"), metavar="COMMAND", help="Replace the command's arguments."
    )(command)
    return click.option("--image", type=Parsed(image_name, name="IMAGE"), metavar="IMAGE", help="Change the image.")(
        command
    )


def _removed(metavar: str) -> str:
    return metavar.partition("=")[0]
