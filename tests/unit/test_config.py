"""The way from YAML and flags into a config, and the refusals on that way."""

from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import settings as speed
from hypothesis import strategies as st
from pydantic import Field

from truing.config import (
    ConfigError,
    Topic,
    check,
    from_yaml,
    groups,
    nearest,
    parse,
    read_yaml,
    to_yaml,
)


class Numbers(Topic):
    """Numbers: what is counted"""

    rate: float = Field(0.5, gt=0, description="A rate.")
    count: int = Field(3, description="A count.")
    limit: int | None = Field(7, description="A limit.")


class Words(Topic):
    """Words"""

    name: str = Field(description="A name.")
    note: str | None = Field(None, description="A note.")
    tags: list[str] = Field(["a", "b"], description="Tags.")
    layers: list[str] | Literal["all"] = Field("all", description="Layers.")
    kind: Literal["one", "two"] = Field("one", description="A kind.")
    packing: bool = Field(False, description="A switch.")


class Both(Words, Numbers):
    """Both: a config with its own field"""

    advice: ClassVar[dict[str, str]] = {"old_rate": "it is called rate"}
    rate: float = Field(0.25, gt=0, description="Another default.")
    extra: int = Field(0, description="Its own.")


class Duel(Topic):
    """Duel"""

    left: str = Field(description="Left.", json_schema_extra={"positional": True})
    right: str = Field(description="Right.", json_schema_extra={"positional": True})


floats = st.floats(min_value=0, exclude_min=True, allow_infinity=False)
configs = st.builds(
    Both,
    name=st.text(min_size=1),
    rate=floats,
    count=st.integers(),
    limit=st.none() | st.integers(),
    tags=st.lists(st.text(), max_size=3),
    layers=st.just("all") | st.lists(st.text(min_size=4), max_size=2),
    kind=st.sampled_from(["one", "two"]),
    packing=st.booleans(),
)


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@given(configs)
def test_yaml_round_trip(tmp_path_factory: pytest.TempPathFactory, config: Both) -> None:
    path = write(tmp_path_factory.getbasetemp(), to_yaml(config))
    assert from_yaml(Both, path) == config


@speed(max_examples=30, deadline=None)
@given(configs)
def test_flags_round_trip(config: Both) -> None:
    words = [f"--{name}={getattr(config, name)}" for name in ("name", "rate", "count", "limit")]
    words += [f"--kind={config.kind}", f"--packing={config.packing}"]
    assert parse(Both, words) == config.model_copy(update={"tags": ["a", "b"], "layers": "all"})


def test_groups_follow_the_topics_and_overrides_stay_at_home() -> None:
    assert groups(Both) == {
        "Both: a config with its own field": ["extra"],
        "Words": ["name", "note", "tags", "layers", "kind", "packing"],
        "Numbers: what is counted": ["rate", "count", "limit"],
    }


def test_yaml_has_the_groups_as_headings() -> None:
    assert to_yaml(Both(name="x")).startswith("# Both: a config with its own field\nextra: 0\n")


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "name: from yaml\nrate: 0.125\ncount: 9\n")
    config = parse(Both, ["--config", str(path), "--count", "10"])
    assert (config.count, config.rate, config.limit, config.name) == (10, 0.125, 7, "from yaml")
    assert from_yaml(Both, path, {"count": 11}).count == 11


def test_null_in_yaml_wins_over_a_default_and_a_flag_wins_over_it(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nlimit: null\n")
    assert from_yaml(Both, path).limit is None
    assert parse(Both, ["--config", str(path)]).limit is None
    assert parse(Both, ["--config", str(path), "--limit", "7"]).limit == 7


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "0.00001", "1E-5"])
def test_floats_that_yaml_takes_for_text(tmp_path: Path, text: str) -> None:
    assert from_yaml(Both, write(tmp_path, f"name: x\nrate: {text}\n")).rate == 1e-5
    assert parse(Both, ["--name", "x", "--rate", text]).rate == 1e-5


@pytest.mark.parametrize("word", ["none", "None", "null"])
def test_words_for_nothing(tmp_path: Path, word: str) -> None:
    config = from_yaml(Both, write(tmp_path, f"name: {word}x\nlimit: {word}\nnote: {word}\n"))
    assert (config.limit, config.note, config.name) == (None, None, f"{word}x")
    assert parse(Both, ["--name", "x", "--limit", word]).limit is None


