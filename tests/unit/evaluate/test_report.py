"""The report: the verdict's honesty, the figures' keys, the page's safety and sameness."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from truing.evaluate.report import chips, render, write_report
from truing.evaluate.summary import (
    Curve,
    Item,
    Overoptimisation,
    Reply,
    Report,
    RewardTest,
    Scorer,
    SeedRun,
    Stage,
    System,
    percent,
    summary,
)
from truing.stats.ratings import Interval, win_rate

HOSTILE = "<script>alert('x')</script> \"&{{ 7 * 7 }} $\\frac"


def reply(gold: float, *, name: bool = True, faults: Sequence[str] = (), length: int = 20) -> Reply:
    parts = {"decision": gold, "false_claims": -0.1 * len(faults)}
    return Reply("a fine reply", gold, parts, {"name": name}, frozenset(faults), length)


def system(name: str, golds: Sequence[float], **changes: object) -> System:
    replies = [reply(g, length=20 + i % 3) for i, g in enumerate(golds)]
    return replace(System(name, name.upper(), replies, spoken=f"the {name} model"), **changes)


def report(dpo: Sequence[float] = (0.9,) * 40, **changes: object) -> Report:
    """Forty prompts, alternately with held-out names; SFT scores 0.5 everywhere."""
    base = Report(
        title="A run",
        simulated=True,
        items=[Item(f"prompt {i}", i, frozenset(["name"] if i % 2 else [])) for i in range(40)],
        systems=[
            system("base", [0.0] * 40, knowledge=[True] * 30),
            system("sft", [0.5] * 40, kl=[0.0] * 40, knowledge=[True] * 30),
            system("dpo", dpo, kl=[3.0, 5.0] * 20, knowledge=[True] * 15 + [False] * 15),
        ],
        contests=[("sft", "base"), ("dpo", "sft")],
        headline=("dpo", "sft"),
        reference="sft",
        seed=3,
        command="truing quickstart --seed 3",
        versions={"truing": "0.1"},
        stages=[Stage("sft", "SFT", 10.0, 50), Stage("judge", "Judging", 2.5)],
        peak_mb=1500.0,
        reward=RewardTest(
            [
                Scorer("model", "Reward model", [1, 1, -1, 2]),
                Scorer("length", "Length", [1, 0, 0, 0]),
            ],
            gold_margins=[1, 1, 1, -1],
            agreement=[0.9, 0.8, 0.7, 0.6],
            keys=[0, 1, 2, 3],
        ),
        curves=[
            Curve("DPO", "KL", "kl", [0, 1], [0.0, 2.0], system="dpo"),
            Curve("DPO", "Gold", "a", [0, 1], [0.0, 2.0], [0, 1], [1, 3]),
            Curve("DPO", "Gold", "b", [0, 1], [0.0, 2.0]),
            Curve("DPO", "Empty", "b", [], []),
        ],
        gold_marks={"the best reply": 1.0},
    )
    return replace(base, **changes)


def page(of: Report) -> str:
    return render(of, summary(of))


# ---------------------------------------------------------------- figures


def test_summary_has_the_promised_figures() -> None:
    figures = summary(report())
    assert {"value", "low", "high", "ceiling"} <= figures["reward_accuracy"].keys()
    for contest in ("sft_vs_base", "dpo_vs_sft"):
        assert {"value", "low", "high", "n", "ties"} <= figures["win_rate"][contest].keys()
    assert figures["seconds"] == {"sft": 10.0, "judge": 2.5, "total": 12.5}
    assert figures["seconds_per_step"] == {"sft": 0.2}
    assert (figures["peak_mb"], figures["seed"], figures["simulated"]) == (1500.0, 3, True)
    assert figures["versions"] == {"truing": "0.1"}
    assert figures["kl"]["dpo"]["value"] == 4.0
    assert "base" not in figures["kl"]
    assert figures["length"]["dpo"]["value"] == pytest.approx(20.975)  # 14·20 + 13·21 + 13·22 = 839


def test_reward_accuracy_against_labels_gold_and_baselines() -> None:
    got = summary(report())["reward_accuracy"]
    assert got["value"] == 0.75  # margins 1, 1, −1, 2
    assert got["against_gold"]["value"] == 0.5  # times the gold's sign: 1, 1, −1, −2
    assert got["baselines"]["length"]["value"] == 0.625  # one right, three ties
    assert got["ceiling"] == pytest.approx(0.75)


def test_parts_faults_and_facts() -> None:
    lost = {0, 2, 4, 6, 8, 10, 12, 14, 1, 3}
    replies = [reply(0.9, name=i not in lost, faults=["rude"] * (i < 8)) for i in range(40)]
    figures = summary(report(systems=[*report().systems[:2], System("dpo", "DPO", replies)]))
    assert figures["faults"]["dpo"]["rude"]["value"] == 0.2
    assert figures["faults"]["sft"]["rude"]["value"] == 0.0
    assert figures["parts"]["dpo"]["false_claims"]["value"] == pytest.approx(-0.02)  # 8 · 0.1 / 40
    facts = figures["facts"]["dpo"]
    assert facts["all"]["name"]["value"] == 0.75
    assert (facts["name"]["all"]["value"], facts["name"]["all"]["n"]) == (0.9, 20)
    # Ten of forty facts lost and none won; two of twenty leave room for chance.
    assert (facts["all"]["all"]["lowered"], facts["name"]["all"]["lowered"]) == (True, False)
    assert not figures["facts"]["sft"]["all"]["all"]["lowered"]


def test_of_many_facts_one_must_fall_further_to_be_marked() -> None:
    for others, lost, marked in ((0, 3, False), (0, 7, True), (10, 7, False), (10, 10, True)):
        facts = {"name": True} | dict.fromkeys("abcdefghij"[:others], True)
        told = [replace(reply(0.5), facts=facts | {"name": i >= lost}) for i in range(40)]
        rows = {"base": told[-1:] * 40, "sft": told[-1:] * 40, "dpo": told}
        made = report(systems=[System(name, name, row) for name, row in rows.items()])
        assert summary(made)["facts"]["dpo"]["all"]["name"]["lowered"] == marked, (others, lost)


def test_only_what_comes_after_the_reference_can_be_lowered() -> None:
    untaught = System("base", "BASE", [reply(0, name=False)] * 40)
    facts = summary(report(systems=[untaught, *report().systems[1:]]))["facts"]
    assert facts["base"]["all"]["all"]["value"] == 0.0
    assert not facts["base"]["all"]["all"]["lowered"]


def test_forgetting_is_marked() -> None:
    known = summary(report())["knowledge"]
    assert (known["dpo"]["value"], known["dpo"]["lowered"]) == (0.5, True)
    assert not known["sft"]["lowered"]


def test_diversity_falls_when_replies_are_alike() -> None:
    varied = [replace(reply(1), text=f"answer {i} is number {i}") for i in range(40)]
    figures = summary(report(systems=[*report().systems[:2], System("dpo", "DPO", varied)]))
    assert figures["diversity"]["sft"]["value"] == pytest.approx(2 / 40)  # 2 of 20 · 2 pairs differ
    # Per 20 replies of 4 pairs: "answer i", "i is", "number i" always differ, "is number" never.
    assert figures["diversity"]["dpo"]["value"] == pytest.approx(61 / 80)


def unbraked(gold: Sequence[float]) -> Overoptimisation:
    return Overoptimisation("PPO untied", [0, 2, 4, 6], [0.0, 1.0, 2.0, 3.0], gold, [0, 1, 5, 90])


def test_a_gamed_reward_is_told_with_the_step_to_stop_at() -> None:
    told = report(overoptimisation=unbraked([-0.5, 0.1, 0.0, -2.0]))
    assert summary(told)["overoptimisation"] == {
        "stop": 2,
        "last": 6,
        "gamed": True,
        "proxy": {"start": 0.0, "best": 1.0, "end": 3.0},
        "gold": {"start": -0.5, "best": 0.1, "end": -2.0},
        "kl": {"start": 0, "best": 1, "end": 90},
    }
    shown = page(told)
    assert "One should have stopped at rollout 2" in shown
    assert shown.count("stop here") == 2


def test_a_reward_that_was_not_gamed_is_not_called_so() -> None:
    told = report(overoptimisation=unbraked([-0.5, 0.1, 0.2, 0.3]))
    assert not summary(told)["overoptimisation"]["gamed"]
    shown = page(told)
    assert "stop here" not in shown
    assert "gold did not end below its start while the score rose" in shown


def test_without_such_a_run_there_is_no_warning() -> None:
    assert summary(report())["overoptimisation"] is None
    assert 'id="overoptimisation"' not in page(report())


def test_equal_prompts_count_once_in_intervals() -> None:
    won = [0.9] * 30 + [0.1] * 10
    alone = summary(report(won))["win_rate"]["dpo_vs_sft"]
    items = [Item("p", i // 2) for i in range(40)]
    shared = summary(report(won, items=items))["win_rate"]["dpo_vs_sft"]
    assert shared["value"] == alone["value"] == 0.75
    assert shared["low"] < alone["low"] - 0.03


# ---------------------------------------------------------------- the verdict


@pytest.mark.parametrize(
    ("wins", "outcome", "words"),
    [
        (
            32,
            "better",
            "The dpo model's replies beat the sft model's by the gold reward on 80 % of 40",
        ),
        (
            8,
            "worse",
            "did not beat the sft model's by the gold reward: they won on only 20 % of 40",
        ),
        (22, "unclear", "did not clearly beat the sft model's"),
    ],
)
def test_the_verdict_is_honest(wins: int, outcome: str, words: str) -> None:
    golds = [0.9] * wins + [0.1] * (40 - wins)
    found = summary(report(golds))["verdict"]
    assert found["outcome"] == outcome
    text = found["text"].replace("\u00a0", " ")
    assert words in text
    won = win_rate(golds, [0.5] * 40)
    assert f"(95 % interval {100 * won.low:.0f} to {100 * won.high:.0f} %)" in text
    assert text.count(".") == 1  # one sentence
    assert f'class="verdict {outcome}"' in page(report(golds))


def test_the_verdict_tells_ties_and_repeated_prompts() -> None:
    text = summary(report([0.9] * 38 + [0.5] * 2))["verdict"]["text"]
    assert text.endswith("; 2 ties count a half).")
    items = [Item("p", i // 2) for i in range(40)]
    assert "of 40 replies to 20 held-out prompts" in summary(report(items=items))["verdict"]["text"]


def test_percent_never_hides_the_side_of_a_half() -> None:
    figure = {"value": 0.55, "low": 0.4996, "high": 0.6}
    assert percent(figure, "range") == "50.0 to 60.0\u00a0%"
    assert percent(figure | {"low": 0.47}) == "55\u00a0%"
    assert percent({"value": 0.004, "low": 0.001, "high": 0.009}) == "0.4\u00a0%"


# ---------------------------------------------------------------- the page


class Tags(HTMLParser):
    """Names of all elements, and whether each was closed."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_hostile_text_is_inert_everywhere() -> None:
    bad = Reply(HOSTILE, 0.5, {HOSTILE: 0.5}, {HOSTILE: True}, frozenset([HOSTILE]), 5)
    whole = report(
        title=HOSTILE,
        items=[Item(HOSTILE, i, frozenset([HOSTILE])) for i in range(40)],
        systems=[
            System(name, HOSTILE, [bad] * 40, HOSTILE, HOSTILE) for name in ("base", "sft", "dpo")
        ],
        command=HOSTILE,
        versions={HOSTILE: HOSTILE},
        setup={HOSTILE: HOSTILE},
        labels={HOSTILE: HOSTILE},
        curves=[Curve(HOSTILE, HOSTILE, HOSTILE, [0, 1], [0, 1])] * 2,
        gold_marks={HOSTILE: 0.5},
    )
    text = page(whole)
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert "script" not in tags.names
    assert "{{ 7 * 7 }}" in text  # shown, not computed
    assert "&lt;script&gt;" in text


