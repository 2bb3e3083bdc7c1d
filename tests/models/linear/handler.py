"""A handler as TorchServe's users write it: BaseHandler with a step of its own."""

from ts.handler_utils.timer import timed
from ts.torch_handler.base_handler import BaseHandler


class LinearHandler(BaseHandler):
    def initialize(self, context):
        super().initialize(context)
        self.calls = 0

    @timed
    def preprocess(self, data):
        self.calls += 1
        return super().preprocess(data)

    def postprocess(self, data):
        return [{"call": self.calls, "scores": row} for row in super().postprocess(data)]
