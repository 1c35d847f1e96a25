"""Keys and tokens as NATS writes them: Ed25519, base32 with a kind and a checksum, JWTs signed with them.

Only what is needed here: a node's key as a *user*, the key that signs users as an *account*, and tokens that
the server believes because the account of its configuration has signed them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import time
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

USER: Final = 20 << 3  # Such names begin with U,
ACCOUNT: Final = 0  # and these with A.
_HEADER: Final = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"ed25519-nkey"}').rstrip(b"=")


class Key:
    """A private key. ``seed`` is all of it: 32 bytes of chance."""

    def __init__(self, seed: bytes, kind: int = USER) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self.name = name_of(self._key.public_key().public_bytes_raw(), kind)

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)

    def token(self, claims: dict[str, Any]) -> bytes:
        """A JWT; who issued it and when is added."""
        claims = {**claims, "iss": self.name, "iat": int(time.time())}
        digest = hashlib.new("sha512_256", msgspec.json.encode(claims)).digest()
        claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
        text = _HEADER + b"." + _base64(msgspec.json.encode(claims))
        return text + b"." + _base64(self.sign(text))


def name_of(public: bytes, kind: int = USER) -> str:
    """A public key as NATS writes it."""
    raw = bytes((kind,)) + public
    check = binascii.crc_hqx(raw, 0).to_bytes(2, "little")
    return base64.b32encode(raw + check).decode().rstrip("=")


def signed_by(name: str, signature: str, data: bytes) -> bool:
    """Whether the user of this name has signed the data. False also for a name or signature that is none."""
    try:
        raw = base64.b32decode(name + "=" * (-len(name) % 8))
        if len(raw) != 35 or name_of(raw[1:33]) != name:
            return False
        Ed25519PublicKey.from_public_bytes(raw[1:33]).verify(base64.b64decode(signature), data)
    except (ValueError, InvalidSignature):
        return False
    return True


def claims_of(token: bytes) -> Any:
    """What a JWT says. Who signed it is not looked at: by its subject only the server can have sent it."""
    try:
        body = token.split(b".")[1]
        return msgspec.json.decode(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except (IndexError, ValueError, msgspec.MsgspecError):
        return None


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")