def test_the_page_stands_alone() -> None:
    text = page(report())
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    assert not {"script", "iframe", "img"} & set(tags.names)
    assert tags.names.count("svg") == 6  # wins, gold, facts, reward; KL and gold curves
    addresses = set(re.findall(r'https?://[^"\s<]*', text))
    assert addresses <= {"http://www.w3.org/1999/xlink"}  # a name, never fetched
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_banner_stands_iff_judgements_are_simulated() -> None:
    assert "Simulated judgements." in page(report())
    assert "Simulated" not in page(report(simulated=False))


def test_every_seed_is_shown() -> None:
    assert "One seed was run" in page(report())
    others = [SeedRun(9, {"dpo_vs_sft": Interval(0.7, 0.61, 0.8, 40)}, None, 5.0)]
    text = page(report(seeds=others))
    assert "61 to 80" in text.split('id="seeds"')[1]
    rows = re.findall(r'<th scope="row">(\d+)', text.split('id="seeds"')[1].split("</section>")[0])
    assert rows == ["3", "9"]
    read = SeedRun.read(summary(report())).win_rates
    assert read.keys() == {"sft_vs_base", "dpo_vs_sft"}
    assert read["dpo_vs_sft"] == win_rate([0.9] * 40, [0.5] * 40)[:4]


