"""``fleet swarm``."""

from __future__ import annotations

from typing import Any

import click

from fleet.cli.app import App, pass_app
from fleet.cli.render import echo
from fleet.cli.swarm_backup import backup, restore
from fleet.cli.swarm_ca import ca
from fleet.cli.swarm_settings import DURATION, EXTERNAL_CA, external_ca, snapshot_options, update_swarm
from fleet.cli.swarm_unlock import sealing_key, show_unlock_key, unlock, unlock_key

Json = dict[str, Any]

AVAILABILITY = click.Choice(["active", "pause", "drain"])
QUOTA_PREFIX = "fleet.quota."
DEFAULT_LISTEN = "0.0.0.0:2377"


@click.group()
def swarm() -> None:
    """Manage the swarm."""


@swarm.command()
@click.option(
    "--advertise-addr", metavar="IP|INTERFACE[:PORT]", default="", help="Address the others reach this node at."
)
@click.option(
    "--listen-addr", metavar="IP[:PORT]", default=DEFAULT_LISTEN, help=f"Where to listen (default {DEFAULT_LISTEN})."
)
@click.option("--data-path-addr", metavar="IP|INTERFACE", default="", help="Address for traffic between containers.")
@click.option(
    "--data-path-port",
    metavar="PORT",
    type=click.IntRange(1024, 49151),
    default=None,
    help="UDP port of that traffic (default 4789).",
)
@click.option(
    "--default-addr-pool",
    metavar="CIDR",
    multiple=True,
    help="Pool the networks' subnets come from (default 10.0.0.0/8).",
)
@click.option(
    "--default-addr-pool-mask-length",
    metavar="BITS",
    type=click.IntRange(8, 30),
    default=24,
    help="Size of those subnets (default 24).",
)
@click.option("--availability", type=AVAILABILITY, default="active", help="Availability of this node (default active).")
@click.option("--autolock", is_flag=True, help="Ask for a key when a manager starts.")
@click.option(
    "--cert-expiry",
    type=DURATION,
    default=None,
    metavar="DURATION",
    help="Validity of node certificates (default 2160h).",
)
@click.option(
    "--dispatcher-heartbeat",
    type=DURATION,
    default=None,
    metavar="DURATION",
    help="Time between a node's heartbeats (default 1s).",
)
@click.option(
    "--task-history-limit", type=int, default=None, metavar="N", help="Ended tasks kept per slot (default 5)."
)
@EXTERNAL_CA
@snapshot_options
@click.option("--force-new-cluster", is_flag=True, help="Begin again as the only manager, from the state on this host.")
@pass_app
def init(app: App, **flags: Any) -> None:
    """Make this host the first manager of a new swarm."""
    body = {
        "ListenAddr": flags["listen_addr"],
        "AdvertiseAddr": flags["advertise_addr"],
        "DataPathAddr": flags["data_path_addr"],
        "DataPathPort": flags["data_path_port"] or 0,
        "ForceNewCluster": flags["force_new_cluster"],
        "Spec": _settings({}, flags),
        "AutoLockManagers": flags["autolock"],
        "Availability": flags["availability"],
        "DefaultAddrPool": list(flags["default_addr_pool"]) or None,
        "SubnetSize": flags["default_addr_pool_mask_length"],
    }
    node_id = app.client.post("/swarm/init", body)
    echo(f"Swarm initialized: current node ({node_id}) is now a manager.\n")
    _print_join(app, "worker", title="To add a worker to this swarm, run the following command:")
    echo("To add a manager to this swarm, run 'fleet swarm join-token manager' and follow the instructions.")
    if flags["autolock"]:
        echo("")
        show_unlock_key(app)


def _quota(text: str) -> tuple[str, str]:
    """``stack=NAME:cpu=4,tasks=50`` as the label ``fleet.quota.stack=NAME`` and its value."""
    name, colon, limits = text.rpartition(":")
    if not colon or not limits:
        raise click.UsageError(
            f"--quota {text!r} has no limits; expected stack=NAME or label=KEY=VALUE, and :cpu=4,memory=8G,tasks=50"
        )
    return f"{QUOTA_PREFIX}{name}", limits


def _settings(spec: Json, flags: Json) -> Json:
    """The cluster's settings that flags name, over ``spec``."""
    spec = {**spec}
    if flags["task_history_limit"] is not None:
        spec["Orchestration"] = {
            **(spec.get("Orchestration") or {}),
            "TaskHistoryRetentionLimit": flags["task_history_limit"],
        }
    if flags["dispatcher_heartbeat"] is not None:
        spec["Dispatcher"] = {**(spec.get("Dispatcher") or {}), "HeartbeatPeriod": flags["dispatcher_heartbeat"]}
    if flags["cert_expiry"] is not None:
        spec["CAConfig"] = {**(spec.get("CAConfig") or {}), "NodeCertExpiry": flags["cert_expiry"]}
    if flags["external_ca"]:
        external = [external_ca(text) for text in flags["external_ca"]]
        spec["CAConfig"] = {**(spec.get("CAConfig") or {}), "ExternalCAs": external}
    raft = {"SnapshotInterval": flags["snapshot_interval"], "KeepOldSnapshots": flags["max_snapshots"]}
    if given := {key: value for key, value in raft.items() if value is not None}:
        spec["Raft"] = {**(spec.get("Raft") or {}), **given}
    labels = {
        "fleet.rebalance": flags.get("rebalance"),
        "fleet.placement.strategy": flags.get("placement_strategy"),
        "fleet.autoscale.prometheus-allow": flags.get("prometheus_allow"),
    }
    quotas = dict(_quota(text) for text in flags.get("quota") or ())
    for name in flags.get("quota_rm") or ():
        if f"{QUOTA_PREFIX}{name}" not in (spec.get("Labels") or {}):
            raise click.UsageError(f"--quota-rm {name}: there is no such quota")
        quotas[f"{QUOTA_PREFIX}{name}"] = ""
    if quotas:
        kept = {**(spec.get("Labels") or {}), **quotas}
        spec["Labels"] = {label: text for label, text in kept.items() if text or not label.startswith(QUOTA_PREFIX)}
    if named := {label: word for label, word in labels.items() if word is not None}:
        spec["Labels"] = {**(spec.get("Labels") or {}), **named}
    if flags["autolock"] is not None:
        spec["EncryptionConfig"] = {"AutoLockManagers": flags["autolock"]}
    return spec


