"""What can be said of the container images without an engine to build them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.demo.command import CONFIG
from jobs.healthcheck import lives
from tests.running import ROOT
from tests.schemas import errors_of_compose

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8"))
IGNORED = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()


def stages() -> dict[str, str]:
    """Return the text of every stage of the Dockerfile by its name."""
    found = re.split(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {name: f"FROM {parent}\n{text}" for parent, name, text in zip(*[iter(found)] * 3, strict=True)}


def linted(text: str) -> list[str]:
    """Return what hadolint, and ShellCheck in it, say of a Dockerfile, a line each."""
    command = [str(Path(sys.executable).parent / "hadolint"), "--no-color", "-"]
    finished = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert not finished.stderr
    return finished.stdout.splitlines()


def test_a_linter_finds_nothing_in_the_dockerfile() -> None:
    assert linted(DOCKERFILE) == []
    assert [line.split()[1] for line in linted("FROM python\nRUN rm $HOME/x\n")] == ["DL3006", "SC2086"]


def test_compose_yaml_is_what_its_schema_asks_for() -> None:
    assert errors_of_compose(COMPOSE) == []


@pytest.mark.parametrize(("key", "value"), [("healthchek", {}), ("init", [True]), ("depends_on", {"s3": "up"})])
def test_an_error_in_a_service_is_found(key: str, value: object) -> None:
    errors = errors_of_compose({"services": {"head": {"image": "x", key: value}}})
    assert any("$.services.head" in error for error in errors)


def test_both_targets_run_as_a_user_that_is_not_root() -> None:
    assert {"cpu", "gpu"} <= stages().keys()
    assert "USER 1000" in stages()["runtime"]
    for target in ("cpu", "gpu"):
        assert stages()[target].startswith("FROM runtime\n")
        assert "USER" not in stages()[target]


def test_every_installation_is_held_to_the_versions_that_were_tried_together() -> None:
    installs = re.findall(r"pip install .*", DOCKERFILE)
    assert installs
    assert all("-c docker/constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_steps_that_lay_the_code_into_an_image_give_a_package_that_runs_alone(tmp_path: Path) -> None:
    source, code = tmp_path / "src", tmp_path / "code"
    (source / "docker").mkdir(parents=True)
    for step, words in re.findall(r"^(COPY|RUN) (.*)$", stages()["dependencies"] + stages()["code"], re.MULTILINE):
        if step == "COPY":
            for name in words.split()[:-1]:
                subprocess.run(["cp", "-rT", ROOT / name, source / name], check=True)
        elif "venv" not in words:  # that of the tests stands for it
            command = words.replace("/opt/code", str(code)).replace("pip ", f"{sys.executable} -m pip -q ", 1)
            subprocess.run(["bash", "-c", command], cwd=source, check=True)

    def alone(*arguments: str) -> str:
        environment = {"PYTHONPATH": str(code)}
        return subprocess.check_output([sys.executable, *arguments], cwd=tmp_path, env=environment, text=True)

    assert alone("-c", "import pipeline, jobs; print(pipeline.__file__, jobs.__file__)").count(str(code)) == 2
    assert alone("-m", "jobs", "--version")
    pages = {path.relative_to(ROOT) for path in (ROOT / "pipeline").rglob("*.jinja")}
    assert pages
    assert all((code / page).is_file() for page in pages)


def test_what_is_copied_is_let_through_and_nothing_else_is() -> None:
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE) for name in line.split()[:-1]
    }
    allowed = {line.removeprefix("!") for line in IGNORED if line.startswith("!")}
    assert IGNORED[0] == "*"
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


def test_the_demo_of_containers_builds_what_there_is_and_holds_no_secret() -> None:
    for name, service in COMPOSE["services"].items():
        if "build" in service:
            assert service["build"]["target"] in stages(), name
        for variable, value in service.get("environment", {}).items():
            if "SECRET" in variable or "TOKEN" in variable:
                assert value.startswith("${"), f"{name}: {variable}"
    assert "--num-cpus=0" in COMPOSE["services"]["head"]["command"]
    assert f"configs/{CONFIG.name}" in COMPOSE["services"]["demo"]["command"][-1]


def test_a_node_is_healthy_while_its_raylet_lives(tmp_path: Path) -> None:
    def process(number: int, name: str, state: str) -> None:
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "stat").write_text(f"{number} ({name}) {state} 1 1 1")

    process(1, "tini", "S")
    process(2, "raylet", "Z")
    assert not lives(tmp_path)
    process(3, "raylet", "S")
    assert lives(tmp_path)