def test_examples_are_the_first_prompts() -> None:
    text = page(report(examples=3)).split('id="examples"')[1].split("</section>")[0]
    assert re.findall(r"prompt \d+", text) == ["prompt 0", "prompt 1", "prompt 2"]
    assert "(empty)" not in text
    silent = replace(report().systems[2], replies=[replace(reply(0), text=" ")] * 40)
    assert "(empty)" in page(report(systems=[*report().systems[:2], silent]))


def test_a_report_may_lack_what_was_not_measured() -> None:
    bare = [replace(s, kl=(), knowledge=()) for s in report().systems]
    text = page(report(systems=bare, reward=None, curves=()))
    for absent in ('id="reward"', 'id="training"', 'id="faults"', "General knowledge</th>"):
        assert absent not in text
    assert summary(report(reward=None))["reward_accuracy"] is None


def test_chips_are_coloured_by_what_was_possible() -> None:
    item = Item("p", 0, best={"decision": 0.5})
    spans = {"decision": (0.0, 1.0), "false_claims": (-0.4, 0.0), "same": (1.0, 1.0)}
    shown = Reply(
        "text", 0, {"decision": 0.5, "false_claims": -0.3, "same": 1.0}, {"item": False},
        frozenset(["rude"]), 3,
    )  # fmt: skip
    groups = chips(report(labels={"rude": "is rude"}), item, shown, spans)
    # decision is at the best of this prompt; −0.3 is ¾ of the span short of 0; "same" never varied.
    assert [(c.level, c.text) for c in groups["Scores"]] == [
        ("good", "decision 0.50"),
        ("bad", "false claims −0.30"),
        ("even", "same 1.00"),
    ]
    assert [(c.level, c.text) for c in groups["Facts"]] == [("bad", "item")]
    assert [(c.level, c.text) for c in groups["Faults"]] == [("bad", "is rude")]
    part = chips(report(), item, replace(shown, parts={"decision": 0.2}), spans)["Scores"]
    assert part[0].level == "part"  # 0.3 of the span short


