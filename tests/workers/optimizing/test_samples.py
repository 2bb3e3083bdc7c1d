"""The forms in which an archive brings requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchd_workers.handlers.optimizing.samples import SamplesUnusable, read_samples


@pytest.mark.parametrize(
    ("name", "content", "bodies"),
    [
        ("one.json", '{"text": "hello"}', [b'{"text": "hello"}']),
        ("numbers.json", "[1.0, 2.0]", [b"[1.0, 2.0]"]),
        ("many.json", '[{"text": "a"}, {"text": "b"}]', [b'{"text": "a"}', b'{"text": "b"}']),
        ("rows.json", "[[1, 2], [3, 4]]", [b"[1, 2]", b"[3, 4]"]),
        ("lines.jsonl", "[1, 2]\n\n[3]\n", [b"[1, 2]", b"[3]"]),
        ("sentence.txt", "hello", [b"hello"]),
    ],
)
def test_a_file_holds_one_body_or_many(tmp_path: Path, name: str, content: str, bodies: list[bytes]) -> None:
    (tmp_path / name).write_text(content)
    assert read_samples(str(tmp_path), name) == bodies


def test_a_folder_holds_one_body_in_each_file_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for name in ("b.png", "a.png"):
        (tmp_path / "samples" / name).write_bytes(name.encode())
    assert read_samples(str(tmp_path), "samples") == [b"a.png", b"b.png"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.json", None, "'absent.json', and the archive has no such file: pack it as an extra file"),
        ("../secret", None, "'../secret', which is outside of the archive"),
        ("broken.json", "{", "'broken.json', which is no JSON"),
        ("broken.jsonl", "[1]\n{", "'broken.jsonl', whose line 2 is no JSON"),
        ("empty.jsonl", "", "'empty.jsonl', which holds no request body"),
    ],
)
def test_what_cannot_be_sent_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(SamplesUnusable) as error:
        read_samples(str(tmp_path), name)
    assert str(error.value) == f"optimize.samples is {message}"
