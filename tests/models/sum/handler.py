"""A class handler that adds numbers."""

import json


class SumHandler:
    def __init__(self):
        self.multiplier = None

    def initialize(self, context):
        self.multiplier = context.model_yaml_config.get("multiplier", 1)

    def handle(self, data, context):
        values = [row.get("body") if row.get("data") is None else row.get("data") for row in data]
        numbers = [value if isinstance(value, list) else json.loads(value) for value in values]
        return [{"sum": self.multiplier * sum(row)} for row in numbers]
