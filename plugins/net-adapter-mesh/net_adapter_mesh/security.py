"""CURVE keys, who may join, and a record of who was refused."""

from __future__ import annotations

import logging
import os
import socket as sockets
from pathlib import Path
from typing import Any, Final, NamedTuple

import zmq

from net_adapter_mesh.config import MeshConfig
from netcore import ConfigError

__all__ = ["Gatekeeper", "Keys", "load_keys", "write_key_pair"]

_GONE: Final = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_MAX_REMEMBERED: Final = 256


class Keys(NamedTuple):
    """A node's key pair and the public keys it lets in, all in Z85."""

    secret: bytes
    public: bytes
    authorized: frozenset[bytes]


def load_keys(config: MeshConfig) -> Keys | None:
    """Read the keys that `config` names; None without a secret key.

    Raises:
        ConfigError: a file cannot be read, a key is malformed, or this libzmq has no CURVE.
    """
    if not config.encrypted:
        return None
    if not zmq.has("curve"):
        raise ConfigError("this libzmq was built without CURVE; install a pyzmq wheel from PyPI")
    secret = config.secret_key or _read(str(config.secret_key_file), "secret_key_file")[0]
    authorized = config.authorized_keys or []
    names = _read(authorized, "authorized_keys") if isinstance(authorized, str) else authorized
    return Keys(
        _check(secret, "secret_key", show=False),
        zmq.curve_public(_check(secret, "secret_key", show=False)),
        frozenset(_check(name, "authorized_keys") for name in names),
    )


def _read(path: str, what: str) -> list[str]:
    """Return the lines of a key file that are neither empty nor comments, first words only."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: cannot read {path}: {error}") from error
    words = [line.split()[0] for line in lines if line.strip() and line.split()[0] != "#"]
    if not words and what == "secret_key_file":
        raise ConfigError(f"{what}: {path} holds no key")
    return words


def _check(key: str, what: str, *, show: bool = True) -> bytes:
    try:
        data = key.encode("ascii")
        zmq.curve_public(data)
    except (zmq.ZMQError, ValueError, UnicodeEncodeError) as error:
        shown = f", not {key!r:.60}" if show else ""
        raise ConfigError(f"{what} must be 40 characters of Z85{shown}") from error
    if len(data) != 40:
        raise ConfigError(f"{what} must be 40 characters of Z85")
    return data


def write_key_pair(path: Path) -> str:
    """Make a key pair; write the secret key to `path` (mode 0600), the public one to `path`.pub.

    Returns:
        The public key.

    Raises:
        FileExistsError: `path` exists; nothing is overwritten.
    """
    public, secret = zmq.curve_keypair()
    for place, data, mode in ((path, secret, 0o600), (path.with_name(path.name + ".pub"), public, 0o644)):
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data + b"\n")
    return str(public.decode())


class Gatekeeper:
    """Answers who may join (ZAP), and logs each refused address once.

    Without a handler a CURVE server lets any client key in, so it is bound before the listener.

    Args:
        keys: the node's keys, or None: nobody asks.
        logger: for refusals.

    Source: ZeroMQ RFC 27 (ZAP).
    """

    def __init__(self, keys: Keys | None, logger: logging.Logger) -> None:
        self._keys = keys
        self._logger = logger
        self._doorstep: dict[int, str] = {}
        self._shaken = 0  # valid handshakes of which it is not known yet whose they were
        self.socket: Any = None
        self.rejected: dict[str, str] = {}
        """Refused addresses (host) -> why, the first 256."""
        self.refusals = 0

    def serve(self, context: zmq.Context[Any]) -> None:
        """Bind the handler."""
        self.socket = context.socket(zmq.REP)
        self.socket.bind("inproc://zeromq.zap.01")

    def answer(self) -> None:
        """Answer one question."""
        try:
            frames = self.socket.recv_multipart(zmq.NOBLOCK)
        except zmq.ZMQError:
            return
        version, request, _, address, _, mechanism, *credentials = [*frames, *[b""] * 6][
            : max(7, len(frames))
        ]
        known = False
        if self._keys is not None and mechanism == b"CURVE" and credentials and len(credentials[0]) == 32:
            known = self._z85(credentials[0]) in self._keys.authorized
        if not known:
            self.refuse(address.decode(errors="replace"), "its key is not authorized")
        status = (b"200", b"OK") if known else (b"400", b"not authorized")
        self.socket.send_multipart([version, request, *status, b"", b""])

    def door(self, event: int, value: int) -> None:
        """Follow the listener's monitor: who came, and who left without having got in."""
        if event == zmq.EVENT_ACCEPTED:
            self._doorstep[value] = _peer_of(value)
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._shaken += 1  # the event does not say whose; its first frame will
        elif event & _GONE:
            address = self._doorstep.pop(value, None)
            if address is None or self._keys is None:
                return
            if self._shaken:
                self._shaken -= 1  # it may have been this one, gone before it said anything
            else:
                self.refuse(address, "it left without a valid handshake: no key, or a wrong one")

    def entered(self, descriptor: int) -> None:
        """Take note that a frame came from a connection: its handshake was valid."""
        if self._doorstep.pop(descriptor, None) is not None:
            self._shaken = max(0, self._shaken - 1)

    def refuse(self, address: str, why: str) -> None:
        """Count a refusal; log it if it is the first from there."""
        self.refusals += 1
        host = address.rpartition(":")[0] or address
        if host not in self.rejected and len(self.rejected) < _MAX_REMEMBERED:
            self.rejected[host] = why
            self._logger.warning("refused a link from %s: %s", address, why)

    @staticmethod
    def _z85(key: bytes) -> bytes:
        from zmq.utils import z85

        return z85.encode(key)


def _peer_of(descriptor: int) -> str:
    """Return `host:port` of the other end of an accepted descriptor that libzmq owns."""
    try:
        probe = sockets.socket(fileno=os.dup(descriptor))
    except OSError:
        return "an unknown address"
    with probe:
        try:
            host, port = probe.getpeername()[:2]
        except OSError:
            return "an unknown address"
    return f"{host.removeprefix('::ffff:')}:{port}"
