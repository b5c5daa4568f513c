"""Engines under the store. One contract, several implementations: sqlite for one manager, etcd for state kept elsewhere.

Responsible for making the transactions of ``fleet.store.engine`` durable and telling what changed. Knows nothing of what
keys and values mean.
"""
