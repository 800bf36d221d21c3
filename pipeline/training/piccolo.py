"""From the three record types of piccolo-embedding to the columns of our training sets."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import SourceError

KIND_OF = {"retri_contrast": "retrieval", "cls_contrast": "class", "cosent": "pair"}
"""Source: data.py of hjq133/piccolo-embedding at 9dd1d66."""


def converted(records: Sequence[Mapping[str, Any]], type: str) -> tuple[str, pa.Table]:
    """Return the kind of set that records of one type are, and their table.

    Args:
        records: as that project's JSON lines hold them.
        type: retri_contrast (text, text_pos: a text or several, text_neg) | cls_contrast (text, text_pos: the name of
            the label) | cosent (text, text_pair, label).

    Raises:
        SourceError: an unknown type, or a record without one of its fields.
    """
    if type not in KIND_OF:
        raise SourceError(f"records of type {type} are unknown; expected {', '.join(KIND_OF)}")
    table = pa.Table.from_pylist([dict(record) for record in records])
    wanted = {"retrieval": ["text", "text_pos", "text_neg"], "class": ["text", "text_pos"]}
    columns = wanted.get(KIND_OF[type], ["text", "text_pair", "label"])
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise SourceError(f"records of type {type} hold {', '.join(columns)}; missing: {', '.join(missing)}")
    if KIND_OF[type] == "retrieval":
        lists = [_listed(table[column]) for column in columns[1:]]
        return "retrieval", pa.table([table["text"], *lists], names=["query", "positives", "negatives"])
    if KIND_OF[type] == "class":
        return "class", table.select(columns).rename_columns(["text", "label"])
    return "pair", table.select(columns).rename_columns(["text_a", "text_b", "score"])


def _listed(texts: pa.ChunkedArray) -> pa.Array:
    """Return a column of lists; a text alone is a list of one."""
    column = texts.combine_chunks()
    if pa.types.is_list(column.type):
        return column
    return pa.ListArray.from_arrays(pa.array(range(len(column) + 1), pa.int32()), column)
