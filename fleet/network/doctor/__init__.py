"""What is wrong with this host's network, in sentences: looks, never mends.

``finding`` is what all of it answers. ``features`` asks the kernel what it can, in a namespace of its own; ``agreement`` compares
what should be with what is (pure), ``listing`` does it for nftables (pure), ``examine`` fetches both sides; ``inside`` asks names
from inside sandboxes and knocks at ports; ``frames`` (pure) and ``probe`` send VXLAN packets to other hosts and hear theirs.

Nothing on the host is changed: rules are tried out in a namespace that ends with the look, and probes are frames of an Ethernet
type nobody speaks, to the other host's bridge, so no container sees them. Who is asked, and what it means when a packet
from here does not arrive there, is the daemon's.
"""
