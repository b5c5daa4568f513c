"""One host's part of the cluster network: address arithmetic, overlay, virtual addresses, published ports, DNS."""
