"""``fleet swarm ca``: the root certificate, and its rotation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TextIO

import click

from fleet.cli import clock
from fleet.cli.app import App, pass_app
from fleet.cli.render import echo
from fleet.cli.swarm_settings import DURATION, EXTERNAL_CA, external_ca, update_swarm

Json = dict[str, Any]

_PEM_MAX: Final = 64 * 1024
_LOOK_S: Final = 0.2


@click.command()
@click.option("--rotate", is_flag=True, help="Replace the root certificate; nodes get certificates of the new one.")
@click.option(
    "--ca-cert", type=click.File("r"), metavar="FILE", help="Root certificate to rotate to (PEM; else a new one)."
)
@click.option("--ca-key", type=click.File("r"), metavar="FILE", help="Its key (PEM).")
@click.option("--cert-expiry", type=DURATION, default=None, metavar="DURATION", help="Validity of node certificates.")
@EXTERNAL_CA
@click.option("-d", "--detach", is_flag=True, help="Do not wait until all nodes have taken part.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@pass_app
def ca(app: App, *, rotate: bool, ca_cert: TextIO | None, ca_key: TextIO | None, **flags: Any) -> None:
    """Show the root certificate of the swarm (PEM), or rotate it."""
    if not rotate:
        if ca_cert or ca_key or any(value not in (None, False, ()) for value in flags.values()):
            raise click.UsageError("these options only change something together with --rotate")
        swarm_now = app.client.get("/swarm")
        if swarm_now.get("RootRotationInProgress"):
            click.echo(str(_rotation_progress(app, swarm_now)), err=True)
        echo(str((swarm_now.get("TLSInfo") or {}).get("TrustRoot", "")).rstrip())
        return
    external = [external_ca(text) for text in flags["external_ca"]]
    if ca_key and not ca_cert:
        raise click.UsageError("--ca-key is nothing without its certificate: --ca-cert")
    if ca_cert and not ca_key and not external:
        raise click.UsageError(
            "--ca-cert needs the key as well (--ca-key), or an authority that has it (--external-ca)"
        )
    wanted: Json = {}
    if external:
        wanted["ExternalCAs"] = external
    if ca_cert:
        wanted |= {"SigningCACert": _pem_of(ca_cert), "SigningCAKey": _pem_of(ca_key) if ca_key else ""}
    if flags["cert_expiry"] is not None:
        wanted["NodeCertExpiry"] = flags["cert_expiry"]
    before = app.client.get("/swarm")
    config = before["Spec"].get("CAConfig") or {}
    update_swarm(app, {"CAConfig": {**config, **wanted, "ForceRotate": int(config.get("ForceRotate") or 0) + 1}})
    if flags["detach"]:
        return
    _follow_rotation(app, quiet=flags["quiet"])
    echo(str((app.client.get("/swarm").get("TLSInfo") or {}).get("TrustRoot", "")).rstrip())


def _pem_of(file: TextIO) -> str:
    text = file.read(_PEM_MAX + 1)
    if len(text) > _PEM_MAX:
        raise click.UsageError(
            f"{file.name}: longer than {_PEM_MAX} characters; expected one certificate or key in PEM form"
        )
    return text


@dataclass(frozen=True)
class _Progress:
    total: int
    trusting: int
    renewed: int
    waiting: tuple[str, ...]

    def __str__(self) -> str:
        said = (
            f"root rotation: {self.trusting} of {self.total} nodes trust the new root, "
            f"{self.renewed} of {self.total} have a certificate of it"
        )
        return f"{said}; down: {', '.join(self.waiting)} (start them or 'fleet node rm')" if self.waiting else said


def _rotation_progress(app: App, swarm_now: Json) -> _Progress:
    wanted = (swarm_now.get("TLSInfo") or {}).get("CertIssuerPublicKey")
    old = str((swarm_now.get("TLSInfo") or {}).get("TrustRoot", "")).strip()
    trusting = renewed = 0
    waiting = []
    nodes = app.client.get("/nodes")
    for node in nodes:
        shown = (node.get("Description") or {}).get("TLSInfo") or {}
        renewed += shown.get("CertIssuerPublicKey") == wanted
        trusting += str(shown.get("TrustRoot", "")).strip() != old
        if node["Status"]["State"] == "down":
            waiting.append(node["Description"]["Hostname"])
    return _Progress(len(nodes), trusting, renewed, tuple(waiting))


def _follow_rotation(app: App, *, quiet: bool) -> None:
    """Until the root is rotated. Interrupted, the rotation goes on."""
    said: _Progress | None = None
    while (now := app.client.get("/swarm")).get("RootRotationInProgress"):
        progress = _rotation_progress(app, now)
        if progress != said and not quiet:
            click.echo(str(progress), err=True)
        said = progress
        clock.sleep(_LOOK_S)
    if not quiet:
        click.echo("root rotated: all nodes hold certificates of the new root; join tokens have changed", err=True)
