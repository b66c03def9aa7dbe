"""Parts that need no server: settings, layouts, positions, keys, errors, the dedup helper, the plugin."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from net_adapter_redis import RedisAdapter, RedisConfig, RedisStreamDedup
from net_adapter_redis.failures import moved_to, translate
from net_adapter_redis.keys import Keys
from net_adapter_redis.layout import (
    decode_alike,
    decode_each,
    encode_events,
    encode_packed,
    event_from,
    unpack,
)
from net_adapter_redis.positions import Position, entry_id
from net_adapter_redis.script import SCRIPT
from redis import exceptions as redis_errors
from redis._parsers.base import BaseParser
from redis.crc import key_slot

from netcore import EventBusConfig
from netcore.contracts.adapter import Batch
from netcore.errors import (
    AdapterError,
    AdapterRefusedError,
    ConfigError,
    CursorError,
    FatalAdapterError,
    TransientAdapterError,
)
from netcore.events import StoredEvent

STAMPS = st.one_of(st.integers(10**18, 10**19 - 1), st.integers(0, 2**62))
EVENTS = st.lists(st.tuples(st.binary(max_size=40), STAMPS), min_size=1, max_size=120)


def make_batch(events: list[tuple[bytes, int]], shard: int = 3) -> Batch:
    """Build a batch."""
    stored = [StoredEvent("", shard, ts, raw) for raw, ts in events]
    return Batch(producer="ab" * 16, shard=shard, first_seq=7, events=stored)


def arguments(wire: bytes) -> list[bytes]:
    """Split arguments in wire format."""
    found = []
    while wire:
        size, _, rest = wire.partition(b"\r\n")
        length = int(size[1:])
        assert size[:1] == b"$"
        assert rest[length : length + 2] == b"\r\n"
        found.append(rest[:length])
        wire = rest[length + 2 :]
    return found


@given(EVENTS)
@example([(b'{"a":1},"t":1764000000000000000,"s":3}', 1764000000000000000)])
@example([(b"", 0), (b"x", 10**18), (b",", 10**19 - 1)])
def test_event_layout_round_trip_is_identical(events: list[tuple[bytes, int]]) -> None:
    """Any bytes and any stamps come back, whichever way of decoding takes them; dedup ids are as documented."""
    args = arguments(b"".join(encode_events(make_batch(events))))
    envelopes, dedup_ids = args[::2], args[1::2]
    assert dedup_ids == [b"%b:3:7:%d" % (b"ab" * 16, index) for index in range(len(events))]
    expected = [(raw, ts if ts >= 10**18 else 5_000_000) for raw, ts in events]
    for index, envelope in enumerate(envelopes):
        raw, ts = events[index]
        assert envelope == b'{"r":%b,"t":%d,"s":3}' % (raw, ts)
        assert event_from(envelope, b"5-0") == (expected[index][1], raw)
    entries = [
        [b"5-%d" % index, [b"d", envelope, b"dedup_id", b""]] for index, envelope in enumerate(envelopes)
    ]
    each = decode_each(entries, 3, 10, "0a0b0c0d")
    assert [(event.raw, event.ts) for event in each] == expected
    assert [event.id for event in each][:1] == ["5-0@11.0a0b0c0d"]
    alike = decode_alike(entries, 3, 10, "0a0b0c0d")
    assert alike == (each if all(ts >= 10**18 for _, ts in events) else None)


@given(EVENTS)
def test_packed_layout_round_trip_is_identical(events: list[tuple[bytes, int]]) -> None:
    """The whole batch in one field."""
    batch = unpack(encode_packed(make_batch(events)))
    assert batch is not None
    assert list(zip(batch.raw, batch.ts, strict=True)) == events
    assert (batch.producer, batch.shard, batch.first_seq) == ("ab" * 16, 3, 7)


@given(st.binary(max_size=60))
def test_decoding_arbitrary_fields_never_raises(data: bytes) -> None:
    """What is no event is said to be none."""
    unpack(data)
    event_from(data, b"5-0")
    event_from(b'{"r":' + data, b"5-0")
    decode_alike([[b"5-0", [b"d", data]]], 0, None, "")


def test_encode_thousands_of_events_keeps_dedup_ids_apart() -> None:
    """Indices of every length."""
    batch = make_batch([(b"x", 10**18)] * 4096)
    args = arguments(b"".join(encode_events(batch)))
    assert args[1::2] == [b"%b:3:7:%d" % (b"ab" * 16, index) for index in range(4096)]


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.none() | st.integers(0, 2**62))
def test_position_text_round_trip(ms: int, seq: int, count: int | None) -> None:
    """Text and back, plain and inside a packed entry."""
    incarnation = "" if count is None else "0a1b2c3d"
    for inside in ((None, 0), (0, 2), (3, 256)):
        position = Position((ms, seq), inside[0], inside[1], count, incarnation)
        assert Position.parse(str(position)) == position
        assert entry_id(position.entry) == (ms, seq)


@given(st.one_of(st.text(max_size=20), st.from_regex(r"[0-9]{1,25}-[0-9]{1,25}[:@][0-9./:a-f@]{0,12}")))
def test_position_parses_or_is_a_cursor_error(text: str) -> None:
    """Nothing else happens, whatever the text."""
    try:
        position = Position.parse(text)
    except CursorError as error:
        assert "not a position of the redis adapter" in str(error)  # noqa: PT017  # either may happen
    else:
        assert Position.parse(str(position)) == position


def test_position_behind_the_last_of_a_packed_entry_is_behind_the_entry() -> None:
    """So that it equals the tail."""
    assert Position.parse("5-1:3/4@9.0a1b2c3d") == Position.parse("5-1@9.0a1b2c3d")


@pytest.mark.parametrize("prefix", ["net", "a:b", "{tag}", "x{tag}y"])
def test_keys_of_a_shard_share_a_slot(prefix: str) -> None:
    """Stream, mark and meta can be used in one script on a cluster; with a tag the registry can too."""
    keys = Keys(prefix)
    for shard in (0, 3, 1023):
        assert keys.stream(shard) == f"{prefix}:shard:{shard}".encode()
        slots = {key_slot(key) for key in (keys.stream(shard), keys.meta(shard), keys.mark(shard, "ab" * 16))}
        assert len(slots) == 1
        if keys.one_slot:
            assert key_slot(keys.registry) in slots
    assert keys.one_slot == ("{" in prefix)


def test_config_shows_no_credential_anywhere() -> None:
    """Neither in repr nor in errors."""
    config = RedisConfig(url="rediss://me:s3cret@host:1/0", password="s3cret2", ssl_password="s3cret3")
    for shown in (
        repr(config),
        str(config),
        f"{EventBusConfig(adapter=config)}",
        str(config.__rich_repr__()),
    ):
        assert "s3cret" not in shown
        assert "me:" not in shown
        assert "host:1" in shown
    for url in ("http://me:s3cret@host", "redis://me:s3cret@host:xx", "redis://me:s3cret@host/nodb"):
        with pytest.raises(ConfigError) as caught:
            RedisConfig(url=url)
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"url": 7}, "url"),
        ({"url": "unix://"}, "url"),
        ({"url": "redis://h?retry_on_timeout=1"}, "retry_on_timeout"),
        ({"url": "unix:///s?db=x"}, "db"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a b"}, "prefix"),
        ({"prefix": "{net"}, "hash tag"),
        ({"prefix": "net}"}, "hash tag"),
        ({"prefix": "{a}{b}"}, "hash tag"),
        ({"prefix": "{}"}, "hash tag"),
        ({"layout": "zip"}, "layout"),
        ({"max_events": 0}, "max_events"),
        ({"max_events": 1.5}, "max_events"),
        ({"max_age_s": -1}, "max_age_s"),
        ({"timeout_ms": 0}, "timeout_ms"),
        ({"timeout_ms": True}, "timeout_ms"),
        ({"pool_size": 2}, "pool_size"),
        ({"dedup_ttl_s": 1}, "dedup_ttl_s"),
        ({"cluster": True, "url": "redis://h/3"}, "cluster"),
        ({"cluster": True, "url": "unix:///s"}, "cluster"),
        ({"ssl_ca_certs": "ca.pem"}, "ssl_ca_certs need a url that starts with rediss://"),
        ({"url": "redis://h?ssl_ca_certs=ca.pem"}, "ssl_ca_certs need a url that starts with rediss://"),
        ({"url": "rediss://h?ssl_colour=red"}, "ssl_colour"),
    ],
)
def test_config_wrong_value_is_named(wrong: dict[str, Any], named: str) -> None:
    """Where a bus is built, not where it first fails."""
    with pytest.raises(ConfigError, match=named):
        RedisConfig(**wrong)


def test_config_comes_from_plain_data_too() -> None:
    """A dict as in a TOML file gives the typed settings; an unknown key is an error."""
    import msgspec

    config = msgspec.convert({"kind": "redis", "url": "redis://h:1/2", "max_events": 9}, RedisConfig)
    assert (config.kind, config.database(), config.max_events) == ("redis", 2, 9)
    with pytest.raises(msgspec.ValidationError, match="max_event`"):
        msgspec.convert({"kind": "redis", "max_event": 9}, RedisConfig)


def test_identity_names_namespace_and_no_address() -> None:
    """Prefix, and database where it is not 0."""
    assert RedisAdapter(RedisConfig(url="redis://u:p@h:1")).identity() == "redis:net"
    assert RedisAdapter(RedisConfig(url="redis://h:1/5", prefix="x")).identity() == "redis:x/5"


def _reply(text: str) -> Exception:
    error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (redis_errors.ConnectionError("Connection closed by server."), TransientAdapterError),
        (redis_errors.TimeoutError("no answer"), TransientAdapterError),
        (_reply("LOADING Redis is loading the dataset in memory"), TransientAdapterError),
        (_reply("READONLY You can't write against a read only replica."), TransientAdapterError),
        (_reply("MOVED 3999 127.0.0.1:6381"), TransientAdapterError),
        (_reply("ASK 3999 127.0.0.1:6381"), TransientAdapterError),
        (_reply("CLUSTERDOWN Hash slot not served"), TransientAdapterError),
        (_reply("TRYAGAIN Multiple keys request during rehashing of slot"), TransientAdapterError),
        (_reply("BUSY Redis is busy running a script."), TransientAdapterError),
        (_reply("MASTERDOWN Link with MASTER is down"), TransientAdapterError),
        (_reply("OOM command not allowed when used memory > 'maxmemory'."), TransientAdapterError),
        (_reply("NOREPLICAS Not enough good replicas to write."), TransientAdapterError),
        (_reply("MISCONF Redis is configured to save RDB snapshots"), TransientAdapterError),
        (_reply("ERR max number of clients reached"), TransientAdapterError),
        (_reply("ERR something new"), TransientAdapterError),
        (RuntimeError("a bug"), TransientAdapterError),
        (_reply("WRONGTYPE Operation against a key holding the wrong kind of value"), AdapterRefusedError),
        (_reply("NOAUTH Authentication required."), AdapterRefusedError),
        (_reply("WRONGPASS invalid username-password pair or user is disabled."), AdapterRefusedError),
        (_reply("NOPERM this user has no permissions to run the 'xadd' command"), AdapterRefusedError),
        (_reply("ERR unknown command 'XADD', with args beginning with:"), AdapterRefusedError),
        (_reply("ERR Protocol error: unauthenticated multibulk length"), AdapterRefusedError),
        (
            _reply("ERR The user executing the script can't run this command or subcommand"),
            AdapterRefusedError,
        ),
        (_reply("ERR ACL failure in script: User app has no permissions to run 'xadd'"), AdapterRefusedError),
        (_reply("ERR DB index is out of range"), AdapterRefusedError),
        (_reply("CROSSSLOT Keys in request don't hash to the same slot"), AdapterRefusedError),
        (_reply("ERR Protocol error: invalid bulk length"), FatalAdapterError),
    ],
)
def test_errors_are_sorted_and_name_what_was_done(error: Exception, kind: type[AdapterError]) -> None:
    """Wait, mend, or give this content up; keys and address are in the text."""
    failure = translate(error, "append to net:shard:3", "db:6379")
    assert type(failure) is kind
    assert "append to net:shard:3" in str(failure)
    assert "db:6379" in str(failure)


def test_moved_is_recognised_in_old_and_new_words() -> None:
    """Older clients give the bare reply, newer ones a class of its own."""
    for error in (redis_errors.ResponseError("MOVED 7 h:1"), _reply("MOVED 7 h:1")):
        assert moved_to(error) == (7, "h", 1)
    assert moved_to(redis_errors.ResponseError("MOVED 7 :1")) == (7, "", 1)
    for other in (
        _reply("ASK 7 h:1"),
        redis_errors.ResponseError("7 h:1"),
        RuntimeError("MOVED 7 h:1"),
        b"x",
    ):
        assert moved_to(other) is None


def test_script_writes_nothing_before_it_knows() -> None:
    """Everything that may be refused comes before the first event is added."""
    text = SCRIPT.decode()
    added = [match.start() for match in re.finditer(r"call\('XADD', stream", text)]
    assert len(added) == 3
    for check in ("'GET', mark", "'SET', mark, prev", "'HMGET', meta", "'XADD', KEYS[4]"):
        assert text.index(check) < added[0]
    assert text.index("'SET', mark, string.format") > added[-1]


@settings(max_examples=50)
@given(st.lists(st.integers(0, 12), max_size=60), st.integers(1, 6))
def test_dedup_recognises_repeats_within_its_window(ids: list[int], capacity: int) -> None:
    """Like a list of the last ids seen, most recent last."""
    dedup, model = RedisStreamDedup(capacity), list[int]()
    for number in ids:
        assert dedup.is_duplicate(b"%d" % number) == (number in model)
        model = [*(other for other in model if other != number), number][-capacity:]
        assert len(dedup) == len(model)


def test_dedup_takes_text_and_bytes_and_forgets_on_demand() -> None:
    """As redis-py gives them, decoded or not."""
    dedup = RedisStreamDedup()
    assert not dedup.is_duplicate("a")
    assert dedup.is_duplicate(b"a")
    dedup.clear()
    assert not dedup.is_duplicate("a")
    assert repr(dedup) == "RedisStreamDedup(capacity=65536, remembered=1)"
    with pytest.raises(ValueError, match="at least 1"):
        RedisStreamDedup(0)


def test_plugin_is_found_and_loads_no_client_library() -> None:
    """The hook module offers the adapter; redis is imported when one is opened."""
    code = (
        "import json, sys\n"
        "from net_adapter_redis.plugin import netcore_adapters\n"
        "names = [adapter.kind for adapter in netcore_adapters()]\n"
        "print(json.dumps([names, sorted({'redis', 'hiredis', 'asyncio.streams'} & set(sys.modules))]))\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    names, heavy = json.loads(output)
    assert names == ["redis"]
    assert set(heavy) <= {"asyncio.streams"}


def test_decoding_a_large_payload_is_quick() -> None:
    """The envelope's end is looked for from the end: no time that grows faster than the payload."""
    payload = b',"t":' * 400_000
    began = time.perf_counter()
    assert event_from(b'{"r":%b,"t":1764000000000000000,"s":0}' % payload, b"5-0") == (
        1764000000000000000,
        payload,
    )
    assert event_from(b'{"r":%b' % payload, b"5-0") is None
    assert time.perf_counter() - began < 5
