"""Every loss_type of `truing dpo`: where it starts, what it needs, and what it refuses."""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from truing.cli import COMMANDS
from truing.config import ConfigError, check, from_yaml, parse, to_yaml
from truing.data.layout import Tokens, padded, shared
from truing.models.model import load_policy, logp
from truing.run import Run
from truing.settings import DpoConfig
from truing.settings_preference import LOSSES, WITHOUT_REFERENCE
from truing.stages import preference
from truing.stages.preference import RECIPES, Pair, Preference

Write = Callable[..., str]
Settings = Callable[..., Any]
ROWS = [{"prompt": f"p{i}", "chosen": " in the end", "rejected": f" er{'!' * i}"} for i in range(6)]
NEEDED = {"model_name_or_path": "m", "dataset_name": "d", "output_dir": "o"}


def config(**values: Any) -> DpoConfig:
    return check(DpoConfig, NEEDED | values)


def test_the_tables_agree() -> None:
    assert LOSSES.keys() == RECIPES.keys()
    assert set(get_args(DpoConfig.model_fields["loss_type"].annotation)) == LOSSES.keys()
    for name in LOSSES:
        assert RECIPES[name].reference == (name not in WITHOUT_REFERENCE)


# The loss where policy equals reference: ln 2; 1 / (4 beta^2) with beta 0.1; 1.
STARTS: list[tuple[dict[str, Any], float]] = [
    ({"loss_type": "sigmoid"}, math.log(2)),
    ({"loss_type": "sigmoid", "label_smoothing": 0.2}, math.log(2)),
    ({"loss_type": "robust"}, math.log(2)),
    ({"loss_type": "ipo"}, 25.0),
    ({"loss_type": "ipo_mean", "beta": 0.5}, 1.0),
    ({"loss_type": "hinge"}, 1.0),
]


