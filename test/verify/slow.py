"""A slow network: a socket through which a server is reached, late by so many ms each way.

usage: slow.py SOCKET SERVERS_SOCKET MS
"""
import asyncio
import sys

socket, server, delay = sys.argv[1], sys.argv[2], float(sys.argv[3]) / 1000
MOST_WAITING = 1000  # pieces; who sends more waits


async def read(reader, waiting):
    clock = asyncio.get_running_loop().time
    data = b"-"
    while data:
        try:
            data = await reader.read(65536)
        except OSError:
            data = b""
        await waiting.put((clock() + delay, data))


async def write(writer, waiting):
    clock = asyncio.get_running_loop().time
    while True:
        due, data = await waiting.get()
        await asyncio.sleep(due - clock())
        if not data:
            writer.close()
            return
        writer.write(data)
        await writer.drain()


async def carry(reader, writer):
    waiting = asyncio.Queue(MOST_WAITING)
    reading = asyncio.create_task(read(reader, waiting))
    try:
        await write(writer, waiting)
    except OSError:
        pass
    finally:
        reading.cancel()


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
