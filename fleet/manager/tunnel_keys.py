"""Which of the keys that nodes say is believed: one of the right shape, that no other node has said which is there.

A node's description is its own word. A key of another node in it would lead that one's packets astray (nobody could read them),
and one that is no key would be handed to all hosts of a network.
"""

from __future__ import annotations

import msgspec

from fleet.logs import get_logger
from fleet.model.ids import NodeId
from fleet.model.node import NodeDescription, NodeState
from fleet.network.topology import is_tunnel_key
from fleet.store import Store

__all__ = ["with_own_key"]

log = get_logger("dispatcher")


def with_own_key(store: Store, node_id: NodeId, said: NodeDescription) -> NodeDescription:
    """``said`` by the node, without its tunnel key if that cannot be its own."""
    key = said.tunnel_key
    if not key:
        return said
    others = (node for node in store.nodes.all() if node.description.tunnel_key == key and node.id != node_id)
    # a host that left and joined again is another node with the same key; the one it was is down
    owner = next((node.id for node in others if node.status.state is NodeState.READY and not node.removed), None)
    if is_tunnel_key(key) and owner is None:
        return said
    log.warning("tunnel key not believed", node=node_id, cause=f"node {owner} has it" if owner else "not a key")
    return msgspec.structs.replace(said, tunnel_key="")
