"""The floors of the design: imports go down only, rooms do not know each other, heavy packages stay in theirs."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*.py"))

FLOOR = {
    "storage": 2,
    "text": 2,
    "encoder": 2,
    "features": 2,
    "training": 2,
    "execution": 3,
    "export": 3,
    "evaluation": 3,
}
"""Of the folders of pipeline/; its own files are floor 0, except the config (1)."""

FLOOR_1 = ("config", "config_file")

ROOM_OF = {"ray": ("execution",), "torch": ("encoder", "training"), "sentence_transformers": ("encoder", "training")}
"""Only these folders of pipeline/ may import these packages."""


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module a file imports anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """Return `storage`, `text`, … for a module in a room; else the module's own name below pipeline, or `jobs`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipeline" and len(parts) > 1 else parts[0]


def floor_of(module: str) -> int:
    room = room_of(module)
    if module.startswith("jobs"):
        return 4
    return FLOOR.get(room, 1 if room in FLOOR_1 else 0)


def own(module: str) -> bool:
    """Whether this is a module of ours, not a name imported from one."""
    path = ROOT / Path(*module.split("."))
    is_ours = module.split(".")[0] in ("pipeline", "jobs")
    return is_ours and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_go_down_and_rooms_of_one_floor_do_not_know_each_other(path: Path) -> None:
    module = module_of(path)
    if module == "pipeline":  # the front door: offers what lies above it, on first use
        return
    for imported in filter(own, imports_of(path)):
        if imported in ("pipeline", "jobs"):
            continue
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported}, which lies above it"
        if floor_of(imported) == floor_of(module) in (2, 3):
            assert room_of(imported) == room_of(module), f"{module} imports {imported}, another room of its floor"
        if floor_of(module) == 2:
            assert floor_of(imported) != 1, f"{module} imports {imported}; config objects stop at floor 3"


@pytest.mark.parametrize("package", ROOM_OF)
def test_heavy_packages_are_imported_in_their_own_room_only(package: str) -> None:
    importers = {module_of(path) for path in FILES if any(i.split(".")[0] == package for i in imports_of(path))}
    strangers = {
        module
        for module in importers
        if room_of(module) not in ROOM_OF[package] and module != "jobs.demo.convert_model"  # a program of its own
    }
    assert strangers == set()


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_module_opens_with_one_sentence(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, f"{path} has no docstring"
    assert docstring.split("\n\n")[0].rstrip().endswith((".", "?")), docstring


def loaded_after(program: str, *arguments: str) -> set[str]:
    """Run a program in a fresh interpreter and return the top-level packages it has loaded at its end."""
    probe = f"import sys, atexit\natexit.register(lambda: print('\\n' + ' '.join(sys.modules)))\n{program}"
    command = [sys.executable, "-c", probe, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    return {name.split(".")[0] for name in child.stdout.splitlines()[-1].split()}


HEAVY = {"ray", "torch", "pyarrow", "numpy", "pydantic", "yaml", "fsspec", "transformers", "sentence_transformers"}


def test_help_imports_nothing_heavy() -> None:
    program = "import runpy; sys.argv = ['jobs', '--help']; runpy.run_module('jobs', run_name='__main__')"
    assert loaded_after(program) & HEAVY == set()


def test_a_config_is_checked_without_ray_torch_or_arrow() -> None:
    program = "from pipeline.config_file import load_config; load_config('configs/xiaobu.yaml')"
    assert loaded_after(program) & {"ray", "torch", "fsspec", "transformers"} == set()


def test_planning_imports_neither_ray_nor_torch() -> None:
    assert (
        loaded_after("import pipeline.execution.planning.plan, pipeline.execution.planning.estimate") & {"ray", "torch"}
        == set()
    )


def test_a_tokenising_worker_imports_no_torch(m3e_small: Path) -> None:
    program = """
import pyarrow as pa
from pipeline.text.tokenizer import TokenizerSpec, load_tokenizer
from pipeline.text.chunking import chunk_texts
spec = TokenizerSpec(16, '', open(sys.argv[1]).read())
tokens, truncated = load_tokenizer(spec)(pa.array(['好', '很长' * 40]), spec.max_tokens)
assert tokens.lengths_N.tolist() == [3, 16] and truncated.tolist() == [False, True]
assert len(chunk_texts(pa.array(['很长' * 40]), spec, 2).texts) > 1
"""
    loaded = loaded_after(program, str(m3e_small / "tokenizer.json"))
    assert loaded & {"ray", "torch", "transformers", "sentence_transformers"} == set()


def test_the_stages_without_a_model_import_no_torch() -> None:
    assert loaded_after("import pipeline.execution.stages") & {"ray", "torch", "transformers"} == set()
