"""The settings of one mesh node."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec

from netcore import AdapterConfig, ConfigError

__all__ = ["MeshConfig", "Peer", "is_loopback"]

_ADDRESS: Final = re.compile(r"tcp://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9_.*-]+):([0-9]{1,5}|\*)")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Peer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node to dial.

    Attributes:
        address: `tcp://host:port`.
        public_key: its public key (40 characters, Z85); needed as soon as this node has a secret key.
    """

    address: str
    public_key: str = ""


class MeshConfig(AdapterConfig, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mesh"):
    """One node of a mesh.

    Attributes:
        name: the mesh; nodes of different names refuse each other.
        listen: `tcp://host:port` to accept links on (port `*`: any free one), or None: only dial.
        advertise: under which address others may dial this node; default `listen`, unless that
            is a wildcard.
        peers: whom to dial: addresses, or `{"address": ..., "public_key": ...}`.
        discover: also dial members heard of from others.
        node_id: the node's name; default: random, kept in a durable log.
        log: directory of the durable log; None keeps the log in memory.
        fsync: `batch`: an acknowledged batch is on disk; `interval`: it survives the process, and
            a crash of the machine costs at most about `fsync_interval_ms`; `never`: it survives
            the process, and the operating system decides about the rest.
        fsync_interval_ms: for `interval`, 10..60,000 ms.
        max_events: events retained in each stream (a shard of one origin), whole batches.
        max_bytes: body bytes retained in each stream.
        max_age_s: age up to which events are retained, s; None: no limit.
        acks: how many peers must have stored a batch before it is acknowledged, 0..64.
        credit_bytes: bytes that may be under way to this node on one link, 64 KiB..1 GiB.
        heartbeat_ms: a link silent for two of these is dead, 20..60,000 ms.
        secret_key: this node's CURVE secret key (40 characters, Z85).
        secret_key_file: or a file that holds it, as `netcore mesh keygen` writes it.
        authorized_keys: public keys that may join, as a list, or the path of a file with one a line.
        insecure: allow listening beyond loopback without keys.
        timeout_ms: how long an append waits for `acks` and a close for its peers, 1..3,600,000 ms.

    Raises:
        ConfigError: a value is out of range, or the security settings contradict each other.
    """

    name: str = "net"
    listen: str | None = None
    advertise: str | None = None
    peers: list[str | Peer] = msgspec.field(default_factory=list)
    discover: bool = True
    node_id: str | None = None
    log: str | None = None
    fsync: Literal["batch", "interval", "never"] = "batch"
    fsync_interval_ms: float = 200
    max_events: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
    max_bytes: Annotated[int, msgspec.Meta(ge=1)] = 256 << 20
    max_age_s: float | None = None
    acks: int = 0
    credit_bytes: int = 8 << 20
    heartbeat_ms: float = 500
    secret_key: str | None = None
    secret_key_file: str | None = None
    authorized_keys: list[str] | str | None = None
    insecure: bool = False
    timeout_ms: float = 5_000

    def __post_init__(self) -> None:
        for name, value in (("name", self.name), ("node_id", self.node_id)):
            if value is not None and not _NAME.fullmatch(value):
                raise ConfigError(f"{name} must be 1 to 64 letters, digits, '_', '.' or '-', not {value!r}")
        for name, value in (("listen", self.listen), ("advertise", self.advertise)):
            if value is not None:
                _check_address(name, value)
        peers = [Peer(address=peer) if isinstance(peer, str) else _as_peer(peer) for peer in self.peers]
        for peer in peers:
            _check_address("peers", peer.address)
        msgspec.structs.force_setattr(self, "peers", peers)
        self._check_ranges()
        self._check_security(peers)

    def _check_ranges(self) -> None:
        for name, low, high in (
            ("max_events", 1, 1 << 40),
            ("max_bytes", 1, 1 << 50),
            ("acks", 0, 64),
            ("credit_bytes", 64 << 10, 1 << 30),
            ("heartbeat_ms", 20, 60_000),
            ("timeout_ms", 1, 3_600_000),
            ("fsync_interval_ms", 10, 60_000),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
                raise ConfigError(f"{name} must be a number from {low:,} to {high:,}, not {value!r}")
        if self.max_age_s is not None and not self.max_age_s > 0:
            raise ConfigError(f"max_age_s must be positive or None, not {self.max_age_s!r}")
        if self.fsync not in ("batch", "interval", "never"):
            raise ConfigError(f'fsync must be "batch", "interval" or "never", not {self.fsync!r}')

    def _check_security(self, peers: list[Peer]) -> None:
        if self.secret_key and self.secret_key_file:
            raise ConfigError("give secret_key or secret_key_file, not both")
        if not self.encrypted:
            if self.listen and not is_loopback(self.listen) and not self.insecure:
                raise ConfigError(
                    f"listen={self.listen!r} is reachable from other machines and no secret_key is "
                    "given: make one with `netcore mesh keygen`, or say insecure=True"
                )
            if self.authorized_keys is not None:
                raise ConfigError("authorized_keys needs a secret_key: without one nobody is checked")
            for peer in peers:
                if peer.public_key:
                    raise ConfigError(f"peer {peer.address} has a public_key, but this node no secret_key")
            return
        if self.listen and self.authorized_keys is None:
            raise ConfigError("secret_key and listen need authorized_keys: the public keys that may join")
        for peer in peers:
            if not peer.public_key:
                raise ConfigError(
                    f"peer {peer.address} needs its public_key, as this node has a secret_key: "
                    'give {"address": ..., "public_key": ...}'
                )

    @property
    def encrypted(self) -> bool:
        """Whether links use CURVE."""
        return bool(self.secret_key or self.secret_key_file)

    @property
    def seeds(self) -> list[Peer]:
        """The peers, each as a `Peer`."""
        return [peer for peer in self.peers if isinstance(peer, Peer)]

    def __repr__(self) -> str:
        shown = {name: getattr(self, name) for name in self.__struct_fields__}
        if self.secret_key:
            shown["secret_key"] = "***"  # noqa: S105 # what is shown instead
        return f"MeshConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def _as_peer(value: Any) -> Peer:
    try:
        return msgspec.convert(value, Peer, from_attributes=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"peers: {error} in {value!r}") from error


def _check_address(name: str, value: str) -> None:
    match = _ADDRESS.fullmatch(value)
    if not match or (match[2] != "*" and not 0 < int(match[2]) < 65_536):
        raise ConfigError(f"{name} must be tcp://host:port, not {value!r}")


def host_of(address: str) -> str:
    """Return the host part of `tcp://host:port`."""
    return address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def is_loopback(address: str) -> bool:
    """Tell whether `address` can be reached from this machine only."""
    host = host_of(address)
    return host == "localhost" or host == "::1" or host.startswith("127.")
