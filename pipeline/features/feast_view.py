"""The Feast definition of a feature table: an entity per key, one source, one view."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

TEMPLATE = '''"""Feast definition of {name}, written with the table; copy it into a feature repository."""

{imports}from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource
from feast.types import {types}
from feast.value_type import ValueType

{entities}

source = FileSource(
    name="{name}_source",
    path={folder},
    timestamp_field="event_timestamp",
    created_timestamp_column="created_timestamp",{endpoint}
)

{name} = FeatureView(
    name="{name}",
    entities=[{entity_names}],
    ttl={ttl},
    schema=[
{fields}
    ],
    source=source,
    tags={tags},
)
'''


def feature_view(
    name: str, folder: str, schema: pa.Schema, keys: Sequence[str], ttl_days: float | None, tags: Mapping[str, str]
) -> str:
    """Return a Python file for a Feast repository.

    Args:
        name: of the view, a Python identifier.
        folder: URI of the table's folder.
        schema: of the table.
        keys: the columns that name an entity.
        ttl_days: None = a feature never grows too old.
        tags: what the table says of itself.
    """
    columns = [field for field in schema if field.name not in ("event_timestamp", "created_timestamp")]
    feast_types = {field.name: feast_type(field.type) for field in columns}
    is_remote = folder.startswith("s3://")
    return TEMPLATE.format(
        name=name,
        folder=repr(folder),
        imports="import os\n" if is_remote else "",
        types=", ".join(sorted({word for text in feast_types.values() for word in text.strip(")").split("(")})),
        entities="\n".join(
            f"entity_{number} = Entity(name={key!r}, join_keys=[{key!r}], value_type={_value_type(schema, key)})"
            for number, key in enumerate(keys)
        ),
        entity_names=", ".join(f"entity_{number}" for number in range(len(keys))),
        ttl=f"timedelta(days={ttl_days!r})" if ttl_days is not None else "timedelta(0)",
        endpoint='\n    s3_endpoint_override=os.environ.get("AWS_ENDPOINT_URL", ""),' if is_remote else "",
        fields="\n".join(f"        Field(name={column!r}, dtype={type})," for column, type in feast_types.items()),
        tags=repr(dict(tags)),
    )


def feast_type(type: pa.DataType) -> str:
    """Return how Feast names an Arrow type."""
    if pa.types.is_fixed_size_list(type):
        return "Array(Float32)" if pa.types.is_floating(type.value_type) else "Array(Int32)"
    if pa.types.is_fixed_size_binary(type):
        return "Bytes"
    if pa.types.is_floating(type):
        return "Float32"
    if pa.types.is_integer(type):
        return "Int64" if type.bit_width == 64 else "Int32"
    return "String"


def _value_type(schema: pa.Schema, key: str) -> str:
    return f"ValueType.{feast_type(schema.field(key).type).upper()}"
