"""Redis' errors, sorted: wait and try again, or somebody has to mend something.

What is not known is transient: trying again is idempotent, giving up is not.
"""

from __future__ import annotations

import re
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
    return TransientAdapterError(f"{doing}: Redis at {address}: {text}")


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
    cause = error.__cause__ or error.__context__
    while cause is not None and len(texts) < 4:
        if isinstance(cause, OSError) and str(cause) and str(cause) not in texts[0]:
            texts.append(str(cause))
        cause = cause.__cause__ or cause.__context__
    return re.sub(r"User \S+ has", "the user has", ": ".join(texts))  # Valkey tells the account's name


_CODES: Final[tuple[tuple[str, type[BaseException]], ...]] = (  # redis-py before 8 drops the code
    ("NOPERM", redis_errors.NoPermissionError),
    ("READONLY", redis_errors.ReadOnlyError),
    ("OOM", redis_errors.OutOfMemoryError),
    ("LOADING", redis_errors.BusyLoadingError),
    ("CROSSSLOT", redis_errors.ClusterCrossSlotError),
)
