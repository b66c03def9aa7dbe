"""The streams at the server: asking for their state, making them, mending their settings."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final

import msgspec

from net_adapter_jetstream import failures, frames
from net_adapter_jetstream.config import JetStreamConfig
from net_adapter_jetstream.failures import ApiError, NotFoundError
from net_adapter_jetstream.link import Link
from net_adapter_jetstream.positions import born_of
from net_adapter_jetstream.replies import NoRespondersError, Reply
from netcore import AdapterRefusedError, TransientAdapterError

__all__ = ["Answer", "Info", "Streams", "answer_of"]

_BATCHES: Final = (2, 12, 1)
"""First server whose atomic batches take message ids."""
_PAGES: Final = (2, 11, 0)
_BARE_PAGES: Final = (2, 12, 0)
_OLDEST: Final = (2, 9, 0)
_LEAST_PAYLOAD: Final = 1024
_METADATA: Final = (2, 10, 0)
_PACKED: Final = "netcore.packed"
"""Entry in the stream's metadata, set before the first packed message is written."""
_S: Final = 1_000_000_000
_LOOKS: Final = 10
_LOOK_S: Final = 0.05


class _StreamState(msgspec.Struct):
    messages: int = 0
    bytes: int = 0
    first_seq: int = 0
    last_seq: int = 0


class Answer(msgspec.Struct):
    """What JetStream answers to a request or a published message, as far as we care."""

    error: ApiError | None = None
    config: dict[str, Any] | None = None
    created: str = ""
    state: _StreamState | None = None
    ts: str = ""
    streams: list[str] | int | None = None
    total: int = 0
    seq: int = 0
    count: int = 0
    duplicate: bool = False

    @property
    def names(self) -> list[str]:
        """The streams' names, of an answer that lists them."""
        return self.streams if isinstance(self.streams, list) else []


class Info(msgspec.Struct, frozen=True):
    """A stream's state at one moment.

    Attributes:
        born: which incarnation of the stream this is (see `positions`).
        first: sequence number of the earliest message, `last + 1` if there is none.
        last: sequence number of the latest message ever stored.
        config: its settings, as the server words them.
        now: the server's time, RFC 3339, "" if it does not tell.
        messages: how many it holds.
        bytes: how many they take.
    """

    born: str
    first: int
    last: int
    config: dict[str, Any]
    now: str
    messages: int
    bytes: int

    @property
    def replicas(self) -> int:
        """How many servers keep it."""
        return int(self.config.get("num_replicas", 1))


_answer: Final = msgspec.json.Decoder(Answer)


def answer_of(reply: Reply) -> Answer:
    """Decode a reply.

    Raises:
        AdapterError: there is none, or it is no JetStream answer.
    """
    if reply.error is not None:
        raise reply.error
    try:
        return _answer.decode(reply.body)
    except msgspec.MsgspecError as error:
        raise TransientAdapterError(
            f"{reply.subject}: not a JetStream answer: {reply.body[:80]!r}"
        ) from error


