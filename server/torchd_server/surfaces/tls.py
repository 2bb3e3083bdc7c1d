"""Certificate and key for the listeners, read from whatever form they come in, and read again when their files change.

`TlsFiles` owns them; REST takes an `ssl.SSLContext` of it, gRPC a certificate configuration, anew for each connection.
"""

from __future__ import annotations

import logging
import os
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from threading import Lock

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509.oid import NameOID

from torchd_server.settings import SettingInvalid, Tls

logger = logging.getLogger(__name__)
SELF_SIGNED_DAYS = 365
_PEM = serialization.Encoding.PEM
# Where a certificate says which names it is for, and where old ones said it.
_KEYTOOL = (
    "a PKCS12 keystore; make one with `keytool -importkeystore -srckeystore {path} -srcstoretype JKS "
    "-destkeystore keystore.p12 -deststoretype PKCS12`"
)
# size, time of change and inode: what a file that was written anew differs in.
Mark = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a listener shows: its chain and its key as PEM (the key as PKCS8, which gRPC and OpenSSL both take), whom it
    believes, and the name it is for."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    name: str


def load(tls: Tls, hosts: tuple[str, ...] = ()) -> Certificate:
    """The certificate that the settings name, or a self-signed one for `hosts` if they name none; raises SettingInvalid
    if what is there cannot be used."""
    client_ca = _read("client_ca", tls.client_ca) if tls.client_ca is not None else None
    if tls.keystore is not None:
        chain, key = _from_keystore(tls)
    elif tls.certificate is not None or tls.private_key is not None:
        if tls.certificate is None or tls.private_key is None:
            key_name = "certificate_file" if tls.certificate is None else "private_key_file"
            raise SettingInvalid(key_name, None, "a PEM file: TLS needs both a certificate and its key")
        chain = _read("certificate_file", tls.certificate)
        key = _as_pkcs8(_read("private_key_file", tls.private_key), tls.private_key)
    else:
        chain, key = self_signed(hosts)
        logger.warning(
            "TLS without a certificate: a self-signed one was made for %s; clients cannot know this server by it",
            ", ".join(hosts) or "localhost",
        )
    where = str(tls.certificate or tls.keystore)
    certificate = Certificate(chain, key, client_ca, _name_of(chain, where))
    if client_ca is not None and b"BEGIN CERTIFICATE" not in client_ca:
        raise SettingInvalid("client_ca", str(tls.client_ca), "a PEM file with the certificates of authorities")
    try:
        context_of(certificate)
    except (ssl.SSLError, ValueError) as error:
        raise SettingInvalid(
            "certificate_file", where, f"a certificate and the key that belongs to it ({error})"
        ) from error
    return certificate


def _read(setting: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingInvalid(setting, str(path), f"a file that can be read ({error.strerror})") from error


def _as_pkcs8(pem: bytes, path: Path) -> bytes:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise SettingInvalid(
            "private_key_file", str(path), "a PEM private key without a password, PKCS1 or PKCS8"
        ) from error
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _from_keystore(tls: Tls) -> tuple[bytes, bytes]:
    path = tls.keystore or Path()
    if tls.keystore_type.upper() == "JKS":
        raise SettingInvalid("keystore_type", tls.keystore_type, _KEYTOOL.format(path=path))
    content = _read("keystore", path)
    try:
        store = pkcs12.load_pkcs12(content, tls.keystore_password.encode())
    except ValueError as error:
        # Java opens a PKCS12 file that is called JKS and the other way round: say what it may be.
        raise SettingInvalid("keystore", str(path), f"{_KEYTOOL.format(path=path)}; and its keystore_pass") from error
    if store.key is None or store.cert is None:
        raise SettingInvalid("keystore", str(path), "a keystore with a private key and its certificate")
    chain = [store.cert.certificate, *(other.certificate for other in store.additional_certs)]
    key = store.key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join(certificate.public_bytes(_PEM) for certificate in chain), key


def self_signed(hosts: tuple[str, ...]) -> tuple[bytes, bytes]:
    """A fresh certificate for these names and addresses, and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "torchd self-signed")])
    now = datetime.now(UTC)
    names = list(dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"]))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(named)
        .issuer_name(named)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=SELF_SIGNED_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(_PEM), pem


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name_of(chain: bytes, where: str) -> str:
    """A name the certificate is good for, by which the daemon's own user can check it wherever it listens."""
    try:
        first = x509.load_pem_x509_certificate(chain)
    except ValueError as error:
        raise SettingInvalid("certificate_file", where, "a PEM certificate, its chain behind it") from error
    try:
        names = first.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        common = first.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common[0].value) if common else ""
    hosts = names.get_values_for_type(x509.DNSName)
    addresses = names.get_values_for_type(x509.IPAddress)
    found = hosts[0] if hosts else str(addresses[0]) if addresses else ""
    return found.replace("*.", "any.", 1)


