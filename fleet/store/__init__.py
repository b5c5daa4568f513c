"""Typed tables with indexes and a change feed over a small revisioned key-value interface (the Engine protocol).

Responsible for: what the cluster's desired and observed state *is* right now, on every manager, in memory (``Store``);
changing it atomically and only if nobody else did meanwhile (``Transaction``); telling loops what changed (``Subscription``).
Not responsible for: durability and replication (an ``Engine`` of ``fleet.engines``), and what may be written by whom
(the control API, the orchestrators and the dispatcher).
"""

from fleet.store.engine import (
    CompactedError,
    Compare,
    CompareFailed,
    Deleted,
    Engine,
    EngineFailedError,
    Entry,
    LeaseLostError,
    Listing,
    Put,
    Txn,
    WatchBatch,
)
from fleet.store.feed import Action, Change, Changes, Subscription
from fleet.store.kinds import ROOT, Kind
from fleet.store.sealing import AesSealer, load_or_create_key
from fleet.store.store import Sealer, Store
from fleet.store.table import Table, TaskTable
from fleet.store.transaction import Transaction

__all__ = [
    "ROOT",
    "Action",
    "AesSealer",
    "Change",
    "Changes",
    "CompactedError",
    "Compare",
    "CompareFailed",
    "Deleted",
    "Engine",
    "EngineFailedError",
    "Entry",
    "Kind",
    "LeaseLostError",
    "Listing",
    "Put",
    "Sealer",
    "Store",
    "Subscription",
    "Table",
    "TaskTable",
    "Transaction",
    "Txn",
    "WatchBatch",
    "load_or_create_key",
]
