"""``fleet job``: work that ends, once or at set times. Jobs are services in a job mode; schedules are labels of theirs.

A *parameterised* job runs nothing itself: it has no completions, and labels that say which parameters a run of it takes. Each
``dispatch`` makes a job of its own from it, with the parameters as environment variables and the payload as a file (a config).
"""

from __future__ import annotations

import base64
import copy
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final

import click

from fleet import errors
from fleet.cli import clock
from fleet.cli.app import App, part, pass_app, read_input
from fleet.cli.render import echo, print_rows, print_warnings
from fleet.cli.service_rows import mode_name
from fleet.cli.service_update import inherited, post_update
from fleet.cli.tasks import has_ended, state_of

Json = dict[str, Any]

CRON: Final = "fleet.schedule.cron"
_SUSPENDED: Final = "fleet.schedule.suspended"
_PARAMETER: Final = "fleet.job.parameter."
"""Label of a job for each parameter: ``required``, or ``=`` and the default."""
_PAYLOAD: Final = "fleet.job.payload"
"""Label of a job that takes one: ``optional`` or ``required``."""
_PAYLOAD_PATH: Final = "/run/payload"
_PAYLOAD_MAX: Final = 1000 * 1024
"""Bytes of a config."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OF_THE_TEMPLATE: Final = ("fleet.schedule.", _PARAMETER, _PAYLOAD)
"""Labels that a run made from a job does not have."""
_COLUMNS: Final = (
    ("Name", "NAME"),
    ("Schedule", "SCHEDULE"),
    ("Next", "NEXT RUN"),
    ("Last", "LAST RUN"),
    ("Outcome", "OUTCOME"),
    ("Done", "DONE"),
)
_RUNS: Final = (("Scheduled", "DUE"), ("Started", "STARTED"), ("Outcome", "OUTCOME"), ("Reason", "REASON"))


@click.group()
def job() -> None:
    """Jobs: work that ends, once or at set times."""


def _is_job(spec: Json) -> bool:
    mode = spec.get("Mode") or {}
    return mode.get("ReplicatedJob") is not None or mode.get("GlobalJob") is not None


def _check_job(spec: Json) -> None:
    if not _is_job(spec):
        raise errors.UserError(f"service {spec.get('Name')} is {mode_name(spec)}, not a job")


def _job(app: App, name: str) -> Json:
    found: Json = app.client.get(f"/services/{part(name)}", insertDefaults=False)
    _check_job(found["Spec"])
    return found


@job.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json', 'yaml' or a Go template for each job.")
@click.option("-q", "--quiet", is_flag=True, help="Only IDs.")
@pass_app
def ls(app: App, *, fmt: str | None, quiet: bool) -> None:
    """List jobs: when they run next, and how the last run went."""
    found = [each for each in app.client.get("/services", status=True) or [] if _is_job(each["Spec"])]
    rows = [_row(each) for each in sorted(found, key=lambda each: str(each["Spec"]["Name"]))]
    print_rows(rows, columns=_COLUMNS, fmt=fmt, quiet=quiet)


def _row(service: Json) -> Json:
    spec, status = service["Spec"], service.get("JobStatus") or {}
    labels = spec.get("Labels") or {}
    counts = service.get("ServiceStatus") or {}
    total = ((spec.get("Mode") or {}).get("ReplicatedJob") or {}).get("TotalCompletions")
    done, wanted = counts.get("CompletedTasks", 0), total if total is not None else counts.get("DesiredTasks", 0)
    zone = labels.get("fleet.schedule.timezone", "")
    is_template = total == 0
    last = None if is_template else status.get("LastExecution")
    if not last:
        outcome = ""
    elif wanted and done >= wanted:
        outcome = "succeeded"
    else:
        outcome = "running" if counts.get("RunningTasks") else "not ended"
    return {
        "ID": service["ID"],
        "Name": spec["Name"],
        "Schedule": "when dispatched" if is_template else " ".join(filter(None, (labels.get(CRON, ""), zone))),
        "Next": _next(labels),
        "Last": "" if is_template else clock.ago(last) or "never",
        "Outcome": outcome,
        "Done": f"{done}/{wanted}" if last else "",
    }


def _next(labels: dict[str, str]) -> str:
    from datetime import UTC, datetime

    from fleet.model.schedule import parse_schedule

    try:
        schedule = parse_schedule(labels)
    except errors.UserError:
        return "unknown"
    if schedule is None:
        return ""
    if schedule.is_suspended:
        return "suspended"
    instant = schedule.next(datetime.now(UTC))
    return instant.strftime("%Y-%m-%d %H:%M:%S UTC") if instant else "never"


@job.command()
@click.option("--format", "fmt", metavar="FORMAT", help="'table', 'json', 'yaml' or a Go template for each run.")
@click.argument("name", metavar="JOB")
@pass_app
def history(app: App, *, name: str, fmt: str | None) -> None:
    """Show what became of the last times a job was due."""
    runs = (_job(app, name).get("JobStatus") or {}).get("Runs") or []
    rows = [
        {
            "ID": str(run.get("Iteration", "")),
            "Scheduled": run["Scheduled"],
            "Started": run.get("StartedAt") or "",
            "Outcome": run["Outcome"],
            "Reason": run.get("Reason", ""),
        }
        for run in reversed(runs)
    ]
    print_rows(rows, columns=_RUNS, fmt=fmt)


@job.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--from", "template", metavar="JOB", help="Run once what this job runs, whatever its schedule.")
@click.option("--name", default="", metavar="NAME", help="Name of the job (default: made up).")
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable; over those of --from.")
@click.option(
    "-n", "--completions", type=click.IntRange(1, 100_000), default=1, help="Tasks that are to end well (default 1)."
)
@click.option("--concurrent", type=click.IntRange(1, 100_000), default=None, help="Tasks at a time (default: all).")
@click.option("--rm", "removes", is_flag=True, help="Remove the job when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it has ended.")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=None, metavar="SECONDS", help="Give up waiting.")
@click.argument("words", metavar="IMAGE [COMMAND [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@pass_app
def run(app: App, *, words: tuple[str, ...], template: str | None, removes: bool, detach: bool, **given: Any) -> int:
    """Run a job once, wait for it and print what it says; ends with 0 if it ended well.

    With --from JOB the words are arguments that replace those of the job.
    """
    if template is None and not words:
        raise errors.UserError("an image is needed, or --from JOB")
    if removes and detach:
        raise errors.UserError("--rm and --detach cannot be combined: nobody would be there to remove it")
    spec = _spec_from(app, template, words) if template else _new_spec(app, words)
    _set_env(spec, inherited(given["env"], app.environment))
    spec["Name"] = given["name"] or f"{template or 'job'}-{secrets.token_hex(4)}"
    spec["Mode"] = {
        "ReplicatedJob": {
            "TotalCompletions": given["completions"],
            "MaxConcurrent": given["concurrent"] or given["completions"],
        }
    }
    service_id = _begin(app, spec)
    return _see_to_its_end(app, service_id, spec, detach=detach, removes=removes, timeout_s=given["timeout"])


def _begin(app: App, spec: Json) -> str:
    answer = app.client.post("/services/create", spec)
    print_warnings(answer)
    return str(answer["ID"])


def _see_to_its_end(
    app: App, service_id: str, spec: Json, *, detach: bool, removes: bool, timeout_s: float | None
) -> int:
    """Unless ``detach``, wait for the end of the run, print what it said, and remove it if that is wanted."""
    if detach:
        echo(spec["Name"])
        return 0
    try:
        completions = spec["Mode"]["ReplicatedJob"]["TotalCompletions"]
        return _wait_and_print(app, service_id, spec["Name"], completions=completions, timeout_s=timeout_s)
    finally:
        if removes:
            app.client.delete(f"/services/{service_id}")


def _set_env(spec: Json, own: Iterable[str]) -> None:
    """``NAME=value``, over what the container's environment has of these names."""
    container = spec["TaskTemplate"]["ContainerSpec"]
    names = {each.partition("=")[0] for each in own}
    container["Env"] = [*(each for each in container.get("Env") or () if each.partition("=")[0] not in names), *own]


