"""Asks for a page so many times a second: a program of its own, standard library only.

The first line of standard input is ``{"targets": [[host, port]], "rate", "timeout_s"}``. Each request is a connection of
its own, to the next target; a name is asked of 127.0.0.11 anew each time. At the end of standard input it answers ``{"asked",
"late", "answers": {text: count}, "failures": [[seconds since the epoch, target, what happened]], "slowest_s", "p99_s"}``.
``late`` is how often this program was half a second behind and gave up catching up, as the machine was too slow for the rate.
"""

import asyncio
import collections
import json
import random
import socket
import struct
import sys
import time

PAGE_MAX = 65536
LATE_S = 0.5


def resolve(name):
    """One of the name's IPv4 addresses, by chance; raises OSError."""
    if name[0].isdigit():
        return name
    question = (
        b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0" + struct.pack("!HH", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(2)
        asking.sendto(struct.pack("!HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0) + question, ("127.0.0.11", 53))
        data = asking.recv(65536)
    count = struct.unpack_from("!H", data, 6)[0]
    at, found = 12 + len(question), []
    for _ in range(count):
        while data[at] and data[at] < 0xC0:
            at += 1 + data[at]
        at += 2 if data[at] else 1
        kind, _, _, length = struct.unpack_from("!HHIH", data, at)
        if kind == 1:
            found.append(socket.inet_ntoa(data[at + 10 : at + 10 + length]))
        at += 10 + length
    if not found:
        raise OSError(f"{name} has no address (code {data[3] & 15})")
    return random.choice(found)


async def ask(host, port):
    """The body of the page; raises OSError when there is none."""
    reader, writer = await asyncio.open_connection(resolve(host), port)
    try:
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        page = await reader.read(PAGE_MAX)
        while chunk := await reader.read(PAGE_MAX):
            page += chunk
    finally:
        writer.close()
    head, _, body = page.partition(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise OSError(f"answered {head[:80]!r}" if head else "closed without an answer")
    return body.decode(errors="replace").strip()


async def main(order, ended):
    answers, failures, times = collections.Counter(), [], []
    asked = late = 0
    running = set()

    async def one(host, port):
        began = time.monotonic()
        try:
            answers[await asyncio.wait_for(ask(host, port), order["timeout_s"])] += 1
            times.append(time.monotonic() - began)
        except (OSError, TimeoutError) as cause:
            why = str(cause) or f"no answer in {order['timeout_s']} s"
            failures.append([time.time(), f"{host}:{port}", f"{type(cause).__name__}: {why}"])

    began = time.monotonic()
    while not ended.is_set():
        due = began + asked / order["rate"]
        behind = time.monotonic() - due
        if behind > LATE_S:  # a machine that is too slow gets fewer requests, not all of them at once
            began += behind
            late += 1
        await asyncio.sleep(max(-behind, 0))
        host, port = order["targets"][asked % len(order["targets"])]
        asked += 1
        task = asyncio.create_task(one(host, port))
        running.add(task)
        task.add_done_callback(running.discard)
    await asyncio.gather(*running)
    times.sort()
    return {
        "asked": asked,
        "late": late,
        "answers": answers,
        "failures": failures,
        "slowest_s": times[-1] if times else None,
        "p99_s": times[len(times) * 99 // 100] if times else None,
    }


async def until_told(order):
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.run_in_executor(None, lambda: (sys.stdin.read(), loop.call_soon_threadsafe(ended.set)))
    return await main(order, ended)


if __name__ == "__main__":
    wanted = json.loads(sys.stdin.readline())
    print(json.dumps(asyncio.run(until_told(wanted))))
