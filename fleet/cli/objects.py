"""``fleet secret`` and ``fleet config``: the same commands over two nouns."""

from __future__ import annotations

import base64
from typing import Any, Final

import click

from fleet.api.client import EngineClient
from fleet.cli import clock
from fleet.cli.app import App, filters_of, part, pass_app, read_input
from fleet.cli.render import FORMATS, each, echo, inspect_each, list_options, print_rows
from fleet.cli.service_flags import Parsed
from fleet.compose import values

__all__ = ["config", "secret"]

Json = dict[str, Any]

SIZES_MAX: Final = {"secret": 500 * 1024, "config": 1000 * 1024}
PAIR: Final = Parsed(lambda text: values.parse_pair(text, what="NAME=VALUE"), name="NAME=VALUE")


def _labels(item: Json) -> str:
    return ",".join(f"{key}={value}" for key, value in sorted((item["Spec"].get("Labels") or {}).items()))


def _row(item: Json) -> Json:
    return {
        "ID": item["ID"],
        "Name": item["Spec"]["Name"],
        "Driver": (item["Spec"].get("Driver") or {}).get("Name", ""),
        "CreatedAt": clock.ago(item.get("CreatedAt")),
        "UpdatedAt": clock.ago(item.get("UpdatedAt")),
        "Labels": _labels(item),
    }


def _group(noun: str) -> click.Group:
    @click.group(noun, help=f"Manage {noun}s.")
    def group() -> None:
        pass

    @group.command(help=f"Create a {noun} from a file, or from standard input ('-').")
    @click.option("-l", "--label", "labels", type=PAIR, multiple=True, metavar="NAME=VALUE", help="Label.")
    @click.option("--template-driver", metavar="DRIVER", help="Fill in the data as a template (golang).")
    @click.option(
        "-d", "--driver", metavar="PLUGIN", hidden=noun != "secret", help="Plugin on the managers that gives its value."
    )
    @click.argument("name", metavar=noun.upper())
    @click.argument("path", metavar="FILE|-", required=False)
    @pass_app
    def create(
        app: App,
        *,
        name: str,
        path: str | None,
        labels: tuple[tuple[str, str], ...],
        template_driver: str | None,
        driver: str | None,
    ) -> None:
        body: Json = {"Name": name, "Labels": dict(labels)}
        if driver and noun == "secret":
            if path:
                raise click.UsageError("a secret with a driver has no data of its own: leave FILE away")
            body["Driver"] = {"Name": driver}
        elif path is None:
            raise click.UsageError("missing FILE (or '-' for standard input)")
        else:
            data = read_input(path, size_max=SIZES_MAX[noun])
            if not data and noun == "secret":
                raise click.UsageError(f"{path} is empty; a secret has at least one byte")
            body["Data"] = base64.b64encode(data).decode()
        if template_driver:
            body["Templating"] = {"Name": template_driver}
        echo(app.client.post(f"/{noun}s/create", body)["ID"])

    @group.command(help=f"List {noun}s.")
    @list_options
    @pass_app
    def ls(app: App, *, filters: tuple[str, ...], fmt: str | None, quiet: bool) -> None:
        found = app.client.get(f"/{noun}s", filters=filters_of(filters)) or []
        columns = [("ID", "ID"), ("Name", "NAME"), ("CreatedAt", "CREATED"), ("UpdatedAt", "UPDATED")]
        if noun == "secret":
            columns.insert(2, ("Driver", "DRIVER"))
        rows = sorted((_row(item) for item in found), key=lambda row: str(row["Name"]))
        print_rows(rows, columns=columns, fmt=fmt, quiet=quiet)

    @group.command(help=f"Show {noun}s in full{' (never their data)' if noun == 'secret' else ''}.")
    @click.option("--pretty", is_flag=True, help="Print for people.")
    @click.option("-f", "--format", "fmt", metavar="FORMAT", help=FORMATS)
    @click.argument("names", metavar=f"{noun.upper()}...", nargs=-1, required=True)
    @pass_app
    def inspect(app: App, *, names: tuple[str, ...], pretty: bool, fmt: str | None) -> int:
        def get(client: EngineClient, name: str) -> Any:
            return client.get(f"/{noun}s/{part(name)}")

        return inspect_each(app.client, names, get, fmt=fmt, pretty=_pretty if pretty else None)

    @group.command(help=f"Remove {noun}s.")
    @click.argument("names", metavar=f"{noun.upper()}...", nargs=-1, required=True)
    @pass_app
    def rm(app: App, *, names: tuple[str, ...]) -> int:
        return each(names, lambda name: app.client.delete(f"/{noun}s/{part(name)}"))

    return group


def _pretty(item: Json) -> str:
    spec = item["Spec"]
    lines = [
        f"ID:          {item['ID']}",
        f"Name:        {spec['Name']}",
        *([f"Labels:      {_labels(item)}"] if spec.get("Labels") else []),
        f"Created at:  {item.get('CreatedAt', '')}",
        f"Updated at:  {item.get('UpdatedAt', '')}",
    ]
    if spec.get("Data"):
        lines += ["Data:", base64.b64decode(spec["Data"]).decode(errors="replace").rstrip("\n")]
    return "\n".join(lines)


secret = _group("secret")
config = _group("config")