class Streams:
    """The streams of one prefix.

    Args:
        link: the connection.
        config: the adapter's settings.
    """

    def __init__(self, link: Link, config: JetStreamConfig) -> None:
        self._link = link
        self._config = config
        self._name = re.compile(re.escape(config.prefix) + r"_shard_(0|[1-9][0-9]{0,5})")
        self.api = f"$JS.{config.domain}.API" if config.domain else "$JS.API"

    def name(self, shard: int) -> str:
        """Name the stream of `shard`."""
        return f"{self._config.prefix}_shard_{shard}"

    def subject(self, shard: int | str) -> str:
        """Name the subject of `shard` (or of `*`, all)."""
        return f"{self._config.prefix}.shard.{shard}"

    @property
    def pages(self) -> bool:
        """Whether the server gives many messages for one request."""
        return self._link.version >= _PAGES

    @property
    def bare_pages(self) -> bool:
        """Whether it can leave out their headers."""
        return self._link.version >= _BARE_PAGES

    @property
    def batches(self) -> bool:
        """Whether the server's version knows atomic batches as we use them."""
        return self._link.version >= _BATCHES

    @property
    def _marks_packed(self) -> bool:
        return self._config.layout == "packed" and self._link.version >= _METADATA

    @staticmethod
    def packed(info: Info) -> bool:
        """Whether packed messages were ever written to a stream, so that messages are not events."""
        return _PACKED in (info.config.get("metadata") or {})

    async def check(self) -> None:
        """Check that there is a JetStream to use.

        Raises:
            AdapterRefusedError: there is none, or it is too old.
        """
        if self._link.version < _OLDEST:
            raise AdapterRefusedError(f"{self._link.server} is too old: JetStream direct get needs 2.9")
        if self._link.largest < _LEAST_PAYLOAD:
            raise AdapterRefusedError(
                f"the server's max_payload of {self._link.max_payload:,} bytes is too small for this adapter; "
                f"set it to at least {frames.ROOM + _LEAST_PAYLOAD:,}"
            )
        reply = await self._link.ask(f"{self.api}.INFO")
        if isinstance(reply.error, NoRespondersError):
            where = f" in domain {self._config.domain!r}" if self._config.domain else ""
            raise AdapterRefusedError(
                f"JetStream is not enabled at {self._config.shown_servers}{where}: start nats-server with "
                "-js, or enable it for this account"
            )
        if error := answer_of(reply).error:
            raise failures.from_api(error, "JetStream account information")

    async def shards(self) -> list[int]:
        """List the shards that have a stream, ascending."""
        found: list[int] = []
        offset = 0
        while True:
            answer = answer_of(await self._link.ask(*self.names_request(offset)))
            if answer.error is not None:
                raise failures.from_api(answer.error, "list of streams")
            found += self.shards_in(answer)
            offset += len(answer.names)
            if not answer.names or offset >= answer.total:
                return sorted(set(found))

    def names_request(self, offset: int = 0) -> tuple[str, bytes]:
        """Return subject and body of the request for the streams' names, from the `offset`th."""
        body = {"subject": self.subject("*"), "offset": offset}
        return f"{self.api}.STREAM.NAMES", msgspec.json.encode(body)

    def shards_in(self, answer: Answer) -> list[int]:
        """Return the shards that an answer with names speaks of."""
        matches = (self._name.fullmatch(name) for name in answer.names)
        return [int(match[1]) for match in matches if match]

    def info_request(self, shard: int) -> tuple[Reply, str, bytes]:
        """Return a request for a stream's state, for `Link.exchange`."""
        subject = f"{self.api}.STREAM.INFO.{self.name(shard)}"
        return Reply(subject), subject, b""

    def info_of(self, reply: Reply) -> Info | None:
        """Read the answer to `info_request`; None: there is no such stream."""
        answer = answer_of(reply)
        if answer.error is not None:
            error = failures.from_api(answer.error, reply.subject)
            if isinstance(error, NotFoundError):
                return None
            raise error
        return _info(answer, reply.subject)

    async def info(self, shard: int) -> Info | None:
        """Return a stream's state, None if it does not exist."""
        request = self.info_request(shard)
        await self._link.exchange([request])
        return self.info_of(request[0])

    async def ensure(self, shard: int) -> Info:
        """Make the stream of `shard`, or see that an existing one will do.

        Settings that only give more (direct get, atomic batches, a longer duplicate window, more
        retention, more replicas) are mended. What would lose data, or cannot be changed, is refused.

        Raises:
            AdapterRefusedError: the message names the setting.
        """
        found = await self.info(shard)
        if found is None:
            return await self._create(shard)
        changes = self._changes(shard, found.config)
        if not changes:
            return found
        answer = await self._change("UPDATE", shard, found.config | changes)
        if answer.error is not None:
            text = f"stream {self.name(shard)}: cannot set {', '.join(changes)}: {answer.error}"
            raise AdapterRefusedError(
                f"{text}; change it by hand (nats stream edit), or the adapter's settings"
            )
        return _info(answer, self.name(shard))

    async def _create(self, shard: int) -> Info:
        config = self._config
        wanted: dict[str, Any] = {
            "name": self.name(shard),
            "subjects": [self.subject(shard)],
            "retention": "limits",
            "discard": "old",
            "storage": config.storage,
            "num_replicas": config.replicas,
            "max_msgs": config.max_events or -1,
            "max_bytes": config.max_bytes or -1,
            "max_age": int((config.max_age_s or 0) * _S),
            "duplicate_window": self._window(),
            "allow_direct": True,
        }
        if self.batches:
            wanted["allow_atomic"] = True
        if self._marks_packed:
            wanted["metadata"] = {_PACKED: "true"}
        answer = await self._change("CREATE", shard, wanted)
        if answer.error is not None and answer.error.err_code in (
            failures.NAME_IN_USE,
            failures.SUBJECT_IN_USE,
        ):
            # Somebody else may have made it in between. An old server that is still at it complains of
            # the subject, and does not show the stream yet.
            for _ in range(_LOOKS):
                if await self.info(shard) is not None:
                    return await self.ensure(shard)
                await asyncio.sleep(_LOOK_S)
        if answer.error is not None:
            raise failures.from_api(answer.error, f"creating stream {self.name(shard)}")
        return _info(answer, self.name(shard))

    async def _change(self, verb: str, shard: int, config: dict[str, Any]) -> Answer:
        subject = f"{self.api}.STREAM.{verb}.{self.name(shard)}"
        reply = Reply(subject)
        await self._link.exchange([(reply, subject, msgspec.json.encode(config))])
        return answer_of(reply)

    def _window(self) -> int:
        """Nanoseconds; the server refuses a window longer than the retention."""
        seconds = self._config.duplicate_window_s
        if self._config.max_age_s is not None:
            seconds = min(seconds, self._config.max_age_s)
        return int(seconds * _S)

    def _changes(self, shard: int, found: dict[str, Any]) -> dict[str, Any]:
        """Return what to change in a stream's settings; raise for what must not be changed."""
        config, name = self._config, self.name(shard)
        if found.get("retention", "limits") != "limits":
            raise _refuse(name, "retention", found.get("retention"), "limits")
        if found.get("storage", config.storage) != config.storage:
            raise _refuse(name, "storage", found.get("storage"), config.storage)
        if self.subject(shard) not in found.get("subjects", []):
            raise _refuse(name, "subjects", found.get("subjects"), self.subject(shard))
        if found.get("sealed"):
            raise _refuse(name, "sealed", True, False)
        changes: dict[str, Any] = {}
        if not found.get("allow_direct"):
            changes["allow_direct"] = True
        if self.batches and not found.get("allow_atomic"):
            changes["allow_atomic"] = True
        if self._marks_packed and _PACKED not in (found.get("metadata") or {}):
            changes["metadata"] = (found.get("metadata") or {}) | {_PACKED: "true"}
        if config.replicas > found.get("num_replicas", 1):
            changes["num_replicas"] = config.replicas
        limits = {
            "max_msgs": config.max_events,
            "max_bytes": config.max_bytes,
            "max_age": None if config.max_age_s is None else int(config.max_age_s * _S),
        }
        for field, wanted in limits.items():
            has = found.get(field) or 0
            if wanted is None or has == wanted:
                continue
            if has <= 0 or wanted < has:
                raise _refuse(name, field, has, wanted, why="less would delete events")
            changes[field] = wanted
        age = changes.get("max_age", found.get("max_age") or 0)
        window = min(self._window(), age) if age else self._window()
        if window > found.get("duplicate_window", 0):
            changes["duplicate_window"] = window
        return changes


def _refuse(
    stream: str, field: str, has: object, wanted: object, why: str = "it cannot be changed"
) -> AdapterRefusedError:
    return AdapterRefusedError(
        f"stream {stream} has {field}={has!r} where the adapter's settings ask for {wanted!r}, and {why}: "
        "edit the stream (nats stream edit), or the settings, or use another prefix"
    )


def _info(answer: Answer, what: str) -> Info:
    if answer.state is None or answer.config is None or not answer.created:
        raise TransientAdapterError(f"{what}: the answer lacks the stream's state")
    state = answer.state
    first = state.first_seq if state.messages else state.last_seq + 1
    return Info(
        born=born_of(answer.created),
        first=first,
        last=state.last_seq,
        config=answer.config,
        now=answer.ts,
        messages=state.messages,
        bytes=state.bytes,
    )
