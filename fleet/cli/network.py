"""``fleet network``."""

from __future__ import annotations

from typing import Any, Final

import click

from fleet import errors
from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app
from fleet.cli.network_doctor import doctor
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows, print_warnings, short_id
from fleet.cli.service_flags import Parsed
from fleet.compose import values

Json = dict[str, Any]

COLUMNS: Final = (("ID", "NETWORK ID"), ("Name", "NAME"), ("Driver", "DRIVER"), ("Scope", "SCOPE"))
PAIR: Final = Parsed(lambda text: values.parse_pair(text, what="NAME=VALUE"), name="NAME=VALUE")


@click.group()
def network() -> None:
    """Manage networks."""


network.add_command(doctor)


@network.command()
@click.option(
    "-d",
    "--driver",
    default="bridge",
    metavar="DRIVER",
    help="bridge: on this host; overlay: of the swarm; macvlan, ipvlan: cards on this host's own network, "
    "-o parent=LINK (default bridge).",
)
@click.option("--subnet", multiple=True, metavar="CIDR", help="Subnet, such as 10.5.0.0/24.")
@click.option("--gateway", multiple=True, metavar="ADDRESS", help="Gateway of the subnet.")
@click.option("--ip-range", multiple=True, metavar="CIDR", help="Part of the subnet addresses come from.")
@click.option(
    "--aux-address",
    "reserved",
    type=PAIR,
    multiple=True,
    metavar="NAME=ADDRESS",
    help="Address that no container gets.",
)
@click.option("--attachable", is_flag=True, help="Let plain containers join.")
@click.option("--internal", is_flag=True, help="No way out of the network.")
@click.option("--ingress", is_flag=True, help="Make this the network of published ports.")
@click.option(
    "--ipv4", type=bool, default=True, metavar="BOOL", help="Use IPv4 (default true; a bridge may have IPv6 alone)."
)
@click.option("--ipv6", is_flag=True, help="Use IPv6 too; its subnet is chosen (RFC 4193) unless a --subnet names one.")
@click.option("--config-only", is_flag=True, help="Only a configuration, which networks can be made from.")
@click.option("--config-from", default="", metavar="NETWORK", help="The configuration it is made from.")
@click.option("--scope", default="", metavar="SCOPE", help="Scope, such as swarm.")
@click.option("--label", "labels", type=PAIR, multiple=True, metavar="NAME=VALUE", help="Label.")
@click.option(
    "-o",
    "--opt",
    "options",
    type=PAIR,
    multiple=True,
    metavar="NAME=VALUE",
    help="Option of the driver; overlay: encrypted, com.docker.network.driver.mtu=BYTES.",
)
@click.argument("name", metavar="NETWORK")
@pass_app
def create(app: App, *, name: str, **flags: Any) -> None:
    """Create a network."""
    body = {
        "CheckDuplicate": True,
        "Driver": flags["driver"],
        "Scope": flags["scope"],
        "EnableIPv6": flags["ipv6"],
        **({} if flags["ipv4"] else {"EnableIPv4": False}),
        "IPAM": {"Driver": "default", "Options": {}, "Config": _pools(flags)},
        "Internal": flags["internal"],
        "Attachable": flags["attachable"],
        "Ingress": flags["ingress"],
        "ConfigOnly": flags["config_only"],
        "ConfigFrom": {"Network": flags["config_from"]} if flags["config_from"] else None,
        "Options": dict(flags["options"]),
        "Labels": dict(flags["labels"]),
        "Name": name,
    }
    answer = app.client.post("/networks/create", body)
    print_warnings(answer)
    echo(answer["Id"])


def _pools(flags: Json) -> list[Json]:
    """Each gateway and range goes to the subnet that holds it."""
    if not flags["subnet"] and (flags["gateway"] or flags["ip_range"] or flags["reserved"]):
        raise click.UsageError("--gateway, --ip-range and --aux-address need a --subnet they belong to")
    if not flags["subnet"]:
        return []
    import ipaddress

    pools: dict[Any, Json] = {}
    try:
        for subnet in flags["subnet"]:
            pools[ipaddress.ip_network(subnet)] = {"Subnet": subnet}
        for address in flags["gateway"]:
            _owner(pools, ipaddress.ip_address(address), "gateway", address)["Gateway"] = address
        for name, address in flags["reserved"]:
            owner = _owner(pools, ipaddress.ip_address(address), "aux-address", address)
            owner.setdefault("AuxiliaryAddresses", {})[name] = address
        for part in flags["ip_range"]:
            first = ipaddress.ip_network(part).network_address
            _owner(pools, first, "ip-range", part)["IPRange"] = part
    except ValueError as cause:
        raise errors.UserError(f"{cause}; expected for example --subnet 10.5.0.0/24 --gateway 10.5.0.1") from cause
    return list(pools.values())


