"""The manifest: what is read, what is refused, and that it is written as torch-model-archiver does."""

import json
from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_archiver.entries import ArchiveLimits
from torchd_archiver.errors import ArchiveInvalid
from torchd_archiver.manifest import Manifest, written_at


def document(**model: object) -> bytes:
    return json.dumps({"runtime": "python", "model": {"modelName": "m", "handler": "h.py", **model}}).encode()


def test_a_manifest_is_written_key_for_key_as_torch_model_archiver_writes_it() -> None:
    manifest = Manifest(
        model_name="bert",
        model_version="1.0",
        handler="h.py:run",
        serialized_file="w.pt",
        model_file="net.py",
        requirements_file="requirements.txt",
        config_file="model-config.yaml",
        runtime="python",
        created_on=written_at(datetime(2025, 3, 9, 8, 7, 6)),
        archiver_version="0.12.0",
    )
    assert manifest.to_json() == (
        '{\n  "createdOn": "09/03/2025 08:07:06",\n  "runtime": "python",\n  "model": {\n    "modelName": "bert",\n'
        '    "serializedFile": "w.pt",\n    "handler": "h.py:run",\n    "modelFile": "net.py",\n'
        '    "modelVersion": "1.0",\n    "requirementsFile": "requirements.txt",\n'
        '    "configFile": "model-config.yaml"\n  },\n  "archiverVersion": "0.12.0"\n}'
    )


def test_what_was_written_is_read_back() -> None:
    manifest = Manifest(model_name="m", model_version="2", handler="image_classifier", runtime="python3")
    assert Manifest.from_json(manifest.to_json().encode()) == manifest


def test_the_document_as_found_stays_visible() -> None:
    """A08, and context.manifest of handlers."""
    found = Manifest.from_json(document(custom=[1, 2]))
    assert found.raw["model"]["custom"] == [1, 2]


def test_manifests_of_old_archivers_are_read_even_strictly() -> None:
    """A08: before 0.2 they carry three other versions in place of archiverVersion."""
    old = {
        "createdOn": "10/04/2020 10:11:12",
        "runtime": "python",
        "model": {"modelName": "densenet161", "handler": "image_classifier", "modelVersion": "1.0", "sourceVocab": "v"},
        "modelServerVersion": "1.0",
        "implementationVersion": "1.0",
        "specificationVersion": "1.0",
        "userData": {},
    }
    manifest = Manifest.from_json(json.dumps(old).encode(), ArchiveLimits(strict_manifest=True))
    assert (manifest.model_name, manifest.model_version, manifest.archiver_version) == ("densenet161", "1.0", None)


def test_a_strict_reader_refuses_unknown_keys_by_name() -> None:
    """E09."""
    with pytest.raises(ArchiveInvalid, match="unknown key 'modelname'"):
        Manifest.from_json(document(modelname="x"), ArchiveLimits(strict_manifest=True))


def test_an_empty_object_is_an_empty_manifest() -> None:
    assert Manifest.from_json(b"{}") == Manifest()


BAD_NAMES = [
    *("../x", "a/b", "", "a" * 10_000, "a" * 129, "a\r\nb", "\x1b[31m", "-rf", ".hidden", "a\u202eb", "%2e%2e", "a b"),
    *("a\n", "é", "a\0", "٣"),
]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("key", ["modelName", "modelVersion"])
def test_names_and_versions_outside_the_rule_are_refused(key: str, name: str) -> None:
    """S16."""
    with pytest.raises(ArchiveInvalid, match="does not fit"):
        Manifest.from_json(document(**{key: name}))


def test_a_refused_name_cannot_write_into_the_log() -> None:
    """S16: the message is one printable line of bounded length whatever the name holds."""
    with pytest.raises(ArchiveInvalid) as caught:
        Manifest.from_json(document(modelName="a\r\n\x1b[2J" * 1000))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "handler",
    [
        "../h.py",
        "/abs.py",
        "h.py:__import__('os')",
        "h.py:",
        "h.py:a.b",
        "a\\h.py",
        "C:h.py",
        "",
        ":f",
        "h.py:a:b",
        "~/h.py",
    ],
)
def test_handlers_that_are_no_path_and_function_are_refused(handler: str) -> None:
    """S16."""
    with pytest.raises(ArchiveInvalid, match="handler"):
        Manifest.from_json(document(handler=handler))


