"""The kernel edge: namespaces, rtnetlink messages, nftables transactions. Each module is one interface of the kernel."""
