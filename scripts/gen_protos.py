#!/usr/bin/env python3
"""Makes the generated code in protos/torchd_protos from the contracts in protos/; --check says whether it is fresh."""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import status_pb2
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "protos"
PACKAGE = PROTOS / "torchd_protos"
SERVICES = ("inference", "management", "open_inference")
MESSAGES_ONLY = ("worker",)
# Its output loads on protobuf 5.29 and every later one; the output of a later version would demand a later protobuf.
TOOLS_VERSION = "1.71.2"
VERBS = ("get", "post", "put", "delete", "patch")


def main() -> int:
    """Writes the generated files, or with --check compares them with the committed ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a committed file is stale")
    check = parser.parse_args().check
    if version("grpcio-tools") != TOOLS_VERSION:
        print(f"grpcio-tools is {version('grpcio-tools')}; install grpcio-tools=={TOOLS_VERSION}", file=sys.stderr)
        return 2
    stale = [path for path, text in sorted(generate().items()) if not _is_fresh(path, text, check)]
    if check and stale:
        print(f"{len(stale)} generated files are stale: run scripts/gen_protos.py", file=sys.stderr)
        return 1
    return 0


def generate() -> dict[Path, str]:
    """The text of every generated file."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch)
        descriptors = out / "descriptors.pb"
        # googleapis-common-protos puts its .proto files beside its modules.
        googleapis = Path(status_pb2.__file__).parent.parent.parent
        includes = [f"-Itorchd_protos={PROTOS}", f"-I{files('grpc_tools') / '_proto'}", f"-I{googleapis}"]
        names = [f"torchd_protos/{name}.proto" for name in (*SERVICES, *MESSAGES_ONLY)]
        _protoc(*includes, f"--python_out={out}", f"--pyi_out={out}", *names)
        _protoc(*includes, f"--grpc_python_out={out}", *names[: len(SERVICES)])
        _protoc(*includes, "--include_imports", f"--descriptor_set_out={descriptors}", *names[: len(SERVICES)])
        made = {PACKAGE / path.name: _own_pool(path.read_text()) for path in (out / "torchd_protos").iterdir()}
        made[PACKAGE / "http_rules.py"] = _http_rules(FileDescriptorSet.FromString(descriptors.read_bytes()))
    return made


def _protoc(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed; its message stands above")


def _own_pool(text: str) -> str:
    """Registers the messages in our pool instead of the default one (torchd_protos/pool.py says why)."""
    return text.replace(
        "from google.protobuf import descriptor_pool as _descriptor_pool\n",
        "from torchd_protos import pool as _torchd_pool\n",
    ).replace("_descriptor_pool.Default()", "_torchd_pool.POOL")


def _http_rules(descriptors: FileDescriptorSet) -> str:
    """http.yaml as a Python table, so that a start parses no YAML; each rule is checked against its method."""
    pool = DescriptorPool()
    for file in descriptors.file:
        pool.Add(file)
    rows = []
    for rule in yaml.safe_load((PROTOS / "http.yaml").read_text())["http"]["rules"]:
        for binding in (rule, *rule.get("additional_bindings", ())):
            verb = next(verb for verb in VERBS if verb in binding)
            _check_rule(pool, rule["selector"], binding[verb])
            row = (verb.upper(), binding[verb], rule["selector"], binding.get("body") == "*")
            fields = ("method", "template", "selector", "body")
            rows.append(
                "    HttpRule(" + ", ".join(f"{f}={_quoted(v)}" for f, v in zip(fields, row, strict=True)) + "),"
            )
    return _RULES_HEAD + "\n".join(_wrapped(row) for row in rows) + "\n)\n"


def _check_rule(pool: DescriptorPool, selector: str, template: str) -> None:
    service, method = selector.rsplit(".", 1)
    request = pool.FindServiceByName(service).methods_by_name[method].input_type
    for part in template.split("/"):
        if part.startswith("{") and part[1:-1] not in request.fields_by_name:
            raise SystemExit(f"http.yaml: {template} names {part}, which {request.full_name} does not have")


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _wrapped(row: str) -> str:
    """One argument a line where the row is too long, as the formatter would have it."""
    if len(row) <= 120:
        return row
    inner = row.strip().removeprefix("HttpRule(").removesuffix("),").split(", ")
    return "    HttpRule(\n" + "".join(f"        {argument},\n" for argument in inner) + "    ),"


def _is_fresh(path: Path, text: str, check: bool) -> bool:
    old = path.read_text() if path.exists() else ""
    if old == text:
        return True
    if check:
        sys.stderr.writelines(
            list(difflib.unified_diff(old.splitlines(True), text.splitlines(True), str(path), "fresh"))[:20]
        )
    else:
        path.write_text(text)
        print(f"wrote {path.relative_to(PROTOS.parent)}")
    return False


_RULES_HEAD = '''"""The REST routes of protos/http.yaml as a table. Generated by scripts/gen_protos.py; do not edit."""

from __future__ import annotations

from typing import NamedTuple


class HttpRule(NamedTuple):
    """One google.api.http binding: `{name}` parts of the template are fields of the method's request."""

    method: str
    template: str
    selector: str
    body: bool


HTTP_RULES: tuple[HttpRule, ...] = (
'''


if __name__ == "__main__":
    sys.exit(main())
