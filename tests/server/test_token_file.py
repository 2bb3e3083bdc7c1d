"""The key file: TorchServe's shape, one reader, and nothing believed that somebody else may have written."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest

from torchd_server import errors
from torchd_server.settings import POSTURES, ServerSettings, Tokens
from torchd_server.surfaces.auth import Access, TokenGuard
from torchd_server.surfaces.token_file import KeyFileInvalid, TokenFile, key_file_of


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def document(path: Path) -> Any:
    return json.loads(path.read_text())


def opens(tokens: TokenFile, now: Now, access: Access, token: str) -> bool:
    try:
        TokenGuard(tokens.keys, now, False).check(access, [f"Bearer {token}"])
    except errors.TorchdError:
        return False
    return True


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def tokens(tmp_path: Path, now: Now) -> TokenFile:
    tokens = TokenFile(tmp_path / "key_file.json", 60.0, False, now)
    tokens.write()
    return tokens


def test_the_file_has_torchserves_shape(tokens: TokenFile) -> None:
    """Reference 10.1, and the file that 0.12.0 writes."""
    written = document(tokens.path)
    assert list(written) == ["management", "inference", "API"]
    assert list(written["management"]) == list(written["inference"]) == ["key", "expiration time"]
    assert list(written["API"]) == ["key"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", written["inference"]["expiration time"])


def test_keys_have_more_than_128_bits_and_are_all_different(tokens: TokenFile, tmp_path: Path, now: Now) -> None:
    """S25: base64url has six bits a character."""
    keys = [entry["key"] for entry in document(tokens.path).values()]
    other = TokenFile(tmp_path / "other.json", 60.0, False, now)
    other.write()
    keys += [entry["key"] for entry in document(other.path).values()]
    assert len(set(keys)) == 6
    assert all(len(key) * 6 >= 128 for key in keys)


def test_the_file_is_private_from_its_first_moment_whatever_the_umask(tmp_path: Path, now: Now) -> None:
    """S25. Somebody who opened the file that lay there before reads nothing of the new one."""
    path = tmp_path / "key_file.json"
    path.write_text("before")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        with path.open() as held:
            TokenFile(path, 60.0, False, now).write()
            assert held.read() == "before"
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["key_file.json"]


def test_a_link_in_its_place_is_replaced_and_not_followed(tmp_path: Path, now: Now) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path = tmp_path / "key_file.json"
    path.symlink_to(victim)
    TokenFile(path, 60.0, False, now).write()
    assert victim.read_text() == "precious"
    assert not path.is_symlink()


@pytest.mark.parametrize("scope", [Access.INFERENCE, Access.MANAGEMENT])
def test_a_renewed_key_is_good_and_the_old_one_dead_at_once(tokens: TokenFile, now: Now, scope: Access) -> None:
    before = document(tokens.path)
    tokens.renew(scope)
    after = document(tokens.path)
    assert [name for name in before if before[name] != after[name]] == [scope.value]
    assert opens(tokens, now, scope, after[scope.value]["key"])
    assert not opens(tokens, now, scope, before[scope.value]["key"])


def test_a_renewal_that_cannot_be_written_changes_nothing(tokens: TokenFile, now: Now, tmp_path: Path) -> None:
    key = document(tokens.path)["inference"]["key"]
    moved = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-moved"))
    with pytest.raises(OSError, match="No such file"):
        tokens.renew(Access.INFERENCE)
    moved.rename(tmp_path)
    assert opens(tokens, now, Access.INFERENCE, key)


def test_rotated_keys_overlap_so_that_a_reader_is_never_late(tmp_path: Path, now: Now) -> None:
    tokens = TokenFile(tmp_path / "key_file.json", 60.0, True, now)
    tokens.write()
    assert tokens.rotation_seconds == 1800.0
    first = document(tokens.path)["inference"]["key"]
    now.seconds = 1800.0
    tokens.rotate()
    second = document(tokens.path)["inference"]["key"]
    assert opens(tokens, now, Access.INFERENCE, first)
    assert opens(tokens, now, Access.INFERENCE, second)
    now.seconds = 3600.0
    tokens.rotate()
    assert not opens(tokens, now, Access.INFERENCE, first)
    assert opens(tokens, now, Access.INFERENCE, second)
    assert [len(keys) for keys in tokens.keys().values()] == [1, 2, 2]


@pytest.mark.parametrize("minutes", [0.0, -5.0, -1e300])
def test_a_lifetime_that_is_none_gives_tokens_that_have_expired(tmp_path: Path, now: Now, minutes: float) -> None:
    """As TorchServe does with token_expiration_min=0."""
    tokens = TokenFile(tmp_path / "key_file.json", minutes, False, now)
    tokens.write()
    assert not opens(tokens, now, Access.INFERENCE, document(tokens.path)["inference"]["key"])
    assert opens(tokens, now, Access.ADMIN, document(tokens.path)["API"]["key"])


def test_an_endless_lifetime_can_be_written(tmp_path: Path, now: Now) -> None:
    TokenFile(tmp_path / "key_file.json", float("inf"), False, now).write()


def test_a_key_that_a_person_wrote_is_taken_with_a_lifetime_of_its_own(tokens: TokenFile, now: Now) -> None:
    written = document(tokens.path)
    before = written["inference"]["key"]
    written["inference"] = {"key": "m" * 32, "expiration time": "1999-01-01T00:00:00Z"}
    tokens.path.write_text(json.dumps(written))
    now.seconds = 600.0
    tokens.reload()
    assert opens(tokens, now, Access.INFERENCE, "m" * 32)
    assert not opens(tokens, now, Access.INFERENCE, before)
    now.seconds = 3600.0  # the management key was not touched: its time goes on
    assert not opens(tokens, now, Access.MANAGEMENT, written["management"]["key"])
    assert opens(tokens, now, Access.INFERENCE, "m" * 32)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "[" * 100_000, '{"management": {"key": 1}, "inference": {"key": "b"}, "API": 3}',
     json.dumps({name: {"key": "short" + name} for name in ("management", "inference", "API")}),
     json.dumps({name: {"key": "s" * 32} for name in ("management", "inference", "API")}),
     json.dumps({name: {"key": name + "\r\n" + "s" * 32} for name in ("management", "inference", "API")})],
)  # fmt: skip
def test_a_file_that_holds_no_three_good_keys_changes_nothing(tokens: TokenFile, now: Now, text: str) -> None:
    key = document(tokens.path)["inference"]["key"]
    tokens.path.write_text(text)
    with pytest.raises(KeyFileInvalid):
        tokens.reload()
    assert opens(tokens, now, Access.INFERENCE, key)


def test_a_file_that_others_can_read_or_a_link_is_not_believed(tokens: TokenFile, tmp_path: Path) -> None:
    tokens.path.chmod(0o644)
    with pytest.raises(KeyFileInvalid, match="chmod 600"):
        tokens.reload()
    tokens.path.chmod(0o600)
    elsewhere = tokens.path.rename(tmp_path / "elsewhere")
    tokens.path.symlink_to(elsewhere)
    with pytest.raises(KeyFileInvalid):
        tokens.reload()


def test_only_its_own_file_is_removed_at_the_end(tokens: TokenFile, tmp_path: Path, now: Now) -> None:
    other = TokenFile(tokens.path, 60.0, False, now)
    other.write()
    tokens.remove()
    assert tokens.path.exists()
    other.remove()
    assert not tokens.path.exists()
    other.remove()


def test_a_file_that_was_never_written_removes_nobody_elses(tokens: TokenFile, now: Now) -> None:
    """A second server in the same folder fails at its port, and must leave the first one's keys alone."""
    TokenFile(tokens.path, 60.0, False, now).remove()
    assert tokens.path.exists()


def test_the_file_lies_where_each_postures_users_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E02: never in the working directory, but for TorchServe's users."""
    monkeypatch.chdir(tmp_path)
    assert key_file_of(ServerSettings(run_dir=Path("/run/x"))) == Path("/run/x/key_file.json")
    assert key_file_of(ServerSettings(posture=POSTURES["torchserve"])) == tmp_path / "key_file.json"
    assert key_file_of(ServerSettings(tokens=Tokens(file=Path("mine")))) == tmp_path / "mine"
