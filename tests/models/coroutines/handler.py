"""An async handler: every request is a coroutine of its own.

The body is JSON: "seconds" to sleep, "chunks" to stream before the answer, "do": "raise", "exit", "die", "two".
"""

import asyncio
import json
import os

from ts.handler_utils.utils import send_intermediate_predict_response


class Coroutines:
    def initialize(self, context):
        self.context = context
        # What engines do that are started here: they live on the loop that serves.
        self.loop = asyncio.get_event_loop()
        self.running = self.most = self.cancelled = 0

    async def handle(self, data, context):
        assert asyncio.get_running_loop() is self.loop
        [row] = data
        body = row.get("data") or row.get("body")
        asked = json.loads(body) if isinstance(body, bytes | bytearray) else body
        own = context.get_request_id(0)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            for number in range(asked.get("chunks", 0)):
                await asyncio.sleep(asked.get("chunk_seconds", 0))
                chunk = str(number % 10) * asked.get("size", 1)
                send_intermediate_predict_response([chunk], context.request_ids, "ok", 200, context)
            await asyncio.sleep(asked.get("seconds", 0))
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
        match asked.get("do"):
            case "raise":
                raise ValueError("no")
            case "exit":
                raise SystemExit(1)
            case "die":
                os._exit(3)
            case "two":
                return ["one", "two"]
        assert context.get_request_id(0) == own, "each request has a context of its own"
        told = {"most": self.most, "running": self.running, "cancelled": self.cancelled, "pid": os.getpid()}
        return [json.dumps(told | {"echo": asked.get("echo")})]
