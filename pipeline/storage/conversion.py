"""JSON values and CSV fields as Arrow columns; what does not fit is told by position, never coerced."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

NOT_CONVERTIBLE = (pa.ArrowException, ValueError, TypeError, OverflowError)
"""What Arrow raises for a value that is not of the type asked for."""

KINDS: dict[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}
"""What orjson gives, in JSON's own words."""


def json_column(values: list[Any], expected: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Return N JSON values as a column, and by position what was found in place of `expected`.

    Values that do not fit become null. Stricter than Arrow, which takes 1.0 for an integer, an integer for a
    time and a string for a list, and drops the keys of an object that the expected struct has not.
    """
    if _all_fit(values, expected):
        try:
            return pa.array(values, expected), {}
        except NOT_CONVERTIBLE:
            pass
    wrong = {position: found for position, value in enumerate(values) if (found := _misfit(value, expected))}
    fitting = [None if position in wrong else value for position, value in enumerate(values)]
    return pa.array(fitting, expected), wrong


def csv_column(values: list[str | None], expected: pa.DataType) -> tuple[pa.Array, dict[int, str]]:
    """Return N CSV fields as a column, and by position what was found in place of `expected`.

    Fields are parsed as Arrow casts strings. An empty field of any type but string is null.
    """
    strings = pa.array(values, pa.string())
    if pa.types.is_string(expected):
        return strings, {}
    fields = [value or None for value in values]
    try:
        return pa.array(fields, pa.string()).cast(expected), {}
    except NOT_CONVERTIBLE:
        wrong = {position: "another string" for position, value in enumerate(fields) if not _parses(value, expected)}
    fitting = [None if position in wrong else value for position, value in enumerate(fields)]
    return pa.array(fitting, pa.string()).cast(expected), wrong


def json_type(values: Sequence[Any]) -> pa.DataType:
    """Return the Arrow type of JSON values: the kind that most of them have; string where all are null.

    Raises:
        ValueError: arrays or objects hold values of several types, or all objects are empty.
    """
    counts = Counter(_kind(value) for value in values if value is not None)
    if not counts:
        return pa.string()
    kind = counts.most_common(1)[0][0]
    chosen = [value for value in values if value is not None and _kind(value) == kind]
    if kind == "number":
        return pa.float64() if any(type(value) is float for value in chosen) else pa.int64()
    try:
        found = _without_null_type(pa.array(chosen).type)
    except NOT_CONVERTIBLE:
        raise ValueError(f"{kind}s of several types") from None
    if _has_empty_struct(found):
        raise ValueError("objects without a key, which Parquet cannot store")
    return found


def _kind(value: Any) -> str:
    kind = KINDS[type(value)]
    return "number" if kind == "integer" else kind


def _without_null_type(found: pa.DataType) -> pa.DataType:
    """Return the type with string in place of null, which later rows could not fill."""
    if pa.types.is_null(found):
        return pa.string()
    if pa.types.is_list(found):
        return pa.list_(_without_null_type(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([(child.name, _without_null_type(child.type)) for child in found])
    return found


def _has_empty_struct(found: pa.DataType) -> bool:
    if pa.types.is_struct(found) and found.num_fields == 0:
        return True
    return any(_has_empty_struct(found.field(child).type) for child in range(found.num_fields))


def _all_fit(values: list[Any], expected: pa.DataType) -> bool:
    if pa.types.is_nested(expected):
        return all(_fits(value, expected) for value in values)
    return set(map(type, values)) <= _python_types(expected) | {type(None)}


def _fits(value: Any, expected: pa.DataType) -> bool:
    if value is None:
        return True
    if pa.types.is_struct(expected):
        types = {child.name: child.type for child in expected}
        return isinstance(value, dict) and all(
            key in types and _fits(inner, types[key]) for key, inner in value.items()
        )
    if _is_list(expected):
        return isinstance(value, list) and all(_fits(inner, expected.value_type) for inner in value)
    return type(value) in _python_types(expected)


def _is_list(found: pa.DataType) -> bool:
    is_variable = pa.types.is_list(found) or pa.types.is_large_list(found)
    return bool(is_variable or pa.types.is_fixed_size_list(found))


def _python_types(expected: pa.DataType) -> set[type]:
    """Return the Python types of JSON values that mean this type; none for types that JSON has not."""
    if pa.types.is_dictionary(expected):
        return _python_types(expected.value_type)
    if pa.types.is_boolean(expected):
        return {bool}
    if pa.types.is_integer(expected):
        return {int}
    if pa.types.is_floating(expected):
        return {int, float}
    is_string = pa.types.is_string(expected) or pa.types.is_large_string(expected)
    return {str} if is_string or pa.types.is_string_view(expected) else set()


def _misfit(value: Any, expected: pa.DataType) -> str | None:
    """Return what is found in place of the expected type, or None where the value fits."""
    kind = KINDS.get(type(value), "value")
    if not _fits(value, expected):
        same_kind = pa.types.is_nested(expected) and isinstance(value, list | dict)
        return f"{kind} of another shape" if same_kind else kind
    try:
        pa.array([value], expected)
        return None
    except NOT_CONVERTIBLE:
        return f"{kind} beyond its range"


def _parses(value: str | None, expected: pa.DataType) -> bool:
    try:
        pa.array([value], pa.string()).cast(expected)
        return True
    except NOT_CONVERTIBLE:
        return False
