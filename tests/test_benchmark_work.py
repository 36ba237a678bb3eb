"""What the comparisons beside TRL read and sample: the same on every side (benchmarks/work.py)."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks import work
from benchmarks.ours import Sampler
from benchmarks.peer import Ends
from truing.generation.engine import Request, Sampling
from truing.models.loading import Loading
from truing.models.model import load_policy
from truing.settings import SftConfig

SHAPE = work.SHAPES["tiny"]


@pytest.mark.parametrize("kind", ["demonstrations", "comparisons", "labels", "prompts"])
def test_rows_are_the_same_for_all_and_read_as_they_are_counted(kind: str) -> None:
    rows = list(work.rows(kind, 6, SHAPE))
    assert rows == list(work.rows(kind, 9, SHAPE))[:6]
    tokens = work.tokenizer(SHAPE)
    for row in rows:
        assert tuple(tokens(row["prompt"])["input_ids"]) == work.ids(row["prompt"])
        for prompt, response in work.sequences(row):
            assert 64 <= len(prompt) <= 256
            assert not response or (32 < len(response) <= 257 and response[-1] == work.EOS)
    lengths = [len(p) + len(r) for row in rows for p, r in work.sequences(row)]
    assert sum(map(work.useful, rows)) == sum(lengths)


def test_a_digest_sees_every_token_and_where_the_response_starts() -> None:
    whole = work.digest([((1, 2), (3, 4))])
    others = [((1, 2), (3, 5)), ((1,), (2, 3, 4)), ((2, 1), (3, 4))]
    assert whole not in [work.digest([other]) for other in others]


def test_given_responses_go_by_prompt_and_sample() -> None:
    first = work.given((5, 6), 0, SHAPE, whole=False)
    assert first == work.given([5, 6], 0, SHAPE, whole=False)
    assert first != work.given((5, 6), 1, SHAPE, whole=False)
    assert first[-1] == work.EOS
    assert len(first) <= work.RESPONSE == len(work.given((5, 6), 0, SHAPE, whole=True))


def test_the_reward_counts_what_was_sampled() -> None:
    before = work.seen["tokens"]
    assert work.reward(["", ""], ["w2 w3 w4 w6<eos>", "w3"]) == [2 / 3, 0.0]
    assert work.seen["tokens"] - before == 4 + 2


def test_a_model_for_sampling_draws_words_alone() -> None:
    torch.manual_seed(0)
    model = work.LlamaForCausalLM(SHAPE.config)
    work.unending(model)
    text = torch.randint(work.WORDS, SHAPE.vocabulary, (8, 64))
    with torch.no_grad():
        others = float(model(text).logits.softmax(-1)[..., : work.WORDS].max())
    assert others < 1e-6


def test_sampled_responses_have_the_same_lengths_on_both_sides() -> None:
    drawn = [work.length((i,), 0) for i in range(2000)]
    assert drawn == [work.length([i], 0) for i in range(2000)] != drawn[::-1]
    assert min(drawn) == 1 < work.RESPONSE == max(drawn)
    # What a draw at each token would come to, cut at the most there may be.
    wanted = work.ENDS * (1 - math.exp(-work.RESPONSE / work.ENDS))
    assert 0.93 * wanted < sum(drawn) / 2000 < 1.07 * wanted
    prompts = [[5, 6], [5, 7], [5, 6]]
    assert list(work.numbered(prompts)) == [((5, 6), 0), ((5, 7), 0), ((5, 6), 1)]

    ends, scores = Ends(), torch.zeros(3, SHAPE.vocabulary)
    ids = torch.tensor([[work.PAD, 5, 6], [work.PAD, 5, 7], [work.PAD, 5, 6]])
    lengths = [0, 0, 0]
    for step in range(work.RESPONSE):
        found = ends(ids, scores.clone()).softmax(-1)[:, work.EOS] == 1
        lengths = [n or (step + 1) * int(e) for n, e in zip(lengths, found.tolist(), strict=True)]
        ids = torch.cat([ids, torch.full((3, 1), 9)], 1)
    assert lengths == [work.length(*each) for each in work.numbered(prompts)]


def test_the_product_ends_its_responses_there(tmp_path: Path) -> None:
    work.prepare(tmp_path, SHAPE, work.WORKLOADS["grpo"], 1)
    named = {"model_name_or_path": "model", "dataset_name": "rows", "output_dir": "run"}
    policy = load_policy(tmp_path / "model", Loading.of(SftConfig(**named, use_cpu=True)))
    prompts = [work.ids(row["prompt"]) for row in work.read(tmp_path)]
    requests = [Request(prompt, 0, i) for prompt in prompts for i in range(8)]
    sampling = Sampling(max_completion_length=work.RESPONSE)
    for request, done in zip(requests, Sampler(policy).generate(requests, sampling), strict=True):
        length = work.length(request.prompt_ids, request.sample)
        assert done.response_ids.index(work.EOS) + 1 == len(done.response_ids) == length


def test_greedy_responses_end_at_lengths_of_their_own(tmp_path: Path) -> None:
    work.prepare(tmp_path, SHAPE, work.WORKLOADS["sampling-8"], 1)
    model = work.LlamaForCausalLM.from_pretrained(tmp_path / "model").eval()
    text = torch.randint(work.WORDS, SHAPE.vocabulary, (16, 32), generator=torch.manual_seed(0))
    rows = model.generate(text, max_new_tokens=work.RESPONSE, do_sample=False)
    ends = set(model.generation_config.eos_token_id)
    lengths = [len(work.ended(row, ends)) for row in rows[:, 32:].tolist()]
    assert len(set(lengths)) > 8
    assert 0.4 * work.ENDS < sum(lengths) / 16 < 1.6 * work.ENDS


def test_a_gpu_is_given_more_rows() -> None:
    spec = {"workload": "grpo", "shape": "0.5b", "cpu": True}
    assert [work.sized({**spec, "cpu": cpu}).batch for cpu in (True, False)] == [16, 128]
    # Whole groups, whatever the shape.
    assert work.sized({**spec, "shape": "1.5b", "cpu": False}).batch % 8 == 0
    assert work.sized({**spec, "workload": "sampling-32", "cpu": False}).batch == 32
    assert [work.sized({**spec, "workload": "ppo", "cpu": c}).batch for c in (True, False)] == [
        16,
        64,
    ]


def test_a_response_ends_at_its_first_end_token() -> None:
    assert work.ended([5, 7, 9, 7], {7}) == [5, 7]
    assert work.ended([5, 9], {7}) == [5, 9]
