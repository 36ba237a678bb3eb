"""The command line as a person meets it: help, mistakes, failures."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from truing import cli
from truing.config import groups
from truing.settings import QuickstartConfig


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("TRUING_DEBUG", raising=False)


def install(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Let `truing quickstart` call ``run``."""
    module = ModuleType("a_stage")
    module.run = run  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "a_stage", module)
    command = cli.Command(QuickstartConfig, "a_stage:run", "a test")
    monkeypatch.setitem(cli.COMMANDS, "quickstart", command)


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"], ["help"]])
def test_overview(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 0
    out = capsys.readouterr().out
    for name, command in cli.COMMANDS.items():
        assert f"{name} " in out
        assert command.about in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("truing 0.")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_shows_every_group_and_every_setting(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([*name.split(), "--help"])
    assert exit.value.code == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 100
    text = " ".join(out.replace("│", " ").split())
    config = cli.COMMANDS[name].config
    flags: set[str] = set()
    for field, info in config.model_fields.items():
        positional = info.json_schema_extra == {"positional": True}
        assert (field.upper() if positional else f"--{field.replace('_', '-')}") in text
        assert " ".join((info.description or "").split()) in text
        flags |= set() if positional else {field}
    for title, fields in groups(config).items():
        assert (f"{title.partition(': ')[0]} options" in text) == bool(flags & set(fields))


def test_help_shows_the_values_of_the_config_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q.yaml").write_text("seed: 77\n")
    with pytest.raises(SystemExit):
        cli.main(["quickstart", "--config", str(tmp_path / "q.yaml"), "--help"])
    assert "(default: 77)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["dop"], "unknown command dop; did you mean truing dpo?"),
        (["xyzzy"], "unknown command xyzzy; truing --help lists all."),
        (["dpo", "--bet", "1"], "unknown setting --bet. Did you mean --beta?"),
        (["sft", "--fp16"], "--fp16 has no place here: write dtype: bfloat16"),
        (["sft"], "model_name_or_path is missing; give --model-name-or-path"),
        (["quickstart", "--seed", "[1]"], "seed: got '[1]', but it should be a valid integer"),
    ],
)
def test_wrong_usage(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(args) == 2
    seen = capsys.readouterr()
    assert message in seen.err
    assert seen.out == ""


def test_arguments_that_tyro_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["winrate", "a"], ["quickstart", "seed=3"], ["quickstart", "--config"]):
        with pytest.raises(SystemExit) as exit:
            cli.main(args)
        assert exit.value.code == 2
        assert args[0] in capsys.readouterr().err


def test_a_stage_gets_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[QuickstartConfig] = []
    install(monkeypatch, seen.append)
    # Threads are to sleep while they wait, unless somebody wants otherwise.
    for before, after in ((None, "passive"), ("active", "active")):
        monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
        if before is None:
            monkeypatch.delenv("OMP_WAIT_POLICY")
        assert cli.main(["quickstart", "--seed", "5"]) == 0
        assert os.environ["OMP_WAIT_POLICY"] == after
    assert seen == [QuickstartConfig(seed=5)] * 2


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("row 3 has no prompt"), 1, "row 3 has no prompt\nTRUING_DEBUG=1 shows where."),
        (FloatingPointError("the loss is nan"), 1, "the loss is nan"),
        (FileNotFoundError("no such model"), 1, "no such model"),
        (KeyboardInterrupt(), 130, "stopped"),
    ],
)
def test_failures_are_short(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(_: object) -> None:
        raise error

    install(monkeypatch, fail)
    assert cli.main(["quickstart"]) == status
    seen = capsys.readouterr().err
    assert message in seen
    assert "Traceback" not in seen
    if status == 1:
        monkeypatch.setenv("TRUING_DEBUG", "1")
        with pytest.raises(type(error)):
            cli.main(["quickstart"])


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise AttributeError("a mistake of ours")

    install(monkeypatch, fail)
    with pytest.raises(AttributeError):
        cli.main(["quickstart"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "truing", "dpo", "--help"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert done.stderr == ""


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_table_points_at_functions_that_exist(name: str) -> None:
    module, _, function = cli.COMMANDS[name].target.partition(":")
    file = Path(cli.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert function in {
        node.name for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize(("given", "wanted"), [(None, "5000"), ("7", "7")])
def test_how_openmp_waits_is_set_before_torch_is_there(given: str | None, wanted: str) -> None:
    told = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    told |= {} if given is None else {"GOMP_SPINCOUNT": given}
    asks = "import os, sys, truing; print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asks], env=told, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [wanted, "False"]
