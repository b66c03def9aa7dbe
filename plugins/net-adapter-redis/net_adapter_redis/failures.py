"""Redis' errors, sorted: wait and try again, or somebody has to mend something.

What is not known is transient: trying again is idempotent, giving up is not.
"""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final

from redis import exceptions as redis_errors

from netcore import AdapterError, AdapterRefusedError, FatalAdapterError, TransientAdapterError

__all__ = ["moved_to", "translate"]

# Classes and texts are looked at in this order: redis-py derives authentication and loading errors
# from ConnectionError and MOVED from ASK, and leaves most texts plain ResponseErrors.
_REFUSED: Final[tuple[tuple[str, str], ...]] = (
    ("WRONGTYPE", "a key of that name holds something else: move it away, or choose another prefix"),
    ("NOPERM", "grant the user the commands and keys that the README lists"),
    ("has no permissions", "grant the user the commands and keys that the README lists"),
    ("can't run this command", "grant the user the commands and keys that the README lists"),
    ("can't access at least one of the keys", "grant the user the keys that the README lists"),
    ("unauthenticated", "the server wants a password: put it into the url"),
    ("NOAUTH", "the server wants a password: put it into the url"),
    ("Authentication required", "the server wants a password: put it into the url"),
    ("WRONGPASS", "mend user or password in the url, or on the server"),
    ("invalid username-password", "mend user or password in the url, or on the server"),
    ("AUTH", "mend user or password in the url, or on the server"),
    ("invalid password", "mend user or password in the url, or on the server"),
    ("unknown command", "the server lacks the command: Redis 6.2 or newer is needed, and no renamed command"),
    ("unknown subcommand", "the server lacks the command: Redis 6.2 or newer is needed"),
    ("DB index is out of range", "choose a database that the server has"),
    ("SELECT is not allowed", "a cluster has database 0 only"),
    ("CROSSSLOT", "the server is a cluster: set cluster=True"),
    ("CERTIFICATE_VERIFY_FAILED", "mend the certificate, or name its CA with ssl_ca_certs"),
    ("certificate required", "the server wants a client certificate: ssl_certfile and ssl_keyfile"),
    ("Hostname mismatch", "mend the certificate or the host in the url"),
)
_UNREACHABLE: Final[tuple[tuple[type[OSError], str], ...]] = (
    (ConnectionRefusedError, "nothing listens there: start the server, or mend host and port in the url"),
    (FileNotFoundError, "no such socket: start the server, or mend the path in the url"),
    (socket.gaierror, "mend the host in the url, or the name service"),
)
_FATAL: Final = ("invalid bulk length", "string exceeds maximum allowed size")


def translate(error: BaseException, doing: str, address: str) -> AdapterError:
    """Return the error of the adapter's contract for one of the driver's.

    Args:
        error: what the driver raised, or the server's error reply.
        doing: what was tried, naming the keys: "append to net:shard:3".
        address: host and port, or the socket's path.

    Returns:
        The error to raise, `from` the original. Its text holds no credential.
    """
    if isinstance(error, AdapterError):
        return error
    text = _text(error)
    if isinstance(error, redis_errors.RedisError | ssl.SSLError):
        for sign in _FATAL:
            if sign in text:
                return FatalAdapterError(f"{doing}: Redis at {address} takes no value that large: {text}")
        for sign, remedy in _REFUSED:
            if sign in text:
                return AdapterRefusedError(f"{doing}: Redis at {address} refuses: {text}; {remedy}")
        if isinstance(error, redis_errors.AuthenticationError | redis_errors.AuthorizationError):
            return AdapterRefusedError(f"{doing}: Redis at {address} refuses: {text}; mend user or password")
    cause = next((cause for cause in _causes(error) if isinstance(cause, OSError)), None)
    remedy = next((f"; {remedy}" for kind, remedy in _UNREACHABLE if isinstance(cause, kind)), "")
    return TransientAdapterError(f"{doing}: Redis at {address}: {text}{remedy}")


def moved_to(error: object) -> tuple[int, str, int] | None:
    """Return slot, host and port of a MOVED reply (the host may be "": the one that was asked), else None."""
    if not isinstance(error, redis_errors.ResponseError):
        return None
    match = re.fullmatch(r"(?:MOVED )?([0-9]{1,5}) (\S*):([0-9]{1,5})", str(error))
    named = isinstance(error, redis_errors.MovedError) or str(error).startswith("MOVED ")
    return (int(match[1]), match[2], int(match[3])) if match and named else None


def _text(error: BaseException) -> str:
    """Return code and text of a reply, or the texts of an exception and what it came from."""
    texts = [str(error) or type(error).__name__]
    code = getattr(error, "status_code", None)
    if code is None:
        code = next((name for name, kind in _CODES if type(error) is kind), None)
    if code and not texts[0].startswith(str(code)):
        texts[0] = f"{code} {texts[0]}"
    for cause in _causes(error)[:3]:
        # redis-py repeats an errno's words in its own; what it leaves out is the reason of a failed handshake.
        if isinstance(cause, OSError) and str(cause) and str(cause.strerror or cause) not in ": ".join(texts):
            texts.append(str(cause))
    return re.sub(r"User \S+ has", "the user has", ": ".join(texts))  # Valkey tells the account's name


def _causes(error: BaseException) -> list[BaseException]:
    """Return what an exception came from, the nearest first; bounded, for a chain may be a ring."""
    causes: list[BaseException] = []
    cause = error.__cause__ or error.__context__
    while cause is not None and len(causes) < 8:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    return causes


_CODES: Final[tuple[tuple[str, type[BaseException]], ...]] = (  # redis-py before 8 drops the code
    ("NOPERM", redis_errors.NoPermissionError),
    ("READONLY", redis_errors.ReadOnlyError),
    ("OOM", redis_errors.OutOfMemoryError),
    ("LOADING", redis_errors.BusyLoadingError),
    ("CROSSSLOT", redis_errors.ClusterCrossSlotError),
)
