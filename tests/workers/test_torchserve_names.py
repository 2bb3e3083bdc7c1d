"""The names of TorchServe's Python package: each imports (reference 6.4), and those that are no handlers work."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from torchd_protos.frames import Loaded, Metric

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "workers" / "torchd_workers" / "torchserve_shim"
PACKAGES = os.pathsep.join(str(ROOT / folder) for folder in ("workers", "protos", "archiver"))

NAMES = [
    "ts.__version__",
    "ts.context.Context",
    "ts.context.RequestProcessor",
    "ts.handler_utils.distributed.deepspeed.get_ds_engine",
    "ts.handler_utils.distributed.pt_pippy.get_pipeline_driver",
    "ts.handler_utils.distributed.pt_pippy.get_pipline_driver",
    "ts.handler_utils.distributed.pt_pippy.initialize_rpc_workers",
    "ts.handler_utils.hf_batch_streamer.TextIteratorStreamerBatch",
    "ts.handler_utils.micro_batching.MicroBatching",
    "ts.handler_utils.preprocess.dali.get_dali_pipeline",
    "ts.handler_utils.text_utils.get_tokenizer",
    "ts.handler_utils.text_utils.ngrams_iterator",
    "ts.handler_utils.timer.timed",
    "ts.handler_utils.utils.create_predict_response",
    "ts.handler_utils.utils.import_class",
    "ts.handler_utils.utils.send_intermediate_predict_response",
    "ts.launcher.register_model",
    "ts.launcher.register_model_with_params",
    "ts.launcher.start",
    "ts.launcher.stop",
    "ts.llm_launcher.get_model_config",
    "ts.llm_launcher.main",
    "ts.metrics.caching_metric.CachingMetric",
    "ts.metrics.dimension.Dimension",
    "ts.metrics.metric.Metric",
    "ts.metrics.metric_cache_errors.MetricsCacheKeyError",
    "ts.metrics.metric_cache_yaml_impl.MetricsCacheYamlImpl",
    "ts.metrics.metric_type_enum.MetricTypes",
    "ts.metrics.metrics_store.MetricsStore",
    "ts.metrics.process_memory_metric.check_process_mem_usage",
    "ts.metrics.unit.Units",
    "ts.model_loader.ModelLoaderFactory",
    "ts.model_service.model_service.ModelService",
    "ts.model_service.model_service.SingleNodeService",
    "ts.protocol.otf_message_handler.create_predict_response",
    "ts.protocol.otf_message_handler.send_intermediate_predict_response",
    "ts.service.PredictionException",
    "ts.service.Service",
    "ts.torch_handler.base_handler.BaseHandler",
    "ts.torch_handler.contractions.CONTRACTION_MAP",
    "ts.torch_handler.dali_handler.DALIHandler",
    "ts.torch_handler.dali_image_classifier.DALIImageClassifier",
    "ts.torch_handler.densenet_handler.DenseNetHandler",
    "ts.torch_handler.distributed.base_deepspeed_handler.BaseDeepSpeedHandler",
    "ts.torch_handler.distributed.base_pippy_handler.BasePippyHandler",
    "ts.torch_handler.image_classifier.ImageClassifier",
    "ts.torch_handler.image_segmenter.ImageSegmenter",
    "ts.torch_handler.object_detector.ObjectDetector",
    "ts.torch_handler.request_envelope.base.BaseEnvelope",
    "ts.torch_handler.request_envelope.body.BodyEnvelope",
    "ts.torch_handler.request_envelope.json.JSONEnvelope",
    "ts.torch_handler.request_envelope.kserve.KServeEnvelope",
    "ts.torch_handler.request_envelope.kservev2.KServev2Envelope",
    "ts.torch_handler.text_classifier.TextClassifier",
    "ts.torch_handler.text_handler.TextHandler",
    "ts.torch_handler.trt_llm_handler.TRTLLMHandler",
    "ts.torch_handler.unit_tests.test_utils.mock_context.MockContext",
    "ts.torch_handler.unit_tests.test_utils.model_dir.copy_files",
    "ts.torch_handler.unit_tests.test_utils.model_dir.download_model",
    "ts.torch_handler.vision_handler.VisionHandler",
    "ts.torch_handler.vllm_handler.VLLMHandler",
    "ts.utils.hf_utils.download_model",
    "ts.utils.timeit_decorator.timeit",
    "ts.utils.util.CLEANUP_REGEX",
    "ts.utils.util.PT2Backend",
    "ts.utils.util.PredictionException",
    "ts.utils.util.check_valid_pt2_backend",
    "ts.utils.util.deprecated",
    "ts.utils.util.get_yaml_config",
    "ts.utils.util.list_classes_from_module",
    "ts.utils.util.load_label_mapping",
    "ts.utils.util.map_class_to_label",
    "ts.version.__version__",
]


@pytest.fixture(autouse=True)
def shim_on_the_path(monkeypatch):
    """`ts`, as a worker's handler finds it."""
    monkeypatch.syspath_prepend(str(SHIM))
    yield
    for name in [name for name in sys.modules if name == "ts" or name.startswith("ts.")]:
        del sys.modules[name]


