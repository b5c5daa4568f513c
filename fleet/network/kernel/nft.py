"""nftables through libnftables: whole transactions as text, without a process a call.

One transaction is atomic in the kernel: packets see the old rules or the new ones. It acts on the network namespace in
which the context was opened. Two things the library's documentation does not say, both measured:

- Opening a context costs 0.1 ms, running a few rules 0.2 to 1 ms; the ``nft`` program takes 16 ms for either.
- *Closing* a context soon after a transaction that removed something waits for an RCU grace period (20 ms: when the socket
  is released the kernel flushes its destroy queue, nf_tables_api.c ``nft_rcv_nl_event``), and holds the namespace's transaction
  lock meanwhile. So contexts are closed by a thread of their own (``NftCloser``), and only when that work is done anyway;
  the thread does nothing else and never enters a namespace. Keeping them open would cost up to 0.8 MiB each.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
import time
from types import TracebackType

from fleet.errors import RuntimeFault, UnsupportedError

__all__ = ["NftCloser", "NftContext"]

_PENDING_MAX = 128
"""Contexts waiting to be closed; the next one waits too."""
_CLOSE_AFTER_S = 0.06
"""Longer than a grace period: then the destroy queue is empty, and closing takes 0.03 ms."""
_TEXT_MAX = 2000
"""Characters of rule text quoted in an error."""

_FD_MAX = 1000
"""The library waits with select(2), and the C library ends the process for a descriptor above 1023; some are for others."""


def _load() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError as error:
        raise UnsupportedError(
            "libnftables.so.1 is missing: install the package libnftables1 (Debian) or nftables"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_new.argtypes = [ctypes.c_uint32]
    for name in ("nft_ctx_free", "nft_ctx_buffer_output", "nft_ctx_buffer_error"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
        getattr(library, name).argtypes = [ctypes.c_void_p]
        getattr(library, name).restype = ctypes.c_char_p
    return library


class NftContext:
    """An open libnftables context, bound to the namespace of the thread that constructs it. Not thread-safe."""

    def __init__(self, closer: NftCloser) -> None:
        self._closer = closer
        self._library = closer.library
        probe = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.close(probe)
        if probe >= _FD_MAX:
            raise RuntimeFault(
                "open libnftables context: descriptors below 1024 are used up, and the library takes no other"
            )
        self._handle = self._library.nft_ctx_new(0)
        if not self._handle:
            raise RuntimeFault("open libnftables context: out of memory or no netlink socket")
        self._library.nft_ctx_buffer_output(self._handle)
        self._library.nft_ctx_buffer_error(self._handle)

    def __enter__(self) -> NftContext:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hand the context to the closer; idempotent."""
        handle, self._handle = self._handle, None
        if handle:
            self._closer.close(handle)

    def run(self, text: str) -> str:
        """Apply ``text`` (nft(8) syntax, one command a line) as one transaction and return what it printed.

        Raises ``RuntimeFault`` with the library's explanation; then nothing of it was applied.
        """
        status = self._library.nft_run_cmd_from_buffer(self._handle, text.encode())
        output: bytes = self._library.nft_ctx_get_output_buffer(self._handle) or b""
        if status != 0:
            error: bytes = self._library.nft_ctx_get_error_buffer(self._handle) or b""
            detail = " ".join(error.decode(errors="replace").split())
            raise RuntimeFault(f"nftables: {detail[:_TEXT_MAX] or 'refused without explanation'}")
        return output.decode()


class NftCloser:
    """Owns the library and the thread that closes contexts."""

    def __init__(self) -> None:
        self.library = _load()
        self._pending: queue.Queue[tuple[float, int]] = queue.Queue(_PENDING_MAX)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-nft-close", daemon=True)
        self._thread.start()

    def close(self, handle: int) -> None:
        """Close later; blocks only while ``_PENDING_MAX`` others wait."""
        self._pending.put((time.monotonic() + _CLOSE_AFTER_S, handle))

    def stop(self) -> None:
        """Close all that wait, then end the thread."""
        self._stopping.set()
        self._pending.put((0.0, 0))
        self._thread.join()

    def _run(self) -> None:
        while True:
            due, handle = self._pending.get()
            if not handle:
                return
            wait_s = due - time.monotonic()
            if wait_s > 0:
                self._stopping.wait(wait_s)
            self.library.nft_ctx_free(handle)
