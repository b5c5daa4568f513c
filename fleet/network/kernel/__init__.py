"""The kernel edge: namespaces, netlink messages, nftables transactions. Each module is one interface of the kernel."""
