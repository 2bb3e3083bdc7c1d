"""`torchd compare` against two real HTTP servers, and its parts alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from harness.commands import ROOT
from typer.testing import CliRunner

from torchd_clients.compare.command import add_commands
from torchd_clients.compare.difference import Difference, Rules, differences
from torchd_clients.compare.known import Explained, explain, torchserve
from torchd_clients.compare.recorded import RecordedRequest, RequestsInvalid, read
from torchd_clients.compare.replay import Answer

Said = tuple[int, dict[str, str], bytes]
Behaviour = Callable[[str, str, dict[str, str], bytes], Said]


@contextmanager
def serving(behaviour: Behaviour) -> Iterator[str]:
    """A server that answers as `behaviour` says; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            status, headers, answer = behaviour(self.command, self.path, dict(self.headers), body)
            self.send_response(status)
            for name, value in {"content-length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def run(tmp_path: Path, old: Behaviour, new: Behaviour, lines: list[dict[str, Any]], *flags: str) -> tuple[int, str]:
    """The command over `lines`; its exit code and output."""
    requests = tmp_path / "requests.jsonl"
    requests.write_text("\n".join(json.dumps(line) for line in lines))
    app = typer.Typer()
    add_commands(app)
    with ExitStack() as servers:
        urls = [servers.enter_context(serving(behaviour)) for behaviour in (old, new)]
        done = CliRunner().invoke(app, [str(requests), "--old", urls[0], "--new", urls[1], *flags])
    return done.exit_code, done.output


def echo(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
    document = {"method": method, "path": path, "type": headers.get("Content-Type"), "body": body.decode("latin-1")}
    return 200, {"content-type": "application/json"}, json.dumps(document).encode()


def test_equal_servers_have_no_difference_and_exit_code_0(tmp_path: Path) -> None:
    lines = [
        {"method": "POST", "path": "/predictions/m", "body": {"text": "hi"}},
        {"path": "/ping"},
        {"method": "PUT", "path": "/x", "body": {"multipart": [{"name": "a", "filename": "f", "text": "1"}]}},
    ]
    code, output = run(tmp_path, echo, echo, lines, "--repeat", "3")
    assert code == 0
    assert "3 requests: 3 answered alike, 0 differ as explained, 0 differ unexplained" in output


def test_codes_headers_and_bodies_that_differ_are_shown_and_exit_with_1(tmp_path: Path) -> None:
    def other(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        return 404, {"content-type": "text/plain", "x-new": "1"}, b'{"path": "/other"}'

    code, output = run(tmp_path, echo, other, [{"id": "the-ping", "path": "/ping"}], "--json")
    assert code == 1
    (found,) = json.loads(output)
    places = {difference["place"]: (difference["old"], difference["new"]) for difference in found["differences"]}
    assert places["status"] == ("200", "404")
    assert places["headers.content-type"] == ("application/json", "text/plain")
    assert places["headers.x-new"] == ("<absent>", "1")
    assert places["body.json.path"] == ("/ping", "/other")
    assert places["body.json.method"] == ("GET", "<absent>")


def test_a_known_difference_is_shown_with_its_reason_and_does_not_count(tmp_path: Path) -> None:
    def other(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        return 503, {"content-type": "application/json"}, echo(method, path, headers, body)[2]

    known = tmp_path / "known.json"
    known.write_text(json.dumps([{"request": "p.*", "place": "status|reason", "why": "ours is right"}]))
    code, output = run(tmp_path, echo, other, [{"id": "ping", "path": "/ping"}], "--explained", str(known))
    assert code == 0
    assert "ours is right" in output
    assert "1 differ as explained, 0 differ unexplained" in output


def test_a_server_that_is_not_there_is_named_and_exits_with_2(tmp_path: Path) -> None:
    with serving(echo) as gone:
        pass
    requests = tmp_path / "requests.jsonl"
    requests.write_text('{"path": "/ping"}')
    app = typer.Typer()
    add_commands(app)
    done = CliRunner().invoke(app, [str(requests), "--old", gone, "--new", gone])
    assert done.exit_code == 2
    assert gone in done.output


def test_a_line_that_is_no_request_is_named(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"path": "/ping"}\n\n{"path": "/x", "body": {"bytes": 1}}\n')
    with pytest.raises(RequestsInvalid, match=r"requests\.jsonl:3: a body is text, json, base64"):
        read(path)


def test_grpc_calls_and_setups_are_counted_as_left_out(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_text('{"setup": {}}\n{"protocol": "grpc", "rpc": "A/B"}\n{"path": "/ping"}\n')
    recording = read(path)
    assert (recording.left_out, [one.path for one in recording.requests]) == (2, ["/ping"])


def test_ids_times_and_process_numbers_are_no_difference() -> None:
    old = Answer(0.1, 200, "", {"x-request-id": "1"}, b'{"pid": 1, "message": "42a0e7c8-0f0f-4a4a-8b8b-0123456789ab"}')
    new = Answer(0.1, 200, "", {"x-request-id": "2"}, b'{"pid": 2, "message": "52a0e7c8-0f0f-4a4a-8b8b-0123456789ab"}')
    assert differences(old, new, Rules()) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (b"[1.0]", b"[1.000001]", []),
        (b"[1.0]", b"[1.1]", [Difference("body.json.0", "1.0", "1.1")]),
        (b"[1]", b"[true]", [Difference("body.json.0", "1", "true")]),
        (b"[1, 2]", b"[1]", [Difference("body.json.1", "2", "<absent>")]),
        (b"one", b"two", [Difference("body.text", "one", "two")]),
        (b"{}", b"no JSON", [Difference("body.text", "{}", "no JSON")]),
    ],
)
def test_bodies_are_compared_by_value(old: bytes, new: bytes, expected: list[Difference]) -> None:
    assert differences(Answer(0, 200, body=old), Answer(0, 200, body=new), Rules()) == expected


def test_an_answer_that_never_comes_is_a_difference_only_where_the_other_comes() -> None:
    broken = Answer(1.0, broken="no answer within 1 s")
    assert differences(broken, broken, Rules()) == []
    assert [one.place for one in differences(broken, Answer(0.1, 200), Rules())] == ["answer"]


def asked(path: str = "/a", method: str = "GET", name: str = "line 1") -> RecordedRequest:
    """A request without headers and body."""
    return RecordedRequest(name, "inference", method, path, (), None)


def test_an_explanation_holds_for_its_requests_places_and_values_only() -> None:
    known = [
        Explained("because", re.compile("a"), re.compile("status"), re.compile("1"), re.compile("2")),
        Explained("by path", re.compile("PUT /b.*"), re.compile("reason")),
    ]
    found = [Difference("status", "1", "2"), Difference("status", "1", "3"), Difference("reason", "1", "2")]
    assert [one.why for one in explain(found, asked(name="a"), known)] == ["because", "", ""]
    assert [one.why for one in explain(found, asked("/b?x=1", "PUT"), known)] == ["", "", "by path"]


def test_what_torchd_answers_differently_from_torchserve_is_known_without_being_told(tmp_path: Path) -> None:
    """BR 21 and S23: TorchServe closes the connection of an error; --against other knows nothing."""

    def closes(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        return 404, {"connection": "close"}, b'{"message": "Model not found: m"}'

    def stays(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        found = b'{"message": "Model not found: m; there are a, b"}'
        return 404, {"connection": "keep-alive", "x-torchd-reason": "MODEL_NOT_FOUND"}, found

    lines = [{"path": "/predictions/m"}]
    code, output = run(tmp_path, closes, stays, lines)
    assert code == 0
    assert "D01: An error does not close the connection." in output
    assert run(tmp_path, stays, closes, lines)[0] == 1, "it is known in one direction only"
    assert run(tmp_path, closes, stays, lines, "--against", "other")[0] == 1


def test_every_known_difference_names_its_row_of_the_migration_guide() -> None:
    known = torchserve()
    assert known
    guide = (ROOT / "docs" / "migrating.md").read_text()
    assert all(f"| {one.why.partition(':')[0]} |" in guide for one in known)


def test_words_are_filled_for_each_server_and_named_in_its_answers(tmp_path: Path) -> None:
    def wants(token: str) -> Behaviour:
        def behaviour(method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
            right = headers.get("Authorization") == f"Bearer {token}" and body.decode() == f'{{"key": "{token}"}}'
            return 200 if right else 400, {}, f"{token} of {path}".encode()

        return behaviour

    lines = [{"path": "/m?at={{token}}", "headers": [["Authorization", "Bearer {{token}}"]]}]
    lines[0] |= {"method": "POST", "body": {"json": {"key": "{{token}}"}}}
    words = ["--old-word", "token=abc", "--new-word", "token=d=e"]
    code, output = run(tmp_path, wants("abc"), wants("d=e"), lines, *words, "--json")
    assert code == 0, output
    assert json.loads(output)[0]["new"]["status"] == 200
    assert run(tmp_path, wants("abc"), wants("d=e"), lines, "--old-word", "token")[0] == 2


@pytest.mark.parametrize(
    ("old", "new", "alike"),
    [
        ("multipart/x; a=1; charset=UTF-8", "multipart/x;charset=utf-8;a=1", True),
        ("text/plain; charset=utf-8", "text/plain", False),
        ("text/plain; a=B", "text/plain; a=b", False),
    ],
)
def test_content_types_are_compared_as_they_are_read(old: str, new: str, alike: bool) -> None:
    found = differences(Answer(0, 200, "", {"content-type": old}), Answer(0, 200, "", {"content-type": new}), Rules())
    assert (found == []) is alike


def test_worker_numbers_and_times_are_no_difference_and_a_clients_id_is_one() -> None:
    old = b'[{"id": "9001", "startTime": "x"}, "W-9000-m 2025-01-01T00:00:00.123Z"]'
    new = b'[{"id": "W-0", "startTime": "y"}, "W-9003-m 2026-02-02 00:00:00,456"]'
    assert differences(Answer(0, 200, body=old), Answer(0, 200, body=new), Rules()) == []
    theirs, ours = Answer(0, 200, body=b'{"id": "mine"}'), Answer(0, 200, body=b'{"id": "yours"}')
    assert [one.place for one in differences(theirs, ours, Rules())] == ["body.json.id"]


def test_metrics_are_compared_by_name_and_label() -> None:
    old = b'# HELP a A\n# TYPE a counter\na{b="1",} 3.0\nc 1.0E9\n'
    new = b'# HELP a A\n# TYPE a counter\nc 2\na{b="1",} 4.0 1700000000\nd 1\n'
    found = differences(Answer(0, 200, body=old), Answer(0, 200, body=new), Rules())
    assert found == [Difference("body.metrics", "<absent>", "d")]
