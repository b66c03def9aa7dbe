"""What the server's and the client's errors mean to a bus.

Error numbers are the server's (`err_code`); see its `server/errors.json`.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Final

import msgspec

from netcore import AdapterError, AdapterRefusedError, FatalAdapterError, TransientAdapterError

__all__ = ["ApiError", "NotFoundError", "from_api", "from_client"]

WRONG_LAST_ID: Final = 10070
WRONG_LAST_SEQUENCE: Final = 10071
DUPLICATE_IN_BATCH: Final = 10201
STREAM_NOT_FOUND: Final = 10059
NAME_IN_USE: Final = 10058
SUBJECT_IN_USE: Final = 10065

_REFUSED: Final = {
    10002: "the account's JetStream resources are used up; raise its limits or shorten the retention",
    10025: "JetStream needs a stream leader that this account cannot have",
    10027: "the account may have no more streams; raise its limit",
    10035: "JetStream is not available to this account",
    10039: "JetStream is not enabled for this account; enable it in the server's configuration",
    10052: "the stream's configuration was refused",
    SUBJECT_IN_USE: "another stream has that subject; remove it there, or use another prefix",
    10074: "replicas need a cluster of that many servers; lower `replicas`",
    10076: "JetStream is not enabled; start nats-server with -js",
    10077: "the stream is full and discards what is new; raise its limits, or set its discard policy to old",
    10109: "the stream is sealed",
    10110: "the stream is read-only here (a mirror)",
}
_TOO_LARGE: Final = {
    10054: "the message is larger than the stream's max_msg_size",
    10097: "the headers are larger than the stream takes",
    10199: "the batch is larger than the server takes",
}
_TRANSIENT_FULL: Final = ("insufficient", "no suitable peers")


class ApiError(msgspec.Struct, frozen=True):
    """The `error` of a JetStream answer."""

    code: int = 0
    err_code: int = 0
    description: str = ""

    def __str__(self) -> str:
        return f"{self.description or 'no description'} (JetStream error {self.err_code or self.code})"


class NotFoundError(TransientAdapterError):
    """The stream does not exist."""


def from_api(error: ApiError, what: str) -> AdapterError:
    """Return the error to raise for a JetStream answer.

    Args:
        error: what the server said.
        what: what was being done, to whom, for the message.
    """
    text = f"{what}: {error}"
    if error.err_code == STREAM_NOT_FOUND:
        return NotFoundError(text)
    if remedy := _TOO_LARGE.get(error.err_code):
        return FatalAdapterError(f"{text}: {remedy}")
    if remedy := _REFUSED.get(error.err_code):
        if any(word in error.description for word in _TRANSIENT_FULL):
            return TransientAdapterError(text)
        return AdapterRefusedError(f"{text}: {remedy}")
    return TransientAdapterError(text)


def from_client(error: BaseException | None, address: str) -> AdapterError:
    """Return the error to raise when connecting to `address` (shown masked) failed."""
    text = str(error or "connection lost").lower()
    if isinstance(error, ImportError):
        return AdapterRefusedError(
            f"{error}: logging in by key needs pip install 'net-adapter-jetstream[nkeys]'"
        )
    if "authorization" in text or "authentication" in text or "nkey" in text or "credentials" in text:
        return AdapterRefusedError(
            f"{address} refuses the login ({error}): check user, password, token, "
            "credentials_file or nkey_seed_file"
        )
    if isinstance(error, ssl.SSLCertVerificationError):
        return AdapterRefusedError(
            f"the certificate of {address} is not trusted ({error.verify_message}): set tls_ca_file, "
            "or name the host as the certificate does"
        )
    if isinstance(error, ssl.SSLError):
        return AdapterRefusedError(f"TLS with {address} failed ({error.reason}): check the tls_* settings")
    if "secure connection not available" in text:
        return AdapterRefusedError(
            f"{address} offers no TLS; nothing was sent. Use nats:// or turn TLS on at the server"
        )
    if isinstance(error, asyncio.TimeoutError | TimeoutError):
        return TransientAdapterError(f"no answer from {address} in time")
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return TransientAdapterError(f"no NATS server answers at {address} ({reason})")
