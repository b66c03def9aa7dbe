"""From a filter's JSON form to its tree."""

from __future__ import annotations

from typing import Any, Literal, cast

from net_filter_jsonpath.decoding import loads_exact
from net_filter_jsonpath.nodes import Node, condition, group, negation
from net_filter_jsonpath.values import MAX_LEVELS, MAX_TEXT_BYTES, excerpt
from netcore import FilterError

__all__ = ["parse"]

_SHAPES = 'one of {"path", "value"}, {"$eq"}, {"$and"}, {"$or"}, {"$not"}'


def parse(data: object) -> Node:
    """Build the tree from text, UTF-8 bytes or a dict.

    Raises:
        FilterError: malformed; the message shows the offending part and where it is.
    """
    if isinstance(data, bytes | bytearray | memoryview):
        data = _decode_utf8(bytes(data))
    elif isinstance(data, str):
        _check_size(len(data) if data.isascii() else len(data.encode("utf-8", "surrogatepass")), data)
    if isinstance(data, str):
        try:
            data = loads_exact(data, pairs=_object)
        except RecursionError:
            raise FilterError(f"filter text is nested over {MAX_LEVELS} levels: {excerpt(data)}") from None
        except FilterError:
            raise
        except ValueError as error:
            raise FilterError(f"filter text is not JSON ({error}): {excerpt(data)}") from error
    return _node(data, "the filter", MAX_LEVELS)


def _decode_utf8(data: bytes) -> str:
    _check_size(len(data), data)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FilterError(f"filter text is not UTF-8 ({error.reason}): {excerpt(data)}") from error


def _check_size(size: int, data: object) -> None:
    if size > MAX_TEXT_BYTES:
        raise FilterError(f"filter text is {size:,} bytes, at most {MAX_TEXT_BYTES:,}: {excerpt(data)}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FilterError(f"key {excerpt(twice)} stands twice in one object of the filter: {excerpt(names)}")
    return result


def _node(data: object, where: str, room: int) -> Node:
    if room == 0:
        raise FilterError(f"nested over {MAX_LEVELS} levels at {where[:80]}: {excerpt(data)}")
    if not isinstance(data, dict):
        raise FilterError(f"{where} must be an object ({_SHAPES}), not {excerpt(data)}")
    if data.keys() == {"path", "value"}:
        return condition(data["path"], data["value"], where)
    if data.keys() in ({"path"}, {"value"}):
        raise FilterError(f'{where} must hold both "path" and "value", not {excerpt(data)}')
    if len(data) != 1:
        raise FilterError(f"{where} must be exactly {_SHAPES}, not keys {excerpt(list(data))}")
    [(operator, operand)] = data.items()
    inner = f"{where}.{operator}"
    if operator == "$eq":
        if not isinstance(operand, dict) or operand.keys() != {"path", "value"}:
            raise FilterError(f'{inner} must be {{"path": ..., "value": ...}}, not {excerpt(operand)}')
        return condition(operand["path"], operand["value"], inner)
    if operator == "$not":
        return negation(_node(operand, inner, room - 1), where)
    if operator in ("$and", "$or"):
        if not isinstance(operand, list | tuple):
            raise FilterError(f"{inner} must be an array of filters, not {excerpt(operand)}")
        items = tuple(_node(item, f"{inner}[{i}]", room - 1) for i, item in enumerate(operand))
        return group(cast(Literal["$and", "$or"], operator), items, where)
    raise FilterError(f"{where} has unknown operator {excerpt(operator)}: expected {_SHAPES}")
