"""Configs: what is refused, with file, line and the nearest valid key; what every field says of itself."""

from pathlib import Path

import pytest

from pipeline.config import JobConfig
from pipeline.config_file import load_config, sections, valid_keys
from pipeline.errors import ConfigError

LEAST = "source:\n  uri: in/\nrecipe:\n  model: hashing://8\noutput:\n  uri: out/\n"
CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
"""All but the folder of reference cards, which tests/test_reference_card.py reads."""


def written(folder: Path, text: str = LEAST) -> str:
    path = folder / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(folder: Path, text: str = LEAST, *overrides: str) -> str:
    """Load a config that must be refused, and return what is said about it."""
    with pytest.raises(ConfigError) as caught:
        load_config(written(folder, text), overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_the_least_config_loads_with_the_defaults_of_the_design(tmp_path: Path) -> None:
    config = load_config(written(tmp_path))
    assert config.source.uri == ("in/",)
    assert (config.recipe.compute, config.recipe.stored, config.recipe.max_tokens) == ("bfloat16", "float32", 512)
    assert (config.output.rows_per_part, config.output.carry, config.output.keep_snapshots) == (16384, "copy", 7)
    assert (config.runtime.batch_tokens, config.runtime.max_quarantined_fraction) == (16384, 0.01)


def test_an_unknown_key_is_refused_with_file_line_and_the_nearest_valid_key(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST + "runtime:\n  batch_tokns: 1024\n")
    assert said == f"{tmp_path}/job.yaml:8: unknown key runtime.batch_tokns; did you mean runtime.batch_tokens?"


def test_a_key_in_the_wrong_section_is_led_to_the_right_one(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST + "  batch_tokens: 1024\n")
    assert said == f"{tmp_path}/job.yaml:7: unknown key output.batch_tokens; did you mean runtime.batch_tokens?"


def test_an_unknown_section_is_answered_with_the_sections(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST + "sorce:\n  uri: x\n")
    assert "job.yaml:7: unknown key sorce; did you mean source?" in said
    assert "source, recipe, output, runtime" in said


def test_a_line_that_is_no_yaml_is_told_by_its_number(tmp_path: Path) -> None:
    assert refusal(tmp_path, "source:\n\turi: x\n").startswith(f"{tmp_path}/job.yaml:2: not valid YAML: ")


def test_every_mistake_has_a_line_of_its_own(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST + "  nonsense: 1\nruntime:\n  encoders: 0\n").splitlines()
    assert len(said) >= 2
    assert any("job.yaml:7" in line and "output.nonsense" in line for line in said)
    assert any("job.yaml:9" in line and "runtime.encoders" in line for line in said)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    assert "recipe.model is missing" in refusal(tmp_path, LEAST.replace("  model: hashing://8\n", "  prompt: x\n"))


def test_a_key_set_twice_is_refused(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST + "  uri: elsewhere/\n")
    assert "job.yaml:7" in said
    assert "output.uri is set twice" in said


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words", "source: [\n", "a: b: c", "\x00"])
def test_a_file_that_is_no_config_is_refused_by_name(tmp_path: Path, text: str) -> None:
    assert "job.yaml" in refusal(tmp_path, text)


def test_a_config_that_does_not_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: no such config file"):
        load_config("nowhere.yaml")


def test_overrides_are_yaml_values_and_the_last_one_wins(tmp_path: Path) -> None:
    overrides = ["runtime.batch_tokens=1024", "runtime.batch_tokens=2048", "source.keep_columns=[a, b]"]
    config = load_config(written(tmp_path), [*overrides, "recipe.prompt='query: '", "recipe.dimensions=null"])
    assert config.runtime.batch_tokens == 2048
    assert config.source.keep_columns == ("a", "b")
    assert config.recipe.prompt == "query: "


def test_an_override_may_hold_an_equals_sign_and_an_address(tmp_path: Path) -> None:
    config = load_config(written(tmp_path), ["source.uri=s3://bucket/day=2026-11-23/*.jsonl.zst"])
    assert config.source.uri == ("s3://bucket/day=2026-11-23/*.jsonl.zst",)


@pytest.mark.parametrize(
    "override", ["batch_tokens=1", "runtime.batch_tokens", "runtime.=1", "runtime.encoders=[", "="]
)
def test_an_override_of_another_shape_is_refused_by_name(tmp_path: Path, override: str) -> None:
    assert f"argument {override!r}" in refusal(tmp_path, LEAST, override)


def test_a_wrong_override_is_blamed_on_the_argument_and_not_on_the_file(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST, "runtime.encodrs=2")
    assert said == "argument runtime.encodrs: unknown key runtime.encodrs; did you mean runtime.encoders?"


def test_a_partition_column_must_be_kept(tmp_path: Path) -> None:
    assert "source.keep_columns" in refusal(tmp_path, LEAST, "output.partition_by=[label]")
    load_config(written(tmp_path), ["output.partition_by=[label]", "source.keep_columns=[label]"])


def test_a_partition_column_is_named_once(tmp_path: Path) -> None:
    assert "twice" in refusal(tmp_path, LEAST, "source.keep_columns=[a]", "output.partition_by=[a, a]")


def test_one_text_must_fit_into_a_batch(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST, "runtime.batch_tokens=511")
    assert "511" in said
    assert "512" in said


@pytest.mark.parametrize("column", ["id", "embedding", "tokens", "_private"])
def test_a_kept_column_cannot_have_a_name_of_the_output(tmp_path: Path, column: str) -> None:
    assert column in refusal(tmp_path, LEAST, f"source.keep_columns=[{column}]")


@pytest.mark.parametrize("key", ["source.uri", "recipe.model", "output.uri"])
@pytest.mark.parametrize("address", ["s3://AKIA:planted-secret@bucket/x", "s3://bucket/x?aws_secret=planted-secret"])
def test_an_address_with_a_credential_is_refused_and_not_repeated(tmp_path: Path, key: str, address: str) -> None:
    said = refusal(tmp_path, LEAST, f"{key}={address}")
    assert "environment" in said
    assert "planted-secret" not in said


@pytest.mark.parametrize("key", ["source.uri", "recipe.model", "output.uri"])
@pytest.mark.parametrize("value", ["5", "null", "{a: b}", "[]", "''"])
def test_an_address_that_is_no_text_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    assert key in refusal(tmp_path, LEAST, f"{key}={value}")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_file_in_configs_loads(path: Path) -> None:
    assert isinstance(load_config(str(path)), JobConfig)


def test_every_field_has_a_description() -> None:
    undocumented = [
        f"{section}.{name}"
        for section, model in sections().items()
        for name, field in model.model_fields.items()
        if not field.description
    ]
    assert undocumented == []
    assert len(valid_keys()) > 25


def test_an_output_inside_the_source_is_refused_before_it_is_read_as_source(tmp_path: Path) -> None:
    said = refusal(tmp_path, LEAST, "output.uri=in/vectors")
    assert "output.uri lies in source.uri (in/)" in said
    assert load_config(written(tmp_path), ["output.uri=in-vectors"]).output.uri == "in-vectors"
