"""A running sum for each sequence, as TorchServe's example of stateful inference keeps it.

The body is a number. "slow" numbers (with a fraction) take that long; "die" ends the process; "end" as a body ends the
sequence by the response header, as handlers of combined batching do.
"""

import json
import os
import time


class RunningSum:
    def initialize(self, context):
        self.context = context
        self.sums = {}

    def handle(self, data, context):
        answers = []
        sequences = [context.get_sequence_id(index) for index in range(len(data))]
        assert len(set(sequences)) == len(sequences), "two requests of one sequence in one batch"
        for index, row in enumerate(data):
            sequence = sequences[index]
            context.set_response_header(index, context.header_key_sequence_id, sequence)
            if context.get_request_header(index, context.header_key_sequence_start):
                self.sums[sequence] = 0.0
            body = row.get("data") or row.get("body")
            text = body.decode() if isinstance(body, bytes | bytearray) else str(body)
            if text == "die":
                os._exit(3)
            if text == "end":
                context.set_response_header(index, context.header_key_sequence_end, sequence)
            elif text == "raise":
                raise RuntimeError("no such number")
            else:
                number = float(text)
                time.sleep(number % 1)
                self.sums[sequence] += number
            answers.append(json.dumps({"sum": self.sums[sequence], "pid": os.getpid(), "batch": len(data)}))
        return answers
