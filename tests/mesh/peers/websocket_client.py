"""A WebSocket client: text, binary, ping and close; prints what came of it as JSON."""
import asyncio
import json
import sys

import websockets


async def main():
    result = {}
    async with websockets.connect(sys.argv[1], subprotocols=["chat"], max_size=None, open_timeout=20) as socket:
        result["subprotocol"] = socket.subprotocol
        await socket.send("hello")
        result["text"] = await asyncio.wait_for(socket.recv(), 20)
        sent = bytes(range(256)) * 4096
        await socket.send(sent)
        result["binary"] = await asyncio.wait_for(socket.recv(), 20) == sent
        await asyncio.wait_for(await socket.ping(), 20)
        await socket.send("close")
        await asyncio.wait_for(socket.wait_closed(), 20)
        result["code"] = socket.close_code
    print(json.dumps(result))


asyncio.run(main())
