"""Function calls (BFCL): the paper's plain equality and our equality by declared type, as plain functions."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from posttrainbench.evaluation.tool_calls import ParsedCall

Schema = Mapping[str, Any]

# BFCL's type words -> JSON schema's (reference.md 1.5)
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


def parse_ground_truth(source: str) -> ParsedCall:
    """A call as Python text, `name(key=literal, ...)`, as data. Nothing is executed; tuples become lists.

    Raises:
        ValueError: it is anything else.
    """
    node = ast.parse(source.strip(), mode="eval").body
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError(f"not a plain call with keywords: {source[:80]}")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError(f"** in a call: {source[:80]}")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return ParsedCall(node.func.id, json.loads(json.dumps(arguments)))


def to_json_schema(schema: Schema, *, top: bool = True) -> dict[str, Any]:
    """BFCL's parameter description as JSON schema; `additionalProperties: false` on the top level only."""
    converted: dict[str, Any] = dict(schema)
    if "type" in converted:
        converted["type"] = _TYPES.get(str(converted["type"]), converted["type"])
    if isinstance(schema.get("properties"), Mapping):
        converted["properties"] = {
            name: to_json_schema(value, top=False) for name, value in schema["properties"].items()
        }
    if isinstance(schema.get("items"), Mapping):
        converted["items"] = to_json_schema(schema["items"], top=False)
    if top:
        converted["additionalProperties"] = False
    return converted


def paper_call(calls: Sequence[ParsedCall], target: ParsedCall) -> bool:
    """The published scoring: one call, equal name, equal arguments by Python's `==`, so that 1, 1.0 and true are equal."""
    return len(calls) == 1 and calls[0].name == target.name and bool(calls[0].arguments == target.arguments)


def strict_call(calls: Sequence[ParsedCall], target: ParsedCall, parameters: Schema) -> bool:
    """One call, equal name, the same argument names, and each value equal *by the type that the function declares*.

    integer: an integer (`5.0` and `true` are not). number: an integer or a float of equal value, never a boolean.
    string, boolean: that type and equal. array: element by element, in order. object: key by key. Where nothing is
    declared, both must be of the same JSON type and equal.
    """
    if len(calls) != 1 or calls[0].name != target.name:
        return False
    arguments = calls[0].arguments
    if not isinstance(arguments, dict) or arguments.keys() != target.arguments.keys():
        return False
    properties = parameters.get("properties") or {}
    return all(same_value(arguments[name], target.arguments[name], properties.get(name) or {}) for name in arguments)


def same_value(value: Any, wanted: Any, schema: Schema) -> bool:
    """Equality of two JSON values under a (BFCL or JSON) schema; see `strict_call`."""
    declared = _TYPES.get(str(schema.get("type")), schema.get("type"))
    if isinstance(wanted, bool) or isinstance(value, bool):
        return isinstance(wanted, bool) and isinstance(value, bool) and value == wanted
    if isinstance(wanted, int | float):
        if not isinstance(value, int | float) or (declared == "integer" and not isinstance(value, int)):
            return False
        return value == wanted if declared in ("number", "integer") else type(value) is type(wanted) and value == wanted
    if isinstance(wanted, list):
        items = schema.get("items") or {}
        return (
            isinstance(value, list)
            and len(value) == len(wanted)
            and all(same_value(one, other, items) for one, other in zip(value, wanted, strict=True))
        )
    if isinstance(wanted, dict):
        properties = schema.get("properties") or {}
        return (
            isinstance(value, dict)
            and value.keys() == wanted.keys()
            and all(same_value(value[key], wanted[key], properties.get(key) or {}) for key in wanted)
        )
    return type(value) is type(wanted) and bool(value == wanted)