def _new_spec(app: App, words: tuple[str, ...]) -> Json:
    from fleet.cli.pinning import pinned

    container: Json = {"Image": pinned(app, words[0], headers={})}
    if words[1:]:
        container["Args"] = list(words[1:])
    return {"TaskTemplate": {"ContainerSpec": container, "RestartPolicy": {"Condition": "none"}}}


def _spec_from(app: App, template: str, words: tuple[str, ...]) -> Json:
    found = _job(app, template)["Spec"]
    spec: Json = {"TaskTemplate": copy.deepcopy(found["TaskTemplate"])}
    labels = found.get("Labels") or {}
    spec["Labels"] = {key: value for key, value in labels.items() if not key.startswith(_OF_THE_TEMPLATE)}
    spec["Labels"]["fleet.job.from"] = template
    if found.get("EndpointSpec"):
        spec["EndpointSpec"] = {key: value for key, value in found["EndpointSpec"].items() if key != "Ports"}
    if words:
        spec["TaskTemplate"]["ContainerSpec"]["Args"] = list(words)
    return spec


@job.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME[=DEFAULT]",
    help="What a run is told; required without default.",
)
@click.option(
    "--payload",
    type=click.Choice(["forbidden", "optional", "required"]),
    default="forbidden",
    show_default=True,
    help=f"Whether a run is given a file, which it finds at {_PAYLOAD_PATH}.",
)
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable of every run.")
@click.argument("name", metavar="JOB")
@click.argument("words", metavar="IMAGE [COMMAND [ARG]...]", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_app
def create(
    app: App, *, name: str, words: tuple[str, ...], parameters: tuple[str, ...], payload: str, env: tuple[str, ...]
) -> None:
    """Make a job that runs when it is dispatched, with parameters and a payload.

    Parameters are environment variables of the run.
    """
    spec = _new_spec(app, words)
    _set_env(spec, inherited(env, app.environment))
    labels = {
        _PARAMETER + key: f"={value}" if has_default else "required"
        for key, has_default, value in map(_pair, parameters)
    }
    if len(labels) < len(parameters):
        raise errors.UserError("a parameter was given twice")
    spec["Labels"] = labels | ({} if payload == "forbidden" else {_PAYLOAD: payload})
    spec["Name"] = name
    spec["Mode"] = {"ReplicatedJob": {"TotalCompletions": 0, "MaxConcurrent": 0}}
    answer = app.client.post("/services/create", spec)
    print_warnings(answer)
    echo(str(answer["ID"]))


def _pair(text: str) -> tuple[str, bool, str]:
    """(name, whether there is a ``=``, what is behind it). Raises ``UserError``."""
    name, separator, value = text.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise errors.UserError(
            f"{name[:80]!r} is no name of a parameter: letters, digits and '_', as an environment variable"
        )
    return name, bool(separator), value


@job.command()
@click.option("--payload", metavar="FILE", help="File for the run, or '-' for standard input.")
@click.option("--name", "own_name", default="", metavar="NAME", help="Name of the run (default: made up).")
@click.option("--rm", "removes", is_flag=True, help="Remove the run when it has ended.")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until it has ended.")
@click.option("--timeout", type=click.FloatRange(min=0.001), default=None, metavar="SECONDS", help="Give up waiting.")
@click.argument("name", metavar="JOB")
@click.argument("given", metavar="[NAME=VALUE]...", nargs=-1)
@pass_app
def dispatch(
    app: App,
    *,
    name: str,
    given: tuple[str, ...],
    payload: str | None,
    own_name: str,
    removes: bool,
    detach: bool,
    timeout: float | None,
) -> int:
    """Run a parameterised job once, wait for it and print what it says; ends with 0 if it ended well."""
    if removes and detach:
        raise errors.UserError("--rm and --detach cannot be combined: nobody would be there to remove it")
    labels: Json = _job(app, name)["Spec"].get("Labels") or {}
    values = _parameters(name, labels, given)
    takes = labels.get(_PAYLOAD, "forbidden")
    if payload is None and takes == "required":
        raise errors.UserError(f"job {name} needs a payload: --payload FILE")
    if payload is not None and takes == "forbidden":
        raise errors.UserError(f"job {name} takes no payload")
    spec = _spec_from(app, name, ())
    spec["Name"] = own_name or f"{name}-{secrets.token_hex(4)}"
    spec["Mode"] = {"ReplicatedJob": {"TotalCompletions": 1, "MaxConcurrent": 1}}
    _set_env(spec, [f"{key}={value}" for key, value in values.items()])
    config_id = None if payload is None else _add_payload(app, spec, read_input(payload, size_max=_PAYLOAD_MAX))
    try:
        service_id = _begin(app, spec)
    except errors.FleetError:
        _remove_payload(app, config_id)
        raise
    try:
        return _see_to_its_end(app, service_id, spec, detach=detach, removes=removes, timeout_s=timeout)
    finally:
        if removes:
            _remove_payload(app, config_id)


def _remove_payload(app: App, config_id: str | None) -> None:
    if config_id is not None:
        app.client.delete(f"/configs/{config_id}")


def _parameters(name: str, labels: Mapping[str, str], given: tuple[str, ...]) -> dict[str, str]:
    """Name -> value of a run. Raises ``UserError`` for what the job does not know, and for what it lacks."""
    known = {key.removeprefix(_PARAMETER): how for key, how in labels.items() if key.startswith(_PARAMETER)}
    if not known and _PAYLOAD not in labels:
        raise errors.UserError(f"job {name} is not parameterised; run it with: fleet job run --from {name}")
    values = {key: how[1:] for key, how in known.items() if how.startswith("=")}
    for text in given:
        key, has_value, value = _pair(text)
        if key not in known:
            raise errors.UserError(f"job {name} has no parameter {key!r}; it has: {', '.join(sorted(known)) or 'none'}")
        if not has_value:
            raise errors.UserError(f"parameter {key}: expected {key}=VALUE")
        values[key] = value
    lacking = sorted(known.keys() - values.keys())
    if lacking:
        raise errors.UserError(f"job {name} needs {', '.join(lacking)}: give NAME=VALUE")
    return values


def _add_payload(app: App, spec: Json, data: bytes) -> str:
    """Make a config of it, that the run has as a file; returns its id."""
    name = f"{spec['Name']}-payload"
    body = {"Name": name, "Labels": {"fleet.job.payload-of": spec["Name"]}, "Data": base64.b64encode(data).decode()}
    config_id = str(app.client.post("/configs/create", body)["ID"])
    file = {"Name": _PAYLOAD_PATH, "UID": "0", "GID": "0", "Mode": 0o444}
    container = spec["TaskTemplate"]["ContainerSpec"]
    reference = {"ConfigID": config_id, "ConfigName": name, "File": file}
    container["Configs"] = [*(container.get("Configs") or ()), reference]
    return config_id


_POLL_S: Final = 0.2


def _wait_and_print(app: App, service_id: str, name: str, *, completions: int, timeout_s: float | None) -> int:
    from fleet.cli.logs import service_logs

    deadline = None if timeout_s is None else clock.monotonic() + timeout_s
    told: set[str] = set()
    while True:
        tasks = app.client.get("/tasks", filters={"service": [service_id]}) or []
        done = sum(state_of(task) == "complete" for task in tasks)
        waiting = [task for task in tasks if not has_ended(task)]
        if done >= completions or (tasks and not waiting and len(tasks) >= completions):
            break
        for task in waiting:
            why = str((task.get("Status") or {}).get("Err") or "")
            if why and why not in told:
                told.add(why)
                click.echo(f"{name}: {why}", err=True)
        if deadline is not None and clock.monotonic() > deadline:
            raise errors.ConflictError(f"job {name} has not ended in time: {done} of {completions} tasks ended well")
        clock.sleep(_POLL_S)
    options = {"follow": False, "since": None, "tail": "all", "timestamps": False, "details": False}
    options |= {"no_resolve": False, "no_task_ids": False, "no_trunc": False, "raw": True}
    service_logs(app, service_id, **options)
    if done >= completions:
        return 0
    failed = [task for task in tasks if state_of(task) != "complete"]
    last = max(failed, key=lambda task: str(task["Status"].get("Timestamp", "")))
    click.echo(
        f"Error: job {name}: {done} of {completions} tasks ended well: {last['Status'].get('Err') or 'it was stopped'}",
        err=True,
    )
    code = int((last["Status"].get("ContainerStatus") or {}).get("ExitCode") or 0)
    return code if 0 < code < 256 else 1


@job.command()
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines.")
@click.option("-n", "--tail", default="all", metavar="N", help="Only the last N lines of each task.")
@click.option("--raw", is_flag=True, help="Print the lines alone.")
@click.argument("name", metavar="JOB")
@pass_app
def logs(app: App, *, name: str, follow: bool, tail: str, raw: bool) -> None:
    """Show what the tasks of the present run have said."""
    from fleet.cli.logs import service_logs

    _job(app, name)
    options = {
        "since": None,
        "timestamps": False,
        "details": False,
        "no_resolve": False,
        "no_task_ids": False,
        "no_trunc": False,
    }
    service_logs(app, name, follow=follow, tail=tail, raw=raw, **options)


def _suspend(app: App, names: tuple[str, ...], *, suspends: bool) -> None:
    def changed(spec: Json) -> Json:
        _check_job(spec)
        labels = dict(spec.get("Labels") or {})
        if CRON not in labels:
            raise errors.UserError(f"job {spec['Name']} has no schedule")
        labels.pop(_SUSPENDED, None)
        return {**spec, "Labels": {**labels, _SUSPENDED: "true"} if suspends else labels}

    for name in names:
        post_update(app, name, changed)
        echo(name)


@job.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@pass_app
def suspend(app: App, *, names: tuple[str, ...]) -> None:
    """Let no run be due; one that is in work goes on."""
    _suspend(app, names, suspends=True)


@job.command()
@click.argument("names", metavar="JOB...", nargs=-1, required=True)
@pass_app
def resume(app: App, *, names: tuple[str, ...]) -> None:
    """Let runs be due again from now on; what was due meanwhile is not made up for."""
    _suspend(app, names, suspends=False)
