"""A slow network: a socket through which a server is reached, late by so many ms each way.

usage: slow.py SOCKET SERVERS_SOCKET MS
"""
import asyncio
import sys

socket, server, delay = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000

async def carry(reader, writer):
    """Hands on what comes, each piece so much later."""
    loop = asyncio.get_running_loop()
    data = b"-"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = b""
        # in their order: none is due before one that came earlier
        loop.call_later(delay, writer.write if data else close, data or writer)


def close(writer):
    if writer.can_write_eof():
        writer.write_eof()


async def serve(reader, writer):
    try:
        there, back = await asyncio.open_unix_connection(server)
    except OSError:
        writer.close()
        return
    await asyncio.gather(carry(reader, back), carry(there, writer))


async def main():
    listener = await asyncio.start_unix_server(serve, socket)
    async with listener:
        await listener.serve_forever()


asyncio.run(main())
