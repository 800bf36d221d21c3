"""The parts of the README files that come from the code; `python -m tests.readme` writes them anew."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.config import JobConfig
from pipeline.config_file import sections

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CONFIG_README = ROOT / "configs" / "README.md"
CODE_README = ROOT / "pipeline" / "README.md"
FOLDERS = ("configs", "docker", "jobs", "pipeline", "tests")
LEAST: dict[str, Any] = {"source": {"uri": "in"}, "recipe": {"model": "hashing://8"}, "output": {"uri": "out"}}
LEAST_OF_OPTIONAL: dict[str, Any] = {
    "features": {"uri": "table"},
    "training": {"uri": "model", "sets": [{"uri": "examples", "kind": "class"}]},
    "evaluation": {"uri": "evaluation"},
    "gate": {"canary": "canary.parquet"},
}

BESIDE: dict[str, tuple[dict[str, str], ...]] = {
    "recipe": ({"model": "org/name"},),
    "features": ({"stored": "int8"}, {"stored": "binary"}),
}
"""By section: values that some values of other keys need beside them."""


def config_table() -> str:
    """Return one table row per config field: key, default, what the models say of it."""
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for section, model in sections().items():
        for key, field in model.model_fields.items():
            choices = " · ".join(f"`{choice}`" for choice in _choices(section, key, field))
            meaning = " ".join(
                filter(None, [f"{choices}:" if choices else "", " ".join((field.description or "").split())])
            )
            rows.append(f"| `{section}.{key}` | {_default(field)} | {meaning} |")
    return "\n".join(rows)


def code_tree() -> str:
    """Return one line per Python file of the product: its name and the first sentence of its docstring."""
    lines = [line for folder in ("pipeline", "jobs") for line in _folder_lines(ROOT / folder, 0)]
    return "\n".join(["```text", *lines, "```"])


def rooms_tree() -> str:
    """Return one line per folder of the product: the first sentence of its package."""
    lines = [line for line in code_tree().splitlines() if line.startswith("```") or line.split()[0].endswith("/")]
    return "\n".join(lines)


GENERATED = {
    README: ("rooms", rooms_tree),
    CONFIG_README: ("config table", config_table),
    CODE_README: ("code tree", code_tree),
}
"""Which part of which file comes from the code, and what makes it."""


def readmes() -> list[Path]:
    """Return every README file of the repository."""
    return [README, *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("README.md"))]


def with_generated_part(path: Path) -> str:
    """Return the file with what stands between `<!-- NAME -->` and `<!-- end of NAME -->` made anew."""
    name, text = GENERATED[path]
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    readme = path.read_text(encoding="utf-8")
    assert len(pattern.findall(readme)) == 1, f"{path.name} must hold {begin} and {end} once"
    whole = f"{begin}\n{text()}\n{end}"
    return pattern.sub(lambda _: whole, readme)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = list(field.default) if isinstance(field.default, tuple) else field.default
    words = {None: "null", True: "true", False: "false"}
    return f"`{words[value] if value is None or isinstance(value, bool) else value}`"


def _choices(section: str, key: str, field: FieldInfo) -> list[str]:
    """Return the values a field can have if they are words, without those that this version refuses."""
    if get_origin(field.annotation) is not Literal:
        return []
    return [value for value in get_args(field.annotation) if _is_accepted(section, key, value)]


def _is_accepted(section: str, key: str, value: str) -> bool:
    """Whether a value is taken, by itself or beside a value of another key that it needs."""
    return any(_is_valid(section, {**beside, key: value}) for beside in ({}, *BESIDE.get(section, ())))


def _is_valid(section: str, fields: dict[str, str]) -> bool:
    values = {name: dict(least) for name, least in LEAST.items()}
    values.setdefault(section, dict(LEAST_OF_OPTIONAL.get(section, {}))).update(fields)
    try:
        JobConfig.model_validate(values)
    except ValidationError:
        return False
    return True


def _folder_lines(folder: Path, depth: int) -> Iterator[str]:
    yield _line(f"{'  ' * depth}{folder.name}/", folder / "__init__.py")
    entries = sorted(path for path in folder.iterdir() if path.name not in ("__init__.py", "__pycache__"))
    for path in entries:
        if path.suffix == ".py":
            yield _line(f"{'  ' * (depth + 1)}{path.name}", path)
    for path in entries:
        if path.is_dir() and (path / "__init__.py").is_file():
            yield from _folder_lines(path, depth + 1)


def _line(name: str, path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    sentence = re.split(r"\n|\. |; ", docstring, maxsplit=1)[0].rstrip(".").replace("`", "")
    return f"{name:<28} {sentence}"


if __name__ == "__main__":
    for generated in GENERATED:
        generated.write_text(with_generated_part(generated), encoding="utf-8")