def found(dotted: str):
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("dotted", NAMES)
def test_a_name_of_torchserves_is_there(dotted):
    pytest.importorskip("torch")
    assert found(dotted) is not None


@pytest.mark.parametrize("path", sorted(SHIM.rglob("*.py")), ids=lambda path: path.relative_to(SHIM).as_posix())
def test_a_file_of_the_shim_only_imports(path):
    kinds = {line.split()[0] for line in path.read_text().splitlines() if line and line[0] not in ' ")]'}
    assert kinds <= {"from", "__all__", "if"}, f"{path} holds more than imports: {kinds}"


def test_a_class_is_imported_by_its_name():
    import_class = found("ts.handler_utils.utils.import_class")
    assert import_class("collections.OrderedDict").__name__ == "OrderedDict"
    assert import_class("OrderedDict", "collections").__name__ == "OrderedDict"
    assert import_class("abc.Mapping", "collections").__name__ == "Mapping"
    for wrong in ("", "OrderedDict", "collections.Missing"):
        with pytest.raises(ImportError):
            import_class(wrong)


def test_the_classes_of_a_module_are_those_it_defines():
    listed = found("ts.utils.util.list_classes_from_module")
    module = importlib.import_module("ts.metrics.metric_type_enum")
    assert listed(module) == []
    real = importlib.import_module("torchd_workers.metrics")
    assert {cls.__name__ for cls in listed(real)} >= {"CachingMetric", "Metrics"}
    assert [cls.__name__ for cls in listed(real, parent_class=KeyError)] == ["MetricsCacheKeyError"]


def test_a_deprecated_function_warns_and_works():
    deprecated = found("ts.utils.util.deprecated")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert deprecated("0.8", "the.other")(len)([1]) == 1
    assert str(caught[0].message) == "len is deprecated in 0.8 and moved to the.other"


def test_timeit_prints_the_times_of_a_call(capsys):
    """TorchServe's calls time.clock, which Python has no more."""
    assert found("ts.utils.timeit_decorator.timeit")(len)([1, 2]) == 2
    assert capsys.readouterr().out.startswith("len took 0.0")


def test_a_metric_made_by_hand_prints_torchserves_line():
    metric = found("ts.metrics.metric.Metric")
    dimension = found("ts.metrics.dimension.Dimension")
    made = metric("Faces", 3, "count", [dimension("Level", "Model")], "r1")
    made.update(5)
    assert str(made).startswith("Faces.Count:5|#Level:Model|#hostname:")
    assert str(made).endswith(",r1")
    assert (made.to_dict()["MetricName"], made.to_dict()["Value"]) == ("Faces", 5)
    assert found("ts.metrics.unit.Units")().units[None] == "unit"


