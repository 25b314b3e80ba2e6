# SPDX-License-Identifier: Apache-2.0
"""Checks answers against the pinned description of the Engine API (Swagger 2.0, the parts it uses)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

SPEC = Path(__file__).parents[2] / "spec" / "docker-engine-api-v1.51.yaml"

DEVIATIONS = frozenset(
    {
        "HostConfig.MemorySwappiness: null",  # dockerd writes these two as null as well: Go pointers
        "HostConfig.OomKillDisable: null",
        "$.ExitCode: null",  # of an exec that has not ended; dockerd too
        "$.ContainerConfig: not in the description",  # of an image, for docker-compose 1.29
        # proa's own choice of hull
        "$.Isolation: 'container' is none of ['default', 'hyperv', 'process', '']",
    }
)

Schema = dict[str, Any]  # Any: a document of the specification


@cache
def description() -> Schema:
    """Return the description."""
    with SPEC.open() as file:
        loaded: Schema = yaml.load(file, yaml.CSafeLoader)
        return loaded


def operations() -> Iterator[tuple[str, str, Schema]]:
    """Yield (method, path, operation)."""
    for path, methods in description()["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "head", "post", "put", "delete"):
                yield method.upper(), path, operation


def find_operation(method: str, path: str) -> Schema:
    """Return the operation that a request is for. A fixed segment goes before a name."""
    best: tuple[int, Schema] | None = None
    for candidate_method, pattern, operation in operations():
        regex = re.sub(r"\\{name\\}", ".+", re.escape(pattern))
        regex = re.sub(r"\\{\w+\\}", "[^/]+", regex)
        names = pattern.count("{")
        if candidate_method == method and re.fullmatch(regex, path) and (best is None or names < best[0]):
            best = names, operation
    assert best is not None, f"{method} {path} is not in the description"
    return best[1]


def check_answer(method: str, path: str, status: int, body: Any) -> list[str]:
    """Return what is wrong with the JSON of an answer; [] when nothing is."""
    responses = find_operation(method, path)["responses"]
    response = responses.get(status) or responses.get(str(status))
    if response is None:
        return [f"status {status} is not in the description"]
    schema = response.get("schema")
    if schema is None:
        return []
    found = problems(schema, body, "$")
    return [one for one in found if not any(one.endswith(known) for known in DEVIATIONS)]


def problems(schema: Schema, value: Any, where: str) -> Iterator[str]:
    """Yield every deviation: wrong types, missing required keys, keys the description does not know."""
    schema = resolve(schema)
    if value is None:
        if schema.get("type") in ("string", "integer", "number", "boolean") and not schema.get("x-nullable"):
            yield f"{where}: null"
        return  # Go writes empty lists, maps and structures as null; the description does not always say so
    kind = schema.get("type") or ("object" if "properties" in schema else None)
    if kind == "object":
        yield from _object_problems(schema, value, where)
    elif kind == "array":
        if not isinstance(value, list):
            yield f"{where}: not a list"
            return
        for index, item in enumerate(value):
            yield from problems(schema.get("items", {}), item, f"{where}[{index}]")
    elif kind in _TYPES and (not isinstance(value, _TYPES[kind]) or (kind != "boolean" and value is True)):
        yield f"{where}: {value!r} is not of type {kind}"
    elif "enum" in schema and value not in [*schema["enum"], ""]:
        yield f"{where}: {value!r} is none of {schema['enum']}"


_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": (int, float), "boolean": bool}


def _object_problems(schema: Schema, value: Any, where: str) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{where}: not an object"
        return
    properties = schema.get("properties", {})
    extra = schema.get("additionalProperties")
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}.{name}: missing"
    for name, member in value.items():
        if name in properties:
            yield from problems(properties[name], member, f"{where}.{name}")
        elif isinstance(extra, dict):
            yield from problems(extra, member, f"{where}.{name}")
        elif properties and extra is None:
            yield f"{where}.{name}: not in the description"


def resolve(schema: Schema) -> Schema:
    """Follow references and merge what ``allOf`` joins."""
    if reference := schema.get("$ref"):
        target = description()["definitions"][reference.removeprefix("#/definitions/")]
        return resolve({**target, **({"x-nullable": True} if schema.get("x-nullable") else {})})
    if "allOf" not in schema:
        return schema
    merged: Schema = {"type": "object", "properties": {}, "required": []}
    for part in map(resolve, schema["allOf"]):
        merged["properties"] |= part.get("properties", {})
        merged["required"] = [*merged["required"], *part.get("required", ())]
        if "additionalProperties" in part:
            merged["additionalProperties"] = part["additionalProperties"]
        if part.get("type", "object") != "object":
            return {**part, **{key: value for key, value in schema.items() if key != "allOf"}}
    merged["properties"] |= schema.get("properties", {})
    return merged
