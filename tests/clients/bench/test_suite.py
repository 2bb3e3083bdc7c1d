"""The files of TorchServe's benchmark suite."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchd_clients.bench.suite import Processor, SuiteInvalid, read_suite

# As printed in TorchServe's article on tuning, its two paths replaced.
SEED = """
Model_name:
    eager_mode:
        benchmark_engine: "ab"
        url: "m.mar"
        workers:
            - 1
            - 4
        batch_delay: 100
        batch_size:
            - 1
            - 2
            - 4
            - 8
        requests: 10000
        concurrency: 10
        input: "kitten.jpg"
        backend_profiling: False
        exec_env: "local"
        processors:
            - "cpu"
            - "gpus": "all"
"""
MANY = list(range(1, 50))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("m.mar", "kitten.jpg", "dog.jpg"):
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def written(folder: Path, text: str, name: str = "suite.yaml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def of(settings: str) -> str:
    """A file of one mode with an archive and an input."""
    return "m: {eager_mode: {url: m.mar, input: kitten.jpg, " + settings + "}}"


def test_the_file_of_the_article_asks_for_every_workers_and_batch_size_on_each_processor(folder: Path) -> None:
    suite = read_suite(written(folder, SEED))
    asked = [(case.processor.device, case.workers, case.batch_size) for case in suite.cases]
    assert asked == [
        (device, workers, size) for device in ("cpu", "gpu") for workers in (1, 4) for size in (1, 2, 4, 8)
    ]
    for case in suite.cases:
        assert case.group == "eager_mode_Model_name"
        assert (case.batch_delay_ms, case.requests, case.clients) == (100, 10_000, 10)
        assert (case.archive, case.inputs) == (folder / "m.mar", (folder / "kitten.jpg",))
    (note,) = suite.notes
    assert "benchmark_engine 'ab' is not run" in note


def test_what_a_file_leaves_out_is_as_in_the_suite_of_torchserve(folder: Path) -> None:
    (case,) = read_suite(written(folder, "m: {scripted_mode: {url: m.mar, input: kitten.jpg}}")).cases
    assert case.group == "scripted_mode_m"
    assert (case.workers, case.batch_size, case.batch_delay_ms, case.requests, case.clients) == (1, 1, 200, 100, 10)
    assert case.processor == Processor("cpu")


def test_every_number_may_be_a_list_and_inputs_of_a_list_are_sent_in_turn(folder: Path) -> None:
    text = of("concurrency: [1, 8], batch_delay: [0, 5], requests: [50]").replace("kitten.jpg", "[kitten.jpg, dog.jpg]")
    cases = read_suite(written(folder, text)).cases
    assert [(case.batch_delay_ms, case.clients) for case in cases] == [(0, 1), (0, 8), (5, 1), (5, 8)]
    assert {case.inputs for case in cases} == {(folder / "kitten.jpg", folder / "dog.jpg")}
    # One daemon for both concurrencies of a setting.
    assert len({case.served_as for case in cases}) == 2


def test_several_models_and_modes_stand_in_one_file(folder: Path) -> None:
    text = "a: {x: {url: m.mar, input: dog.jpg}, y: {url: m.mar, input: dog.jpg}}\nb: {x: {url: m.mar, input: dog.jpg}}"
    assert [case.group for case in read_suite(written(folder, text)).cases] == ["x_a", "y_a", "x_b"]


def test_what_is_done_otherwise_is_said_by_name(folder: Path) -> None:
    text = of("exec_env: docker, benchmark_engine: locust, backend_profiling: true, batchsize: 8")
    notes = "\n".join(read_suite(written(folder, text)).notes)
    assert "benchmark_engine 'locust' is not run: torchd bench asks by itself" in notes
    assert "exec_env 'docker' is not used: each setting is served on this machine" in notes
    assert "backend_profiling is ignored" in notes
    assert "batchsize is not known and ignored" in notes


def test_a_template_names_files_beside_it_or_in_models_config(folder: Path) -> None:
    written(
        folder, of("workers: 1").replace("m.mar", str(folder / "m.mar")).replace("kitten", f"{folder}/kitten"), "a.yaml"
    )
    written(
        folder,
        of("workers: 2").replace("m.mar", str(folder / "m.mar")).replace("kitten", f"{folder}/kitten"),
        "models_config/b.yaml",
    )
    template = """
ts_version: {branch: &ts_version "master"}
models: ["a.yaml", "b.yaml"]
hardware: &hardware "cpu"
metrics_cmd: [{"cmd": "aws"}, {"--namespace": ["torchserve_benchmark_", *hardware]}]
report_cmd: [{"cmd": "aws s3 cp"}]
"""
    suite = read_suite(written(folder, template, "benchmark_config_template.yaml"))
    assert [case.workers for case in suite.cases] == [1, 2]
    for key in ("ts_version", "hardware", "metrics_cmd", "report_cmd"):
        assert any(f": {key} is ignored: " in note for note in suite.notes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a", "must map models to modes"),
        ("", "must map models to modes"),
        ("a: [", "is not YAML"),
        ("m: 3", r"m is 3; it must be a mapping"),
        ("m: {eager_mode: }", "m: eager_mode is None"),
        (of("workers: 0"), "m: eager_mode: workers: 0; it must be a number from 1"),
        (of("workers: [1, two]"), "workers: 'two'"),
        (of("workers: true"), "workers: True"),
        (of("workers: []"), "workers is an empty list"),
        (of("batch_delay: -1"), "batch_delay: -1; it must be a number from 0"),
        (of("processors: [tpu]"), "processors: 'tpu'; it takes"),
        (of("processors: [{gpus: 0}]"), "processors: {'gpus': 0}"),
        ("m: {x: {input: kitten.jpg}}", "url: None; it must be the path of a file"),
        ("m: {x: {url: m.mar}}", "input: None; it must be the path of a file"),
        ("m: {x: {url: none.mar, input: kitten.jpg}}", "url: none.mar: there is no .*none.mar"),
        ("m: {x: {url: 'https://host/m.mar', input: kitten.jpg}}", "url: https://host/m.mar: nothing is downloaded"),
        ("models: [gone.yaml]", "models: there is no .*gone.yaml"),
        ("models: []", "models is empty"),
        (of(f"workers: {MANY}, requests: {MANY}"), "more than 1000 settings"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_with_key_and_value(folder: Path, text: str, said: str) -> None:
    with pytest.raises(SuiteInvalid, match=re.escape(said) if ".*" not in said else said):
        read_suite(written(folder, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteInvalid, match=r"cannot read .*gone\.yaml: No such file"):
        read_suite(tmp_path / "gone.yaml")