def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    first, again = (write_report(tmp_path / name, report()) for name in ("a", "b"))
    assert first == tmp_path / "a" / "report.html"
    for name in ("report.html", "summary.json"):
        assert (first.parent / name).read_bytes() == (again.parent / name).read_bytes()
    figures = json.loads((first.parent / "summary.json").read_text(encoding="utf-8"))
    assert figures == summary(report())


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"reference": "rl"}, "no system is called"),
        ({"headline": ("dpo", "base")}, "must be one of the contests"),
        ({"items": [Item("p", 0)]}, "2 prompts"),
        ({"items": [Item("p", i) for i in range(41)]}, "41 prompts, 40 replies"),
        ({"curves": [Curve("a", "b", "c", [1, 2], [1])]}, "steps and values differ"),
        (
            {"overoptimisation": Overoptimisation("x", [0, 1], [1.0, 2.0], [1.0, 2.0], [1.0])},
            "x: proxy, gold and KL",
        ),
        ({"overoptimisation": Overoptimisation("x", [], [], [], [])}, "at every step looked at"),
        ({"reward": RewardTest([], [], [], [])}, "at least the reward model"),
        ({"systems": [system("base", [0.0] * 40)] * 2}, "different names"),
    ],
)
def test_measurements_that_do_not_fit_are_refused(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        report(**changes)


def test_replies_must_be_judged_on_the_same_facts() -> None:
    odd = system("dpo", [0.9] * 40)
    odd = replace(odd, replies=[*odd.replies[:-1], replace(odd.replies[-1], facts={"other": True})])
    with pytest.raises(ValueError, match="prompt 39: every system's reply needs the same facts"):
        report(systems=[*report().systems[:2], odd])
    lost = replace(report().systems[2], knowledge=[True])
    with pytest.raises(ValueError, match="the same knowledge questions"):
        report(systems=[*report().systems[:2], lost])


def test_a_figure_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number 0 is nan"):
        write_report(tmp_path, report([float("nan")] + [0.9] * 39))
    assert not list(tmp_path.iterdir())
