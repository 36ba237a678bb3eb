"""`loss_type: plackett_luce` of `truing dpo`: whole rankings, of which two responses are DPO."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from truing.config import ConfigError, check
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.layout import Tokens, padded, shared
from truing.data.schema import Ranking
from truing.keys import generator
from truing.models.loading import Loading
from truing.models.model import Policy, load_policy, logp
from truing.settings import DpoConfig
from truing.stages import preference
from truing.stages.preference import RECIPES, Order, Orders, Pair, Preference, encode_orders

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [
    {"prompt": f"p{i}", "completions": [f" er{'!' * i}", " in the end", " on"], "ranks": [2, 0, 1]}
    for i in range(6)
]
PAIRS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": " er"} for i in range(4)]
LISTED = RECIPES["plackett_luce"]


def test_it_starts_at_ln_6_and_learns_the_order(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    data = jsonl("rows", ROWS)
    more = {"max_steps": 25, "learning_rate": 2e-3, "eval_dataset_name": data}
    run = preference.run(settings(DpoConfig, tiny, data, loss_type="plackett_luce", **more))
    assert run is not None
    lines = [line for line in run.metrics() if "loss" in line]
    # Policy equals reference: each of 3! orders is as likely.
    assert lines[0]["loss"] == pytest.approx(math.log(6), abs=1e-5)
    assert lines[0]["rewards/accuracies"] < 1
    assert lines[-1]["loss"] < 1.2
    assert lines[-1]["rewards/accuracies"] == 1
    margin = lines[-1]["rewards/chosen"] - lines[-1]["rewards/rejected"]
    assert lines[-1]["rewards/margins"] == pytest.approx(margin, abs=1e-4)
    assert run.info["summary"]["eval_loss"] < 1.2
    assert [parent.role for parent in run.parents] == ["policy", "dataset", "evaluation dataset"]


def test_pairs_are_rankings_of_two(tiny: Path, jsonl: Write, settings: Settings) -> None:
    """The same figures as DPO's, from the first step to the last."""
    data, lines = jsonl("pairs", PAIRS), {}
    for name in ("sigmoid", "plackett_luce"):
        config = settings(DpoConfig, tiny, data, loss_type=name, max_steps=3)
        config = config.model_copy(update={"output_dir": config.output_dir + name})
        run = preference.run(config)
        assert run is not None
        lines[name] = [{k: v for k, v in m.items() if k != "time"} for m in run.metrics()]
    for one, other in zip(*lines.values(), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def ids(random: Any, high: int) -> tuple[int, ...]:
    return tuple(int(i) for i in random.integers(268, size=random.integers(1, high)))


def drawn(count: int, most: int = 5) -> list[Order]:
    """Rankings of two and more responses of unequal lengths, some with ties."""
    random, rows = generator(0, "orders"), list[Order]()
    for i in range(count):
        prompt, k = ids(random, 6), 2 + i % (most - 1)
        ranks = tuple(int(r) for r in random.permutation(k))
        ranks = tuple(max(r, 1) for r in ranks) if i % 3 == 2 and k > 2 else ranks
        pairs = tuple((a, b) for a in range(k) for b in range(k) if ranks[a] < ranks[b])
        far = tuple(float(x) for x in random.normal(-20, 3, size=k))
        rows.append(
            Order(tuple(Tokens(prompt, ids(random, 12)) for _ in range(k)), ranks, pairs, far)
        )
    return rows


def test_of_two_responses_it_is_dpo(tiny_double: Path) -> None:
    policy, orders = load_policy(tiny_double, Loading(dtype="float64")), drawn(6, most=2)
    pairs = [
        Pair(*(o.responses[i] for i in best), *(o.reference[i] for i in best))
        for o in orders
        for best in [sorted((0, 1), key=o.ranks.__getitem__)]
    ]
    options = {"beta": 0.3, "label_smoothing": 0.0}
    objective = Preference(RECIPES["sigmoid"], options)
    wanted, stats = objective.loss(policy, objective.collate(pairs), {"pairs": torch.tensor(6.0)})
    ranked = Orders(LISTED, {"beta": 0.3})
    got, also = ranked.loss(policy, ranked.collate(orders), {"rankings": torch.tensor(6.0)})
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), abs=1e-12)
    for name, (total, count) in stats.items():
        assert float(also[name][0] / also[name][1]) == pytest.approx(float(total / count), abs=1e-6)


