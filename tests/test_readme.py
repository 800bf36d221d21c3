"""The README files say what is there: every config key, every file of the code, no more and no less."""

import re
from pathlib import Path

import pytest

from pipeline.config_file import sections, valid_keys
from tests.readme import CODE_README, CONFIG_README, GENERATED, ROOT, readmes, with_generated_part


def test_the_table_of_the_config_lists_every_key_and_no_other() -> None:
    row = rf"^\| *`((?:{'|'.join(sections())})\.\w+)`"
    rows = re.findall(row, CONFIG_README.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == valid_keys()


def test_the_tree_of_the_code_lists_every_file_and_no_other() -> None:
    assert sorted(tree_paths(CODE_README.read_text(encoding="utf-8"))) == sorted(
        path.relative_to(ROOT).as_posix()
        for folder in ("pipeline", "jobs")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__init__.py"
    )


@pytest.mark.parametrize("path", GENERATED, ids=lambda path: path.parent.name)
def test_what_comes_from_the_code_is_as_the_code_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == with_generated_part(path)


def test_every_link_between_the_files_leads_to_a_file_and_a_heading() -> None:
    links = [
        (path, target)
        for path in readmes()
        for target in re.findall(r"\]\((?!https?://)([^)]+)\)", path.read_text(encoding="utf-8"))
    ]
    assert len(links) > 15
    for path, target in links:
        file, _, anchor = target.partition("#")
        leads_to = path.parent / file if file else path
        assert leads_to.is_file(), f"{path}: {target}"
        assert not anchor or anchor in anchors(leads_to), f"{path}: {target}"


def anchors(path: Path) -> set[str]:
    """Return the names under which the headings of a Markdown file can be linked to."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_test_that_is_named_exists() -> None:
    named = {name for path in readmes() for name in re.findall(r"`(test_\w+)`", path.read_text(encoding="utf-8"))}
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 40
    assert named - defined == set()


def tree_paths(text: str) -> list[str]:
    """Return the Python files of every tree in a code block: a folder ends with `/`, its content is indented."""
    found: list[str] = []
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        folders: list[tuple[int, str]] = []
        for line in block.splitlines():
            match = re.match(r"([\s│├└─]*)([\w.-]+/?)(?=\s|$)", line)
            if not match:
                continue
            depth, name = len(match[1]), match[2]
            folders = [folder for folder in folders if folder[0] < depth]
            if name.endswith("/"):
                folders.append((depth, name))
            elif name.endswith(".py") and folders and folders[0][1] in ("pipeline/", "jobs/"):
                found += ["".join(folder for _, folder in folders) + name] if name != "__init__.py" else []
    return found


def test_a_tree_is_read_as_it_is_drawn() -> None:
    drawn = [
        "pipeline/      the library",
        "├── a.py  words",
        "└── text/",
        "    └── b.py",
        "jobs/",
        "  c.py",
        "tests/",
        "  d.py",
    ]
    text = "\n".join(["```", *drawn, "```", ""])
    assert tree_paths(text) == ["pipeline/a.py", "pipeline/text/b.py", "jobs/c.py"]