def _owner(pools: dict[Any, Json], address: Any, flag: str, text: str) -> Json:
    for subnet, pool in pools.items():
        if address in subnet:
            return pool
    raise errors.UserError(f"--{flag} {text} is in none of the subnets {', '.join(map(str, pools))}")


@network.command()
@list_options
@click.option("--no-trunc", is_flag=True, help="Do not shorten IDs.")
@pass_app
def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool, no_trunc: bool) -> None:
    """List networks."""
    found = app.client.get("/networks", filters=filters_of(filters)) or []
    rows = [
        {
            "ID": short_id(item["Id"], full=no_trunc),
            "Name": item["Name"],
            "Driver": item.get("Driver", ""),
            "Scope": item.get("Scope", ""),
            "Internal": str(bool(item.get("Internal"))).lower(),
            "IPv4": str(bool(item.get("EnableIPv4", True))).lower(),
            "IPv6": str(bool(item.get("EnableIPv6"))).lower(),
            "CreatedAt": clock.go_time(clock.parse_time(item.get("Created"))),
            "Labels": ",".join(f"{k}={v}" for k, v in sorted((item.get("Labels") or {}).items())),
        }
        for item in sorted(found, key=lambda item: str(item["Name"]))
    ]
    print_rows(rows, columns=COLUMNS, fmt=fmt, quiet=quiet, full=no_trunc)


@network.command()
@click.option("-v", "--verbose", is_flag=True, help="With services and tasks of the whole swarm.")
@click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True)
@pass_app
def inspect(app: App, *, names: tuple[str, ...], fmt: str | None, verbose: bool) -> int:
    """Show networks in full."""

    def get(client: EngineClient, name: str) -> Any:
        return client.get(f"/networks/{part(name)}", **({"verbose": True} if verbose else {}))

    return inspect_each(app.client, names, get, fmt=fmt)


@network.command()
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True)
@pass_app
def rm(app: App, *, names: tuple[str, ...]) -> int:
    """Remove networks."""
    return each(names, lambda name: app.client.delete(f"/networks/{part(name)}"))


@network.command()
@click.option("--filter", "filters", multiple=True, metavar="NAME=VALUE", help="Such as until=24h or label=a.")
@click.option("-f", "--force", is_flag=True, help="Do not ask.")
@pass_app
def prune(app: App, *, filters: tuple[str, ...], force: bool) -> None:
    """Remove all networks that nothing uses."""
    if not force:
        click.confirm("This removes all networks that nothing uses. Continue?", abort=True, err=True)
    chosen = filters_of(filters)
    deleted = (app.client.post("/networks/prune", **({"filters": chosen} if chosen else {})) or {}).get(
        "NetworksDeleted"
    ) or ()
    for name in deleted:
        echo(name)


@network.command()
@click.option("--alias", "aliases", multiple=True, metavar="NAME", help="Name on the network.")
@click.option("--driver-opt", "options", multiple=True, metavar="NAME=VALUE", help="Option of the driver.")
@click.option("--gw-priority", type=int, default=0, metavar="N", help="The highest gives the default route.")
@click.option("--ip", default="", metavar="ADDRESS", help="IPv4 address.")
@click.option("--ip6", default="", metavar="ADDRESS", help="IPv6 address.")
@click.option("--link", "links", multiple=True, metavar="CONTAINER[:ALIAS]", help="Link to a container.")
@click.option("--link-local-ip", "local", multiple=True, metavar="ADDRESS", help="Link-local address.")
@click.argument("name", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@pass_app
def connect(app: App, *, name: str, container: str, **flags: Any) -> None:
    """Connect a container to a network."""
    addresses = {"IPv4Address": flags["ip"], "IPv6Address": flags["ip6"], "LinkLocalIPs": list(flags["local"])}
    endpoint: Json = {
        "IPAMConfig": {key: value for key, value in addresses.items() if value},
        "Links": list(flags["links"]) or None,
        "Aliases": list(flags["aliases"]) or None,
        "DriverOpts": dict(text.partition("=")[::2] for text in flags["options"]) or None,
        "GwPriority": flags["gw_priority"],
    }
    app.client.post(f"/networks/{part(name)}/connect", {"Container": container, "EndpointConfig": endpoint})


@network.command()
@click.option("-f", "--force", is_flag=True, help="Even if the container is not reachable.")
@click.argument("name", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@pass_app
def disconnect(app: App, *, name: str, container: str, force: bool) -> None:
    """Disconnect a container from a network."""
    app.client.post(f"/networks/{part(name)}/disconnect", {"Container": container, "Force": force})
