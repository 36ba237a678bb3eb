"""Measuring policies in the embedded world, where the gold reward of any text is known."""

from collections.abc import Callable, Mapping, Sequence

import torch

from truing.data.batch import Encoder
from truing.data.layout import Tokens
from truing.data.schema import Comparison
from truing.evaluate.reward_bench import bag_of_words, length_margins, plain
from truing.evaluate.summary import Item, Reply, RewardTest, Scorer, System
from truing.generation.engine import Sampling, Trajectory
from truing.generation.sample import complete
from truing.models.model import Policy, sequence_logps
from truing.rewards import ModelReward
from truing.worlds.corpus import knowledge
from truing.worlds.gold import Score, gold
from truing.worlds.replies import best_reply
from truing.worlds.service import Case

# Tokens a reply may take: the longest demonstration has fewer.
LONGEST = 96
QUESTIONS = 100
SIDE_BY_SIDE = 256  # replies: for a small model the steps cost more than the rows


def item(case: Case) -> Item:
    """A case as the report shows it."""
    return Item(case.prompt, case.key, case.held_out, gold(case, best_reply(case)).parts)


def judged(case: Case, encoder: Encoder, trajectory: Trajectory) -> tuple[str, Score]:
    """The reply's text and its gold score; a reply cut off is scored as unfinished."""
    text = encoder.decode(trajectory.response_ids)
    return text, gold(case, text, finished=trajectory.finish == "stop")


def reply(case: Case, encoder: Encoder, trajectory: Trajectory) -> Reply:
    """One sampled reply with all that the gold says of it; length in tokens without the EOS."""
    text, score = judged(case, encoder, trajectory)
    length = len(trajectory.response_ids) - (trajectory.finish == "stop")
    return Reply(text, score.total, score.parts, score.facts, score.faults, length)


def sampled(
    policy: Policy, cases: Sequence[Case], *, seed: int, stream: str, samples: int = 1
) -> list[list[Trajectory]]:
    """``samples`` replies to each case at temperature 1."""
    sampling = Sampling(max_completion_length=LONGEST, seed=seed, stream=stream)
    prompts, keys = [case.prompt for case in cases], [case.key for case in cases]
    return complete(
        policy,
        Encoder(policy.tokenizer),
        prompts,
        sampling,
        keys=keys,
        samples=samples,
        batch_size=SIDE_BY_SIDE,
    )


def log_ratios(
    policy: Policy, trajectories: Sequence[Trajectory], reference: Policy
) -> list[float]:
    """log pi - log pi_ref of each whole response, in nats: their mean estimates KL(pi || ref)."""
    if policy is reference:
        return [0.0] * len(trajectories)
    rows = [Tokens(t.prompt_ids, t.response_ids) for t in trajectories]
    under = sequence_logps(reference, rows, 64).tolist()
    return [sum(t.logps) - ref for t, ref in zip(trajectories, under, strict=True)]


def known(policy: Policy, *, seed: int) -> list[bool]:
    """Which general-knowledge questions, in wordings never taught, are answered greedily right."""
    asked = knowledge(QUESTIONS, seed=seed, split="heldout")
    sampling = Sampling(temperature=0.0, max_completion_length=6)
    encoder = Encoder(policy.tokenizer)
    done = complete(policy, encoder, [question for question, _ in asked], sampling)
    return [
        encoder.decode(group[0].response_ids).startswith(answer)
        for group, (_, answer) in zip(done, asked, strict=True)
    ]


def system(
    policy: Policy,
    cases: Sequence[Case],
    *,
    name: str,
    label: str,
    seed: int,
    reference: Policy | None = None,
    note: str = "",
    spoken: str = "",
) -> System:
    """Sample one reply a case at temperature 1 and measure all that the report asks for."""
    encoder = Encoder(policy.tokenizer)
    done = [group[0] for group in sampled(policy, cases, seed=seed, stream=f"evaluate {name}")]
    return System(
        name=name,
        label=label,
        replies=[reply(c, encoder, t) for c, t in zip(cases, done, strict=True)],
        note=note,
        spoken=spoken,
        kl=log_ratios(policy, done, reference) if reference is not None else (),
        knowledge=known(policy, seed=seed),
    )


def best_of_n(
    start: Policy, shown: Sequence[Case], scorer: ModelReward, *, n: int, seed: int
) -> System:
    """The supervised model's reply, of ``n``, that the reward model likes best."""
    encoder = Encoder(start.tokenizer)
    groups = sampled(start, shown, seed=seed, stream="best of n", samples=n)
    prompts = [case.prompt for case in shown for _ in range(n)]
    texts = [encoder.decode(t.response_ids) for group in groups for t in group]
    scores = scorer(prompts, texts)
    best = [max(range(n), key=lambda k, i=i: scores[i * n + k]) for i in range(len(shown))]
    return System(
        name="best_of_n",
        label=f"Best of {n}",
        replies=[
            reply(case, encoder, group[k])
            for case, group, k in zip(shown, groups, best, strict=True)
        ],
        spoken=f"best of {n}",
        note=f"the supervised model, {n} samples, the reward model's favourite",
    )


def watcher(
    shown: Sequence[Case], start: Policy, scorer: ModelReward
) -> Callable[[Policy], Mapping[str, float]]:
    """Reward, gold and KL of a policy in training, on a few held-out prompts.

    All trainings begin as ``start``, which is measured once for them.
    """
    begun: dict[str, float] = {}

    def watch(policy: Policy) -> dict[str, float]:
        begins = same_weights(policy, start)
        if begins and begun:
            return dict(begun)
        encoder = Encoder(policy.tokenizer)
        done = [g[0] for g in sampled(policy, shown, seed=0, stream="watch")]
        texts, scores = zip(
            *(judged(c, encoder, t) for c, t in zip(shown, done, strict=True)), strict=True
        )
        n = len(shown)
        figures = {
            "objective/kl": sum(log_ratios(policy, done, start)) / n,
            "objective/scores": sum(scorer([c.prompt for c in shown], texts)) / n,
            "objective/gold": sum(s.total for s in scores) / n,
            "completions/mean_length": sum(len(t.response_ids) for t in done) / n,
        }
        begun.update(figures if begins else {})
        return figures

    return watch


def same_weights(a: Policy, b: Policy) -> bool:
    """Whether two policies of one architecture are the same to the last bit."""
    return all(map(torch.equal, a.parameters(), b.parameters()))


def reward_test(
    scorer: ModelReward,
    rows: Sequence[Comparison],
    *,
    train: Sequence[Comparison],
    gold_margins: Sequence[float],
    agreement: Sequence[float],
) -> RewardTest:
    """The reward model on held-out labels, beside two judges that cannot read the prompt."""
    prompts = [c.prompt for c in rows]
    sides = [scorer(prompts, [plain(getattr(c, s)) for c in rows]) for s in ("chosen", "rejected")]
    return RewardTest(
        scorers=[
            Scorer("model", "Reward model", [a - b for a, b in zip(*sides, strict=True)]),
            Scorer("length", "Longer wins", length_margins(rows)),
            Scorer(
                "blind",
                "Words only, prompt unseen",
                bag_of_words(train, rows),
                "logistic regression on words",
            ),
        ],
        gold_margins=gold_margins,
        agreement=agreement,
        keys=range(len(rows)),
    )
