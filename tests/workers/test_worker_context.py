"""What handlers see: Context, headers and metrics, without a process."""

from __future__ import annotations

import math

import pytest

from torchd_workers.channel import RunningRequest
from torchd_workers.context import Context, RequestProcessor
from torchd_workers.device import ComputeThreads
from torchd_workers.headers import Headers
from torchd_workers.metrics import Dimension, Metrics, MetricsCacheKeyError, MetricTypes


@pytest.fixture
def context():
    return Context("m", "folder", {"model": {}}, 4, None, metrics=Metrics([].append, "m"))


def test_headers_are_found_in_any_case_and_keep_their_own():
    headers = Headers([("X-One", "1"), ("Content-Type", "a"), ("content-type", "b")])
    assert headers["x-one"] == headers.get("X-ONE") == "1"
    assert dict(headers) == {"X-One": "1", "content-type": "b"}
    assert "CONTENT-TYPE" in headers
    assert "other" not in headers
    assert headers.get("other", "default") == "default"
    with pytest.raises(KeyError, match="other"):
        headers["other"]


def test_the_system_properties_are_torchserves(context):
    assert context.system_properties == {
        "model_dir": "folder",
        "gpu_id": None,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "0.12.0",
        "limit_max_image_pixels": True,
    }


def test_attributes_of_the_handlers_own_stay_on_the_context(context):
    context.cache = {"a": 1}
    context.begin({0: "r"}, [RequestProcessor({})], [RunningRequest(1, 1000)])
    assert context.cache == {"a": 1}


def test_each_request_has_its_own_response(context):
    context.begin({0: "a", 1: "b"}, [RequestProcessor({"explain": "True"}), RequestProcessor({})], [])
    context.set_response_status(404, "gone", 1)
    context.set_response_content_type(0, "text/plain")
    assert context.get_response_status(0) == (200, None)
    assert context.get_response_status(1) == (404, "gone")
    assert context.get_response_headers(0) == {"content-type": "text/plain"}
    assert context.get_response_content_type(1) is None
    assert context.get_request_header(0, "explain") == "True"
    assert (context.get_request_id(), context.get_request_id(1)) == ("a", "b")
    context.set_all_response_status(500, "all")
    assert context.get_response_status(0) == context.get_response_status(1) == (500, "all")


def test_a_cancelled_request_and_its_remaining_time_are_seen(context):
    running = RunningRequest(1, 60_000)
    context.begin({0: "a"}, [RequestProcessor({})], [running])
    assert not context.is_cancelled(0)
    assert 50 < context.time_remaining(0) <= 60
    running.cancelled = True
    assert context.is_cancelled(0)
    assert context.time_remaining(5) == math.inf


def test_metrics_have_the_usual_dimensions_and_units():
    sent = []
    metrics = Metrics(sent.append, "m")
    metrics.add_size("Size", 3, unit="MB")
    metrics.set_request_ids({0: "a", 1: "b"})
    metrics.add_percent("Share", 50, 1, [Dimension("Level", "Own")])
    metrics.add_error("Oops", 1)
    size, share, error = sent
    assert (size.unit, size.type, size.request_id) == ("Megabytes", "gauge", "")
    assert {label.name: label.value for label in size.dimensions} == {"Level": "Error"}
    assert (share.unit, share.request_id) == ("Percent", "b")
    assert {label.name: label.value for label in share.dimensions} == {"ModelName": "m", "Level": "Own"}
    assert (error.type, error.unit, error.request_id) == ("counter", "unit", "")
    assert {label.name: label.value for label in error.dimensions} == {"Level": "Error"}


def test_a_metric_is_found_by_its_name_and_type():
    metrics = Metrics([].append, "m")
    depth = metrics.add_metric_to_cache("Depth", "count", ["where"], MetricTypes.HISTOGRAM)
    assert metrics.get_metric("Depth", MetricTypes.HISTOGRAM) is depth
    assert metrics.cache_keys() == ["histogram:Depth"]
    with pytest.raises(MetricsCacheKeyError, match="no counter 'Depth' was added; known: histogram:Depth"):
        metrics.get_metric("Depth")


def test_metrics_of_the_configuration_are_there_before_the_handler():
    """Reference 6.5: `get_metric` finds what model_metrics of metrics.yaml names."""
    sent = []
    declared = '[{"name": "Seen", "unit": "count", "dimensions": ["Level", "Colour"], "type": "counter"}]'
    metrics = Metrics(sent.append, "m", declared)
    metrics.get_metric("Seen").add_or_update(2, ["Model", "red"], "id")
    # Given by name, in another order than the configuration's: TorchServe would swap the values.
    metrics.add_counter("Seen", 1, None, [Dimension("Colour", "blue"), Dimension("Level", "Model")])
    assert [[label.value for label in frame.dimensions] for frame in sent] == [["Model", "red"], ["Model", "blue"]]
    metrics.get_metric("Seen").add_or_update(-1, ["Model", "red"])
    metrics.get_metric("Seen").add_or_update(1, ["red"])
    assert len(sent) == 2


def test_what_the_metrics_api_does_not_know_is_refused():
    metrics = Metrics([].append, "m")
    with pytest.raises(ValueError, match="unit 'h' of Long will not do; write ms or s"):
        metrics.add_time("Long", 1, unit="h")
    with pytest.raises(ValueError, match="unit 'TB' of Big"):
        metrics.add_size("Big", 1, unit="TB")
    with pytest.raises(TypeError, match="metric_type must be a MetricTypes"):
        metrics.add_metric("X", 1, "count", metric_type="counter")


def test_compute_threads_without_a_number_leave_the_libraries_alone():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    ComputeThreads(0).apply()
    assert torch.get_num_threads() == before