@swarm.command()
@click.option("--token", required=True, metavar="TOKEN", help="Join token; it decides the role.")
@click.option(
    "--advertise-addr", metavar="IP|INTERFACE[:PORT]", default="", help="Address the others reach this node at."
)
@click.option(
    "--listen-addr", metavar="IP[:PORT]", default=DEFAULT_LISTEN, help=f"Where to listen (default {DEFAULT_LISTEN})."
)
@click.option("--data-path-addr", metavar="IP|INTERFACE", default="", help="Address for traffic between containers.")
@click.option("--availability", type=AVAILABILITY, default="active", help="Availability of this node (default active).")
@click.argument("managers", metavar="HOST:PORT...", nargs=-1, required=True)
@pass_app
def join(app: App, *, managers: tuple[str, ...], **flags: Any) -> None:
    """Join a swarm through one of its managers."""
    body = {
        "ListenAddr": flags["listen_addr"],
        "AdvertiseAddr": flags["advertise_addr"],
        "DataPathAddr": flags["data_path_addr"],
        "RemoteAddrs": [address if ":" in address else f"{address}:2377" for address in managers],
        "JoinToken": flags["token"],
        "Availability": flags["availability"],
    }
    app.client.post("/swarm/join", body)
    is_manager = (app.info().get("Swarm") or {}).get("ControlAvailable")
    echo(f"This node joined a swarm as a {'manager' if is_manager else 'worker'}.")


@swarm.command("join-token")
@click.option("-q", "--quiet", is_flag=True, help="Only display the token.")
@click.option("--rotate", is_flag=True, help="Make a new token; the old one stops working.")
@click.argument("role", type=click.Choice(["worker", "manager"]))
@pass_app
def join_token(app: App, *, role: str, quiet: bool, rotate: bool) -> None:
    """Show how to join, or make a new token."""
    if rotate:
        update_swarm(app, rotateWorkerToken=role == "worker", rotateManagerToken=role == "manager")
        if not quiet:
            echo(f"Successfully rotated {role} join token.\n")
    if quiet:
        echo(app.client.get("/swarm")["JoinTokens"][role.capitalize()])
        return
    _print_join(app, role, title=f"To add a {role} to this swarm, run the following command:")


def _print_join(app: App, role: str, *, title: str) -> None:
    token = app.client.get("/swarm")["JoinTokens"][role.capitalize()]
    block = app.info().get("Swarm") or {}
    managers = {m["NodeID"]: m["Addr"] for m in block.get("RemoteManagers") or ()}
    address = managers.get(block.get("NodeID", "")) or f"{block.get('NodeAddr', '')}:2377"
    echo(f"{title}\n\n    fleet swarm join --token {token} {address}\n")


@swarm.command()
@click.option("-f", "--force", is_flag=True, help="Leave even as a manager.")
@pass_app
def leave(app: App, *, force: bool) -> None:
    """Leave the swarm; the tasks on this node end."""
    query = {"force": "1"} if force else None
    app.client.request("POST", "/swarm/leave", query=query, body=b"", headers={"Content-Type": "text/plain"})
    echo("Node left the swarm.")


@swarm.command()
@click.option(
    "--autolock", type=click.BOOL, default=None, metavar="true|false", help="Ask for a key when a manager starts."
)
@click.option("--cert-expiry", type=DURATION, default=None, metavar="DURATION", help="Validity of node certificates.")
@click.option(
    "--dispatcher-heartbeat", type=DURATION, default=None, metavar="DURATION", help="Time between a node's heartbeats."
)
@click.option("--task-history-limit", type=int, default=None, metavar="N", help="Ended tasks kept per slot.")
@click.option(
    "--placement-strategy",
    type=click.Choice(["spread", "binpack", "balanced"]),
    help="How tasks of services that do not say so are placed.",
)
@click.option(
    "--quota",
    multiple=True,
    metavar="stack=NAME|label=KEY=VALUE:LIMITS",
    help="How much its tasks may take together, such as stack=shop:cpu=4,memory=8G,tasks=50.",
)
@click.option(
    "--prometheus-allow",
    metavar="HOST[,HOST...]",
    help="Addresses, networks and names that services may be scaled by, beside published ports; empty: none.",
)
@click.option("--quota-rm", multiple=True, metavar="stack=NAME|label=KEY=VALUE", help="Remove a quota.")
@click.option(
    "--rebalance",
    type=click.Choice(["off", "manual", "automatic"]),
    help="Whether running tasks move to balance nodes, and who says when.",
)
@EXTERNAL_CA
@snapshot_options
@pass_app
def update(app: App, **flags: Any) -> None:
    """Change settings of the swarm."""
    if all(value in (None, ()) for value in flags.values()):
        raise click.UsageError("nothing to change; see the options")
    update_swarm(app, _settings(app.client.get("/swarm")["Spec"], flags))
    echo("Swarm updated.")
    if flags["autolock"]:
        show_unlock_key(app)


swarm.add_command(ca)
swarm.add_command(backup)
swarm.add_command(restore)
swarm.add_command(unlock)
swarm.add_command(unlock_key)
swarm.add_command(sealing_key)
