"""One host's part of the cluster network: address arithmetic, overlay, virtual addresses, published ports, DNS.

Responsible for everything between a container's ``eth0`` and the host's own network card, on this host only. It is told
*what* should be (``topology``: networks, endpoints, services, published ports) and makes the kernel agree. It does not
decide addresses of overlay endpoints (managers do, with ``ipam``), does not start containers, and talks to no other host
except through the VXLAN packets of the kernel.

Kept free of imports, because the DNS process (``dns.server``) loads this package and must stay small.
"""
