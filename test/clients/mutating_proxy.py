#!/usr/bin/env python3
"""A peer that sends nonsense: forwards connections to a server and damages what comes back from it.

usage: mutating_proxy.py LISTEN_SOCKET SERVER_SOCKET SEED RATE SWITCH

Damages a share RATE of the messages of replication streams and of the rows of copies, as long as the
file SWITCH exists, in the ways a broken or malicious server might: flipped bits, messages cut short
or made longer, extreme lengths and counts, other message types, repeated, swapped and left out
messages, strings without an end. The positions in front of a stream's messages and in its keepalives
stay as they are: a lie about those is believed. One such lie is told when the file SWITCH.lie exists,
which is removed then. The number of damaged messages is appended to SWITCH.count, a digit each ("1"),
so its size is the number.
"""
import asyncio
import os
import random
import struct
import sys

listen, server, seed, rate, switch = sys.argv[1:6]
rng = random.Random(int(seed))
XLOG_HEADER = 25        # 'w', start, end, time
KEEPALIVE_HEADER = 9    # 'k', end
FAR_AHEAD = 1 << 40
LENGTHS = [-1, -2**31, 2**31 - 1, 0, 1, 65536, 2**30 - 1, 2**30]
COUNTS = [0, 1, 65535, 32768, 32767, 1600, 1665]
TYPES = b"BCOTRYIUDKSEAcbPKrpMwkd\x00\xff"
last_message = b""


def flip(m):
    for _ in range(rng.choice([1, 1, 1, 4])):
        m[rng.randrange(len(m))] ^= 1 << rng.randrange(8)


def cut(m):
    del m[rng.randrange(len(m)):]


def insert(m):
    at = rng.randrange(len(m) + 1)
    m[at:at] = rng.randbytes(rng.randrange(1, 64))


def length(m):
    at = rng.randrange(max(1, len(m) - 3))
    m[at:at + 4] = struct.pack(">i", rng.choice(LENGTHS))


def count(m):
    at = rng.randrange(max(1, len(m) - 1))
    m[at:at + 2] = struct.pack(">H", rng.choice(COUNTS))


def type_(m):
    m[0] = rng.choice(TYPES)


def endless(m):
    m[:] = m.replace(b"\0", b"x")


def digits(m):
    """Another number or date, still readable."""
    for i, byte in enumerate(m):
        if 48 <= byte < 58 and rng.random() < 0.2:
            m[i] = rng.randrange(48, 58)


def former(m):
    """The message before this one, again."""
    if last_message:
        m[:] = last_message


KINDS = [flip, cut, insert, length, count, type_, endless, digits, former]


def damaged(message):
    """A damaged copy of a message, never empty."""
    m = bytearray(message)
    rng.choice(KINDS)(m)
    return bytes(m) or b"\0"


def lie(keepalive):
    """A keepalive that claims much more WAL than there is."""
    end, = struct.unpack(">q", keepalive[1:KEEPALIVE_HEADER])
    return keepalive[:1] + struct.pack(">q", end + FAR_AHEAD) + keepalive[KEEPALIVE_HEADER:]


def damage(body):
    """The body of a CopyData message, damaged or not; None to leave it out."""
    global last_message
    if body[:1] == b"k" and os.path.exists(switch + ".lie"):
        os.unlink(switch + ".lie")
        return lie(body)
    # a readable lie about where a member is would be believed, and end the link for good
    if not os.path.exists(switch) or rng.random() >= float(rate) or len(body) < 2 or b"host=" in body:
        if body[:1] == b"w":
            last_message = body[XLOG_HEADER:]
        return body
    with open(switch + ".count", "a") as counter:
        counter.write("1")
    if rng.random() < 0.05:
        return None
    if body[:1] == b"w" and len(body) > XLOG_HEADER:
        return body[:XLOG_HEADER] + damaged(body[XLOG_HEADER:])
    if body[:1] == b"k":
        return body[:KEEPALIVE_HEADER] + damaged(body[KEEPALIVE_HEADER:]) if rng.random() < 0.2 else body
    return damaged(body)


async def forward(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def forward_damaged(reader, writer):
    while True:
        head = await reader.readexactly(5)
        body = await reader.readexactly(struct.unpack(">i", head[1:])[0] - 4)
        if head[:1] == b"d":
            body = damage(body)
        if body is not None:
            writer.write(head[:1] + struct.pack(">i", len(body) + 4) + body)
        await writer.drain()


async def until_closed(pump, writer):
    try:
        await pump
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()


async def serve(client_reader, client_writer):
    try:
        server_reader, server_writer = await asyncio.open_unix_connection(server)
    except OSError:
        client_writer.close()
        return
    await asyncio.gather(until_closed(forward(client_reader, server_writer), server_writer),
                         until_closed(forward_damaged(server_reader, client_writer), client_writer))


async def main():
    listener = await asyncio.start_unix_server(serve, listen)
    async with listener:
        await listener.serve_forever()

asyncio.run(main())
