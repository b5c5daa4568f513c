"""The encrypted way between hosts: WireGuard, by the kernel or by a process of ours that speaks the same protocol.

Knows peers by key, address and endpoint; nothing of networks, containers or managers.
"""
