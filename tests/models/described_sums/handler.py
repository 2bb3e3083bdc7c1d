"""Answers with the number it is given, and says of itself what kind it is."""

import json


class DescribedSums:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        if context.get_request_header(0, "describe"):
            return [json.dumps({"kind": "sums"})]
        return [json.dumps({"sum": float(bytes(row["body"]))}) for row in data]
