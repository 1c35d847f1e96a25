"""The certificate of our own NATS server. It is its own authority: who knows its SHA-256 trusts it alone."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import ipaddress
import ssl
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from groundswell.model.errors import UpstreamError

DAYS: Final = 3650
FETCH_S: Final = 10.0


def make(host: str, certificate: Path, key: Path) -> None:
    """A new one in two files, which the caller has made sure are not there."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "groundswell")])
    now = datetime.datetime.now(datetime.UTC)
    try:
        place: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        place = x509.DNSName(host)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # Clocks differ.
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([place]), critical=False)
        .sign(private, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    key.write_bytes(
        private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    )
    key.chmod(0o600)
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def fingerprint(pem: str) -> bytes:
    """Its SHA-256."""
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).digest()


def trusting(pem: str) -> ssl.SSLContext:
    """For connections to the server with this very certificate, whatever its address."""
    context = ssl.create_default_context(cadata=pem)
    context.check_hostname = False  # The certificate is named by its hash, which says more than a name.
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


async def fetch(host: str, port: int, wanted: bytes) -> str:
    """The certificate of a server, if it is the one with this fingerprint. Nothing is sent before.

    Raises ``UpstreamError``: ``network_unreachable``, or ``wrong_certificate`` for another."""
    try:
        pem = await asyncio.to_thread(ssl.get_server_certificate, (host, port), timeout=FETCH_S)
    except (OSError, ValueError) as error:
        raise UpstreamError(
            f"{host}:{port} cannot be reached ({error}). Is the gateway up, and the port open?",
            code="network_unreachable",
        ) from error
    if fingerprint(pem) != wanted:
        raise UpstreamError(
            "The server at this address is not the one that the invite is for.", code="wrong_certificate"
        )
    return pem