def context_of(certificate: Certificate) -> ssl.SSLContext:
    """OpenSSL's form of it: TLS 1.2 and later, HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # OpenSSL reads files only. The key is there for the time of the call, for this user alone.
    with tempfile.NamedTemporaryFile() as pair:
        pair.write(certificate.key + certificate.chain)
        pair.flush()
        context.load_cert_chain(pair.name)
    if certificate.client_ca is not None:
        context.load_verify_locations(cadata=certificate.client_ca.decode("ascii"))
        context.verify_mode = ssl.CERT_REQUIRED
    return context


class TlsFiles:
    """The pair in use. It is read again when one of its files has changed, and on `reload`; a pair that will not do
    leaves the one before in use. gRPC asks from threads of its own."""

    def __init__(
        self, tls: Tls, hosts: tuple[str, ...] = (), on_change: Callable[[Certificate | None], None] | None = None
    ) -> None:
        self._tls = tls
        self._hosts = hosts
        self._changing = Lock()
        self._on_change = on_change or (lambda certificate: None)
        self._mark = self._look()
        self._certificate = load(tls, hosts)
        self._context = context_of(self._certificate)

    @property
    def certificate(self) -> Certificate:
        """The pair in use."""
        return self._certificate

    def context(self) -> ssl.SSLContext:
        """For the next REST connection."""
        self._refresh()
        return self._context

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For a gRPC port: asks for the pair at every handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _grpc_form(self._certificate), self._fetch, require_client_authentication=self._tls.client_ca is not None
        )

    def reload(self) -> None:
        """Reads the files again, changed or not."""
        if self._has_files:
            self._read(self._look())

    @property
    def _has_files(self) -> bool:
        return any(path is not None for path in self._paths)

    @property
    def _paths(self) -> tuple[Path | None, ...]:
        return (self._tls.certificate, self._tls.private_key, self._tls.keystore, self._tls.client_ca)

    def _fetch(self) -> grpc.ServerCertificateConfiguration:
        self._refresh()
        return _grpc_form(self._certificate)

    def _refresh(self) -> None:
        if self._has_files and (mark := self._look()) != self._mark:
            self._read(mark)

    def _read(self, mark: Mark) -> None:
        with self._changing:
            # Marked before it is read: what is written meanwhile is seen the next time.
            self._mark = mark
            try:
                certificate = load(self._tls, self._hosts)
                _check_time(certificate)
            except SettingInvalid as error:
                logger.error("the new certificate or key cannot be used, the old ones stay: %s", error)
                self._on_change(None)
                return
            if certificate == self._certificate:
                return
            self._context = context_of(certificate)
            self._certificate = certificate
        logger.info("certificate and key were read anew (%s)", certificate.name)
        self._on_change(certificate)

    def _look(self) -> Mark:
        return tuple(_mark_of(path) for path in self._paths)


def _check_time(certificate: Certificate) -> None:
    """At start an expired certificate is the operator's; in place of a good one it is a mistake."""
    end = x509.load_pem_x509_certificate(certificate.chain).not_valid_after_utc
    if end < datetime.now(UTC):
        raise SettingInvalid(
            "certificate_file", f"expired at {end:%Y-%m-%d %H:%M:%S} UTC", "a certificate that is good now"
        )


def _mark_of(path: Path | None) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns, found.st_ino) if found is not None else None


def _grpc_form(certificate: Certificate) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(certificate.key, certificate.chain)], root_certificates=certificate.client_ca
    )
