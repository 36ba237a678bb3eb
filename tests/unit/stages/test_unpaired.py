"""KTO from a file to a model: the baseline of a whole step, its partners, and what is refused."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from truing.config import ConfigError, check
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens, padded, shared
from truing.data.schema import Label
from truing.keys import generator
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp
from truing.settings import KtoConfig
from truing.stages import unpaired
from truing.stages.learner import global_totals, micro_batches
from truing.stages.unpaired import Thumb, Unpaired, encode_thumbs, mismatched

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [
    {"prompt": f"p{i}", "completion": " in the end" if i % 2 else f" er{'!' * i}", "label": i % 2}
    for i in range(8)
]
OPTIONS = {"beta": 0.5, "desirable_weight": 1.5, "undesirable_weight": 0.5}
FIGURES = {
    *(f"rewards/{name}" for name in ("chosen", "rejected", "margins")),
    *("logps/chosen", "logps/rejected", "kl"),
}


def test_it_starts_at_a_half_and_parts_the_labels(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    config = settings(
        KtoConfig, tiny, jsonl("rows", ROWS), max_steps=25, learning_rate=2e-3,
        eval_dataset_name=jsonl("held", ROWS[:4]), log_completions_steps=25,
    )  # fmt: skip
    run = unpaired.run(config)
    lines = [line for line in run.metrics() if "loss" in line]
    first, last = lines[0], lines[-1]
    # Policy equals reference: half of each weight, no distance.
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first.keys() >= FIGURES
    assert last["loss"] < 0.4
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]
    margin = last["rewards/chosen"] - last["rewards/rejected"]
    assert last["rewards/margins"] == pytest.approx(margin, abs=1e-4)
    # One side of the data is one text, which becomes likelier whatever the prompt.
    assert max(line["kl"] for line in lines) > 0.1
    summary = run.info["summary"]
    assert summary["eval_rewards/margins"] > 0.3
    assert summary.keys() >= {f"eval_{name}" for name in FIGURES}
    assert [s["step"] for s in run.samples()] == [0, 0, 0, 0, 25, 25, 25, 25]
    assert [parent.role for parent in run.parents] == ["policy", "dataset", "evaluation dataset"]


def test_a_step_by_hand(tiny: Path) -> None:
    policy = load_policy(tiny)
    answers = [Tokens((1, 2), (3, 4)), Tokens((6,), (7,)), Tokens((5,), (8, 9, 1))]
    others = [Tokens(answers[i].prompt, answers[(i + 1) % 3].response) for i in range(3)]
    own, far = (logp(policy, padded(rows)).sum(-1).tolist() for rows in (answers, others))
    # Log-ratios 2, -1 and 0 of the answers, and 4, -2, 1 of the others: z0 = 1.
    rows = [
        Thumb(a, up, b, p - rho, q - away)
        for a, up, b, p, q, rho, away in zip(
            answers, (True, False, True), others, own, far, (2, -1, 0), (4, -2, 1), strict=True
        )
    ]
    objective = Unpaired(OPTIONS)
    assert objective.length(rows[0]) == 4
    # 1.5 (1 - s(0.5)), 0.5 s(-1), 1.5 (1 - s(-0.5)); s(0.5) = 0.6224593, s(-1) = 0.2689414.
    wanted = 1.5 * 0.3775407 + 0.5 * 0.2689414 + 1.5 * 0.6224593
    for size in (1, 2, 3):
        batches = micro_batches(rows, objective, size)
        totals = global_totals(Accelerator(cpu=True), objective, batches, policy)
        assert {n: float(v) for n, v in totals.items()} == pytest.approx(
            {"rows": 3, "up": 2, "down": 1, "mismatched": 3}, abs=1e-4
        )
        sums: Counter[str] = Counter()
        for batch in batches:
            loss, stats = objective.loss(policy, batch, totals)
            sums["loss"] += float(loss.detach())
            for name, (total, count) in stats.items():
                sums[name] += float(total)
                sums[f"n {name}"] += float(count)
        assert sums["loss"] == pytest.approx(wanted / 3, abs=1e-5)
        found = {name: sums[name] / sums[f"n {name}"] for name in FIGURES}
        assert found == pytest.approx(
            {
                "rewards/chosen": 0.5 * (2 + 0) / 2,
                "rewards/rejected": -0.5,
                "rewards/margins": 0.5 + 0.5,
                "logps/chosen": (own[0] + own[2]) / 2,
                "logps/rejected": own[1],
                "kl": 1.0,
            },
            abs=1e-4,
        )


def drawn(count: int) -> list[Thumb]:
    """Rows of unequal lengths, with reference log-probs near and far."""
    random = generator(0, "rows")

    def ids(high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.integers(268, size=random.integers(1, high)))

    rows: list[Thumb] = []
    for i in range(count):
        prompt, far = ids(6), (float(x) for x in random.normal(-40, 3, size=2))
        rows.append(Thumb(Tokens(prompt, ids(12)), i % 3 == 0, Tokens(prompt, ids(12)), *far))
    return rows


def slope(
    policy: Policy, objective: Unpaired, rows: list[Thumb], size: int
) -> tuple[float, Tensor]:
    """The loss of a step and its gradient, added up over micro-batches."""
    policy.zero_grad()
    batches = micro_batches(rows, objective, size)
    totals = global_totals(Accelerator(cpu=True), objective, batches, policy)
    assert float(totals["mismatched"]) > 0
    loss = 0.0
    for batch in batches:
        share, _ = objective.loss(policy, batch, totals)
        share.backward()
        loss += float(share.detach())
    grads = [p.grad.flatten() for p in policy.parameters() if p.grad is not None]
    return loss, torch.cat(grads)


def test_micro_batches_padding_and_order_change_nothing(tiny_double: Path) -> None:
    policy = load_policy(tiny_double, Loading(dtype="float64"))
    rows = drawn(6)
    loss, grad = slope(policy, Unpaired(OPTIONS), rows, 6)
    assert float(grad.abs().max()) > 1e-3
    for other, size, place in ((rows, 1, padded), (rows[::-1], 4, padded), (rows, 2, shared)):
        again, turned = slope(policy, Unpaired(OPTIONS, place), other, size)
        # The baseline is a float32 number.
        assert again == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(turned, grad, atol=1e-6, rtol=1e-6)


# --- partners -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [[1, 1], [3, 3], [4, 1, 3], [2, 5, 1, 2], [1] * 9, [9, 2], [1, 7, 1], [3, 2, 2]]
)
def test_partners_are_of_another_prompt(sizes: list[int]) -> None:
    prompts = [(p,) for p, size in enumerate(sizes) for _ in range(size)]
    order = [int(i) for i in generator(3, "shuffled").permutation(len(prompts))]
    prompts = [prompts[i] for i in order]
    for seed in range(5):
        partners = mismatched(prompts, seed, "rows")
        assert all(prompts[i] != prompts[j] for i, j in enumerate(partners))
        assert mismatched(prompts, seed, "rows") == partners
        if 2 * max(sizes) <= len(prompts):  # then nobody's response is used twice
            assert sorted(partners) == list(range(len(prompts)))
    if len(prompts) > 4:
        assert len({tuple(mismatched(prompts, seed, "rows")) for seed in range(5)}) > 1


def test_a_single_prompt_has_no_partners(tiny: Path, jsonl: Write, settings: Settings) -> None:
    rows = [row | {"prompt": "p"} for row in ROWS]
    with pytest.raises(ValueError, match=r"all rows of .*rows.jsonl .*have one prompt.*two "):
        unpaired.run(settings(KtoConfig, tiny, jsonl("rows", rows)))
    assert mismatched([], 0, "rows") == []


def test_rows_that_are_cut_or_left_out_are_counted(tiny: Path, jsonl: Write) -> None:
    rows = [
        {"prompt": "p", "completion": "abcdef", "label": True},
        {"prompt": "qqq", "completion": "x", "label": False},
        {"prompt": "p" * 9, "completion": "a", "label": True},
        {"prompt": "r", "completion": "ab", "label": 0, "provenance": {
            "extra": {"finish_reason": "length"}}},
    ]  # fmt: skip
    encoder = Encoder(load_policy(tiny).tokenizer, max_length=4)
    thumbs = encode_thumbs(load(jsonl("rows", rows), Label), encoder, 0)
    assert [thumb.desirable for thumb in thumbs] == [True, False, False]
    assert encoder.counts["prompts too long, left out"] == 1
    assert encoder.counts["responses truncated"] == 2
    assert encoder.counts["responses cut when sampled: no end is learnt"] == 1
    assert all(thumb.mismatched.length <= 4 for thumb in thumbs)
    assert encoder.counts["mismatched responses truncated (they only set the baseline)"] == 1
    for thumb in thumbs:
        assert thumb.mismatched.prompt == thumb.answer.prompt
    assert [thumb.answer.response[-1] == encoder.eos for thumb in thumbs] == [False, False, False]


def test_pairs_are_read_as_two_labels(tiny: Path, jsonl: Write, settings: Settings) -> None:
    pairs = [
        {"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}", "margin": 1.0,
         "finish_reason": ["stop", "length"]}
        for i in range(4)
    ]  # fmt: skip
    pairs[3] = {"prompt": "p3", "chosen": "a", "rejected": "b", "chosen_probability": 0.5}
    dataset = load(jsonl("pairs", pairs), Label)
    assert [row.label for row in dataset.rows] == [True, False] * 3
    assert [row.completion for row in dataset.rows[:2]] == [" in the end", " er"]
    assert [r.provenance.extra["finish_reason"] for r in dataset.rows[:2]] == ["stop", "length"]
    assert dataset.notes["pair read as two labels: chosen true, rejected false"] == 3
    assert dataset.notes["margin, which no label can hold: not used"] == 3
    assert dataset.notes["a tie, which no label can tell: left out"] == 1
    run = unpaired.run(settings(KtoConfig, tiny, jsonl("pairs", pairs), max_steps=2))
    assert run.info["summary"]["loss"] < 0.5


# --- what is refused, and what is told ------------------------------------------------------------


@pytest.mark.parametrize(("label", "other"), [(True, "false"), (False, "true")])
def test_one_kind_of_label_is_refused(
    tiny: Path, jsonl: Write, settings: Settings, label: bool, other: str, tmp_path: Path
) -> None:
    rows = [row | {"label": label} for row in ROWS]
    said = rf"all 8 rows of .*rows.jsonl have the label {str(label).lower()}: .*the label {other}"
    with pytest.raises(ValueError, match=said):
        unpaired.run(settings(KtoConfig, tiny, jsonl("rows", rows)))
    assert not (tmp_path / "run").exists()


def test_a_step_of_one_row_is_refused(tiny: Path, jsonl: Write, settings: Settings) -> None:
    config = settings(KtoConfig, tiny, jsonl("rows", ROWS), per_device_train_batch_size=1)
    with pytest.raises(ValueError, match="a step of one row came"):
        unpaired.run(config)
    config = config.model_copy(update={"gradient_accumulation_steps": 2, "dry_run": True})
    assert unpaired.run(config).rows == 8


@pytest.mark.parametrize(
    ("weights", "ratio", "warned"),
    [
        ({}, "1.00", False),
        ({"desirable_weight": 1.3}, "1.30", False),
        ({"desirable_weight": 1.4}, "1.40", True),
        ({"undesirable_weight": 1.5}, "0.67", True),
    ],
)
def test_how_the_weights_stand_is_told(
    tiny: Path, jsonl: Write, settings: Settings, capsys: pytest.CaptureFixture[str],
    weights: dict[str, float], ratio: str, warned: bool,
) -> None:  # fmt: skip
    unpaired.run(settings(KtoConfig, tiny, jsonl("rows", ROWS), dry_run=True, **weights))
    shown = " ".join(capsys.readouterr().out.split())
    assert f"4 rows with thumbs up, 4 down: their weights are as {ratio} to 1" in shown
    assert ("recommend from 1 to 4/3" in shown) == warned
    if "undesirable_weight" in weights:
        assert "a desirable_weight from 1.5 to 2" in shown


def test_what_is_no_setting_or_no_label(tiny: Path, jsonl: Write, settings: Settings) -> None:
    needed = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    for name in ("beta", "desirable_weight", "undesirable_weight"):
        with pytest.raises(ConfigError, match=f"{name}: got 0, but it should be greater than 0"):
            check(KtoConfig, needed | {name: 0})
    with pytest.raises(ConfigError, match="loss_type"):
        check(KtoConfig, needed | {"loss_type": "kto"})
    bad = jsonl("bad", [ROWS[0], ROWS[1] | {"label": "good"}])
    with pytest.raises(ValueError, match="'label': the text 'good' came; needed: true or false"):
        unpaired.run(settings(KtoConfig, tiny, bad))


def test_a_loss_that_is_no_number_stops_the_run(
    tiny: Path, jsonl: Write, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Unpaired, "measured", lambda *_: {"mismatched": math.nan})
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        unpaired.run(settings(KtoConfig, tiny, jsonl("rows", ROWS), max_steps=2))
