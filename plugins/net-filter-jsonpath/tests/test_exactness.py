"""The matcher gives the answer of full decoding, for every document, spelling and filter."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from net_filter_jsonpath import Filter

from .support import DOCUMENTS, filters, oracle, spell


def encodings(doc: Any, seed: int) -> list[bytes]:
    """Encode a document in many ways."""
    rnd = random.Random(seed)
    texts = [json.dumps(doc), json.dumps(doc, indent=1), json.dumps(doc, ensure_ascii=False, separators=(",", ":"))]
    texts += [spell(doc, rnd, freedom) for freedom in (0.05, 0.3, 0.9)]
    payloads = [text.encode("utf-8", "surrogatepass") for text in texts]
    try:
        payloads.append(msgspec.json.encode(doc))
    except (UnicodeEncodeError, OverflowError):
        pass  # lone surrogates, integers over 64 bits
    return payloads


@given(st.data(), st.integers(0, 2**32))
def test_matcher_any_document_and_filter_agrees_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """Documents, near-matching filters, every encoder and spelling: the answer of the oracle."""
    doc = data.draw(DOCUMENTS)
    form = data.draw(filters(doc))
    matcher = Filter.from_json(form).compile()
    for raw in encodings(doc, seed):
        assert matcher(raw) == oracle(raw, form), (raw, form)


@given(st.data(), st.integers(0, 2**32))
def test_matcher_damaged_payloads_agree_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """Bytes changed, lost or put in: what is not JSON matches nothing, the rest as decoded."""
    doc = data.draw(DOCUMENTS)
    form = data.draw(filters(doc))
    matcher = Filter.from_json(form).compile()
    rnd = random.Random(seed)
    for raw in encodings(doc, seed):
        damaged = bytearray(raw)
        for _ in range(rnd.choice([1, 1, 2])):
            at = rnd.randrange(len(damaged) + 1)
            damaged[at : at + rnd.choice([0, 1, 1])] = rnd.choice(
                [b"", b'"', b"\\", b"\xff", b"\xed\xa0\x80", b"0", b"e", b".", b",", b"\x00", b"{", b"]", b"\\ud800", b"-"]
            )
        assert matcher(bytes(damaged)) == oracle(bytes(damaged), form), (damaged, form)


@given(st.data(), st.integers(0, 2**32))
def test_matcher_long_mixed_stream_agrees_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """One matcher over runs of matching, missing and broken payloads: adapting changes no answer."""
    docs = data.draw(st.lists(DOCUMENTS, min_size=1, max_size=4))
    form = data.draw(filters(docs[0]))
    rnd = random.Random(seed)
    payloads = [raw for doc in docs for raw in encodings(doc, seed)] + [b"", b"{", b'{"a":\xff}']
    expected = {raw: oracle(raw, form) for raw in payloads}
    matcher = Filter.from_json(form).compile()
    for _ in range(12):
        raw = rnd.choice(payloads)
        for _ in range(rnd.choice([1, 20])):
            assert matcher(raw) == expected[raw], (raw, form)


@given(st.data(), st.binary(max_size=40))
def test_matcher_arbitrary_bytes_never_raises_and_counts(data: st.DataObject, raw: bytes) -> None:
    """Any bytes: no exception; a negated filter, which has to look, counts what is not JSON."""
    form = {"$not": data.draw(filters({"a": "b"}))}
    matcher = Filter.from_json(form).compile()
    assert matcher(raw) == oracle(raw, form)
    assert matcher.undecodable == (not oracle(raw, {"$not": {"$and": []}}))


@given(st.data())
def test_to_json_any_filter_round_trips_to_an_equal_filter(data: st.DataObject) -> None:
    """Text and meaning survive; equal filters have equal hashes."""
    doc = data.draw(DOCUMENTS)
    built = Filter.from_json(data.draw(filters(doc)))
    again = Filter.from_json(built.to_json())
    assert again == built
    assert hash(again) == hash(built)
    assert again.to_json() == built.to_json()
    assert built.to_json().isascii()


@given(st.data(), st.integers(0, 2**32))
def test_equality_of_filters_implies_the_same_answers(data: st.DataObject, seed: int) -> None:
    """Filters that compare equal match the same payloads."""
    doc = data.draw(DOCUMENTS)
    forms = [data.draw(filters(doc)) for _ in range(3)]
    forms += [{"$and": forms[:2]}, {"$and": forms[1::-1]}, {"$not": {"$not": forms[0]}}, {"$or": [forms[0], forms[0]]}]
    built = [Filter.from_json(form) for form in forms]
    assert built[3] == built[4]
    assert built[0] == built[5] == built[6]
    raw = encodings(doc, seed)[3]
    for one in built:
        for other in built:
            if one == other:
                assert hash(one) == hash(other)
                assert one.matches(raw) == other.matches(raw)


@given(st.data())
@settings(max_examples=50)
def test_operators_agree_with_the_json_form(data: st.DataObject) -> None:
    """`&`, `|` and `~` build what `$and`, `$or` and `$not` say, also in chains with empty groups."""
    doc = data.draw(DOCUMENTS)
    a, b, c = (data.draw(filters(doc)) for _ in range(3))
    x, y, z = map(Filter.from_json, (a, b, c))
    raw = encodings(doc, 0)[0]
    for built, form in [
        (x & y & z, {"$and": [{"$and": [a, b]}, c]}),
        (x & (y & z), {"$and": [a, {"$and": [b, c]}]}),
        (x | y | z, {"$or": [a, b, c]}),
        (~(x | y) & z, {"$and": [{"$not": {"$or": [a, b]}}, c]}),
    ]:
        assert built == Filter.from_json(form)
        assert built.matches(raw) == oracle(raw, form)
