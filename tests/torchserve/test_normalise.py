"""What the rules take out of an answer, and what they must leave."""

from __future__ import annotations

from torchserve.normalise import Words, normalised

WORDS = Words(
    "/tmp/here", {"inference": 40123, "grpc_inference": 40124}, "http://127.0.0.1:5", ("s3cret",), "box.example"
)


def text_of(text: str) -> str:
    """A text body after the rules."""
    return str(normalised({"body": {"text": text}}, WORDS)["body"]["text"])


def lines_of(*lines: str) -> list[str]:
    """Lines of a log after the rules."""
    return list(normalised({"lines": list(lines)}, WORDS)["lines"])


def test_what_only_this_server_has_becomes_its_name() -> None:
    """Folder, ports, the file server, tokens and the host's name."""
    assert text_of("/tmp/here/x http://127.0.0.1:40123/ s3cret box.example") == (
        "<folder>/x http://127.0.0.1:<inference>/ <token> <host>"
    )
    assert text_of("40124") == "<grpc_inference>"
    assert text_of("http://127.0.0.1:5/a.mar") == "<files>/a.mar"


def test_ids_and_times_become_their_rules_names() -> None:
    """Uuids and timestamps, in any text."""
    assert text_of("id 0f2c8a0e-6c0f-4b7e-9a53-0123456789ab") == "id <uuid>"
    assert text_of("at 2024-05-30T21:46:03.626Z") == "at <time>"
    assert text_of("at 2024-05-30T21:46:03,626") == "at <time>"


def test_numbers_that_mean_something_stay() -> None:
    """A version, a count, a delay: they are what is compared."""
    for text in ("version 1.0", "Workers scaled to 2 for model: echo", "maxBatchDelay 100", "7"):
        assert text_of(text) == text


def test_a_workers_own_values_are_named_by_their_key() -> None:
    """Only inside a worker is `id` a port or a number that differs."""
    worker = {"id": "9000", "startTime": "x", "status": "READY", "memoryUsage": 5, "pid": 77, "gpu": False}
    found = normalised({"body": {"json": {"id": "mine", "workers": [worker]}}}, WORDS)["body"]["json"]
    assert found == {
        "id": "mine",
        "workers": [
            {
                "id": "<worker>",
                "startTime": "<time>",
                "status": "READY",
                "memoryUsage": "<bytes>",
                "pid": "<pid>",
                "gpu": False,
            }
        ],
    }


def test_headers_keep_their_case_and_order() -> None:
    """Only values that vary are taken out."""
    headers = [["X-Request-Id", "anything"], ["Content-Length", "12"], ["Pragma", "no-cache"]]
    assert normalised({"headers": headers}, WORDS)["headers"] == [
        ["X-Request-Id", "<uuid>"],
        ["Content-Length", "<length>"],
        ["Pragma", "no-cache"],
    ]


def test_a_metrics_log_line_keeps_all_but_its_value_host_and_times() -> None:
    """The shape of ts_metrics.log, whatever the host is called."""
    line = "2024-05-30T21:46:03,626 - Requests2XX.Count:1.0|#Level:Host|#hostname:h,timestamp:1717105307"
    other = line.replace("1.0", "27.0").replace("hostname:h", "hostname:other").replace("1717105307", "1717105399")
    shape = "<time> - Requests2XX.Count:<value>|#Level:Host|#hostname:<host>,timestamp:<epoch>"
    assert lines_of(line, other) == [shape]


def test_a_dimension_that_looks_like_a_number_stays() -> None:
    """model_version:1.0 is no value."""
    line = "x - ts_inference_requests_total.Count:3.0|#model_name:m,model_version:1.0|#hostname:h,timestamp:1717105307"
    assert "model_version:1.0|" in lines_of(line)[0]


def test_an_access_line_keeps_method_path_and_status() -> None:
    """Client port and duration go."""
    assert lines_of('/127.0.0.1:53514 "POST /models?url=a HTTP/1.1" 405 12') == [
        '/127.0.0.1:<client> "POST /models?url=a HTTP/1.1" 405 <ms>'
    ]


def test_a_metrics_text_is_a_set_of_lines_without_values() -> None:
    """Families come in no order; names, types, help and labels count."""
    text = '# HELP A b\n# TYPE A gauge\nA{Level="Host",Hostname="h",} 1.5E9\nA{Level="Host",Hostname="g",} 2.0\n'
    assert normalised({"body": {"text": text}}, WORDS)["body"] == {
        "metrics": ["# HELP A b", "# TYPE A gauge", 'A{Level="Host",Hostname="<host>",} <value>']
    }
