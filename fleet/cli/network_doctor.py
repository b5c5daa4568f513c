"""``fleet network doctor``: what is wrong with networks, host by host, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from fleet import errors
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo

__all__ = ["doctor"]

Json = dict[str, Any]


@click.command()
@click.option("--node", default="", metavar="NODE", help="Only this node and its ways to the others.")
@click.option("-v", "--verbose", is_flag=True, help="Say what is right, too.")
@click.option("--format", "fmt", metavar="FORMAT", help="'json' for the whole report.")
@click.argument("names", metavar="[NETWORK...]", nargs=-1)
@pass_app
def doctor(app: App, *, names: tuple[str, ...], node: str, verbose: bool, fmt: str | None) -> int:
    """Say what is wrong with networks, and what to do.

    Looks at the kernel, links, forwarding, rules, names inside tasks, published ports, and the ways between hosts, on every
    node; all networks unless some are named. Changes nothing. Sends marked packets between hosts and opens (and closes)
    connections to published ports. Ends with 1 when something is wrong.
    """
    if fmt not in (None, "json"):
        raise errors.UserError(f"--format {fmt!r}: only 'json' is possible here")
    with app.streaming_client() as client:  # a large cluster takes longer than other requests may
        filters = {"network": list(names), "node": [app.node_reference(node)] if node else []}
        report: Json = client.get("/fleet/v1/networks/doctor", filters={k: v for k, v in filters.items() if v})
    if fmt == "json":
        echo(json.dumps(report, ensure_ascii=False))
    else:
        for line in _lines(report, verbose=verbose):
            echo(line)
    return 0 if report["Healthy"] else 1


def _lines(report: Mapping[str, Any], *, verbose: bool) -> Iterator[str]:
    findings: Sequence[Json] = report.get("Findings") or ()
    known = [host["Hostname"] for host in report.get("Hosts") or ()]
    others = sorted({finding["Host"] for finding in findings if finding["Host"] not in known})
    for host in (*known, *others):
        own = [finding for finding in findings if finding["Host"] == host]
        bad = sum(finding["Level"] == "wrong" for finding in own)
        if host not in known and all(finding["Level"] == "right" for finding in own):
            continue  # only the far end of ways
        state = "all is right" if host in known else "was not looked at"
        if bad:
            state = "1 thing is wrong" if bad == 1 else f"{bad} things are wrong"
        yield f"{host or 'between hosts'}: {state}"
        for finding in sorted(own, key=lambda each: each["Level"] != "wrong"):
            if finding["Level"] != "right" or verbose:
                yield from _sentences(finding)


def _sentences(finding: Mapping[str, Any]) -> Iterator[str]:
    about = f"network {finding['Network']}: " if finding.get("Network") else ""
    mark = {"wrong": "WRONG", "note": "note"}.get(finding["Level"], "ok")
    yield f"  {mark:5} {finding['Check']}: {about}{finding['Says']}"
    if finding.get("Remedy"):
        yield f"        -> {finding['Remedy']}"