def test_a_metric_made_by_hand_in_a_worker_reaches_the_daemon(start, tmp_path):
    (tmp_path / "handler.py").write_text(
        "from ts.metrics.caching_metric import CachingMetric\nfrom ts.metrics.dimension import Dimension\n"
        "from ts.metrics.metric import Metric\nfrom ts.metrics.metric_type_enum import MetricTypes\n\n\n"
        "def handle(data, context):\n"
        "    Metric('Faces', 0, 'count', [Dimension('Level', 'Model')], 'r1').update(4)\n"
        "    CachingMetric('Hands', 'count', ['Side'], MetricTypes.GAUGE).add_or_update(2, ['left'])\n"
        "    return ['ok'] * len(data or [])\n"
    )
    worker = start(tmp_path)
    assert worker.load() == Loaded()
    worker.ask(b"")
    values = [message for message in worker.seen if isinstance(message, Metric) and message.name in ("Faces", "Hands")]
    assert [(metric.name, metric.value, metric.unit, metric.type) for metric in values] == [
        ("Faces", 4.0, "Count", "counter"),
        ("Hands", 2.0, "Count", "gauge"),
    ] * 2


def test_a_metrics_store_keeps_what_a_handler_adds():
    store = found("ts.metrics.metrics_store.MetricsStore")({0: "a", 1: "b"}, "m")
    store.add_counter("Calls", 1, 1)
    store.add_counter("Calls", 2, 1)
    store.add_time("Took", 2.5)
    store.add_size("Size", 3, 0, "kB")
    store.add_percent("Share", 50)
    store.add_error("Broken", 1)
    store.add_metric("Own", 1, "faces", 0)
    told = [(metric.name, metric.value, metric.unit, metric.request_id) for metric in store.store]
    assert told == [
        ("Calls", 2, "Count", "b"),
        ("Took", 2.5, "Milliseconds", "a,b"),
        ("Size", 3, "Kilobytes", "a"),
        ("Share", 50, "Percent", "a,b"),
        ("Broken", 1, "unit", None),
        ("Own", 1, "faces", "a"),
    ]
    with pytest.raises(ValueError, match="the unit 'h' does not fit"):
        store.add_time("Took", 1, unit="h")


def test_a_metrics_file_fills_the_cache(tmp_path):
    file = tmp_path / "metrics.yaml"
    file.write_text(
        "dimensions: [&m 'ModelName']\nmodel_metrics:\n  counter:\n    - {name: Calls, unit: count, dimensions: [*m]}\n"
        "  gauge:\n    - {name: Took, unit: ms, dimensions: [*m]}\n"
    )
    cache = found("ts.metrics.metric_cache_yaml_impl.MetricsCacheYamlImpl")(config_file_path=str(file))
    cache.initialize_cache()
    assert cache.cache_keys() == ["counter:Calls", "gauge:Took"]
    assert cache.get_metric("Took", found("ts.metrics.metric_type_enum.MetricTypes").GAUGE).unit == "Milliseconds"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "MetricsCacheIOError"),
        ("a: [", "MetricsCachePyYamlError"),
        ("a: 1", "MetricsCacheKeyError"),
        ("model_metrics:", "MetricsCacheValueError"),
        ("model_metrics: {timer: []}", "MetricsCacheKeyError"),
        ("model_metrics: {gauge: [{name: a, unit: b}]}", "MetricsCacheKeyError"),
    ],
)
def test_a_metrics_file_that_does_not_fit_is_named(tmp_path, text, error):
    file = tmp_path / "metrics.yaml"
    if text is not None:
        file.write_text(text)
    cache_class = found("ts.metrics.metric_cache_yaml_impl.MetricsCacheYamlImpl")
    with pytest.raises(found(f"ts.metrics.metric_cache_errors.{error}"), match=str(file)):
        cache_class(str(file)).initialize_cache()


def test_a_wrong_use_of_the_cache_raises_the_errors_that_handlers_import(tmp_path):
    (tmp_path / "metrics.yaml").write_text("{}")
    metrics = found("ts.metrics.metric_cache_yaml_impl.MetricsCacheYamlImpl")(str(tmp_path / "metrics.yaml"))
    with pytest.raises(found("ts.metrics.metric_cache_errors.MetricsCacheTypeError")):
        metrics.add_metric_to_cache(3, "ms")
    with pytest.raises(found("ts.metrics.metric_cache_errors.MetricsCacheValueError")):
        metrics.add_time("Took", 1, unit="parsec")
    with pytest.raises(found("ts.metrics.metric_cache_errors.MetricsCacheKeyError")):
        metrics.get_metric("Nobody")


