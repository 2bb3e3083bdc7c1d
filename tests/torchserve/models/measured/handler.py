"""A BaseHandler without weights that adds one metric of each kind."""

from __future__ import annotations

from typing import Any

from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.torch_handler.base_handler import BaseHandler


class Measured(BaseHandler):
    """Counts words."""

    def initialize(self, context: Any) -> None:
        """Needs no model."""
        self.context = context
        self.initialized = True

    def preprocess(self, data: Any) -> Any:
        """The bodies as text."""
        return [str(row.get("body") or "") for row in data]

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The numbers of words, and the metrics."""
        metrics = self.context.metrics
        metrics.add_counter("WordCount", 3, None, [Dimension("Language", "en")])
        metrics.add_time("ThinkTime", 1.5, None, "ms")
        metrics.add_size("PageSize", 2.0, None, "kB")
        metrics.add_percent("Share", 50.0)
        metrics.add_error("Mistake", 1)
        metrics.add_metric("Temperature", 36.6, "Degrees", metric_type=MetricTypes.HISTOGRAM)
        return [len(text.split()) for text in data]

    def postprocess(self, data: Any) -> Any:
        """As they are."""
        return data