def test_the_loss_by_hand(tiny: Path) -> None:
    policy = load_policy(tiny)
    responses = tuple(Tokens((1, 2), ids) for ids in ((3, 4), (5,), (6, 7, 8)))
    own = logp(policy, padded(responses)).sum(-1).tolist()
    # Log-ratios 2, 0 and -2 with beta 0.5: rewards 1, 0 and -1; ranks 1, 0, 2.
    reference = tuple(o - r for o, r in zip(own, (2, 0, -2), strict=True))
    objective = Orders(LISTED, {"beta": 0.5})
    row = Order(responses, (1, 0, 2), ((0, 2), (1, 0), (1, 2)), reference)
    batch = objective.collate([row, row])
    assert objective.counts(batch) == {"rankings": 2}
    assert objective.length(row) == 5
    loss, stats = objective.loss(policy, batch, {"rankings": torch.tensor(2.0)})
    # ln(e + 1 + 1/e) - 0 for the first choice, ln(e + 1/e) - 1 for the second.
    e = math.e
    wanted = math.log(e + 1 + 1 / e) + math.log(e + 1 / e) - 1
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-4)
    found = {name: float(total / count) for name, (total, count) in stats.items()}
    # Pairs (1, -1), (0, 1) and (0, -1).
    assert found["rewards/chosen"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["rewards/rejected"] == pytest.approx(-1 / 3, abs=1e-4)
    assert found["rewards/accuracies"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["logps/chosen"] == pytest.approx((own[0] + 2 * own[1]) / 3, abs=1e-4)


def slope(policy: Policy, objective: Orders, parts: list[list[Order]]) -> tuple[float, Tensor]:
    policy.zero_grad()
    batches = [objective.collate(part) for part in parts]
    total = torch.tensor(sum(objective.counts(batch)["rankings"] for batch in batches))
    loss = 0.0
    for batch in batches:
        share, _ = objective.loss(policy, batch, {"rankings": total})
        share.backward()
        loss += float(share.detach())
    return loss, torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def test_micro_batches_padding_and_order_change_nothing(tiny_double: Path) -> None:
    policy, rows = load_policy(tiny_double, Loading(dtype="float64")), drawn(7)
    loss, grad = slope(policy, Orders(LISTED, {"beta": 0.3}), [rows])
    assert float(grad.abs().max()) > 1e-3
    turned = [
        row._replace(
            responses=row.responses[::-1], ranks=row.ranks[::-1], reference=row.reference[::-1]
        )
        for row in rows
    ]
    for parts, place in (
        ([rows[:3], rows[3:]], padded),
        ([[row] for row in rows], padded),
        ([rows[::-1]], shared),
        ([turned], padded),
    ):
        other, again = slope(policy, Orders(LISTED, {"beta": 0.3}, place), parts)
        assert other == pytest.approx(loss, rel=1e-9)
        torch.testing.assert_close(again, grad, atol=1e-9, rtol=1e-9)


def test_ties_and_what_is_left_out_are_counted(tiny: Path, jsonl: Write) -> None:
    rows = [
        ROWS[0],
        ROWS[1] | {"ranks": [0, 0, 1]},
        ROWS[2] | {"ranks": [0, 0, 0]},
        {"prompt": "p", "completions": ["abcdx", "abcdy", "a"], "ranks": [0, 1, 2]},
        ROWS[3] | {"prompt": "p" * 90},
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 1.0},
        {"prompt": "r", "completions": ["ab", "cd"], "ranks": [1, 0],
         "provenance": {"extra": {"finish_reason": ["length", "stop"]}}},
    ]  # fmt: skip
    found = {}
    for ties in ("drop", "breslow"):
        encoder = Encoder(load_policy(tiny).tokenizer, max_length=14)
        dataset = load(jsonl("rows", [row for row in rows if "completions" in row]), Ranking)
        orders = encode_orders(dataset, encoder, ties)
        found[ties] = (len(orders), dict(encoder.counts))
        cut = orders[-1]
        assert [t.response[-1] == encoder.eos for t in cut.responses] == [False, True]
        assert all(a.prompt == b.prompt for a, b in pairwise(cut.responses))
    kept, counts = found["drop"]
    assert kept == 3
    assert counts["rankings with ties, left out"] == 2
    assert counts["prompts too long, left out"] == 1
    kept, counts = found["breslow"]
    assert kept == 5
    assert "rankings with ties, left out" not in counts
    pairs = load(jsonl("pairs", [rows[5]]), Ranking)
    encoder = Encoder(load_policy(tiny).tokenizer)
    (order,) = encode_orders(pairs, encoder, "drop")
    assert (order.ranks, order.pairs) == ((0, 1), ((0, 1),))
    assert encoder.counts["margins, which this loss does not use"] == 1


def test_rankings_that_all_tie_teach_without_a_pair(
    tiny: Path, jsonl: Write, settings: Settings
) -> None:
    data = jsonl("rows", [row | {"ranks": [0, 0, 0]} for row in ROWS])
    more = {"loss_type": "plackett_luce", "max_steps": 1}
    with pytest.raises(ValueError, match=r"no row of .* can be used .*rankings with ties"):
        preference.run(settings(DpoConfig, tiny, data, **more))
    run = preference.run(settings(DpoConfig, tiny, data, ties="breslow", **more))
    assert run is not None
    (line,) = run.metrics()
    # Each of three is chosen from all three.
    assert line["loss"] == pytest.approx(3 * math.log(3), abs=1e-5)
    assert "rewards/margins" not in line


def test_other_losses_read_rankings_as_pairs(tiny: Path, jsonl: Write, settings: Settings) -> None:
    ahead = preference.run(settings(DpoConfig, tiny, jsonl("rows", ROWS), dry_run=True))
    assert ahead is not None
    assert ahead.rows == 18
    assert ahead.notes["ranking read as its pairs, ties left out"] == 6


def test_ties_belong_to_rankings() -> None:
    needed = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}
    with pytest.raises(ConfigError, match="ties has no effect with loss_type sigmoid: only with"):
        check(DpoConfig, needed | {"ties": "drop"})
    with pytest.raises(ConfigError, match="ties: got 'half'"):
        check(DpoConfig, needed | {"loss_type": "plackett_luce", "ties": "half"})
    made = check(DpoConfig, needed | {"loss_type": "plackett_luce"})
    assert (made.ties, made.loss_options) == ("drop", {"beta": 0.1})