def test_a_dimension_is_an_object_of_the_handlers_own():
    dimension = found("ts.metrics.dimension.Dimension")("Level", "Model")
    dimension.value = "Host"
    assert (str(dimension), dimension.to_dict()) == ("Level:Host", {"Name": "Level", "Value": "Host"})
    assert len({dimension, dimension}) == 1


def test_the_memory_of_processes_goes_to_the_log(caplog):
    with caplog.at_level(logging.INFO):
        found("ts.metrics.process_memory_metric.check_process_mem_usage")(io.StringIO(f"{os.getpid()},\n"))
    pid, size = caplog.messages[-1].split(":")
    assert int(pid) == os.getpid()
    assert int(size) > 1 << 20
    assert found("ts.metrics.process_memory_metric.get_cpu_usage")(1 << 30) == 0


def test_an_old_service_answers_by_its_signature(tmp_path):
    base = found("ts.model_service.model_service.SingleNodeService")
    context = found("ts.context.Context")("m", str(tmp_path), {"Model": {"Signature": "signature.json"}}, 1, None)

    class Sum(base):
        def _inference(self, data):
            return sum(data[0])

    service = Sum("m", str(tmp_path), {})
    with pytest.raises(ValueError, match="no signature file signature"):
        service.initialize(context)
    signature = {"input_type": "application/json", "inputs": [{"data_name": "numbers"}]}
    (tmp_path / "signature.json").write_text(json.dumps(signature))
    service.initialize(context)
    assert service.handle([{"numbers": b"[1, 2]"}], context) == [3]
    assert service.handle([{"body": [4]}], context) == [4]
    assert service.signature() == signature


def test_a_model_is_loaded_in_this_process(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "loaded_here.py").write_text(
        "def handle(data, context):\n    context.calls = getattr(context, 'calls', 0) + 1\n    return data\n"
    )
    loader = found("ts.model_loader.ModelLoaderFactory").get_model_loader()
    service = loader.load("m", str(tmp_path), "loaded_here.py", None, 4)
    assert service.context.calls == 1
    assert service.context.system_properties["batch_size"] == 4


def test_torchserves_protocol_is_refused_in_a_sentence():
    with pytest.raises(NotImplementedError, match="do not speak TorchServe's protocol"):
        found("ts.protocol.otf_message_handler.create_predict_response")([], {}, "", 200)


@pytest.mark.parametrize(
    ("handler", "library"),
    [
        ("vllm_handler", "vllm"),
        ("trt_llm_handler", "tensorrt_llm"),
        ("dali_handler", "nvidia"),
        ("dali_image_classifier", "nvidia"),
    ],
)
def test_a_handler_without_its_library_says_so_while_loading(start, tmp_path, handler, library):
    pytest.importorskip("torch")
    if importlib.util.find_spec(library):
        pytest.skip(f"{library} is installed")
    failed = start(tmp_path).load(handler)
    assert f" needs {library}, which is not installed here: pip install " in failed.message


def test_a_function_without_its_library_says_so(tmp_path):
    pytest.importorskip("torch")
    context = found("ts.context.Context")("m", str(tmp_path), {}, 1, None, model_yaml_config={"deepspeed": {"a": 1}})
    with pytest.raises(ValueError, match="no entry 'dali'"):
        found("ts.handler_utils.preprocess.dali.get_dali_pipeline")(context)


def test_a_batch_of_texts_streams_piece_by_piece():
    streamer_class = pytest.importorskip("torchd_workers.handlers.hf_batch_streamer").TextIteratorStreamerBatch
    torch = pytest.importorskip("torch")

    class Words:
        def decode(self, tokens, **_):
            return " ".join(f"w{int(token)}" for token in tokens) + " "

    streamer = streamer_class(Words(), batch_size=2, skip_prompt=True)

    def generate():
        for tokens in ([[1, 2, 3], [4, 5, 6]], [7, 8], [9, 10]):
            streamer.put(torch.tensor(tokens))
        streamer.end()

    thread = threading.Thread(target=generate)
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(piece[0]["text"] for piece in pieces) == "w7 w9 "
    assert "".join(piece[1]["text"] for piece in pieces) == "w8 w10 "
    with pytest.raises(ValueError, match="made for 2 texts and was given 3"):
        streamer.put(torch.tensor([1, 2, 3]))


