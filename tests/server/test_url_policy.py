"""Which URLs pass, and which addresses their hosts may stand for (E06, S01, S02, S05)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchd_server import errors
from torchd_server.settings import POSTURES
from torchd_server.url_policy import UrlPolicy

OK = UrlPolicy(["https://ok\\.example/.*"])
TORCHSERVE = UrlPolicy(POSTURES["torchserve"].allowed_urls, private_hosts=True)


def refused(policy: UrlPolicy, url: str, address: str | None = None) -> bool:
    try:
        remote = policy.check(url)
        if address is not None:
            policy.check_address(remote, address)
    except (errors.UrlNotAllowed, errors.BadRequest):
        return True
    return False


@pytest.mark.parametrize("scheme", ["http", "https", "file", "ftp", "gopher", "jar", "data", "s3", "gs", "hf"])
def test_an_empty_list_allows_nothing(scheme: str) -> None:
    """S01: the secure posture's default."""
    assert POSTURES["torchd"].allowed_urls == ()
    assert refused(UrlPolicy(POSTURES["torchd"].allowed_urls), f"{scheme}://ok.example/x.mar")


S02 = [
    "https://ok.example\\@127.0.0.1/x.mar",
    "https://ok.example@127.0.0.1/x.mar",
    "https://127.0.0.1#@ok.example/x.mar",
    "https://ok.example%2f@127.0.0.1/x.mar",
    "https://ok.example.evil/x.mar",
    "https://ok.exam\tple/x.mar",
    "https://ok.example/x\r\n.mar",
    "https://ok.example/\0x.mar",
    "https://ok.example/a b.mar",
    "https://ok.example:443:80/x.mar",
    "https://ok.example:99999/x.mar",
    "https://ok。example/x.mar",
    "https:///x.mar",
    "https://user:pw@ok.example/x.mar",
    "http://ok.example/x.mar",
    "https://ok.example:444/x.mar",
    "https://[::1/x.mar",
    "https:ok.example/x.mar",
]


@pytest.mark.parametrize("url", S02, ids=ascii)
def test_no_trick_of_a_parser_leads_past_the_list(url: str) -> None:
    """S02."""
    assert refused(OK, url)


S05 = [
    "file:///store/../etc/passwd",
    "file:///store/%2e%2e/etc/passwd",
    "file:///store/%252e%252e/etc/passwd",
    "file:///store/..%5cpasswd",
    "file:///store/..;/passwd",
    "file://elsewhere/etc/passwd",
    "file:///x.mar?y",
    "http://ok.example/a/../x.mar",
    "http://ok.example/a/%2e%2e/x.mar",
]


@pytest.mark.parametrize("url", S05)
def test_no_path_climbs(url: str) -> None:
    """S05."""
    assert refused(TORCHSERVE, url)


def test_a_url_is_written_anew_and_compared_in_any_case() -> None:
    remote = OK.check("HTTPS://OK.EXAMPLE:443/a/x.mar?token=1")
    assert remote.url == "https://ok.example/a/x.mar?token=1"
    assert (remote.host, remote.port, remote.target, remote.file_name) == (
        "ok.example",
        443,
        "/a/x.mar?token=1",
        "x.mar",
    )
    assert OK.check("https://ok.example./x.mar").host == "ok.example"


@pytest.mark.parametrize("host", ["0177.0.0.1", "2130706433", "127.1", "0", "0x7f.1", "0x7f000001", "127.0.0.1.2.3"])
def test_a_number_that_only_a_resolver_would_understand_is_no_host(host: str) -> None:
    """S01."""
    assert refused(TORCHSERVE, f"http://{host}/x.mar")


NEVER = [
    "169.254.169.254",
    "fe80::1",
    "224.0.0.1",
    "ff02::1",
    "0.0.0.0",
    "::",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::",
    "fd00:ec2::254",
    "100.100.100.200",
    "192.0.0.192",
]
INSIDE = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "fd12::1", "100.64.0.1"]


@pytest.mark.parametrize("address", NEVER)
def test_metadata_and_link_local_addresses_are_refused_whatever_the_posture(address: str) -> None:
    """S01, S04: TorchServe's own default pattern allows every URL; these it must not reach."""
    assert refused(TORCHSERVE, "http://any.example/x.mar", address)
    assert refused(UrlPolicy(["https?://.*"]), "http://any.example/x.mar", address)


@pytest.mark.parametrize("address", INSIDE)
def test_private_addresses_need_the_posture_or_the_name(address: str) -> None:
    assert refused(UrlPolicy(["https?://.*"]), "http://any.example/x.mar", address)
    assert not refused(TORCHSERVE, "http://any.example/x.mar", address)


@pytest.mark.parametrize(
    ("pattern", "url"),
    [
        (r"http://localhost:8000/.*", "http://localhost:8000/x.mar"),
        (r"https?://models\.internal/.*", "http://models.internal/x.mar"),
        (r"http://127\.0\.0\.1:8000/.*", "http://127.0.0.1:8000/x.mar"),
        (r"http://\[::1\]:8000/.*", "http://[::1]:8000/x.mar"),
    ],
)
def test_a_pattern_that_names_its_host_answers_for_it(pattern: str, url: str) -> None:
    policy = UrlPolicy([pattern])
    policy.check_address(policy.check(url), "127.0.0.1")


def test_public_addresses_are_anybodys() -> None:
    assert not refused(UrlPolicy(["https?://.*"]), "http://any.example/x.mar", "93.184.216.34")


@pytest.mark.parametrize(
    "url", ["http://a.example/", "http://a.example/.mar", "http://a.example/a%2fb%00", "http://a.example/x%20y"]
)
def test_a_strange_file_name_is_refused(url: str) -> None:
    with pytest.raises((errors.BadRequest, errors.UrlNotAllowed)):
        assert TORCHSERVE.check(url).file_name is None


@given(st.text(max_size=60))
def test_whatever_stands_after_the_scheme_the_answer_is_ours(rest: str) -> None:
    for scheme in ("http", "file", "s3"):
        try:
            remote = TORCHSERVE.check(f"{scheme}://{rest}")
        except (errors.UrlNotAllowed, errors.BadRequest):
            continue
        # What was let through parses to itself: nobody after us can read another host out of it.
        again = TORCHSERVE.check(remote.url) if remote.scheme != "file" else remote
        assert (again.url, again.host, again.port) == (remote.url, remote.host, remote.port)


@pytest.mark.parametrize(
    "url", ["s3://bucket/a::file:///etc/x.mar", "hf://org/repo::http://127.0.0.1/x.mar", "gs://b::s3://other/x.mar"]
)
def test_a_url_of_a_bucket_is_one_url(url: str) -> None:
    """S02: fsspec chains URLs by '::', and only the first was looked at."""
    with pytest.raises(errors.BadRequest, match="::"):
        UrlPolicy(["(s3|hf|gs)://.*"]).check(url)
