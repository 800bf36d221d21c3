"""Which Arrow types can safely become which others, and text of any layout as UTF-8."""

import pyarrow as pa
from pyarrow import types

LISTS = ((types.is_list, pa.list_), (types.is_large_list, pa.large_list))
"""The lists that Arrow can cast to lists of another type of value, and what makes their types."""


def is_string_kind(found: pa.DataType) -> bool:
    """Whether it is a string of any layout, dictionaries of strings included."""
    found = _plain(found)
    return bool(types.is_string(found) or types.is_large_string(found) or types.is_string_view(found))


def is_text_kind(found: pa.DataType) -> bool:
    """Whether it is a string of any layout, or binary, in which older writers store strings."""
    found = _plain(found)
    is_binary = types.is_binary(found) or types.is_large_binary(found) or types.is_binary_view(found)
    return bool(is_binary or is_string_kind(found))


def same_kind(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether a checked cast keeps every value or fails.

    Arrow would also parse strings to numbers, count booleans, round floats, cut times to dates, take naive
    times for UTC, and drop the fields of a struct that are not expected.
    """
    found, expected = _plain(found), _plain(expected)
    if types.is_null(found) or found == expected or (is_text_kind(found) and is_text_kind(expected)):
        return True
    if types.is_floating(found) and types.is_floating(expected):
        return bool(found.bit_width <= expected.bit_width)
    if types.is_integer(found) or types.is_integer(expected):
        return _is_number(found) and _is_number(expected)
    if types.is_timestamp(found) and types.is_timestamp(expected):
        return (found.tz is None) == (expected.tz is None)
    if found.num_fields == 0:
        return bool(found.id == expected.id)
    return _same_children(found, expected)


def lasting(found: pa.DataType) -> pa.DataType:
    """Return the type in which a Part holds values of another: one that is the same after it was stored and read.

    Views of strings become strings, for which Arrow has every kernel; the fields of a map take the names that an Arrow
    schema has room for.
    """
    if types.is_string_view(found):
        return pa.string()
    if types.is_binary_view(found):
        return pa.binary()
    if types.is_map(found):
        return pa.map_(lasting(found.key_type), lasting(found.item_type), found.keys_sorted)
    if types.is_struct(found):
        return pa.struct([child.with_type(lasting(child.type)) for child in found])
    for is_kind, of_values in LISTS:
        if is_kind(found) and lasting(found.value_type) != found.value_type:
            return of_values(found.value_field.with_type(lasting(found.value_type)))
    return found


def as_utf8(array: pa.Array) -> pa.Array:
    """Return a column of text as `string` without a look at its bytes; check them with `invalid_utf8`."""
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_string(array.type) or types.is_null(array.type):
        return array.cast(pa.string())
    # By way of binary: a cast to string would refuse the whole batch for one row that is no UTF-8.
    return array.cast(pa.binary()).view(pa.string())


def invalid_utf8(array: pa.Array) -> list[int]:
    """Return the positions whose bytes are no UTF-8; fast where there are none.

    Args:
        array: text of any layout.
    """
    try:
        array.validate(full=True)
        return []
    except pa.ArrowInvalid:
        values = as_utf8(array).view(pa.binary()).to_pylist()
        return [position for position, value in enumerate(values) if value is not None and not is_utf8(value)]


def is_utf8(value: bytes) -> bool:
    """Whether the bytes decode; encoded surrogates do not."""
    try:
        value.decode()
        return True
    except UnicodeDecodeError:
        return False


def _plain(found: pa.DataType) -> pa.DataType:
    return found.value_type if types.is_dictionary(found) else found


def _is_number(found: pa.DataType) -> bool:
    return bool(types.is_integer(found) or types.is_floating(found) or types.is_decimal(found))


def _same_children(found: pa.DataType, expected: pa.DataType) -> bool:
    """Whether two structs have the same fields, or two lists, each of the same kind."""
    if found.id != expected.id or found.num_fields != expected.num_fields:
        return False
    pairs = [(found.field(child), expected.field(child)) for child in range(found.num_fields)]
    is_named = types.is_struct(found)
    return all(same_kind(a.type, b.type) and (a.name == b.name or not is_named) for a, b in pairs)
