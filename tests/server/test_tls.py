"""Certificates and keys in every form they come in, and what happens when their files change."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.certificates import Authority

from torchd_server.settings import SettingInvalid, Tls
from torchd_server.surfaces.tls import Certificate, TlsFiles, context_of, load, self_signed


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "localhost") -> tuple[str, str]:
    """Version and subject of what a client of this machine is shown."""
    ends = socket.socketpair()
    with ends[0], ends[1]:
        for end in ends:
            end.settimeout(5.0)
        sides = [ssl.MemoryBIO() for _ in range(4)]
        here = client.wrap_bio(sides[0], sides[1], server_hostname=name)
        there = server.wrap_bio(sides[2], sides[3], server_side=True)
        done = [False, False]
        for _ in range(10):
            for number, side in enumerate((here, there)):
                try:
                    side.do_handshake()
                    done[number] = True
                except ssl.SSLWantReadError:
                    pass
                sides[2].write(sides[1].read())
                sides[0].write(sides[3].read())
            if all(done):
                break
        peer = here.getpeercert() or {}
        subject = dict(pair[0] for pair in peer["subject"])  # type: ignore[union-attr]
        return str(here.version()), str(subject["commonName"])


def believing(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(authority.path))


@pytest.mark.parametrize("key_format", ["PKCS1", "PKCS8"])
def test_pem_keys_of_both_forms_will_do(authority: Authority, key_format: str) -> None:
    """Reference 0 row 4: TorchServe's gRPC dies of a PKCS1 key."""
    certificate, key = authority.pair(f"server-{key_format}", key_format=key_format)
    loaded = load(Tls(certificate, key))
    assert loaded.key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert loaded.name == "localhost"
    assert handshake(context_of(loaded), believing(authority)) == ("TLSv1.3", f"server-{key_format}")


def test_a_keystore_will_do(authority: Authority) -> None:
    loaded = load(Tls(keystore=authority.keystore("stored")))
    assert handshake(context_of(loaded), believing(authority))[1] == "stored"
    assert loaded.chain.count(b"BEGIN CERTIFICATE") == 2


@pytest.mark.needs("keytool")
def test_a_keystore_that_keytool_made_will_do(tmp_path: Path) -> None:
    path = tmp_path / "java.p12"
    command = (
        "keytool -genkeypair -alias ts -keyalg RSA -keysize 2048 -storetype PKCS12 -dname CN=java -storepass changeit"
    )
    subprocess.run([*command.split(), "-keystore", str(path)], check=True, capture_output=True)
    assert load(Tls(keystore=path)).name == "java"


def test_without_files_a_certificate_is_made_for_the_hosts(caplog: pytest.LogCaptureFixture) -> None:
    """Reference 0 row 4: TorchServe tries that and dies on Java 17."""
    loaded = load(Tls(), ("serving.example", "10.1.2.3"))
    assert "self-signed" in caplog.text
    client = ssl.create_default_context(cadata=loaded.chain.decode())
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    for name in ("serving.example", "10.1.2.3", "localhost", "127.0.0.1"):
        assert handshake(context_of(loaded), client, name)[0] == "TLSv1.3"
    assert self_signed(())[1] != self_signed(())[1]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_is_older_than_tls_1_2_is_refused(authority: Authority, version: ssl.TLSVersion) -> None:
    """S57."""
    context = context_of(load(Tls(*authority.pair("old"))))
    client = believing(authority)
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.minimum_version = client.maximum_version = version
    with pytest.raises(ssl.SSLError):
        handshake(context, client)
    client = believing(authority)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    assert handshake(context, client)[0] == "TLSv1.2"


def test_what_cannot_be_used_is_named_with_the_way_out(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.pair("one")
    other = authority.pair("two")[1]
    junk = tmp_path / "junk"
    junk.write_text("junk")
    sealed = tmp_path / "sealed.key"
    subprocess.run(
        ["openssl", "rsa", "-in", str(key), "-aes128", "-passout", "pass:x", "-out", str(sealed)],
        check=True,
        capture_output=True,
    )
    for tls, words in (
        (Tls(certificate, tmp_path / "none"), r"private_key_file: .*No such file"),
        (Tls(certificate), "both a certificate and its key"),
        (Tls(None, key), "both a certificate and its key"),
        (Tls(certificate, other), "the key that belongs to it"),
        (Tls(certificate, junk), "PKCS1 or PKCS8"),
        (Tls(certificate, sealed), "without a password"),
        (Tls(junk, key), "PEM certificate"),
        (Tls(keystore=junk), "keytool -importkeystore"),
        (Tls(keystore=authority.keystore("locked"), keystore_password="wrong"), "keystore_pass"),
        (Tls(keystore=junk, keystore_type="JKS"), "keytool -importkeystore"),
        (Tls(certificate, key, client_ca=junk), "client_ca: .* certificates of authorities"),
    ):
        with pytest.raises(SettingInvalid, match=words):
            load(tls)


def test_a_new_pair_is_shown_to_the_next_client_and_a_bad_one_to_nobody(authority: Authority, tmp_path: Path) -> None:
    """T03, E25."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    put = _putter(certificate, key)
    put(authority.pair("first"))
    seen: list[Certificate | None] = []
    files = TlsFiles(Tls(certificate, key), (), seen.append)

    def shown() -> str:
        return handshake(files.context(), believing(authority))[1]

    living = files.context()
    assert shown() == "first"
    put(authority.pair("second"))
    assert shown() == "second"
    assert handshake(living, believing(authority))[1] == "first"  # who holds a connection keeps it
    third, other = authority.pair("third"), authority.pair("other")
    for bad in ((third[0], other[1]), (third[0], Path("/dev/null")), authority.pair("expired", days=-1)):
        put(bad)
        assert shown() == "second"
    certificate.write_bytes(third[0].read_bytes()[:200])
    assert shown() == "second"
    key.unlink()
    assert shown() == "second"
    put(third)
    assert shown() == "third"
    assert [one and one.name for one in seen] == ["localhost", None, None, None, None, None, "localhost"]


def test_reload_reads_files_whose_marks_say_nothing(authority: Authority, tmp_path: Path) -> None:
    seen: list[Certificate | None] = []
    files = TlsFiles(Tls(*authority.pair("same")), (), seen.append)
    files.reload()
    assert seen == []  # the same pair is no change
    TlsFiles(Tls(), (), seen.append).reload()
    assert seen == []  # a self-signed one stays


def _putter(certificate: Path, key: Path) -> Callable[[tuple[Path, Path]], None]:
    """Puts a pair into place the way tools do: written beside, then renamed."""

    def put(pair: tuple[Path, Path]) -> None:
        for source, target in zip(pair, (certificate, key), strict=True):
            staging = target.with_suffix(".new")
            staging.write_bytes(source.read_bytes())
            staging.replace(target)

    return put
