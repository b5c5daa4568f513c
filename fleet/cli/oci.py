"""``fleet oci``: the OCI runtime's command line, passed on as it is."""

from __future__ import annotations

import click

__all__ = ["oci"]


@click.command(
    add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def oci(arguments: tuple[str, ...]) -> None:
    """Run containers from OCI bundles, without a daemon (also as fleet-oci)."""
    from fleet.node_runtime.oci.main import main

    click.get_current_context().exit(main(list(arguments), program="fleet oci"))