@pytest.mark.parametrize(
    ("words", "packing"),
    [
        (["--packing"], True),
        (["--packing", "true"], True),
        (["--packing=yes"], True),
        (["--packing", "False"], False),
        (["--no-packing"], False),
        (["--no_packing", "false"], True),
        ([], True),
    ],
)
def test_switches(tmp_path: Path, words: list[str], packing: bool) -> None:
    path = write(tmp_path, "name: x\npacking: true\n")
    assert parse(Both, [*words, "--config", str(path)]).packing is packing


def test_both_spellings_of_a_flag_and_lists() -> None:
    class Long(Topic):
        """Long"""

        lora_target_modules: list[str] | Literal["all-linear"] = Field(["q"], description="Where.")
        max_steps: int = Field(1, description="Steps.")

    for flag in ("--lora_target_modules", "--lora-target-modules"):
        config = parse(Long, [flag, "k", "v", "--max_steps", "-1"])
        assert (config.lora_target_modules, config.max_steps) == (["k", "v"], -1)
        assert parse(Long, [flag, "all-linear"]).lora_target_modules == "all-linear"
        assert parse(Long, [flag, "v"]).lora_target_modules == ["v"]


def test_positional_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    config = parse(Duel, ["a", "b"])
    assert (config.left, config.right) == ("a", "b")
    with pytest.raises(SystemExit) as exit:
        parse(Duel, ["a"])
    assert exit.value.code == 2
    assert "RIGHT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nam": 1}, "unknown setting nam. Did you mean name?"),
        ({"zzzz": 1}, "unknown setting zzzz."),
        ({"old_rate": 1}, "old_rate has no place here: it is called rate"),
        ({}, "name is missing; give --name or put it in YAML. A name."),
        ({"name": 5}, "name: got 5, but it should be a valid string, so put it in quotes"),
        ({"name": "x", "kind": "six"}, "kind: got 'six', but it should be 'one' or 'two'"),
        ({"name": "x", "rate": 0}, "rate: got 0, but it should be greater than 0"),
        ({"name": "x", "rate": True}, "rate: got true; needs a number"),
        ({"name": "x", "rate": "nan"}, "rate: got 'nan', but it should be a finite number"),
        (
            {"name": "x", "rate": -1, "limit": "many"},
            "rate: got -1, but it should be greater than 0\n"
            "limit: got 'many', but it should be a valid integer, "
            "unable to parse string as an integer",
        ),
        (
            {"name": "x", "layers": "some"},
            "layers: got 'some', but it should be a valid list or be 'all'",
        ),
    ],
)
def test_refusals(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(Both, values)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rat", "1"], "unknown setting --rat. Did you mean --rate?"),
        (["--no-kind"], "unknown setting --no-kind."),
        (["--old-rate=1"], "--old-rate has no place here: it is called rate"),
        (["--rate", "1", "--rate", "2"], "--rate is given twice; give it once"),
        (["--packing", "--no-packing"], "--packing is given twice; give it once"),
        (["--packing=maybe"], "--packing: got 'maybe'; needs true or false"),
        (["--config", "nowhere.yaml"], "cannot read the config file nowhere.yaml"),
        (["--name", "x", "--rate", "fast"], "rate: got 'fast'"),
    ],
)
def test_refused_flags(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(Both, words)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold lines such as `learning_rate: 1e-5`, got nothing"),
        ("- rate\n", "got list"),
        ("rate\n", "got str"),
        ("rate: 1\nrate: 2\n", "the key rate stands there twice"),
        ("rate: [1\n", "not valid YAML"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"settings\.yaml") as error:
        read_yaml(write(tmp_path, text))
    assert message in str(error.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\nrates: 1\n")
    for read in (lambda: parse(Both, ["--config", str(path)]), lambda: from_yaml(Both, path)):
        with pytest.raises(ConfigError) as error:
            read()
        assert str(error.value) == f"{path}: unknown setting rates. Did you mean rate?"


def test_the_way_through_flags_is_as_strict_as_yaml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name is missing; give --name"):
        parse(Both, [])
    path = write(tmp_path, "name: 5\n")
    with pytest.raises(ConfigError, match="put it in quotes"):
        parse(Both, ["--config", str(path)])


def test_configs_are_frozen_and_nearest_may_find_nothing() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Both(name="x").rate = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert nearest("beta", ["zzz"]) is None
