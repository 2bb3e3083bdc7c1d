"""The command torch-model-archiver as people type it."""

import argparse
from pathlib import Path

import pytest

from torchd_archiver.cli import add_arguments, main, run
from torchd_archiver.mar import open_archive


@pytest.fixture(autouse=True)
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with a model in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("handler.py", "model.bin", "config.json", "vocab.txt"):
        (tmp_path / name).write_text(name)


def test_it_prints_the_path_it_wrote(capsys: pytest.CaptureFixture[str]) -> None:
    flags = "--model-name bert --version 1.0 --serialized-file model.bin --handler ./handler.py --export-path store"
    code = main([*flags.split(), "--extra-files", "./config.json, ./vocab.txt,"])
    assert (code, capsys.readouterr().out) == (0, "store/bert.mar\n")
    with open_archive("store/bert.mar") as archive:
        assert archive.files == {"handler.py", "model.bin", "config.json", "vocab.txt", "MAR-INF/MANIFEST.json"}


@pytest.mark.parametrize("short", [True, False])
def test_short_and_long_flags_mean_the_same(short: bool) -> None:
    flags = ["-v", "-r", "-c", "-f"] if short else ["--version", "--requirements-file", "--config-file", "--force"]
    Path("m.mar").touch()
    version, requirements, config, force = flags
    assert (
        main(
            [
                "--model-name",
                "m",
                "--handler",
                "handler",
                version,
                "2",
                requirements,
                "vocab.txt",
                config,
                "config.json",
                force,
            ]
        )
        == 0
    )
    with open_archive("m.mar") as archive:
        found = archive.manifest
    assert (found.model_version, found.requirements_file, found.config_file) == ("2", "vocab.txt", "config.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--handler", "nope.py"], "'nope.py' does not exist"),
        (["--handler", "handler.py", "--serialized-file", "nope"], "'nope' does not exist"),
        (["--handler", "handler.py", "--extra-files", "nope"], "'nope' does not exist"),
        (["--handler", "handler.py:a.b"], "name of a function"),
        (["--handler", "handler.py", "--model-name", "a b"], "model name 'a b' does not fit"),
        (["--handler", "handler.py", "--export-path", "vocab.txt"], "vocab.txt"),
        (["--handler", "handler.py", "--model-file", "."], "is a folder; give a file"),
    ],
)
def test_a_failure_is_one_line_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model-name", "m", "--version", "1", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not Path("m.mar").exists()


def test_help_shows_examples_and_default_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "torch-model-archiver --model-name bert" in shown
    assert "image_classifier" in shown


def test_another_command_can_offer_the_same_arguments() -> None:
    parser = argparse.ArgumentParser(prog="torchd archive")
    add_arguments(parser)
    arguments = parser.parse_args(
        ["--model-name", "m", "-v", "1", "--handler", "handler.py", "--archive-format", "tgz"]
    )
    assert run(arguments) == 0
    assert Path("m.tar.gz").exists()