@pytest.mark.parametrize("handler", ["h.py", "h.py:run", "h", "h:run", "dir/h", "dir/h:run", "dir/h.py"])
def test_a_handler_has_to_be_a_file_of_the_archive(handler: str) -> None:
    """S16."""
    manifest = Manifest.from_json(document(handler=handler))
    manifest.check_files({"dir/h.py", "h.py"})
    with pytest.raises(ArchiveInvalid, match="is not in the archive"):
        manifest.check_files({"other.py"})


def test_an_importable_module_is_no_handler() -> None:
    """S16: os:system."""
    with pytest.raises(ArchiveInvalid, match="is not in the archive"):
        Manifest.from_json(document(handler="os:system")).check_files({"h.py"})


def test_a_default_handler_needs_no_file() -> None:
    Manifest.from_json(document(handler="image_classifier")).check_files(set())


@pytest.mark.parametrize("key", ["serializedFile", "modelFile", "requirementsFile", "configFile"])
@pytest.mark.parametrize("path", ["../w.pt", "/etc/passwd", "a/../../b", ""])
def test_files_outside_the_archive_are_refused(key: str, path: str) -> None:
    """S16."""
    with pytest.raises(ArchiveInvalid, match=key):
        Manifest.from_json(document(**{key: path}))


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (b" " * 300_000, "300000 bytes"),
        (b"[" * 100_000, "nested"),
        (b'{"a":' * 40_000, "nested"),
        (b'{"runtime": "python", "runtime": "LSP"}', "twice"),
        (b'{"model": {"handler": "a.py", "handler": "b.py"}}', "twice"),
        (b'{"x": NaN}', "NaN"),
        (b'{"x": 1e999}', "JSON"),
        (b'{"x": "\\ud800"}', "JSON"),
        (b'{"x": ' + b"1" * 100_000 + b"}", "JSON"),
        (b'{"model": []}', "'model' is a list"),
        (b'{"model": {"modelVersion": 1.0}}', "'model.modelVersion' is a number"),
        (b'{"model": {"modelName": true}}', "'model.modelName' is a boolean"),
        (b'{"model": {"handler": {"a": 1}}}', "'model.handler' is an object"),
        (b'{"runtime": "bash"}', "Runtime is not defined or invalid. It is 'bash'"),
        (b'{"runtime": 3}', "'runtime' is a number"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"", "JSON"),
        (b'{"a": 1} x', "JSON"),
        (b"\xff\xfe{}", "UTF-8"),
        (b"\xef\xbb\xbf{}", "JSON"),
        (b'"' + b'\\"' * 120_000, "JSON"),
    ],
    ids=range(22),
)
def test_what_is_no_manifest_is_refused_and_says_why(found: bytes, message: str) -> None:
    """S16: too large, too deep, duplicate keys, wrong types, NaN."""
    with pytest.raises(ArchiveInvalid, match=message):
        Manifest.from_json(found)


@given(st.binary(max_size=400) | st.text(alphabet='{}[]":,\\ anurtimemodl019', max_size=200).map(str.encode))
def test_any_bytes_are_a_manifest_or_refused(found: bytes) -> None:
    try:
        manifest = Manifest.from_json(found)
    except ArchiveInvalid:
        return
    assert manifest.raw == json.loads(found)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda v: st.lists(v) | st.dictionaries(st.text(), v),
)


@given(
    st.dictionaries(st.sampled_from(["modelName", "handler", "modelVersion", "extensions", "modelFile"]), json_values),
    st.dictionaries(st.sampled_from(["createdOn", "runtime", "archiverVersion"]), json_values),
)
def test_any_values_are_a_manifest_or_refused(model: dict[str, object], top: dict[str, object]) -> None:
    try:
        manifest = Manifest.from_json(json.dumps({**top, "model": model}).encode())
    except ArchiveInvalid:
        return
    assert manifest.model_name == model.get("modelName")
