"""What a workflow is made of: the nodes of its specification and the graph between them, checked; pure, no I/O."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torchd_server.errors import WorkflowInvalid
from torchd_server.settings import NAME

MOST_NODES = 64
MOST_EDGES = 512
SEPARATOR = "__"


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How a node is served and how long it may try, by TorchServe's defaults. Retries come after the first try."""

    min_workers: int = 1
    max_workers: int = 1
    batch_size: int = 1
    max_batch_delay_ms: int = 50
    retry_attempts: int = 1
    timeout_ms: int = 10_000

    def __post_init__(self) -> None:
        """Checks every value against its range."""
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise WorkflowInvalid(f"{_KEY_OF[name]}: {value!r:.100} will not do; expected {low} to {high}")
        if self.max_workers < self.min_workers:
            raise WorkflowInvalid(f"max-workers: {self.max_workers} is less than min-workers, {self.min_workers}")


_RANGES = {
    "min_workers": (1, 64),
    "max_workers": (1, 64),
    "batch_size": (1, 1024),
    "max_batch_delay_ms": (0, 60_000),
    "retry_attempts": (0, 10),
    "timeout_ms": (1, 86_400_000),
}
_KEYS = {
    "min-workers": "min_workers",
    "max-workers": "max_workers",
    "batch-size": "batch_size",
    "max-batch-delay": "max_batch_delay_ms",
    "retry-attempts": "retry_attempts",
    "timeout-ms": "timeout_ms",
}
_KEY_OF = {name: key for key, name in _KEYS.items()}


@dataclass(frozen=True, slots=True)
class Node:
    """One step: a model of its own archive, or (`url` is empty) a function of the workflow's handler file."""

    name: str
    url: str
    settings: NodeSettings

    @property
    def is_function(self) -> bool:
        """Whether it is a function of the handler file."""
        return not self.url


@dataclass(frozen=True, slots=True)
class WorkflowSpec:
    """A graph with one start and no way back. `nodes` stand in an order in which parents come first."""

    settings: NodeSettings
    nodes: tuple[Node, ...]
    # The graph as it was written: each key's children.
    dag: Mapping[str, tuple[str, ...]]
    parents: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def start(self) -> Node:
        """Where requests come in."""
        return self.nodes[0]

    @property
    def leaves(self) -> tuple[str, ...]:
        """Whose answers are the workflow's."""
        return tuple(node.name for node in self.nodes if not self.dag.get(node.name))

    @property
    def has_functions(self) -> bool:
        """Whether it needs a handler file."""
        return any(node.is_function for node in self.nodes)


def parse_spec(document: Mapping[str, Any]) -> WorkflowSpec:
    """Reads a specification; raises WorkflowInvalid for whatever cannot be run."""
    unknown = sorted(document.keys() - {"models", "dag"})
    if unknown:
        raise WorkflowInvalid(f"the specification has the unknown key {unknown[0]!r:.100}; it has models and dag")
    models = _mapping(document.get("models"), "models")
    settings = _settings(NodeSettings(), {key: value for key, value in models.items() if key in _KEYS})
    dag = _dag(_mapping(document.get("dag"), "dag"))
    archives = {name: value for name, value in models.items() if name not in _KEYS}
    named = dict.fromkeys([*dag, *(child for children in dag.values() for child in children)])
    for name in archives:
        if name not in named:
            raise WorkflowInvalid(f"model {name!r:.100} is in no edge of the dag")
    parents = {name: tuple(dict.fromkeys(parent for parent in dag if name in dag[parent])) for name in named}
    order = _order(dag, parents)
    nodes = tuple(_node(name, archives.get(name), settings) for name in order)
    return WorkflowSpec(settings, nodes, dag, parents)


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if value is None:
        value = {}
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise WorkflowInvalid(f"{key} must be a mapping of names to values")
    if len(value) > MOST_NODES + len(_KEYS):
        raise WorkflowInvalid(f"{key} has {len(value)} entries; a workflow may have {MOST_NODES} nodes")
    return value


def _settings(settings: NodeSettings, given: Mapping[str, Any]) -> NodeSettings:
    values: dict[str, Any] = {_KEYS[key]: value for key, value in given.items() if value is not None}
    if "min_workers" in values and "max_workers" not in values and isinstance(values["min_workers"], int):
        values["max_workers"] = max(values["min_workers"], settings.max_workers)
    if "max_workers" in values and "min_workers" not in values and isinstance(values["max_workers"], int):
        values["min_workers"] = min(values["max_workers"], settings.min_workers)
    return replace(settings, **values)


def _dag(given: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    dag = {_name(name): _children(name, value) for name, value in given.items()}
    if not dag:
        raise WorkflowInvalid("the specification has no dag")
    if sum(len(children) for children in dag.values()) > MOST_EDGES:
        raise WorkflowInvalid(f"the dag has more than {MOST_EDGES} edges")
    return dag


def _children(name: str, value: Any) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(child, str) for child in found):
        raise WorkflowInvalid(f"dag: the children of {name!r} must be a list of names")
    if name in found:
        raise WorkflowInvalid(f"dag: node {name!r} is its own child")
    return tuple(dict.fromkeys(_name(child) for child in found))


def _name(name: str) -> str:
    if not NAME.fullmatch(name) or SEPARATOR in name:
        raise WorkflowInvalid(
            f"node {name[:100]!a}: a name has letters, digits, '.', '_' and '-', and '{SEPARATOR}' nowhere in it"
        )
    return name


def _order(dag: Mapping[str, tuple[str, ...]], parents: Mapping[str, tuple[str, ...]]) -> list[str]:
    """The nodes with every parent before its children (Kahn); raises where there is no such order, or two starts."""
    if len(parents) > MOST_NODES:
        raise WorkflowInvalid(f"the dag has {len(parents)} nodes; the limit is {MOST_NODES}")
    starts = [name for name, found in parents.items() if not found]
    if len(starts) != 1:
        which = f"it has {', '.join(starts)}" if starts else "every node has a parent: there is a cycle"
        raise WorkflowInvalid(f"DAG should have only one start node ({which})")
    waiting = {name: len(found) for name, found in parents.items()}
    ready, order = deque(starts), []
    while ready:
        name = ready.popleft()
        order.append(name)
        for child in dag.get(name, ()):
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if len(order) < len(parents):
        around = ", ".join(sorted(parents.keys() - set(order)))
        raise WorkflowInvalid(f"Cycle detected in the dag, at or before {around}")
    return order


def _node(name: str, given: Any, settings: NodeSettings) -> Node:
    if given is None:
        if not name.isidentifier():
            raise WorkflowInvalid(f"node {name!r} is not in models, and no function can have this name")
        return Node(name, "", replace(settings, batch_size=1, max_batch_delay_ms=0))
    if not isinstance(given, dict) or not isinstance(given.get("url"), str) or not given["url"]:
        raise WorkflowInvalid(f"model {name!r} needs a url: the name of its archive")
    unknown = sorted(str(key) for key in given.keys() - {"url"} - _KEYS.keys())
    if unknown:
        raise WorkflowInvalid(f"model {name!r} has the unknown key {unknown[0]!r:.100}; known are {', '.join(_KEYS)}")
    return Node(name, given["url"], _settings(settings, {key: value for key, value in given.items() if key in _KEYS}))
