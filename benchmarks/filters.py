"""Filters, next to decoding everything, walking the path and comparing.

Each row has at least 1,000 distinct payloads, and nothing is remembered from one payload to the next.
"Selective": one event in a hundred matches. "Unselective": every event does.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from harness import Row, main
from net_filter_jsonpath import Filter

EVENTS = 2000
REPEATS = 20


def events(size: int, **fixed: Any) -> list[bytes]:
    """Make distinct events of about `size` bytes; `fixed` overrides fields."""
    rnd = random.Random(1)
    made = []
    for number in range(EVENTS):
        event = {
            "id": number,
            "level": rnd.choice(["debug", "info", "warn", "error"]),
            "token": f"tok{number % 100}",
            "user": {"geo": {"zip": number % 100, "c": "NL"}},
            **fixed,
        }
        text = json.dumps(event | {"msg": ""}, separators=(",", ":"))
        words = "the quick brown fox jumps over the lazy dog, "
        event["msg"] = "".join(itertools.islice(itertools.cycle(words), max(0, size - len(text))))
        made.append(json.dumps(event, separators=(",", ":")).encode())
    rnd.shuffle(made)
    assert len(set(made)) == EVENTS
    return made


def decode_all(form: dict[str, Any]) -> Callable[[bytes], bool]:
    """Return the rival: decode the whole payload, walk, compare."""
    if "$and" in form or "$or" in form:
        join = all if "$and" in form else any
        tests = [compare(part) for part in form.get("$and") or form["$or"]]

        def group(raw: bytes) -> bool:
            document = msgspec.json.decode(raw)
            return join([test(document) for test in tests])

        return group
    test = compare(form.get("$not", form))

    def single(raw: bytes) -> bool:
        return test(msgspec.json.decode(raw))

    return (lambda raw: not single(raw)) if "$not" in form else single


def compare(form: dict[str, Any]) -> Callable[[Any], bool]:
    """Return a test of a decoded document."""
    segments, value = form["path"].split(".") if form["path"] else [], form["value"]

    def test(found: Any) -> bool:
        for segment in segments:
            if isinstance(found, dict) and segment in found:
                found = found[segment]
            elif isinstance(found, list) and segment.isdigit() and int(segment) < len(found):
                found = found[int(segment)]
            else:
                return False
        return bool(found == value)

    return test


def row(name: str, form: dict[str, Any], payloads: list[bytes], required: float = 1.0) -> Row:
    """Compare a filter with the rival; both must find the same events."""
    matcher, rival = Filter.from_json(form).compile(), decode_all(form)
    assert [matcher(raw) for raw in payloads] == [rival(raw) for raw in payloads]

    def run(match: Callable[[bytes], bool]) -> Callable[[], None]:
        def call() -> None:
            for _ in range(REPEATS):
                for raw in payloads:
                    match(raw)

        return call

    return Row(f"filter/{name}", run(matcher), run(rival), EVENTS * REPEATS, required, cpu=True)


def eq(path: str, value: Any) -> dict[str, Any]:
    """Return a condition in JSON form."""
    return {"path": path, "value": value}


def rows() -> list[Row]:
    """Return the rows; the first four carry the budget."""
    plain, same = events(120), events(120, token="same", user={"geo": {"zip": 7, "c": "NL"}})
    escaped = events(120, note='say "hi"')
    return [
        row("string selective 120B", eq("token", "tok42"), plain, 2.2),
        row("string unselective 120B", eq("token", "same"), same),
        row("number 3 segments selective 120B", eq("user.geo.zip", 42), plain, 1.2),
        row("number 3 segments unselective 120B", eq("user.geo.zip", 7), same),
        row("string selective 600B", eq("token", "tok42"), events(600)),
        row("number 3 segments selective 600B", eq("user.geo.zip", 42), events(600)),
        row(
            "number 3 segments unselective 600B", eq("user.geo.zip", 7), events(600, user={"geo": {"zip": 7}})
        ),
        row("string selective, escapes 120B", eq("token", "tok42"), escaped),
        row("string 1 in 4 120B", eq("level", "error"), plain),
        row("string present elsewhere 120B", eq("level", "NL"), plain),
        row("path absent 120B", eq("user.geo.street", 1), plain),
        row("null on the way 120B", eq("user.geo.zip", 1), events(120, user=None)),
        row("array element 120B", eq("tags.1", 7), events(120, tags=[1, 7])),
        row("whole object 120B", eq("user", {"geo": {"zip": 42, "c": "NL"}}), plain),
        row("root 120B", eq("", {"a": 2}), plain),
        row("root, strings present 120B", eq("", json.loads(same[0])), same),
        row("tiny events", eq("i", 42), [b'{"i":%d}' % n for n in range(EVENTS)]),
        row("boolean 120B", eq("ok", True), events(120, ok=True)),
        row(
            "and of 3 selective 120B",
            {"$and": [eq("level", "error"), eq("token", "tok42"), eq("id", 42)]},
            plain,
        ),
        row(
            "and of 3 numbers unselective 120B",
            {"$and": [eq("user.geo.zip", 7), eq("n", 5), eq("m", 6)]},
            events(120, user={"geo": {"zip": 7}}, n=5, m=6),
        ),
        row("or of 2 strings 120B", {"$or": [eq("token", "tok42"), eq("token", "tok43")]}, plain),
        row("not 120B", {"$not": eq("token", "tok42")}, plain),
    ]


if __name__ == "__main__":
    sys.exit(main(rows()))
