"""Reading a YAML file that a stranger wrote: PyYAML's safe loader with a cap on what the document stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

CONFIG_BYTES = 256 * 1024
CONFIG_ALIASES = 50
CONFIG_NODES = 10_000


class YamlInvalid(ValueError):
    """The file is no YAML that will do; the message says why."""


def read_mapping(path: Path) -> dict[str, Any]:
    """The file as a mapping of names, empty for an empty file; raises YamlInvalid or OSError."""
    with path.open("rb") as file:
        return mapping_of(file.read(CONFIG_BYTES + 1))


def mapping_of(document: bytes) -> dict[str, Any]:
    """The document as a mapping of names, empty for an empty one; raises YamlInvalid."""
    if len(document) > CONFIG_BYTES:
        raise YamlInvalid(f"has more than {CONFIG_BYTES} bytes")
    try:
        found = yaml.load(document, _BoundedLoader)
    except Exception as error:  # PyYAML's constructors let KeyError, IndexError and more through
        raise YamlInvalid(f"is not YAML that will do: {_yaml_fault(error)}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise YamlInvalid("must be a mapping of names to values")
    return found


def _yaml_fault(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} (line {error.problem_mark.line + 1})"
    return " ".join(str(error).split())


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader with a cap on what the document stands for: a few aliases can stand for gigabytes."""

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        # Nodes each node stands for, aliases followed. The nodes themselves are kept, so that no id is used twice.
        self._sizes: dict[int, tuple[int, yaml.Node]] = {}
        self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        self._aliases += is_alias
        if self._aliases > CONFIG_ALIASES:
            raise yaml.YAMLError(f"it has more than {CONFIG_ALIASES} aliases")
        node = super().compose_node(parent, index)
        if node is None:
            return None
        if id(node) not in self._sizes:
            if is_alias:
                raise yaml.YAMLError("an alias inside what it stands for")
            self._sizes[id(node)] = (1 + sum(self._sizes[id(child)][0] for child in _children(node)), node)
        if self._sizes[id(node)][0] > CONFIG_NODES:
            raise yaml.YAMLError(f"it stands for more than {CONFIG_NODES} values")
        return node


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