def test_files_of_a_unit_test_are_copied_and_fetched_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"weights")
    target = tmp_path / "model"
    target.mkdir()
    found("ts.torch_handler.unit_tests.test_utils.model_dir.copy_files")(tmp_path, target, {"weights.pt": "copy.pt"})
    download = found("ts.torch_handler.unit_tests.test_utils.model_dir.download_model")
    download((tmp_path / "weights.pt").as_uri(), target)
    (tmp_path / "weights.pt").unlink()
    download((tmp_path / "weights.pt").as_uri(), target)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {
        "copy.pt": b"weights",
        "model.pt": b"weights",
    }


COMMAND = """#!{python}
import sys, time
with open({log!r}, "a") as file:
    print(*sys.argv[1:], file=file)
if "--start" in sys.argv:
    print("starting", flush=True)
    if "broken" in sys.argv:
        sys.exit(3)
    print("Model server started.", flush=True)
    print("a line", flush=True)
"""


@pytest.fixture
def command(tmp_path, monkeypatch):
    """A command `torchserve` that writes down its arguments."""
    log = tmp_path / "calls"
    program = tmp_path / "bin" / "torchserve"
    program.parent.mkdir()
    program.write_text(COMMAND.format(python=sys.executable, log=str(log)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: log.read_text().splitlines()


def test_the_launcher_starts_the_command_and_hands_out_what_it_says(command, capsys):
    lines = found("ts.launcher.start")("store", "config", True, None, True, "a.mar b.mar", True)
    assert [lines.get(timeout=30), lines.get(timeout=30)] == ["a line\n", None]
    found("ts.launcher.stop")(wait=False)
    flags = "--no-config-snapshots --disable-token-auth --enable-model-api --models a.mar b.mar"
    assert command() == [
        "--stop --foreground",
        f"--start --foreground --model-store store --ts-config config {flags}",
        "--stop",
    ]
    assert "Model server started." in capsys.readouterr().out


def test_a_server_that_does_not_start_is_told(command):
    with pytest.raises(RuntimeError, match="the server left with 3 before it was ready"):
        found("ts.launcher.start")("broken")


def test_the_launcher_registers_over_http(monkeypatch):
    launcher = importlib.import_module("torchd_workers.torchserve.launcher")
    paths = []

    class Management(BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            self.send_response(404 if "missing" in self.path else 200)
            self.end_headers()
            self.wfile.write(b'{"status": "said"}')

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Management) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(launcher, "MANAGEMENT", f"http://127.0.0.1:{server.server_port}")
        good = found("ts.launcher.register_model")("m", "m.mar")
        bad = found("ts.launcher.register_model_with_params")((("url", "missing"),))
        server.shutdown()
        thread.join()
    assert paths == ["/models?model_name=m&url=m.mar&initial_workers=1&synchronous=true", "/models?url=missing"]
    assert (good.status_code, good.ok, good.json()) == (200, True, {"status": "said"})
    assert (bad.status_code, bad.ok, bad.text) == (404, False, '{"status": "said"}')


def test_the_launcher_of_language_models_writes_a_folder_while_it_serves(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "workers" / "torchd_ts"))
    launcher = importlib.import_module("ts.llm_launcher")
    args = launcher.parser().parse_args(["--model_store", str(tmp_path), "--model_id", "org/m", "--model_name", "llm"])
    with launcher.create_mar_file(args) as folder:
        manifest = json.loads(Path(folder, "MAR-INF", "MANIFEST.json").read_text())
        config = found("ts.utils.util.get_yaml_config")(Path(folder, "model-config.yaml"))
    assert manifest["model"]["handler"] == "vllm_handler"
    assert config["asyncCommunication"] is True
    assert config["handler"]["model_path"] == "org/m"
    assert list(tmp_path.iterdir()) == []
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_archiver"]:
        del sys.modules[name]


def test_the_launcher_of_language_models_is_a_command():
    told = subprocess.run(
        [sys.executable, "-m", "ts.llm_launcher", "--help"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(SHIM), PACKAGES])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--vllm_engine.max_num_seqs" in told.stdout
