"""`torchd check` and `torchd config show`: what they find before the switch, and where values come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from harness.archives import MODELS
from typer.testing import CliRunner

from torchd_archiver.manifest import DEFAULT_HANDLERS
from torchd_archiver.packing import PackRequest, pack
from torchd_server import start, switch_commands
from torchd_server.settings import ServerSettings
from torchd_server.torchserve.check_archive import check_archive, shim_folder
from torchd_server.torchserve.check_config import check_config
from torchd_server.torchserve.findings import Finding, Kind

HANDLER = """
import json
import helper
import torch
import no_such_package
import no_such_package.part
try:
    import no_such_extra
except ImportError:
    no_such_extra = None
from ts.torch_handler.base_handler import BaseHandler
from ts.torch_handler.no_such import Handler
from ts.service import NoSuchName
def handle(data, context):
    import no_such_late
    torch.load("model.pt", weights_only=False)
"""


def make(folder: Path, handler: str = HANDLER, **more: Any) -> Path:
    (folder / "handler.py").write_text(handler)
    (folder / "helper.py").write_text("")
    request = PackRequest("m", "1.0", str(folder / "handler.py"), extra_files=(str(folder / "helper.py"),), **more)
    return pack(
        PackRequest(**{**{f: getattr(request, f) for f in request.__dataclass_fields__}, "export_path": folder})
    )


def checked(archive: Path, installs: bool = False) -> list[Finding]:
    return check_archive(archive, installs, shim_folder())


def test_imports_that_will_not_work_are_named_with_their_lines(tmp_path: Path) -> None:
    found = {(one.where.rpartition(":")[2], one.what) for one in checked(make(tmp_path)) if one.kind is Kind.DIFFERS}
    assert found == {
        ("5", "imports no_such_package, which is not installed here"),
        ("6", "imports no_such_package, which is not installed here"),
        ("12", "imports ts.torch_handler.no_such.Handler, which is not here"),
        ("13", "imports ts.service.NoSuchName, which is not here"),
        ("15", "imports no_such_late, which is not installed here"),
    }


def test_what_the_archive_installs_is_not_missed(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("no_such_package\n")
    archive = make(tmp_path, "import no_such_package\ndef handle(data, context): ...\n", requirements_file=requirements)
    (note, differs) = checked(archive)
    assert (note.kind, differs.kind) == (Kind.NOTE, Kind.DIFFERS)
    assert "install_py_dep_per_model=true" in note.what
    assert checked(archive, installs=True) == []


def test_a_clean_handler_has_nothing_said_of_it(tmp_path: Path) -> None:
    source = (
        "from ts.torch_handler.base_handler import BaseHandler\nimport helper, json, yaml\nclass H(BaseHandler): ...\n"
    )
    assert checked(make(tmp_path, source)) == []


def test_pickles_are_noted(tmp_path: Path) -> None:
    notes = [one for one in checked(make(tmp_path)) if one.kind is Kind.NOTE]
    assert ["weights_only=False" in one.what for one in notes] == [True]


def test_archives_that_the_reader_refuses_are_named_with_the_reason(tmp_path: Path) -> None:
    junk = tmp_path / "junk.mar"
    junk.write_bytes(b"junk")
    (found,) = checked(junk)
    assert (found.kind, found.where) == (Kind.REFUSED, "junk.mar")
    (found,) = [one for one in checked(_native(tmp_path)) if one.kind is Kind.REFUSED]
    assert "LSP" in found.what


def _native(folder: Path) -> Path:
    native = folder / "native"
    (native / "MAR-INF").mkdir(parents=True)
    document = {"runtime": "LSP", "modelServerVersion": "1.0", "model": {"modelName": "n", "handler": "BaseHandler"}}
    (native / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(document))
    return native


def test_an_old_manifest_is_noted(tmp_path: Path) -> None:
    assert any("old archiver" in one.what for one in checked(_native(tmp_path)))


@pytest.mark.parametrize(
    ("config", "kind", "said"),
    [
        ("batchSize: many\n", Kind.NOTE, "batchSize: 'many' will not do"),
        ("batchsize: 3\n", Kind.NOTE, "did you mean batchSize?"),
        ("a: [\n", Kind.REFUSED, "is not YAML that will do"),
        ("- a\n", Kind.REFUSED, "must be a mapping"),
        ("parallelType: tp\n", Kind.NOTE, "has no effect without parallelLevel"),
        ("parallelType: tp\nparallelLevel: 2\nasyncCommunication: true\n", Kind.REFUSED, "parallelType custom"),
        ("parallelType: pp\ntorchrun: {nproc-per-node: 2, nnodes: 2}\n", Kind.REFUSED, "nnodes 2"),
        ("parallelType: pp\ntorchrun: {nproc-per-node: 2, max-restarts: 3}\n", Kind.NOTE, "max-restarts not read"),
        (f"a: &a [x]\nb: [{'*a, ' * 60}]\n", Kind.REFUSED, "more than 50 aliases"),
    ],
)
def test_a_model_config_is_looked_at(tmp_path: Path, config: str, kind: Kind, said: str) -> None:
    file = tmp_path / "model-config.yaml"
    file.write_text(config)
    (found,) = checked(make(tmp_path, "def handle(data, context): ...\n", config_file=file))
    assert found.kind is kind
    assert said in found.what


@pytest.mark.parametrize("handler", DEFAULT_HANDLERS)
def test_every_default_handler_is_here(tmp_path: Path, handler: str) -> None:
    archive = pack(PackRequest("m", "1.0", handler, serialized_file=_weights(tmp_path), export_path=tmp_path))
    assert checked(archive) == []


def test_a_default_handler_that_the_workers_do_not_bring_is_named(tmp_path: Path) -> None:
    archive = pack(
        PackRequest("m", "1.0", "parallel_handler", serialized_file=_weights(tmp_path), export_path=tmp_path)
    )
    shim = tmp_path / "torchserve_shim" / "ts"
    (tmp_path / "handlers").mkdir()
    (tmp_path / "handlers" / "__init__.py").write_text('HANDLERS = {"base_handler": "base"}\n')
    [found] = check_archive(archive, False, shim)
    assert (found.kind, found.what) == (Kind.DIFFERS, "default handler parallel_handler is not here")


@pytest.mark.parametrize("seed", ["seed_pippy", "seed_deepspeed"])
def test_the_documentations_large_models_will_not_behave_differently(tmp_path: Path, seed: str) -> None:
    [handler] = (MODELS / seed).glob("*_handler.py")
    config = MODELS / seed / "model-config.yaml"
    assert checked(pack(PackRequest("m", "1.0", str(handler), config_file=config, export_path=tmp_path))) == []


def _weights(folder: Path) -> Path:
    file = folder / "model.pt"
    file.write_bytes(b"")
    return file


def config_findings(tmp_path: Path, text: str) -> list[tuple[Kind, int, str]]:
    file = tmp_path / "config.properties"
    file.write_text(text)
    _, findings = check_config(file, start.defaults("torchserve", {}), {"SET": "7"})
    return [
        (found.kind, int(found.where.rpartition(":")[2]), found.what.split()[0].partition("=")[0]) for found in findings
    ]


def test_every_key_that_will_be_different_is_named_with_its_line(tmp_path: Path) -> None:
    found = config_findings(
        tmp_path,
        "vmargs=-Xmx1g\ngnomes=1\njob_queue_size=$$SET$$\nmax_request_size=$$UNSET$$\nversion=0.12.0\nmetrics_mode=loud\n",
    )
    assert [(kind, line) for kind, line, _ in found] == [
        (Kind.DIFFERS, 1),
        (Kind.DIFFERS, 2),
        (Kind.NOTE, 4),
        (Kind.DIFFERS, 6),
    ]


def test_insecure_values_are_named(tmp_path: Path) -> None:
    found = config_findings(
        tmp_path,
        "disable_token_authorization=true\nenable_model_api=true\ninstall_py_dep_per_model=true\nallowed_urls=.*\n"
        "cors_allowed_origin=*\nkeystore=k.p12\nlimit_max_image_pixels=false\n",
    )
    assert sorted(line for kind, line, _ in found if kind is Kind.INSECURE) == [1, 2, 3, 4, 5, 6, 7]


def app() -> typer.Typer:
    made = typer.Typer()
    switch_commands.add_commands(made)
    return made


def test_the_command_says_by_its_status_whether_anything_differs(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    config = tmp_path / "config.properties"
    config.write_text(f"model_store={store}\njob_queue_size=5\n")
    clean = CliRunner().invoke(app(), ["check", str(config)])
    assert (clean.exit_code, clean.stdout) == (0, "Nothing will behave differently.\n")
    (store / "junk.mar").write_bytes(b"junk")
    assert CliRunner().invoke(app(), ["check", str(config), "--models", "m=gone.mar"]).exit_code == 1
    found = CliRunner().invoke(app(), ["check", str(config), str(store), "--json"])
    assert found.exit_code == 1
    (only,) = json.loads(found.stdout)
    assert (only["kind"], only["where"]) == ("refused", "junk.mar")
    assert CliRunner().invoke(app(), ["check", str(tmp_path / "none")]).exit_code == 2


def test_show_says_where_each_value_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TS_NUMBER_OF_GPU", "0")
    Path("store").mkdir()
    Path("c.properties").write_text(
        "enable_envvars_config=true\ngrpc_inference_port=7\nkeystore_pass=secret\njob_queue_size=9\n"
    )
    shown = CliRunner().invoke(
        app(), ["config", "show", "--origin", "--json", "--ts-config", "c.properties", "--model-store", "store"]
    )
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert found["model_defaults.job_queue_size"] == {"value": "9", "origin": "c.properties:4"}
    assert found["listeners.grpc_inference"] == {"value": "127.0.0.1:7", "origin": "c.properties:2"}
    assert found["gpus"] == {"value": "0", "origin": "environment TS_NUMBER_OF_GPU"}
    assert found["model_store"] == {"value": str(tmp_path / "store"), "origin": "--model-store"}
    assert found["limits.request_bytes"] == {"value": "6553500", "origin": "posture torchserve"}
    assert found["decode_input"] == {"value": "true", "origin": "default"}
    assert found["tls.keystore_password"]["value"] == "***"
    assert "secret" not in shown.stdout


def test_show_says_what_is_missing() -> None:
    shown = CliRunner().invoke(app(), ["config", "show", "--ts-config", "no-such"])
    assert shown.exit_code == 1


def test_every_setting_is_shown() -> None:
    names = {name.partition(".")[0] for name, _, _ in switch_commands.rows_of(ServerSettings(), {})}
    assert names == set(ServerSettings.__dataclass_fields__) - {"environment", "properties", "posture"}


def test_models_to_load_that_the_store_does_not_have_are_named(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "m.mar").write_bytes(make(tmp_path, "def handle(data, context):\n    return data\n").read_bytes())
    config = tmp_path / "config.properties"
    config.write_text(f"model_store={store}\nload_models=m.mar,my=m.mar,gone.mar,/else/x.mar,https://x.example/y.mar\n")
    found = json.loads(CliRunner().invoke(app(), ["check", str(config), "--json"]).output)
    assert {(one["kind"], one["what"]) for one in found} == {
        ("refused", f"load_models=gone.mar: {store} has none"),
        ("refused", f"load_models=/else/x.mar is a path; only names of {store} are loaded"),
        ("note", "is not fetched: put the archive into the store to have it looked at"),
    }


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 9)}]\n"
    for last, name in zip("abcdefgh", "bcdefghi", strict=True)
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (BOMB + "minWorkers: *i\n", "stands for more than 10000 values"),
        ("x: " + "[" * 100_000, "is not YAML that will do"),
        ("a: " + "x" * 300_000, "has more than 262144 bytes"),
    ],
)
def test_a_yaml_bomb_in_an_archive_costs_the_one_who_checks_it_nothing(tmp_path: Path, config: str, words: str) -> None:
    """S17: whoever looks an archive over before the switch has not said that its maker is to be trusted."""
    file = tmp_path / "model-config.yaml"
    file.write_text(config)
    [found] = [one for one in checked(make(tmp_path, "x = 1\n", config_file=file)) if one.kind is Kind.REFUSED]
    assert words in found.what


@pytest.mark.parametrize("source", ["-" * 100_000 + "1", "(" * 10_000, "x" + ".a" * 100_000, "1" + "+1" * 100_000])
def test_source_too_deep_for_the_parser_is_said_and_the_rest_is_checked(tmp_path: Path, source: str) -> None:
    found = checked(make(tmp_path, source))
    assert all(one.kind is Kind.NOTE for one in found), found


def test_check_and_show_run_nothing_of_an_archive(tmp_path: Path) -> None:
    """S20, S45: not at import, not as a plug-in, not by finding its modules."""
    marker = tmp_path / "ran"
    spell = f"open({str(marker)!r}, 'w')\n"
    store = tmp_path / "store"
    (store / "folder" / "MAR-INF").mkdir(parents=True)
    manifest = '{"model": {"modelName": "m", "handler": "handler.py", "serializedFile": "m.pt"}, "runtime": "python"}'
    (store / "folder" / "MAR-INF" / "MANIFEST.json").write_text(manifest)
    for name in ("handler", "helper", "sitecustomize", "no_such_package", "torchd_workers"):
        (store / "folder" / f"{name}.py").write_text(f"import no_such_package.part, handler\n{spell}")
    config = tmp_path / "config.properties"
    config.write_text(f"model_store={store}\nload_models=all\nplugins=handler\n")
    for words in (["check", str(config)], ["config", "show", "--ts-config", str(config), "--ncs"]):
        run = subprocess.run(
            [sys.executable, "-P", "-m", "torchd_server", *words],
            cwd=store / "folder",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in run.stderr, run.stderr
        assert run.stdout
    assert not marker.exists()


def test_no_escape_of_a_hostile_file_reaches_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """S39."""
    switch_commands._print_table(["where"], [["\x1b]0;owned\x07\x1b[2J\x9b31m"]])
    shown = capsys.readouterr().out
    assert "owned" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
