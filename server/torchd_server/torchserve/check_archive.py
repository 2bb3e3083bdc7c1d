"""Looks through one archive for what will behave differently here: manifest, model-config.yaml, imports of handlers.

Nothing of the archive is imported or run, and the workers' package is looked at as files only.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

from torchd_archiver import mar
from torchd_archiver.errors import ArchiveInvalid
from torchd_archiver.manifest import DEFAULT_HANDLERS, Manifest
from torchd_server import errors, parallelism
from torchd_server.bounded_yaml import YamlInvalid, mapping_of
from torchd_server.settings import MODEL_CONFIG_KEYS, ModelSettings, SettingInvalid, merge_model_settings
from torchd_server.torchserve.findings import Finding, Kind
from torchd_server.torchserve.model_config import lenient

_OLD_KEYS = frozenset({"modelServerVersion", "implementationVersion", "specificationVersion"})
_SHIM = Path("torchserve_shim") / "ts"
_IMPORT_FAILURES = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})

_PICKLES = frozenset({"pickle.load", "pickle.loads", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load"})
_UNPICKLES = "runs whatever code is in the file: load none that you did not make"


def shim_folder() -> Path | None:
    """Where our modules named `ts.*` lie; None if the workers are not installed here."""
    spec = importlib.util.find_spec("torchd_workers")
    places = [] if spec is None else list(spec.submodule_search_locations or ())
    return Path(places[0]) / _SHIM if places else None


def check_archive(path: Path, installs_dependencies: bool, shim: Path | None) -> list[Finding]:
    """What is to be said about an archive."""
    try:
        with mar.open_archive(path) as archive:
            manifest = archive.manifest
            wanted = archive.read(lambda name: name.endswith(".py") or name == manifest.config_file)
    except ArchiveInvalid as error:
        entry = f"entry {error.entry!r} " if error.entry is not None else ""
        return [Finding(Kind.REFUSED, path.name, f"{entry}{error.reason}")]
    except OSError as error:
        return [Finding(Kind.REFUSED, path.name, f"cannot be read: {error.strerror}")]
    found = _check_manifest(path.name, manifest, installs_dependencies, shim)
    if manifest.config_file in wanted:
        found += _check_model_config(path.name, manifest.config_file or "", wanted[manifest.config_file])
    own = {name.split("/")[0].removesuffix(".py") for name in wanted}
    installs = installs_dependencies and manifest.requirements_file is not None
    for name, source in wanted.items():
        if name.endswith(".py"):
            found += _check_source(f"{path.name}: {name}", source, own, installs, shim)
    return found


def _check_manifest(where: str, manifest: Manifest, installs: bool, shim: Path | None) -> list[Finding]:
    found = []
    if not manifest.raw:
        found.append(
            Finding(Kind.NOTE, where, "has no manifest: model_name and handler must come with the register call")
        )
    if _OLD_KEYS & manifest.raw.keys():
        found.append(Finding(Kind.NOTE, where, "was made by an old archiver; it is read as it is"))
    if manifest.runtime == "LSP":
        found.append(Finding(Kind.REFUSED, where, "runtime LSP: there is no C++ backend; pack a Python handler"))
    if manifest.requirements_file is not None and not installs:
        found.append(
            Finding(
                Kind.NOTE,
                where,
                f"{manifest.requirements_file} is not installed: set install_py_dep_per_model=true, or install it here",
            )
        )
    handler = manifest.handler
    if handler in DEFAULT_HANDLERS and shim is not None and handler not in _brought_handlers(shim):
        found.append(Finding(Kind.DIFFERS, where, f"default handler {handler} is not here"))
    return found


def _brought_handlers(shim: Path) -> set[object]:
    """The names of the workers' table of handlers, among its other words."""
    table = shim.parents[1] / "handlers" / "__init__.py"
    return {node.value for node in ast.walk(ast.parse(table.read_bytes())) if isinstance(node, ast.Constant)}


