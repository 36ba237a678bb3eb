"""The examples are held to the library: what a reader learns from them is what the stages do."""

import ast
import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import dpo_loop, lexicon_reward
from truing.rewards import load_reward, score
from truing.settings import DpoConfig
from truing.stages import preference

# Twelve pairs of different lengths, all different: three steps of four, twice over.
ROWS = [
    {
        "prompt": f"Count to {i}.",
        "chosen": f" One{'!' * (i % 3)}",
        "rejected": f" {i * 7}{'?' * (i % 4)}",
    }
    for i in range(12)
]
SETTINGS = {"beta": 0.1, "learning_rate": 1e-3}


def load(folder: Path, rows: Path) -> tuple[torch.nn.Module, list[dpo_loop.Pair]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, dpo_loop.read(rows, AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("kind", ["tiny", "tiny_bos"])
def test_the_dpo_loop_has_the_losses_of_the_stage(
    kind: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    jsonl: Callable[..., str],
) -> None:
    folder, file = request.getfixturevalue(kind), jsonl("pairs", ROWS)
    config = DpoConfig(
        output_dir=str(tmp_path / "run"),
        model_name_or_path=str(folder),
        dataset_name=file,
        shuffle_dataset=False,
        per_device_train_batch_size=4,
        num_train_epochs=2,
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        **SETTINGS,
    )
    run = preference.run(config)
    assert run is not None
    theirs = [line["loss"] for line in run.metrics() if "loss" in line]
    model, pairs = load(folder, Path(file))
    ours = list(dpo_loop.train(model, pairs, batch_size=4, epochs=2, **SETTINGS))
    assert len(ours) == 6
    assert ours == pytest.approx(theirs, abs=1e-6)
    # They did learn, so the agreement is not that of two constants.
    assert ours[0] == pytest.approx(math.log(2), abs=1e-6)
    assert ours[-1] < ours[0] - 0.01


def test_the_dpo_loop_differs_once_anything_differs(
    tiny: Path, jsonl: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(jsonl("pairs", ROWS))

    def losses(**changed: float) -> list[float]:
        return list(dpo_loop.train(*load(tiny, file), batch_size=4, **(SETTINGS | changed)))

    usual = losses()
    assert losses() == pytest.approx(usual, abs=1e-9)
    assert losses(beta=0.31)[1:] != pytest.approx(usual[1:], abs=1e-6)
    assert losses(max_grad_norm=0.1)[1:] != pytest.approx(usual[1:], abs=1e-6)
    # Without the mask of the prompt and the filling.
    monkeypatch.setattr(dpo_loop, "sequence_sum", lambda logp, mask: logp.sum(-1))
    assert losses()[1:] != pytest.approx(usual[1:], abs=1e-6)


def test_the_dpo_loop_runs_as_a_script(
    tiny: Path,
    tmp_path: Path,
    jsonl: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["--model", str(tiny), "--data", jsonl("pairs", ROWS), "--output", str(tmp_path / "m")]
    monkeypatch.setattr(sys, "argv", ["dpo_loop.py", *words])
    dpo_loop.main()
    assert "step 1  loss 0.6931" in capsys.readouterr().out
    assert (tmp_path / "m" / "model.safetensors").is_file()
    assert (tmp_path / "m" / "tokenizer.json").is_file()


def test_the_dpo_loop_refuses_a_token_across_the_border(tiny: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    # " th" is one token of this tokenizer, so no prompt may end in its middle.
    with pytest.raises(ValueError, match="begin responses with a space"):
        dpo_loop.encode(tokenizer, "Is it t", "here?")


def test_the_dpo_loop_stands_on_floor_0_alone() -> None:
    tree = ast.parse(Path(dpo_loop.__file__).read_text(encoding="utf-8"))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name and name.startswith("truing")} == {"truing.algorithms"}


def test_the_lexicon_reward_adds_up_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "examples.lexicon_reward:sentiment"
    monkeypatch.delenv("LEXICON", raising=False)
    with pytest.raises(ValueError, match="environment variable LEXICON"):
        score(load_reward(name), ["p"], ["good"])
    (tmp_path / "words.txt").write_text("good\t2.0\t0.5\nbad\t-2.5\t0.5\n", encoding="utf-8")
    monkeypatch.setenv("LEXICON", str(tmp_path / "words.txt"))
    lexicon_reward.lexicon.cache_clear()
    found = score(load_reward(name), ["p"] * 3, ["Good, so good!", "a bad day", "nothing"])
    # 4 / sqrt(16 + 15), -2.5 / sqrt(6.25 + 15), 0.
    assert found == pytest.approx([0.718421, -0.542326, 0.0], abs=1e-6)
