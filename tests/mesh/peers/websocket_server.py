"""A WebSocket server that sends back what it gets; it closes with code 4001 when it gets "close"."""
import asyncio
import sys

import websockets


async def echo(socket):
    async for message in socket:
        if message == "close":
            await socket.close(4001, "as asked")
            return
        await socket.send(message)


async def main():
    async with websockets.serve(echo, "0.0.0.0", int(sys.argv[1]), subprotocols=["chat"], max_size=None):
        print("serving", flush=True)
        await asyncio.Future()


asyncio.run(main())
