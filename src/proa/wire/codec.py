# SPDX-License-Identifier: Apache-2.0
"""JSON to typed messages as Go's decoder would, and back.

Clients are written against a Go server, whose decoder takes ``null`` for a field as "not given", matches
keys without regard to case, and ignores keys it does not know. docker-py relies on the first, people with
curl on the second. Types are checked strictly and the error names the key.

Source: Go, encoding/json, Unmarshal.
"""

from __future__ import annotations

import functools
import types
from typing import TypeVar, Union, get_args, get_origin

import msgspec

T = TypeVar("T")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]

encode = msgspec.json.Encoder(enc_hook=str).encode


def decode(data: bytes | str, kind: type[T]) -> T:
    """Read one JSON document into a message. Raises ValueError: what was expected where."""
    try:
        raw: Json = msgspec.json.decode(data)
        return msgspec.convert(_fit(raw, kind), kind)
    except msgspec.MsgspecError as error:
        raise ValueError(str(error).replace("`", "").replace("$.", "")) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _fit(value: Json, kind: object) -> Json:
    """Return the value with null members dropped and keys in the case of the message's fields."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("cannot unmarshal number into an integer of 64 bits")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    kind = _concrete(kind, list if isinstance(value, list) else dict)
    if isinstance(value, list):
        item_kinds = get_args(kind) or (object,)
        if get_origin(kind) is tuple and Ellipsis not in item_kinds:
            return [_fit(item, item_kind) for item, item_kind in zip(value, item_kinds, strict=False)]
        return [_fit(item, item_kinds[0]) for item in value]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        exact, folded = _fields(kind)
        fitted: dict[str, Json] = {}
        for key, member in value.items():
            name = key if key in exact else folded.get(key.casefold())
            if name is not None and member is not None:
                fitted[name] = _fit(member, exact[name])
        return fitted
    value_kind = (get_args(kind) or (object, object))[1]
    empty_object = isinstance(value_kind, type) and issubclass(value_kind, msgspec.Struct)
    return {
        key: {} if member is None and empty_object else _fit(member, value_kind)
        for key, member in value.items()
    }


def _concrete(kind: object, shape: type) -> object:
    """Choose the member of a union that a JSON array or object can be."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    for member in get_args(kind):
        base = get_origin(member) or member
        if not isinstance(base, type):
            continue
        if issubclass(base, shape) or (shape is dict and issubclass(base, msgspec.Struct)):
            return member
    return object


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> tuple[dict[str, object], dict[str, str]]:
    """Return the types by JSON key, and the JSON keys by their folded form."""
    exact: dict[str, object] = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    return exact, {name.casefold(): name for name in exact}
