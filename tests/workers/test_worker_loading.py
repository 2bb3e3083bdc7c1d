"""How a worker finds its handler, and the one line it says when it cannot."""

from __future__ import annotations

import json

import pytest

from torchd_protos.frames import Loaded, Reply
from torchd_workers.handlers import HANDLERS

CLASS = """
class Handler:
    def initialize(self, context):
        {initialize}

    def handle(self, data, context):
        return ["{answer}"] * len(data)
"""


def written(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return folder


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import foo\n", "ModuleNotFoundError: No module named 'foo' (handler.py:1)"),
        ("\nfrom json import nonsense\n", "ImportError: cannot import name 'nonsense' from 'json'"),
        ("x = 1\n\ndef handle(data context):\n    pass\n", "SyntaxError: "),
        ("x = 1\n", "HandlerNotUsable: handler.py has no function 'handle' and no class with the methods"),
        (
            CLASS.format(initialize="pass", answer="")
            + CLASS.format(initialize="pass", answer="").replace("Handler", "Other"),
            "HandlerNotUsable: handler.py has 2 handler classes (Handler, Other); it must have exactly one",
        ),
        (
            "class Handler:\n    def initialize(self, context): pass\n    def handle(self, data): pass\n",
            "HandlerNotUsable: Handler.handle(data) cannot be called with (data, context): "
            "too many positional arguments (handler.py:3)",
        ),
        (
            "class Handler:\n    def initialize(self): pass\n    def handle(self, data, context): pass\n",
            "HandlerNotUsable: Handler.initialize() cannot be called with (context): "
            "too many positional arguments (handler.py:2)",
        ),
        ("def handle(): pass\n", "HandlerNotUsable: handle() cannot be called with (data, context)"),
        ("handle = 3\n", "HandlerNotUsable: the handler's entry point is 3, which cannot be called"),
        (
            CLASS.format(initialize="open('weights.bin')", answer=""),
            "FileNotFoundError: [Errno 2] No such file or directory: 'weights.bin' (handler.py:4)",
        ),
        (CLASS.format(initialize="raise SystemExit(3)", answer=""), "SystemExit: 3 (handler.py:4)"),
        (CLASS.format(initialize="raise ValueError('a\\nb')", answer=""), "ValueError: a b (handler.py:4)"),
    ],
)
def test_a_model_that_cannot_be_loaded_says_why_in_one_line(start, tmp_path, source, message):
    """L02, L03."""
    worker = start(written(tmp_path, handler=source))
    failed = worker.load()
    assert failed.kind == "LoadFailed"
    assert failed.message.startswith(message)
    assert "\n" not in failed.message
    assert "torchd_workers/worker.py" not in failed.traceback
    assert worker.end()[0] == 1


def test_a_syntax_error_names_its_line(start, tmp_path):
    worker = start(written(tmp_path, handler="x = 1\n\ndef handle(data context):\n    pass\n"))
    assert worker.load().message.endswith(" (handler.py:3)")


def test_running_out_of_memory_while_loading_is_told_by_type(start, tmp_path):
    worker = start(written(tmp_path, handler=CLASS.format(initialize="raise MemoryError", answer="")))
    assert worker.load().kind == "OutOfMemory"


def test_an_import_that_fails_inside_the_handler_is_not_hidden_by_a_handler_of_the_same_name(start, tmp_path):
    """TorchServe looks for a default handler after any ImportError and hides the cause."""
    worker = start(written(tmp_path, base_handler="import missing_library\n"))
    assert worker.load("base_handler").message == (
        "ModuleNotFoundError: No module named 'missing_library' (base_handler.py:1)"
    )


def test_a_handler_that_does_not_exist_names_those_torchd_brings(start, tmp_path):
    failed = start(tmp_path).load("nowhere.py")
    assert failed.message == (
        "HandlerNotUsable: the archive has no handler nowhere.py, "
        f"and torchd brings no handler of that name ({', '.join(HANDLERS)})"
    )


def test_the_traceback_of_a_failed_load_ends_with_the_users_frames(start, tmp_path):
    files = {"handler": "import helper\n", "helper": "def fail():\n    raise ValueError('deep')\n\nfail()\n"}
    failed = start(written(tmp_path, **files)).load()
    assert failed.message == "ValueError: deep (helper.py:2)"
    lines = [line.strip() for line in failed.traceback.splitlines() if "File" in line]
    assert [line.split(",")[0] for line in lines] == ['File "handler.py"', 'File "helper.py"', 'File "helper.py"']


