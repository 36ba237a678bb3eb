"""Direct preference optimisation as one loop, to be read from top to bottom.

It uses torch, transformers and four of Truing's floor-0 functions; the stages, the data readers and
the trainer stay out. A test holds its losses equal to those of `truing dpo` on the same rows.

    python examples/dpo_loop.py --model MODEL --data comparisons.jsonl --output aligned

``comparisons.jsonl`` has the columns prompt, chosen and rejected, all plain text.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.clip_grad import clip_grad_norm_
from transformers import AutoModelForCausalLM, AutoTokenizer

from truing.algorithms import dpo, reduce_mean, sequence_sum, token_logp


class Row(NamedTuple):
    """A prompt and a response in tokens; the first ``start`` of them are the prompt."""

    ids: list[int]
    start: int


class Pair(NamedTuple):
    """What people preferred, and what they preferred it to."""

    chosen: Row
    rejected: Row


def read(path: Path, tokenizer: Any) -> list[Pair]:
    """The rows of a file, in tokens."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [
        Pair(*(encode(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")))
        for row in rows
    ]


def encode(tokenizer: Any, prompt: str, response: str) -> Row:
    """Prompt and response as one text, ended by EOS: the model must learn to stop.

    Tokenising both together keeps the space in front of the response's first word where the
    tokenizer puts it. If a token straddled the border, the prompt would not be the one that the
    model meets when it samples; so that is refused.
    """
    before = tokenizer(prompt)["input_ids"]
    whole = tokenizer(prompt + response)["input_ids"]
    if whole[: len(before)] != before:
        raise ValueError(
            f"a token spans the end of the prompt {prompt[-20:]!r} and the start of the response "
            f"{response[:20]!r}: begin responses with a space or a new line"
        )
    return Row([*whole, tokenizer.eos_token_id], len(before))


def response_logp(model: Any, rows: Sequence[Row]) -> Tensor:
    """log pi(response | prompt) of each row, summed over the response's tokens. Shape (B,).

    Rows are filled up on the right. Causal attention never looks right, so the filling needs no
    attention mask; the loss mask keeps it, and the prompt, out of the sum.
    """
    width = max(len(row.ids) for row in rows)
    ids_BT = torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows])
    place_T = torch.arange(width)
    start_B1 = torch.tensor([[row.start] for row in rows])
    end_B1 = torch.tensor([[len(row.ids)] for row in rows])
    mask_BT = (start_B1 <= place_T) & (place_T < end_B1)
    logits_BTV = model(input_ids=ids_BT).logits
    # The logits at one place predict the token at the next.
    logp_BT = token_logp(logits_BTV[:, :-1], ids_BT[:, 1:])
    return sequence_sum(logp_BT, mask_BT[:, 1:])


def train(
    model: Any,
    pairs: Sequence[Pair],
    *,
    beta: float = 0.1,
    learning_rate: float = 1e-6,
    batch_size: int = 8,
    epochs: int = 1,
    max_grad_norm: float = 1.0,
) -> Iterator[float]:
    """Optimise ``model`` in place; yields the loss of each step.

    The first loss is ln 2 = 0.693: the policy still is the reference, so every implicit reward
    ``beta * (log pi - log pi_ref)`` is 0 and each pair a coin toss.
    """
    # Dropout would make the log-ratio of two equal models random. Nothing else changes with eval().
    model.eval()
    batches = [pairs[i : i + batch_size] for i in range(0, len(pairs), batch_size)]
    # The reference never changes, so its log-probs are taken once: one model in memory, not two.
    with torch.no_grad():
        reference = [response_logp(model, sides(batch)) for batch in batches]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for step in range(steps):
        batch, reference_2N = batches[step % len(batches)], reference[step % len(batches)]
        ratio_2N = response_logp(model, sides(batch)) - reference_2N
        chosen_N, rejected_N = ratio_2N.chunk(2)
        loss_N = dpo(chosen_N, rejected_N, beta=beta)
        loss = reduce_mean(loss_N, len(batch))
        loss.backward()
        clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def sides(batch: Sequence[Pair]) -> list[Row]:
    """All chosen rows, then all rejected ones: one forward pass for both."""
    return [pair.chosen for pair in batch] + [pair.rejected for pair in batch]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a Hugging Face folder or hub name")
    parser.add_argument("--data", required=True, type=Path, help="jsonl of comparisons")
    parser.add_argument("--output", required=True, type=Path, help="folder for the new model")
    parser.add_argument("--beta", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=1)
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    losses = train(
        model,
        read(options.data, tokenizer),
        beta=options.beta,
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        epochs=options.epochs,
    )
    for step, loss in enumerate(losses, start=1):
        print(f"step {step}  loss {loss:.4f}")
    model.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)


if __name__ == "__main__":
    main()
