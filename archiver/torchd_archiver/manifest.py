"""The manifest of a model archive: MAR-INF/MANIFEST.json as a checked value; pure, no I/O."""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from torchd_archiver.entries import MANIFEST_PATH, ArchiveLimits, check_path
from torchd_archiver.errors import ArchiveInvalid, shown

ARCHIVER_VERSION = "0.12.0"
"""The torch-model-archiver whose format we write."""

DEFAULT_HANDLERS = (
    "base_handler",
    "text_classifier",
    "image_classifier",
    "object_detector",
    "image_segmenter",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
    "parallel_handler",
)
LSP_HANDLERS = ("BaseHandler", "TorchScriptHandler")
RUNTIMES = ("python", "python3", "LSP")

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_NAME_RULE = "a letter or digit, then up to 127 of letters, digits, '.', '_' and '-'"
_MAX_DEPTH = 32
# A string, closed or running to the end, is one token: the scan stays linear whatever the document holds.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)

# Written by torch-model-archiver before 0.2 in place of archiverVersion, and by its ancestor.
OLD_KEYS = frozenset({"modelServerVersion", "implementationVersion", "specificationVersion"})
"""What old archives have in their manifest in place of archiverVersion."""
_KEYS = frozenset({"createdOn", "runtime", "model", "archiverVersion", "description", "license", "engine", "publisher"})
_MODEL_KEYS = {
    "modelName": "model_name",
    "serializedFile": "serialized_file",
    "handler": "handler",
    "modelFile": "model_file",
    "modelVersion": "model_version",
    "extensions": "extra_files",
    "requirementsFile": "requirements_file",
    "configFile": "config_file",
}
_TOLERATED_MODEL_KEYS = frozenset({"description", "sourceVocab"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive says about its model; None where it says nothing. Checked when built."""

    model_name: str | None = None
    model_version: str | None = None
    handler: str | None = None
    serialized_file: str | None = None
    model_file: str | None = None
    extra_files: str | None = None
    requirements_file: str | None = None
    config_file: str | None = None
    runtime: str | None = None
    created_on: str | None = None
    archiver_version: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The document as found, which handlers see as context.manifest."""

    def __post_init__(self) -> None:
        for key, value in (("model name", self.model_name), ("model version", self.model_version)):
            if value is not None and not NAME.fullmatch(value):
                raise _invalid(f"{key} {shown(value)} does not fit; it may have {_NAME_RULE}")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise _invalid(
                f"Runtime is not defined or invalid. It is {shown(self.runtime)}; it may be {', '.join(RUNTIMES)}"
            )
        if self.handler is not None:
            _check_handler(self.handler)
        for key, value in (
            ("serializedFile", self.serialized_file),
            ("modelFile", self.model_file),
            ("requirementsFile", self.requirements_file),
            ("configFile", self.config_file),
        ):
            if value is not None:
                _check_inner_path(key, value)

    @classmethod
    def from_json(cls, document: bytes, limits: ArchiveLimits | None = None) -> "Manifest":
        """Reads a MANIFEST.json; raises ArchiveInvalid for whatever is not one."""
        limits = limits or ArchiveLimits()
        raw = parse_document(document, limits.manifest_bytes)
        if not isinstance(raw, dict):
            raise _invalid("is not a JSON object; it has to start with '{'")
        model = raw.get("model")
        if model is None:
            model = {}
        if not isinstance(model, dict):
            raise _invalid(f"key 'model' is {_type_name(model)}; it has to be an object")
        if limits.strict_manifest and not OLD_KEYS & raw.keys():
            _check_keys(raw, model)
        strings = {name: _string(model, key, "model.") for key, name in _MODEL_KEYS.items() if name != "extra_files"}
        extra_files = model.get("extensions")
        return cls(
            **strings,
            # Written as a comma list; foreign tools wrote other types, which stay visible in `raw`.
            extra_files=extra_files if isinstance(extra_files, str) else None,
            runtime=_string(raw, "runtime"),
            created_on=_string(raw, "createdOn"),
            archiver_version=_string(raw, "archiverVersion"),
            raw=raw,
        )

    def to_json(self) -> str:
        """The manifest as torch-model-archiver writes it, key for key."""
        model = {key: getattr(self, name) for key, name in _MODEL_KEYS.items() if getattr(self, name)}
        document = {
            "createdOn": self.created_on,
            "runtime": self.runtime,
            "model": model,
            "archiverVersion": self.archiver_version,
        }
        return json.dumps({key: value for key, value in document.items() if value is not None}, indent=2)

    def check_files(self, files: Collection[str]) -> None:
        """Refuses a handler that is neither a default one nor among the archive's files."""
        if self.handler is None:
            return
        candidates = handler_files(self.handler)
        if candidates and not any(path in files for path in candidates):
            raise _invalid(
                f"handler {shown(self.handler)} is not in the archive as {shown(candidates[0])} and is no default "
                f"handler ({', '.join(DEFAULT_HANDLERS)}); pack its file with --handler"
            )


def handler_files(handler: str) -> tuple[str, ...]:
    """The paths at which an archive may hold a handler; none for a default handler, which needs no file."""
    module, _, _ = handler.partition(":")
    if module in DEFAULT_HANDLERS or module in LSP_HANDLERS:
        return ()
    path = PurePosixPath(module)
    if path.suffix in (".py", ".so", ".dylib"):
        return (str(path), path.name)
    return tuple(f"{stem}{suffix}" for suffix in (".py", "/__init__.py", ".so", ".dylib") for stem in (path, path.name))


def written_at(moment: datetime) -> str:
    """A moment in the manifest's own format, dd/mm/YYYY HH:MM:SS."""
    return moment.strftime("%d/%m/%Y %H:%M:%S")


def _check_handler(handler: str) -> None:
    module, colon, attribute = handler.partition(":")
    _check_inner_path("handler", module)
    if colon and not (attribute.isascii() and attribute.isidentifier()):
        raise _invalid(
            f"handler {shown(handler)} has {shown(attribute)} after the colon; it has to be the name of a function"
        )


def _check_inner_path(key: str, value: str) -> None:
    try:
        check_path(value, ArchiveLimits())
    except ArchiveInvalid as error:
        raise _invalid(f"{key} {shown(value)} is no path inside the archive: {error.reason}") from None


def parse_document(document: bytes, limit: int) -> Any:
    """A small JSON document of a stranger: bounded, without doubled keys; raises ArchiveInvalid."""
    if len(document) > limit:
        raise _invalid(f"has {len(document)} bytes; the limit is {limit}")
    try:
        text = document.decode()
    except UnicodeDecodeError:
        raise _invalid("is not UTF-8; write it again as UTF-8") from None
    _check_depth(text)
    try:
        raw = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
        # A lone surrogate or 1e999 passes the parser and would break whoever sends the document on.
        json.dumps(raw, ensure_ascii=False, allow_nan=False).encode()
    except ArchiveInvalid:
        raise
    except (ValueError, RecursionError) as error:
        raise _invalid(f"is not JSON: {error}") from None
    return raw


def _check_depth(text: str) -> None:
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(token.group(), 0)
        if depth > _MAX_DEPTH:
            raise _invalid(f"is nested more than {_MAX_DEPTH} deep")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _invalid(f"has the key {shown(key)} twice")
        found[key] = value
    return found


def _no_constant(constant: str) -> Any:
    raise _invalid(f"has {constant}, which is no JSON")


def _check_keys(raw: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    unknown = sorted((raw.keys() - _KEYS) | (model.keys() - _MODEL_KEYS.keys() - _TOLERATED_MODEL_KEYS))
    if unknown:
        raise _invalid(
            f"has the unknown key {shown(unknown[0])}; known are {', '.join(sorted(_KEYS | set(_MODEL_KEYS)))}"
        )


def _string(found: Mapping[str, Any], key: str, prefix: str = "") -> str | None:
    value = found.get(key)
    if value is None or isinstance(value, str):
        return value
    raise _invalid(f"key '{prefix}{key}' is {_type_name(value)}; it has to be a string")


def _type_name(value: object) -> str:
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return names[type(value)]


def _invalid(reason: str) -> ArchiveInvalid:
    return ArchiveInvalid(reason, entry=MANIFEST_PATH)