@pytest.mark.parametrize(("values", "start"), STARTS, ids=lambda v: str(v))
def test_it_starts_where_policy_equals_reference(
    tiny: Path, jsonl: Write, settings: Settings, values: dict[str, Any], start: float
) -> None:
    data = jsonl("rows", ROWS)
    made = settings(DpoConfig, tiny, data, max_steps=12, learning_rate=2e-3, **values)
    run = preference.run(made)
    assert run is not None
    lines = [line for line in run.metrics() if "loss" in line]
    assert lines[0]["loss"] == pytest.approx(start, rel=1e-5)
    assert lines[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["loss"] < 0.9 * start
    assert lines[-1]["rewards/margins"] > 0


PAIRS = [
    Pair(Tokens((1, 2), (3, 4)), Tokens((1, 2), (5,))),
    Pair(Tokens((6,), (7,)), Tokens((6,), (8, 9, 1, 2))),
]


def test_ipo_on_sums_and_on_means_by_hand(tiny: Path) -> None:
    policy = load_policy(tiny)
    flat = [tokens for pair in PAIRS for tokens in pair[:2]]
    own = logp(policy, padded(flat)).sum(-1).tolist()
    # Log-ratios 2 and -1 for the first pair (2 tokens and 1), 0 and 1 for the second (1 and 4).
    pairs = [
        PAIRS[0]._replace(ref_chosen=own[0] - 2, ref_rejected=own[1] + 1),
        PAIRS[1]._replace(ref_chosen=own[2], ref_rejected=own[3] - 1),
    ]
    # The target is 1 / (2 * 0.5) = 1. Sums: (3 - 1)^2 + (-1 - 1)^2. Means: 2 / 2 + 1 = 2 and
    # 0 - 1 / 4: (2 - 1)^2 + (-0.25 - 1)^2.
    for name, wanted, margin in (("ipo", 8.0, 1.0), ("ipo_mean", 2.5625, 0.875)):
        for place in (padded, shared):
            objective = Preference(RECIPES[name], {"beta": 0.5}, place)
            batch = objective.collate(pairs)
            loss, stats = objective.loss(policy, batch, {"pairs": torch.tensor(1.0)})
            assert float(loss.detach()) == pytest.approx(wanted, abs=1e-4)
            total, count = stats["rewards/margins"]
            assert float(total / count) == pytest.approx(0.5 * margin, abs=1e-5)
            # Log-probs are sums whatever the loss takes: nats per response.
            total, count = stats["logps/chosen"]
            assert float(total / count) == pytest.approx((own[0] + own[2]) / 2, abs=1e-4)


def test_losses_without_a_reference_by_hand(tiny: Path) -> None:
    policy = load_policy(tiny)
    flat = [tokens for pair in PAIRS for tokens in pair[:2]]
    sums = logp(policy, padded(flat)).detach().double().sum(-1).tolist()
    means = [s / len(tokens.response) for s, tokens in zip(sums, flat, strict=True)]
    nll = -(means[0] + means[2]) / 2
    log1pexp = lambda z: math.log1p(math.exp(z))  # noqa: E731
    odds = [m - math.log(1 - math.exp(m)) for m in means]
    sides = ((0, 1), (2, 3))
    terms = {
        "simpo": [log1pexp(-(2 * (means[w] - means[x]) - 1)) for w, x in sides],
        "cpo": [log1pexp(-0.1 * (sums[w] - sums[x])) - means[w] for w, x in sides],
        "orpo": [0.1 * log1pexp(-(odds[w] - odds[x])) - means[w] for w, x in sides],
    }
    for name, wanted in terms.items():
        options = config(loss_type=name).loss_options
        objective = Preference(RECIPES[name], options, shared)
        loss, stats = objective.loss(policy, objective.collate(PAIRS), {"pairs": torch.tensor(2.0)})
        assert float(loss.detach()) == pytest.approx(sum(wanted) / 2, abs=1e-4)
        found = {n: float(total / count) for n, (total, count) in stats.items()}
        seen, beta = (sums if name == "cpo" else means), options["beta"]
        assert found["rewards/chosen"] == pytest.approx(beta * (seen[0] + seen[2]) / 2, abs=1e-4)
        assert found["logps/rejected"] == pytest.approx((sums[1] + sums[3]) / 2, abs=1e-4)
        assert ("nll_loss" in found) == (name in ("cpo", "orpo"))
        assert found.get("nll_loss", nll) == pytest.approx(nll, abs=1e-4)
        assert ("log_odds_ratio" in found) == ("log_odds_chosen" in found) == (name == "orpo")
        if name == "orpo":
            log_odds = [odds[w] - odds[x] for w, x in sides]
            assert found["log_odds_chosen"] == pytest.approx(sum(log_odds) / 2, abs=1e-4)
            ratio = [-log1pexp(-z) for z in log_odds]
            assert found["log_odds_ratio"] == pytest.approx(sum(ratio) / 2, abs=1e-4)


IMITATING = [name for name, known in LOSSES.items() if "rpo_alpha" in known]


@pytest.mark.parametrize("name", IMITATING)
def test_imitation_adds_the_nll_of_the_chosen_per_token(tiny: Path, name: str) -> None:
    policy = load_policy(tiny)
    chosen = [pair.chosen for pair in PAIRS]
    found: dict[float, tuple[float, Tensor, dict[str, Any]]] = {}
    weights = next(policy.parameters())
    for alpha in (0.0, 0.7):
        made = config(loss_type=name, rpo_alpha=alpha)
        assert "rpo_alpha" not in made.loss_options
        objective = Preference(RECIPES[name], made.loss_options, shared, alpha)
        batch = objective.collate(PAIRS)
        loss, stats = objective.loss(policy, batch, {"pairs": torch.tensor(2.0)})
        (slope,) = torch.autograd.grad(loss, weights)
        found[alpha] = float(loss.detach()), slope, stats
    nll = torch.stack([-logp(policy, padded([x])).sum() / len(x.response) for x in chosen]).mean()
    (slope,) = torch.autograd.grad(nll, weights)
    assert found[0.7][0] - found[0.0][0] == pytest.approx(0.7 * float(nll.detach()), abs=1e-4)
    torch.testing.assert_close(found[0.7][1] - found[0.0][1], 0.7 * slope, atol=1e-4, rtol=1e-3)
    assert "nll_loss" not in found[0.0][2]
    total, count = found[0.7][2]["nll_loss"]
    assert float(total / count) == pytest.approx(float(nll.detach()), abs=1e-4)


def test_imitation_keeps_the_chosen_likely(
    tiny: Path, jsonl: Write, settings: Settings, tmp_path: Path
) -> None:
    ends: dict[float, float] = {}
    for alpha in (0.0, 1.0):
        made = settings(
            DpoConfig, tiny, jsonl("rows", ROWS), max_steps=12, learning_rate=2e-3, rpo_alpha=alpha,
            output_dir=str(tmp_path / f"{alpha}"),
        )  # fmt: skip
        run = preference.run(made)
        assert isinstance(run, Run)
        lines = [line for line in run.metrics() if "logps/chosen" in line]
        ends[alpha] = lines[-1]["logps/chosen"] - lines[0]["logps/chosen"]
        assert ("nll_loss" in lines[-1]) == (alpha > 0)
    assert ends[1.0] > max(0.0, ends[0.0])


@pytest.mark.parametrize("name", WITHOUT_REFERENCE)
def test_no_reference_is_read_where_there_is_none(
    tiny: Path, jsonl: Write, settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("a reference was asked for")

    monkeypatch.setattr(preference, "with_reference", never)
    monkeypatch.setattr(preference, "reference_policy", never)
    data = jsonl("rows", ROWS)
    made = settings(
        DpoConfig, tiny, data, eval_dataset_name=data, max_steps=12, learning_rate=2e-3,
        loss_type=name,
    )  # fmt: skip
    run = preference.run(made)
    assert run is not None
    lines = [line for line in run.metrics() if "loss" in line]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]
    assert run.info["summary"]["eval_loss"] < 0.9 * lines[0]["loss"]
    assert [parent.role for parent in run.parents] == ["policy", "dataset", "evaluation dataset"]


# --- the figures that the page tells --------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[3] / "docs" / "dpo.md"
WINS = 0.75


def of_margin(name: str, options: dict[str, float]) -> Callable[[Tensor], Tensor]:
    """The preference term of a loss (N,) by the margins (N,) that are logged."""
    loss, beta = RECIPES[name].loss, options["beta"]

    def term(m: Tensor) -> Tensor:
        more = {"nll_N": 0 * m} if RECIPES[name].nll else {}
        if name == "plackett_luce":
            ranks = torch.tensor([[0, 1]]).expand(len(m), 2)
            return loss(
                torch.stack([m / beta, 0 * m], -1), ranks, torch.ones_like(ranks), beta=beta
            )
        if name == "orpo":  # log odds of m and of 0
            return loss(F.logsigmoid(m), 0 * m - math.log(2), **more, **options)
        return loss(m / beta, 0 * m, **more, **options)

    return term


def told_rows() -> list[list[str]]:
    table = PAGE.read_text("utf-8").partition("## Figures to expect")[2].partition("## DPO")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("| `") and "`loss_type` |" not in line
    ]


