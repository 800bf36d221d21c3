"""Figures as people read them: lines of one benchmark as a table, a single line as a list."""

import itertools
from collections.abc import Iterable, Iterator

from rich.console import Console
from rich.table import Table

Line = dict[str, object]

HEADERS = {
    "tokens_per_second": "tokens/s",
    "texts_per_second": "texts/s",
    "rows_per_second": "rows/s",
    "to_encode_float32": "× encode f32",
    "to_encode_same_precision": "× encode same",
    "of_gemm_ceiling": "of GEMM",
    "python_of_the_model": "Python of the model",
    "others_cores": "others",
    "ours_in_bfloat16_is": "ours bf16 is ×",
    "ours_in_same_precision_is": "ours same is ×",
    "start_seconds": "start s",
    "wall_seconds": "wall s",
    "compared_rows": "compared",
    "gigaflops_per_second": "GFLOP/s",
}
"""What stands over a column where its name in the JSON is too long."""


def shown(lines: Iterable[Line], console: Console) -> Iterator[Line]:
    """Print the lines of each benchmark when its last one is known, and pass them on."""
    for benchmark, group in itertools.groupby(lines, key=lambda line: line["benchmark"]):
        kept = list(group)
        console.print(f"\n[bold]{benchmark}[/bold]", highlight=False)
        if len(kept) == 1:
            for name, value in kept[0].items():
                if name != "benchmark":
                    console.print(f"  {name.replace('_', ' '):<32} {_cell(value)}", highlight=False, markup=False)
        else:
            console.print(_table(kept))
        yield from kept


def _table(lines: list[Line]) -> Table:
    names = list(dict.fromkeys(name for line in lines for name in line if name not in ("benchmark", "failed")))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in names:
        is_number = any(isinstance(line.get(name), int | float) for line in lines)
        heading = HEADERS.get(name, name.replace("_", " "))
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=is_number)
    for line in lines:
        table.add_row(*(_cell(line.get(name)) for name in names))
        if "failed" in line:
            table.add_row(f"  failed: {line['failed']}", style="red")
    return table


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.7g}"
        case list():
            return ", ".join(map(_cell, value))
    return str(value)