def _check_model_config(where: str, name: str, document: bytes) -> list[Finding]:
    try:
        config = mapping_of(document)  # as the store reads it: what is refused there must be found here
    except YamlInvalid as error:
        return [Finding(Kind.REFUSED, where, f"{name} {error}")]
    read, warnings = lenient(config)
    found = [Finding(Kind.NOTE, where, f"{name}: {warning}") for warning in warnings]
    try:
        without_effect = parallelism.check(merge_model_settings(ModelSettings(), read, {}), read)
    except (errors.ArchiveInvalid, SettingInvalid) as error:  # as a register call would be
        return [*found, Finding(Kind.REFUSED, where, f"{name}: {error}")]
    found += [Finding(Kind.NOTE, where, f"{name}: {warning}") for warning in without_effect]
    for key in config.keys() - MODEL_CONFIG_KEYS.keys():
        meant = {known.lower(): known for known in MODEL_CONFIG_KEYS}
        near = difflib.get_close_matches(key.lower(), meant, 1, 0.85)
        if near:
            found.append(Finding(Kind.NOTE, where, f"{name}: {key} is not read; did you mean {meant[near[0]]}?"))
    return found


def _check_source(where: str, source: bytes, own: set[str], installs: bool, shim: Path | None) -> list[Finding]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return [Finding(Kind.NOTE, where, f"is not this Python's: {error}")]
    found = []
    for line, module, name in _imports(tree):
        top = module.partition(".")[0]
        if top == "ts":
            if shim is not None and not _is_in_shim(shim, module, name):
                shown = f"{module}.{name}" if name else module
                found.append(Finding(Kind.DIFFERS, f"{where}:{line}", f"imports {shown}, which is not here"))
        elif top not in own and top not in sys.stdlib_module_names and not installs and not _is_installed(top):
            found.append(Finding(Kind.DIFFERS, f"{where}:{line}", f"imports {top}, which is not installed here"))
    return found + [Finding(Kind.NOTE, f"{where}:{line}", what) for line, what in _unpickling(tree)]


def _imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """(line, module, name imported from it) of every import that must succeed."""
    optional = {
        id(node)
        for attempt in ast.walk(tree)
        if isinstance(attempt, ast.Try) and any(_catches_import_errors(handler) for handler in attempt.handlers)
        for statement in attempt.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)


def _catches_import_errors(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    names = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(name, ast.Name) and name.id in _IMPORT_FAILURES for name in names)


def _is_in_shim(shim: Path, module: str, name: str) -> bool:
    """Whether `import module`, or `from module import name`, works. A module that makes its names is believed."""
    place = shim.joinpath(*module.split(".")[1:])
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    if not file.is_file():
        return False
    if not name or name == "*" or (place / name).is_dir() or (place / f"{name}.py").is_file():
        return True
    names = _top_level_names(ast.parse(file.read_bytes()))
    return name in names or bool({"*", "__getattr__", "sys"} & names)


def _top_level_names(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in tree.body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                found.add(node.name)
            case ast.Import() | ast.ImportFrom():
                found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            case ast.Assign() | ast.AnnAssign():
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {child.id for target in targets for child in ast.walk(target) if isinstance(child, ast.Name)}
            case ast.If() | ast.Try():  # what it may define
                found |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} | {"*"}
    return found


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _unpickling(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        called = f"{node.func.value.id}.{node.func.attr}" if isinstance(node.func.value, ast.Name) else ""
        if called == "torch.load":
            weights_only = next((word.value for word in node.keywords if word.arg == "weights_only"), None)
            if weights_only is None:
                yield (
                    node.lineno,
                    "torch.load reads tensors only since torch 2.6; a pickled module needs torch.jit or code",
                )
            elif isinstance(weights_only, ast.Constant) and weights_only.value is False:
                yield node.lineno, f"torch.load(weights_only=False) {_UNPICKLES}"
        elif called in _PICKLES:
            yield node.lineno, f"{called} {_UNPICKLES}"
