"""The examples are held to the library: what a reader learns from them is what the stages do."""

import ast
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples import dpo_loop, lexicon_reward, ppo_loop
from tests import judges
from truing.keys import uniforms
from truing.rewards import load_reward, score
from truing.settings import DpoConfig
from truing.settings_online import PpoConfig
from truing.stages import online, preference

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


# Of unequal lengths, so that rows are filled.
PROMPTS = [f"Count to {i}{'!' * i}" for i in range(7)]
# As in the stage: the figures of `ppo_loop.train`, by the names that the metrics have.
FIGURES = ("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg")


def ppo_figures(folder: Path, **changed: float) -> list[list[float]]:
    """The loop on the draws that the stage makes: keyed by when a prompt is drawn."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def draws(step: int, responses: int, tokens: int) -> np.ndarray:
        keys = [(step * responses + i, 0) for i in range(responses)]
        return uniforms(0, "rollout", keys, tokens)

    options = {"learning_rate": 1e-3, "tokens": 14, "vf_coef": 0.5} | changed
    loop = ppo_loop.train(model, tokenizer, PROMPTS, judges.vowels, steps=3, draws=draws, **options)
    return [[figures[name] for name in FIGURES] for figures in loop]


@pytest.mark.parametrize("kind", ["tiny", "tiny_bos"])
def test_the_ppo_loop_has_the_losses_of_the_stage(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, jsonl: Callable[..., str]
) -> None:
    folder = request.getfixturevalue(kind)
    config = PpoConfig(
        output_dir=str(tmp_path / "run"),
        model_name_or_path=str(folder),
        dataset_name=jsonl("prompts", [{"prompt": prompt} for prompt in PROMPTS]),
        reward=["tests.judges:vowels"],
        shuffle_dataset=False,
        per_device_train_batch_size=7,
        max_steps=3,
        temperature=1.0,
        response_length=14,
        learning_rate=1e-3,
        vf_coef=0.5,
        report_to=[],
        use_cpu=True,
    )
    run = online.run(config)
    assert run is not None
    theirs = [[line[name] for name in FIGURES] for line in run.metrics()]
    # Some responses of a rollout ended by themselves, others were cut, so there was filling.
    assert any(0 < float(line["completions/eos_rate"] or 0) < 1 for line in run.metrics())
    ours = ppo_figures(folder)
    gap = np.abs(np.array(ours) - np.array(theirs, dtype=float)).max(0)
    # The KL is a sum of log-probs of size 5, in float32.
    assert (gap < [1e-6, 1e-5, 1e-6, 1e-6]).all()
    # They moved, so the agreement is not that of constants.
    assert abs(ours[2][1]) > 1e-3
    assert len({round(row[3], 6) for row in ours}) == 3


def test_the_ppo_loop_differs_once_anything_differs(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = np.array(ppo_figures(tiny))
    assert np.abs(np.array(ppo_figures(tiny)) - usual).max() < 1e-9
    for changed in (
        {"kl_coef": 0.5},
        {"clip": 0.05},
        {"lam": 0.5},
        {"vf_coef": 0.1},
        {"epochs": 3},
    ):
        assert np.abs(np.array(ppo_figures(tiny, **changed)) - usual).max() > 1e-4
    # Without the mask of the filling: every column from the first response token on counts.
    sample, seen = ppo_loop.sample, list[int]()

    def unmasked(*given: Any) -> ppo_loop.Rollout:
        rollout = sample(*given)
        wide_BT = rollout.mask_BT.cumsum(-1) > 0
        seen.append(int(wide_BT.sum() - rollout.mask_BT.sum()))
        return rollout._replace(mask_BT=wide_BT)

    monkeypatch.setattr(ppo_loop, "sample", unmasked)
    assert np.abs(np.array(ppo_figures(tiny)) - usual).max() > 1e-4
    assert max(seen) > 0


def test_the_ppo_loop_runs_as_a_script(
    tiny: Path,
    tmp_path: Path,
    jsonl: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = jsonl("prompts", [{"prompt": prompt} for prompt in PROMPTS])
    words = ["--model", str(tiny), "--prompts", rows, "--output", str(tmp_path / "m")]
    monkeypatch.setattr(sys, "argv", ["ppo_loop.py", *words, "--steps", "2", "--tokens", "4"])
    ppo_loop.main()
    assert "step 2  objective/scores" in capsys.readouterr().out
    assert (tmp_path / "m" / "model.safetensors").is_file()


@pytest.mark.parametrize("loop", [dpo_loop, ppo_loop], ids=lambda m: m.__name__)
def test_the_loops_stand_on_floor_0_alone(loop: ModuleType) -> None:
    tree = ast.parse(Path(str(loop.__file__)).read_text(encoding="utf-8"))
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