def test_every_loss_has_its_figures() -> None:
    named = {name for row in told_rows() for name in re.findall(r"`(\w+)`", row[0])}
    assert named - {"label_smoothing"} == LOSSES.keys()


@pytest.mark.parametrize("row", told_rows(), ids=lambda row: row[0])
def test_the_figures_on_the_page_are_where_the_losses_are_least(row: list[str]) -> None:
    smoothed = {"label_smoothing": 0.1} if "label_smoothing" in row[0] else {}
    grid = torch.linspace(-6, 12, 18_001, dtype=torch.float64)
    for name in sorted(set(re.findall(r"`(\w+)`", row[0])) & LOSSES.keys()):
        loss = of_margin(name, config(loss_type=name, **smoothed).loss_options)
        sure = loss(grid)
        mean = WINS * sure + (1 - WINS) * loss(-grid)
        at_zero = float(loss(0 * grid[:1]))
        best, sure_best = float(grid[mean.argmin()]), float(grid[sure.argmin()])
        found = [at_zero, sure_best, best, float(mean.min())]
        for told, value in zip(row[1:], found, strict=True):
            if told == "grows":
                assert value > 11.9
            else:
                assert value == pytest.approx(float(told), abs=1e-3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"loss_type": "ipo", "label_smoothing": 0.1},
         "label_smoothing has no effect with loss_type ipo: only with sigmoid and robust"),
        ({"loss_type": "hinge", "label_smoothing": 0.0}, "has no effect with loss_type hinge"),
        ({"loss_type": "robust", "label_smoothing": 0.0}, "needs label_smoothing above 0"),
        ({"loss_type": "orpo", "label_smoothing": 0.1}, "with loss_type orpo: only with sigmoid"),
        ({"simpo_gamma": 0.5}, "simpo_gamma has no effect with loss_type sigmoid: only with simpo"),
        ({"loss_type": "simpo", "cpo_alpha": 0.0}, "cpo_alpha has no effect with loss_type simpo"),
        ({"loss_type": "simpo", "ref_model_name_or_path": "m"},
         "ref_model_name_or_path has no effect with loss_type simpo, which has no reference"),
        ({"loss_type": "orpo", "ref_model_name_or_path": "m"}, "loss_type orpo, which has no"),
        ({"loss_type": "cpo", "rpo_alpha": 0.2}, "rpo_alpha has no effect with loss_type cpo: only "
         "with sigmoid and robust and ipo"),
        ({"loss_type": "plackett_luce", "rpo_alpha": 0.2}, "with loss_type plackett_luce"),
        ({"rpo_alpha": -0.1}, "rpo_alpha: got -0.1, but"),
        ({"loss_type": "cpo", "cpo_alpha": -1}, "cpo_alpha: got -1, but"),
        ({"label_smoothing": 0.5}, "label_smoothing: got 0.5, but it should be less than 0.5"),
        ({"label_smoothing": -0.1}, "greater than or equal to 0"),
        ({"loss_type": "ipo_meen"}, "loss_type: got 'ipo_meen'"),
        ({"loss_type": 3}, "loss_type: got 3"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config(**values)


def test_naming_a_loss_gives_its_paper_and_what_is_given_wins(tmp_path: Path) -> None:
    assert config().loss_options == {"beta": 0.1, "label_smoothing": 0.0}
    assert config(loss_type="robust").loss_options == {"beta": 0.1, "label_smoothing": 0.1}
    assert config(loss_type="robust", label_smoothing=None).label_smoothing == 0.1
    assert config(loss_type="robust", beta=0.3).beta == 0.3
    assert config(loss_type="ipo").label_smoothing is None
    assert config(loss_type="simpo").loss_options == {"beta": 2.0, "gamma": 1.0}
    assert config(loss_type="simpo").learning_rate == 6e-7
    assert config(loss_type="simpo", beta=2.5, simpo_gamma=0.3).loss_options == {
        "beta": 2.5,
        "gamma": 0.3,
    }
    assert config(loss_type="cpo").loss_options == {"beta": 0.1, "alpha": 1.0}
    assert config(loss_type="cpo", cpo_alpha=0.0).loss_options["alpha"] == 0
    assert config(loss_type="orpo").learning_rate == 5e-6
    assert config(loss_type="orpo", learning_rate=1e-5).learning_rate == 1e-5
    # What was used is what config.yaml says, and it can be read again.
    for name in LOSSES:
        file = tmp_path / f"{name}.yaml"
        file.write_text(to_yaml(config(loss_type=name)))
        assert from_yaml(DpoConfig, file) == config(loss_type=name)


def test_a_flag_that_repeats_a_default_counts_as_given() -> None:
    words = [w for k, v in NEEDED.items() for w in (f"--{k}", v)]
    more = ["--loss-type", "simpo", "--beta", "0.1", "--learning-rate", "1e-06"]
    made = parse(COMMANDS["dpo"].config, words + more)
    assert isinstance(made, DpoConfig)
    assert (made.beta, made.learning_rate) == (0.1, 1e-6)
