"""PPO as one loop, to be read from top to bottom.

It uses torch, transformers and Truing's floor-0 functions; the stages, the data readers and the
trainer stay out. The critic is a copy of the policy with a head that starts at 0. A test holds its
losses equal to those of `truing ppo` on the same prompts.

    python examples/ppo_loop.py --model MODEL --prompts prompts.jsonl --output improved

The reward here is a rule, so that it runs at once: brevity. Put your own in its place.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.clip_grad import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from truing.algorithms import (
    gae,
    k1,
    ppo_clip,
    reduce_mean,
    sequence_sum,
    token_logp,
    token_rewards,
    value_clip,
    whiten,
)

# Prompts and responses as texts -> one number for each pair.
Reward = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
# A number in [0, 1) for each token of each response: (step, responses, tokens) -> (B, T).
Draws = Callable[[int, int, int], np.ndarray]


def brevity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    return [-float(len(response.split())) for response in responses]


def own_draws(step: int, responses: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(step).random((responses, tokens))


class Critic(nn.Module):
    """What a policy's twin foresees, one number a token."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(policy.base_model)
        self.head = nn.Linear(policy.config.hidden_size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.head(self.body(input_ids=ids_BT).last_hidden_state).squeeze(-1)


class Rollout(NamedTuple):
    """Sampled responses. ids hold the prompts too; every other tensor has a column for each token
    but the first, for a token is judged where it is predicted."""

    ids_BT: Tensor
    mask_BT: Tensor  # 1 for response tokens, EOS included
    logp_BT: Tensor
    texts: list[str]


@torch.no_grad()
def sample(
    policy: Any, tokenizer: Any, prompts: Sequence[str], tokens: int, uniform_BT: np.ndarray
) -> Rollout:
    """One response to each prompt, at most ``tokens`` long, at temperature 1.

    One prompt after the other and without a cache: the plainest way, and slow.
    """
    rows: list[tuple[list[int], list[float], int]] = []
    for prompt, uniform_T in zip(prompts, uniform_BT, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        start, logps = len(ids), []
        for number in uniform_T[:tokens]:
            logp_V = policy(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            sums_V = logp_V.double().exp().cumsum(-1)
            # The first token whose cumulative probability exceeds the number.
            token = int(torch.searchsorted(sums_V, number * sums_V[-1], right=True))
            ids = [*ids, token]
            logps.append(float(logp_V[token]))
            if token == tokenizer.eos_token_id:
                break
        rows.append((ids, logps, start))
    ids_BT = pad_sequence([torch.tensor(ids) for ids, _, _ in rows], batch_first=True)
    mask_BT, logp_BT = torch.zeros(2, *ids_BT[:, 1:].shape)
    for b, (ids, logps, start) in enumerate(rows):
        place = slice(start - 1, len(ids) - 1)
        mask_BT[b, place], logp_BT[b, place] = 1, torch.tensor(logps)
    texts = [tokenizer.decode(ids[start:], skip_special_tokens=True) for ids, _, start in rows]
    return Rollout(ids_BT, mask_BT.bool(), logp_BT, texts)


def logps(policy: Any, ids_BT: Tensor) -> Tensor:
    """log pi of every token but the first. Filling on the right needs no attention mask: causal
    attention never looks at it."""
    return token_logp(policy(input_ids=ids_BT).logits[:, :-1], ids_BT[:, 1:])


def train(
    policy: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    reward: Reward = brevity,
    *,
    steps: int,
    draws: Draws = own_draws,
    tokens: int = 32,
    epochs: int = 4,
    learning_rate: float = 3e-6,
    kl_coef: float = 0.05,
    clip: float = 0.2,
    vf_coef: float = 0.1,
    gamma: float = 1.0,
    lam: float = 0.95,
    max_grad_norm: float = 1.0,
) -> Iterator[dict[str, float]]:
    """Optimise ``policy`` in place, all prompts in every step; yields what a step came to."""
    # Dropout would make the log-probs of two equal models differ. Nothing else changes with eval().
    policy.eval()
    # Padding that was sampled is a token like others: its embedding shall have a gradient too.
    policy.get_input_embeddings().padding_idx = None
    reference, critic = copy.deepcopy(policy), Critic(policy).eval()
    weights = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        # Play: sample, judge, and ask the reference and the critic.
        drawn = draws(step, len(prompts), tokens)
        ids_BT, mask_BT, old_BT, texts = sample(policy, tokenizer, prompts, tokens, drawn)
        score_B = torch.tensor(reward(prompts, texts))
        with torch.no_grad():
            kl_BT = k1(old_BT, logps(reference, ids_BT).masked_fill(~mask_BT, 0.0))
            seen_BT = critic(ids_BT)[:, :-1].masked_fill(~mask_BT, 0.0)
        # Estimate: what each token did better than was foreseen, the price of distance included.
        reward_BT = token_rewards(score_B, kl_BT, mask_BT, kl_coef=kl_coef)
        advantage_BT = gae(reward_BT, seen_BT, mask_BT, gamma=gamma, lam=lam)
        return_BT, advantage_BT = advantage_BT + seen_BT, whiten(advantage_BT, mask_BT)
        # Learn: several times from the same responses, which is what the clips are for.
        losses: list[tuple[float, float]] = []
        for _ in range(epochs):
            new_BT, value_BT = logps(policy, ids_BT), critic(ids_BT)[:, :-1]
            policy_BT = ppo_clip(new_BT, old_BT, advantage_BT, clip=clip).loss
            value_loss_BT = value_clip(value_BT, seen_BT, return_BT, clip=clip).loss
            count = float(mask_BT.sum())
            policy_loss = reduce_mean(policy_BT[mask_BT], count)
            value_loss = reduce_mean(value_loss_BT[mask_BT], count)
            optimizer.zero_grad()
            (policy_loss + vf_coef * value_loss).backward()
            clip_grad_norm_(weights, max_grad_norm)
            optimizer.step()
            losses.append((float(policy_loss.detach()), float(value_loss.detach())))
        schedule.step()
        yield {
            "objective/scores": float(score_B.mean()),
            "objective/kl": float(sequence_sum(kl_BT, mask_BT).mean()),
            "loss/policy_avg": sum(p for p, _ in losses) / epochs,
            "loss/value_avg": sum(v for _, v in losses) / epochs,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a Hugging Face folder or hub name")
    parser.add_argument("--prompts", required=True, type=Path, help="jsonl with a column prompt")
    parser.add_argument("--output", required=True, type=Path, help="folder for the new model")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of a response")
    parser.add_argument("--learning-rate", type=float, default=3e-6)
    options = parser.parse_args()
    lines = options.prompts.read_text(encoding="utf-8").split("\n")
    prompts = [json.loads(line)["prompt"] for line in lines if line]
    policy = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rate, steps, tokens = options.learning_rate, options.steps, options.tokens
    loop = train(policy, tokenizer, prompts, steps=steps, tokens=tokens, learning_rate=rate)
    for step, figures in enumerate(loop, start=1):
        print(f"step {step}  " + "  ".join(f"{name} {x:.4f}" for name, x in figures.items()))
    policy.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
