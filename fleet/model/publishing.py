"""Whose address a service sees as its client's at a published port.

    service label   fleet.publish.source = client | node             each of its ports
                    fleet.publish.source.TARGET[/PROTOCOL] = ...      the ports that lead to this port of its containers

*node* (without a label): the address of the node that the client asked. *client*: the client's own, through whichever node it
came. By the port in the container, because the published one may be chosen by the cluster. In mode host it is the client's
anyway.

They lie in labels because every client of the engine API can write these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from fleet import errors
from fleet.model.service import PortConfig, Protocol

__all__ = ["SOURCE_LABEL", "ClientSource", "check_sources", "source_of"]

SOURCE_LABEL: Final = "fleet.publish.source"
ClientSource = Literal["node", "client"]


def source_of(labels: Mapping[str, str], port: PortConfig) -> ClientSource:
    """What the labels say about a port; the most exact one counts."""
    of_port = f"{SOURCE_LABEL}.{port.target_port}"
    for name in (f"{of_port}/{port.protocol.value}", of_port, SOURCE_LABEL):
        if name in labels:
            return "client" if labels[name] == "client" else "node"
    return "node"


def check_sources(labels: Mapping[str, str]) -> None:
    """Raises ``UserError`` for a label that says nothing. One for a port that is not published now is no error."""
    for name, value in labels.items():
        if name != SOURCE_LABEL and not name.startswith(f"{SOURCE_LABEL}."):
            continue
        if value not in ("client", "node"):
            raise errors.UserError(f"label {name}: {value!r} is not client or node")
        if name == SOURCE_LABEL:
            continue
        number, separator, protocol = name.removeprefix(f"{SOURCE_LABEL}.").partition("/")
        known = protocol in {each.value for each in Protocol} or not separator
        if not known or not number.isdecimal() or not 0 < int(number) <= 65535:
            raise errors.UserError(
                f"label {name}: expected {SOURCE_LABEL}.PORT or .PORT/tcp, the port in the container"
            )
