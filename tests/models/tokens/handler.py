"""Continuous batching as TorchServe's generators do it: state by request id, stopping criteria for each request.

A request is JSON {"tokens": n}: n tokens, one a step. "step_seconds" slows its steps down, "raise_at" fails the batch
at that token of it, "die_at" ends the process, "single" asks for one answer, "criteria_raise" makes its own stopping
criterion fail, "size" pads its tokens.
"""

import json
import os
import time


class Stop:
    """Ends a request after its tokens; None where it asked for a single answer."""

    def __init__(self, state):
        self.state = state

    def __call__(self, token):
        if self.state.get("criteria_raise"):
            raise ValueError("no criterion")
        if self.state.get("single"):
            return None
        return self.state["made"] >= self.state["tokens"]


class TokenHandler:
    def initialize(self, context):
        self.context = context
        self.context.cache = {}
        self.steps = 0

    def handle(self, data, context):
        self.steps += 1
        ids = list(context.request_ids.values())
        for gone in set(context.cache) - set(ids):
            del context.cache[gone]
        for index, (request, row) in enumerate(zip(ids, data, strict=True)):
            if request in context.cache:
                assert row == {}, "a known request comes without its parts"
            else:
                body = row.get("data") or row.get("body")
                asked = json.loads(body) if isinstance(body, bytes | bytearray) else body
                context.cache[request] = {"made": 0, **asked}
            assert context.get_request_id(index) == request
        live = [context.cache[request] for request in ids]
        time.sleep(max(state.get("step_seconds", 0) for state in live))
        tokens = []
        for state in live:
            state["made"] += 1
            if state["made"] == state.get("raise_at"):
                raise RuntimeError("the model has failed at this step")
            if state.get("die_at") == state["made"]:
                os._exit(3)
            said = {"token": state["made"], "step": self.steps, "live": len(live), "pid": os.getpid()}
            tokens.append(json.dumps(said | {"pad": "x" * state.get("size", 0)}) + "\n")
        context.stopping_criteria = [Stop(state) for state in live]
        return tokens