@pytest.mark.parametrize(
    "name", ["handler", "handler.py", "some/folder/handler.py", "handler:handle", "handler.py:handle"]
)
def test_a_handler_is_found_by_each_way_to_write_its_name(start, tmp_path, name):
    source = "def handle(data, context):\n    return data and ['found']\n"
    worker = start(written(tmp_path, handler=source))
    assert worker.load(name) == Loaded()
    assert worker.ask(b"") == Reply(1, end_of_step=True, body=b"found")


def test_a_function_of_any_name_is_called_once_with_none_to_load(start, tmp_path):
    source = """
calls = []

def predict(data, context):
    calls.append(data)
    return data and [{"first": calls[0], "model": context.model_name, "dir": context.system_properties["model_dir"]}]
"""
    worker = start(written(tmp_path, handler=source))
    assert worker.load("handler:predict") == Loaded()
    assert json.loads(bytes(worker.ask(b"x").body)) == {"first": None, "model": "m", "dir": str(tmp_path)}


def test_a_handle_put_in_place_by_initialize_is_the_one_called(start, tmp_path):
    replaced = "self.handle = lambda data, context: ['replaced']"
    worker = start(written(tmp_path, handler=CLASS.format(initialize=replaced, answer="own")))
    assert worker.load() == Loaded()
    assert worker.ask(b"").body == b"replaced"


@pytest.mark.parametrize(
    ("attributes", "cost"),
    [
        ("batching_cost = 'tokens'", "tokens"),
        ("batching_cost = 'tokens'; takes_batches = False", ""),
        ("batching_cost = 8", ""),
        ("", ""),
    ],
)
def test_a_handler_says_what_its_requests_are_batched_by(start, tmp_path, attributes, cost):
    source = CLASS.format(initialize="pass", answer="own").rstrip() + f"\n\n    {attributes}\n"
    assert start(written(tmp_path, handler=source)).load() == Loaded(cost=cost)


def test_an_imported_class_is_not_the_modules_own(start, tmp_path):
    files = {"other": CLASS.format(initialize="pass", answer="other").replace("Handler", "Other")}
    source = "from other import Other\n" + CLASS.format(initialize="pass", answer="own")
    worker = start(written(tmp_path, handler=source, **files))
    assert worker.load() == Loaded()
    assert worker.ask(b"").body == b"own"


def test_an_archive_may_bring_modules_with_names_of_the_standard_library(loaded):
    """L06."""
    worker = loaded("shadowing")
    assert json.loads(bytes(worker.ask(b"").body)) == {"helper": "ours"}


@pytest.mark.parametrize("name", ["json", "queue", "traceback", "logging"])
def test_a_handler_may_have_the_name_of_a_standard_module(start, tmp_path, name):
    """L06."""
    worker = start(written(tmp_path, **{name: CLASS.format(initialize="pass", answer=name)}))
    assert worker.load(f"{name}.py") == Loaded()
    assert worker.ask(b"").body == name.encode()


def test_the_shims_names_are_importable_without_torch(start, tmp_path):
    source = """
import sys
import ts
from ts.context import Context
from ts.handler_utils.timer import timed
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes
from ts.protocol.otf_message_handler import send_intermediate_predict_response as same
from ts.service import PredictionException
from ts.utils.util import check_valid_pt2_backend, list_classes_from_module, load_label_mapping, map_class_to_label

def handle(data, context):
    assert isinstance(context, Context) and same is send_intermediate_predict_response
    return data and [[ts.__version__, "torch" in sys.modules]]
"""
    worker = start(written(tmp_path, handler=source))
    assert worker.load() == Loaded()
    assert json.loads(bytes(worker.ask(b"").body)) == ["0.12.0", False]


def test_the_process_imports_nothing_beyond_the_standard_library(start, tmp_path):
    source = """
import sys

def handle(data, context):
    names = {name.split(".")[0] for name in sys.modules}
    return data and [sorted(n for n in names - sys.stdlib_module_names if n.startswith(("torch", "google", "numpy")))]
"""
    worker = start(written(tmp_path, handler=source))
    assert worker.load() == Loaded()
    assert json.loads(bytes(worker.ask(b"").body)) == ["torchd_protos", "torchd_workers"]
