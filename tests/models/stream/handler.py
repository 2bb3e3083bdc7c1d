"""A handler that streams as many bytes as it is asked for."""

import json

from ts.handler_utils.utils import send_intermediate_predict_response


class StreamHandler:
    def initialize(self, context):
        self.closed = 0

    def handle(self, data, context):
        asked = [json.loads(row["body"]) for row in data]
        try:
            for number in range(max(one["chunks"] for one in asked)):
                chunks = [str(number % 10) * one["size"] for one in asked]
                send_intermediate_predict_response(chunks, context.request_ids, "chunk", 200, context)
        finally:
            self.closed += 1
        return ["end"] * len(data)
