"""A class handler that tells what it was called with, and waits at the gate that a request names."""

import json
import socket


class TogetherHandler:
    batching_cost = "tokens"

    def initialize(self, context):
        pass

    def handle(self, data, context):
        values = [row.get("data") or row["body"] for row in data]
        rows = [value if isinstance(value, dict) else json.loads(value) for value in values]
        for row in rows:
            if "gate" in row:
                with socket.socket(socket.AF_UNIX) as gate:
                    gate.connect(row["gate"])
                    gate.sendall(b"together 0\n")
                    gate.recv(1)
        return [{"batch": [row["name"] for row in rows]} for _ in rows]
