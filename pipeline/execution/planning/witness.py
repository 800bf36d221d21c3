"""Which columns of which types a source has, on the word of a few of its files."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline import schemas
from pipeline.config import Source
from pipeline.errors import ConfigError
from pipeline.records import FileFormat, Reason, SourceFile
from pipeline.storage.filesystem import open_source
from pipeline.storage.readers import BadFile, read_source_schema

KINDS: tuple[FileFormat, ...] = ("parquet", "jsonl", "csv", "text")
"""Formats by how much they say of types; a file is asked only where none of a more telling kind has an answer."""

FEW, MANY = 3, 32
"""Files that are asked first, and files asked where those are not of one mind."""


@dataclass(slots=True)
class _Asked:
    """What the files of one kind have said."""

    schemas: list[pa.Schema]
    faults: list[BadFile]


def document_schema_of(files: Sequence[SourceFile], source: Source, standing: pa.Schema | None) -> pa.Schema:
    """Return the schema that all files are read with; a file that deviates from it goes to quarantine.

    The first, the middle and the last file are asked. Where they disagree or are broken, more are, and most of them
    decide: one file that drifted or was damaged must not make all others wrong.

    Args:
        files: at least one, sorted by URI.
        source: names the columns.
        standing: the schema of the snapshot before, if it has the same columns. It is kept as long as any file that
            was asked agrees with it, and taken without asking where no file is Parquet, the only format with types.

    Raises:
        ConfigError: every file that was asked lacks a column that the config names.
        BadFile: no file that was asked can be used; tells what is wrong with the first.
        SourceError: the store does not give a file.
    """
    faults: list[BadFile] = []
    for kind in KINDS:
        of_kind = [file for file in files if file.format == kind and _says_something(file)]
        if of_kind and kind != "parquet" and standing is not None:
            return standing
        asked = _ask(of_kind, source)
        faults += asked.faults
        if asked.schemas:
            return standing if standing in asked.schemas else _most_common(asked.schemas)
    if faults and all(fault.reason is Reason.MISSING_COLUMN for fault in faults):
        raise ConfigError(f"{faults[0]}; see source.id_column, text_column and keep_columns")
    if faults:
        raise faults[0]
    kept = [pa.field(name, pa.string()) for name in source.keep_columns]
    return standing or schemas.document_schema(pa.string(), kept)


def _says_something(file: SourceFile) -> bool:
    return file.size_bytes > 0 or file.format in ("parquet", "text")


def _ask(files: Sequence[SourceFile], source: Source) -> _Asked:
    """Ask a few files, and more of them where their answers differ."""
    asked = _Asked([], [])
    done: set[str] = set()
    for count in (FEW, MANY):
        for file in _spread(files, count):
            if file.uri not in done:
                done.add(file.uri)
                _ask_one(file, source, asked)
        if asked.schemas and not asked.faults and len(set(map(str, asked.schemas))) == 1:
            break
    return asked


def _ask_one(file: SourceFile, source: Source, asked: _Asked) -> None:
    try:
        found = read_source_schema(file, source.id_column, source.text_column, source.keep_columns, open_source)
    except BadFile as fault:
        asked.faults.append(fault)
    else:
        if found is not None:
            asked.schemas.append(found)


def _spread(files: Sequence[SourceFile], count: int) -> Sequence[SourceFile]:
    """Return up to `count` files, the first and the last among them, evenly spread over the list."""
    if len(files) <= count:
        return files
    return [files[i * (len(files) - 1) // (count - 1)] for i in range(count)]


def _most_common(found: Sequence[pa.Schema]) -> pa.Schema:
    """Return the schema that most files have; of equals, the one that came first."""
    counts = Counter(map(str, found))
    return max(found, key=lambda schema: counts[str(schema)])
