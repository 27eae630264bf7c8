#!/usr/bin/env python3
"""A proxy that holds every request for some time before it passes it on.

  delay.py LISTEN_PORT SERVER_PORT MS
"""
import asyncio
import sys

port, server, ms = (int(x) for x in sys.argv[1:4])


async def copy(reader, writer, count):
    while count > 0:
        piece = await reader.read(min(count, 262144))
        if not piece:
            raise ConnectionError
        writer.write(piece)
        await writer.drain()
        count -= len(piece)


async def head(reader):
    text = await reader.readuntil(b'\r\n\r\n')
    length = 0
    for line in text.split(b'\r\n')[1:]:
        if line.lower().startswith(b'content-length:'):
            length = int(line.split(b':')[1])
    return text, length


async def serve(reader, writer):
    up_reader = up_writer = None
    try:
        up_reader, up_writer = await asyncio.open_connection('127.0.0.1', server, limit=1 << 20)
        while True:
            text, length = await head(reader)
            await asyncio.sleep(ms / 1000)
            if b'100-continue' in text.lower():
                writer.write(b'HTTP/1.1 100 Continue\r\n\r\n')
                text = b'\r\n'.join(l for l in text.split(b'\r\n') if not l.lower().startswith(b'expect:'))
            up_writer.write(text)
            await copy(reader, up_writer, length)
            while True:
                answer, size = await head(up_reader)
                if not answer.startswith(b'HTTP/1.1 100'):
                    break
            writer.write(answer)
            if not text.startswith(b'HEAD') and not answer.startswith(b'HTTP/1.1 204'):
                await copy(up_reader, writer, size)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        for w in (writer, up_writer):
            if w is not None:
                w.close()


async def main():
    s = await asyncio.start_server(serve, '127.0.0.1', port, limit=1 << 20, backlog=512)
    async with s:
        await s.serve_forever()

asyncio.run(main())
