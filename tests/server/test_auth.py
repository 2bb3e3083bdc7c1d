"""Who may call what: each way to show a token, against each thing it could open."""

from __future__ import annotations

import ast
import logging
from pathlib import Path

import pytest

from torchd_server import errors
from torchd_server.surfaces import auth
from torchd_server.surfaces.auth import WRONG_BURST, Access, Key, OpenDoor, TokenGuard

TOKENS = {Access.INFERENCE: "inf-token", Access.MANAGEMENT: "man-token", Access.ADMIN: "api-token"}
DEADLINE = 100.0


class Now:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def guard(now: Now, torchserve_answers: bool = False) -> TokenGuard:
    keys = {scope: [Key.of(token, None if scope is Access.ADMIN else DEADLINE)] for scope, token in TOKENS.items()}
    return TokenGuard(lambda: keys, now, torchserve_answers)


SHOWN = {
    "nothing": ([], None),
    "an empty value": ([""], None),
    "garbage": (["garbage"], None),
    "another scheme": (["Basic inf-token"], None),
    "no token behind the scheme": (["Bearer "], None),
    "two words": (["Bearer inf-token man-token"], None),
    "a prefix": (["Bearer inf-toke"], None),
    "more than the token": (["Bearer inf-tokens"], None),
    "two headers, both good": (["Bearer inf-token", "Bearer inf-token"], None),
    "two headers, one good": (["Bearer wrong", "Bearer inf-token"], None),
    "a megabyte": (["Bearer " + "x" * 1_000_000], None),
    "not ASCII": (["Bearer t\xf6ken"], None),
    "inference": (["Bearer inf-token"], Access.INFERENCE),
    "in lower case": (["bearer inf-token"], Access.INFERENCE),
    "with a blank behind": (["Bearer inf-token "], Access.INFERENCE),
    "management": (["Bearer man-token"], Access.MANAGEMENT),
    "API": (["Bearer api-token"], Access.ADMIN),
}


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("access", list(Access))
def test_a_token_opens_its_own_scope_and_nothing_else(shown: str, access: Access) -> None:
    """S23: one table; what is not in it is denied."""
    values, opens = SHOWN[shown]
    if access in (Access.OPEN, opens):
        guard(Now()).check(access, values)
    else:
        with pytest.raises(errors.WrongScope if opens else errors.Unauthorized):
            guard(Now()).check(access, values)


@pytest.mark.parametrize("shown", SHOWN)
@pytest.mark.parametrize("access", [Access.INFERENCE, Access.MANAGEMENT, Access.ADMIN])
def test_torchserves_answer_tells_no_refusal_from_another(shown: str, access: Access) -> None:
    values, opens = SHOWN[shown]
    if access is opens:
        guard(Now(), True).check(access, values)
        return
    with pytest.raises(errors.InvalidKey) as refused:
        guard(Now(), True).check(access, values)
    what = "Authentication" if access is Access.ADMIN else "Authorization"
    assert str(refused.value) == f"Token {what} failed. Token either incorrect, expired, or not provided correctly"


def test_a_token_is_good_up_to_its_deadline_and_the_api_key_for_ever() -> None:
    now = Now()
    door = guard(now)
    now.seconds = DEADLINE - 0.001
    door.check(Access.INFERENCE, ["Bearer inf-token"])
    now.seconds = DEADLINE
    with pytest.raises(errors.Unauthorized, match="expired"):
        door.check(Access.INFERENCE, ["Bearer inf-token"])
    now.seconds = 1e9
    door.check(Access.ADMIN, ["Bearer api-token"])


def test_ten_thousand_wrong_tokens_are_slowed_down_and_hurt_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """S26: the same moment, one peer."""
    now = Now()
    door = guard(now)
    caplog.set_level(logging.WARNING)
    kinds = []
    for number in range(10_000):
        with pytest.raises(errors.TorchdError) as refused:
            door.check(Access.INFERENCE, [f"Bearer secret-guess-{number}"])
        kinds.append(type(refused.value))
        if number % 100 == 0:
            door.check(Access.INFERENCE, ["Bearer inf-token"])
    assert kinds.count(errors.Unauthorized) == WRONG_BURST
    assert kinds.count(errors.TooManyWrongTokens) == 10_000 - WRONG_BURST
    assert len(caplog.records) == WRONG_BURST
    assert "secret-guess" not in caplog.text
    now.seconds = 1.0
    with pytest.raises(errors.Unauthorized):
        door.check(Access.INFERENCE, ["Bearer secret-guess"])
    assert "9900 more before it" in caplog.text


def test_torchserves_answer_stays_the_same_however_many_there_are(caplog: pytest.LogCaptureFixture) -> None:
    door = guard(Now(), True)
    for number in range(WRONG_BURST * 2):
        with pytest.raises(errors.InvalidKey):
            door.check(Access.INFERENCE, [f"Bearer guess-{number}"])
    assert len(caplog.records) == WRONG_BURST


def test_who_shows_nothing_or_an_expired_token_is_not_counted() -> None:
    now = Now()
    door = guard(now)
    now.seconds = DEADLINE
    for _ in range(WRONG_BURST * 2):
        with pytest.raises(errors.Unauthorized):
            door.check(Access.INFERENCE, ["Bearer inf-token"])
        with pytest.raises(errors.Unauthorized):
            door.check(Access.INFERENCE, [])


def test_without_tokens_everybody_comes_in() -> None:
    for access in Access:
        OpenDoor().check(access, [])


def test_tokens_are_compared_in_constant_time_only() -> None:
    """S25: no == on anything called token, digest or key in the guard."""
    compared = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(Path(auth.__file__).read_text()))
        if isinstance(node, ast.Compare) and any(isinstance(how, ast.Eq | ast.NotEq) for how in node.ops)
    ]
    assert not [text for text in compared if any(word in text for word in ("shown", "digest", "key", "token"))]
    assert "hmac.compare_digest" in Path(auth.__file__).read_text()
