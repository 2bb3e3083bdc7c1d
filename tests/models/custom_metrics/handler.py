"""A handler with metrics of its own, as TorchServe's documentation teaches them (seed 003, reference 6.5)."""

import logging

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

logger = logging.getLogger(__name__)


class Measured:
    """Answers {"ok": n} and tells how it went, through each method of `context.metrics`."""

    def initialize(self, context):
        """Adds one metric beforehand."""
        dimensions = ["ModelName", "Level"]
        self.calls = context.metrics.add_metric_to_cache("InitCount", "count", dimensions, MetricTypes.COUNTER)

    def handle(self, data, context):
        """One answer for each request."""
        logger.warning("about to measure")
        metrics = context.metrics
        metrics.add_counter("MyCounter", 2, None, [Dimension("Colour", "red")])
        metrics.add_time("MyTime", 12.5, 0, "ms")
        metrics.add_size("MySize", 3, 0, "MB")
        metrics.add_percent("MyPercent", 50.5, 0)
        metrics.add_error("MyError", 1)
        metrics.add_metric("MyHist", 0.02, "s", 0, metric_type=MetricTypes.HISTOGRAM)
        handler_time = metrics.get_metric("HandlerTime", MetricTypes.GAUGE)
        handler_time.add_or_update(7.25, [context.model_name, "Model"], context.get_request_id(0))
        self.calls.add_or_update(1, [context.model_name, "Model"])
        return [{"ok": 1}] * len(data)
