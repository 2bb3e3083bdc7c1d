"""metrics.yaml: which of TorchServe's metrics are recorded, with which unit and dimensions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

OWN_FILE = Path(__file__).with_name("metrics.yaml")
KINDS = ("counter", "gauge", "histogram")
HOSTNAME = "Hostname"
METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}")
LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]{0,99}")
DIMENSIONS_AT_MOST = 16
# How many dimensions the server itself fills in for each metric of its own.
_FRONTEND_DIMENSIONS = {
    "ts_inference_requests_total": 3,
    "ts_inference_latency_microseconds": 3,
    "ts_queue_latency_microseconds": 3,
    "WorkerLoadTime": 3,
    "GPUMemoryUtilization": 3,
    "GPUMemoryUsed": 3,
    "GPUUtilization": 3,
}


class MetricsConfigInvalid(ValueError):
    """A metrics.yaml that cannot be used; the message says where and why."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric; its last dimension is the host."""

    name: str
    kind: str
    unit: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """The server's own metrics and the handlers', by name."""

    server: Mapping[str, MetricSpec]
    handlers: Mapping[str, MetricSpec]

    def handlers_json(self) -> str:
        """What a worker must know so that `context.metrics.get_metric` finds them."""
        return json.dumps(
            [
                {
                    "name": spec.name,
                    "unit": spec.unit,
                    "dimensions": [name for name in spec.dimensions if name != HOSTNAME],
                    "type": spec.kind,
                }
                for spec in self.handlers.values()
            ]
        )


def read(path: Path | None) -> MetricsConfig:
    """The metrics of a file (None: TorchServe's own); raises MetricsConfigInvalid."""
    path = path or OWN_FILE
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise MetricsConfigInvalid(f"metrics configuration {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise MetricsConfigInvalid(f"metrics configuration {path} must have the sections ts_metrics and model_metrics")
    try:
        server = {spec.name: spec for spec in _section(content, "ts_metrics")}
        handlers = {spec.name: spec for spec in _section(content, "model_metrics", added=(HOSTNAME,))}
    except MetricsConfigInvalid as error:
        raise MetricsConfigInvalid(f"metrics configuration {path}: {error}") from error
    twice = server.keys() & handlers.keys()
    if twice:
        raise MetricsConfigInvalid(f"metrics configuration {path}: {sorted(twice)[0]} stands in both sections")
    return MetricsConfig(server, handlers)


def _section(content: dict[str, Any], name: str, added: tuple[str, ...] = ()) -> Iterator[MetricSpec]:
    section = content.get(name) or {}
    if not isinstance(section, dict) or set(section) - set(KINDS):
        raise MetricsConfigInvalid(f"{name} must hold lists named {', '.join(KINDS)}")
    seen = set()
    for kind, entries in section.items():
        for entry in entries or ():
            spec = _spec(name, kind, entry, added)
            if spec.name in seen:
                raise MetricsConfigInvalid(f"{name}: {spec.name} stands there twice")
            seen.add(spec.name)
            yield spec


def _spec(section: str, kind: str, entry: Any, added: tuple[str, ...]) -> MetricSpec:
    where = f"{section}.{kind}"
    if not isinstance(entry, dict) or not {"name", "unit", "dimensions"} <= entry.keys():
        raise MetricsConfigInvalid(f"{where}: {entry!r:.200} must have name, unit and dimensions")
    metric, unit = str(entry["name"]), str(entry["unit"])
    dimensions = entry["dimensions"] or []
    if not METRIC_NAME.fullmatch(metric):
        raise MetricsConfigInvalid(f"{where}: {metric[:200]!r} is no name of a metric (letters, digits, '_', ':')")
    if not isinstance(dimensions, list) or not all(isinstance(name, str) for name in dimensions):
        raise MetricsConfigInvalid(f"{where}: the dimensions of {metric} must be a list of names")
    names = (*(name for name in dimensions if name not in added), *added)
    if len(set(names)) != len(names) or len(names) > DIMENSIONS_AT_MOST:
        raise MetricsConfigInvalid(f"{where}: {metric} must have at most {DIMENSIONS_AT_MOST} different dimensions")
    for name in names:
        if not LABEL_NAME.fullmatch(name):
            raise MetricsConfigInvalid(f"{where}: {name[:100]!r} of {metric} is no name of a dimension")
    filled_in = _FRONTEND_DIMENSIONS.get(metric, 2)
    if not added and len(names) != filled_in:
        raise MetricsConfigInvalid(f"{where}: {metric} has {filled_in} dimensions here, not {len(names)}")
    return MetricSpec(metric, kind, unit, names)
