"""What is measured: shapes, workloads, and the folder of model, tokenizer and rows that every side
loads. Nothing of the product is imported here, for the peer reads this too."""

import hashlib
import json
import math
import random
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

PAD, EOS, WORDS = 0, 1, 2  # ids; all from WORDS on are words
CONTEXT = 1024
RESPONSE = 128  # most tokens of a sampled response
# A sampled response ends once in so many tokens; a greedy one at one id of so many.
ENDS = 64
SEED = 20260101


class Shape(NamedTuple):
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int

    @property
    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )

    @property
    def parameters(self) -> int:
        each = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate
        return self.layers * each + self.vocabulary * self.hidden


SHAPES = {
    "tiny": Shape(192, 640, 6, 6, 4096),  # 4 M parameters
    "small": Shape(512, 1536, 8, 8, 8192),  # 31.5 M
    # Of a GPU.
    "0.5b": Shape(1024, 4096, 24, 16, 65_536),
    "1.5b": Shape(1536, 8192, 28, 12, 65_536),
    "8b": Shape(4096, 14_336, 32, 32, 65_536),
}


class Workload(NamedTuple):
    """``batch``: rows of an optimiser step as TRL counts them (pairs, for comparisons); of sampling
    the prompts of a call. ``passes``: what a useful token costs in units of two operations for each
    parameter: a forward pass 1, forward and backward 3, one token sampled 1; ``learnt``: those of
    them by which what was sampled is learnt from. ``group``: responses to a prompt. ``scorer``:
    whether a reward model is read. ``steps`` of a timed segment: the first one behind another
    side's is slow, and training takes many."""

    kind: str
    batch: int
    passes: float
    learnt: float = 0
    group: int = 1
    scorer: bool = False
    steps: int = 1

    @property
    def online(self) -> bool:
        return self.kind == "prompts"

    @property
    def greedy(self) -> bool:
        """Whether all it does is to sample, without chance."""
        return self.online and self.passes == 1


PPO_EPOCHS = 2
WORKLOADS = {
    "sft": Workload("demonstrations", 8, 3, steps=3),
    "reward": Workload("comparisons", 4, 3, scorer=True, steps=3),
    "dpo": Workload("comparisons", 4, 3 + 1, steps=3),  # and a pass of the reference
    "kto": Workload("labels", 8, 3 + 1 + 2, steps=3),  # and both models read mismatched answers
    "grpo": Workload("prompts", 16, 1 + 1 + 3, 3, group=8),  # sampled, reference, learnt
    "rloo": Workload("prompts", 16, 1 + 1 + 3, 3, group=8),
    # Sampled; reference, value and reward; policy and critic learn.
    "ppo": Workload(
        *("prompts", 16, 1 + 3 + PPO_EPOCHS * (3 + 3), PPO_EPOCHS * (3 + 3)), scorer=True
    ),
    "sampling-8": Workload("prompts", 8, 1),
    "sampling-32": Workload("prompts", 32, 1),
    "sampling-128": Workload("prompts", 128, 1),
}
# A GPU is given so many times the rows, or its time would go into launches; both sides lie on it,
# and the peer's four models of PPO have room for half of that beside ours.
GPU_ROWS, GPU_SHARE = {"0.5b": 8, "1.5b": 3}, {"ppo": 0.5}
SETTINGS = {"learning_rate": 1e-6, "beta": 0.1, "max_grad_norm": 1.0}


def sized(spec: Mapping[str, Any]) -> Workload:
    """The workload of a side, with the rows of its kind of machine and shape."""
    found = WORKLOADS[spec["workload"]]
    if spec["cpu"] or found.greedy:
        return found
    more = GPU_ROWS.get(spec["shape"], 1) * GPU_SHARE.get(spec["workload"], 1)
    return found._replace(batch=int(found.batch * more))


def lengths(draw: random.Random, low: int, high: int) -> int:
    """A length from a log-normal spread, cut to its bounds."""
    middle = math.sqrt(low * high)
    return min(high, max(low, round(draw.lognormvariate(math.log(middle), 0.5))))


def words(draw: random.Random, count: int, shape: Shape) -> str:
    return " ".join(f"w{draw.randrange(WORDS, shape.vocabulary)}" for _ in range(count))


def rows(kind: str, count: int, shape: Shape) -> Iterator[dict[str, Any]]:
    """Rows of a kind of data, the same ones whenever they are asked for."""
    draw = random.Random(f"{SEED} {kind}")
    for number in range(count):
        prompt = words(draw, lengths(draw, 64, 256), shape)
        answers = [" " + words(draw, lengths(draw, 32, 256), shape) for _ in range(2)]
        yield {
            "demonstrations": {"prompt": prompt, "completion": answers[0]},
            "comparisons": {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]},
            "labels": {"prompt": prompt, "completion": answers[0], "label": number % 2 == 0},
            "prompts": {"prompt": prompt},
        }[kind]


def ids(text: str) -> tuple[int, ...]:
    """The tokens of a text, as the tokenizer must give them."""
    return tuple(int(word[1:]) for word in text.split())


def sequences(row: Mapping[str, Any]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and response of each sequence of a row; of a prompt alone, an empty response."""
    answers = [row[key] for key in ("completion", "chosen", "rejected") if key in row]
    prompt = ids(row["prompt"])
    return [(prompt, (*ids(answer), EOS)) for answer in answers] or [(prompt, ())]


def useful(row: Mapping[str, Any]) -> int:
    """Tokens of a row that are not padding."""
    return sum(len(prompt) + len(response) for prompt, response in sequences(row))


def digest(pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> str:
    """One hash of all prompts and responses, in their order."""
    found = hashlib.sha256()
    for prompt, response in pairs:
        found.update(json.dumps([list(prompt), list(response)]).encode())
    return found.hexdigest()


def given(prompt: Sequence[int], sample: int, shape: Shape, *, whole: bool) -> tuple[int, ...]:
    """A made-up response, the same on every side: what the first, compared, step learns from.
    ``whole``: as long as may be, for where a response is shorter the peer's PPO places the score
    one token behind its end."""
    draw = random.Random(f"{list(prompt)} {sample}")
    count = RESPONSE - 1 if whole else lengths(draw, 16, RESPONSE - 1)
    return (*ids(words(draw, count, shape)), EOS)


def length(prompt: Sequence[int], sample: int) -> int:
    """How many tokens a sampled response has, its end included: drawn beforehand, as if it could
    end at any of them, so that chance gives no side shorter ones."""
    draw = random.Random(f"{list(prompt)} {sample} ends")
    return min(RESPONSE, 1 + int(draw.expovariate(1 / ENDS)))


def numbered(prompts: Iterable[Sequence[int]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Each prompt, and which of the responses to it this is."""
    counts: dict[tuple[int, ...], int] = {}
    for prompt in map(tuple, prompts):
        counts[prompt] = counts.get(prompt, -1) + 1
        yield prompt, counts[prompt]


def ended(response: list[int], ends: Container[int]) -> list[int]:
    """A response as far as its first end token."""
    stop = next((i for i, token in enumerate(response) if token in ends), len(response))
    return response[: stop + 1]


# Tokens of all completions so far, for those who sample.
seen = {"tokens": 0}


def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
    """Share of even words: a reward that costs nothing and differs between responses."""
    found: list[float] = []
    for completion in completions:
        numbers = [int(word[1:]) for word in completion.split() if word[1:].isdigit()]
        # The end token is one more, unless the response was cut.
        seen["tokens"] += min(len(numbers) + 1, RESPONSE)
        found.append(sum(n % 2 == 0 for n in numbers) / max(1, len(numbers)))
    return found


def tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": PAD, "<eos>": EOS}
    vocabulary |= {f"w{i}": i for i in range(WORDS, shape.vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def unending(model: LlamaForCausalLM) -> None:
    """Make a random model draw words alone: one channel is the same in every embedding but those of
    padding and end, and lifts the words far above them."""
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 2.0
        model.model.embed_tokens.weight[:WORDS, 0] = 0.0


def walking(model: LlamaForCausalLM) -> None:
    """Make a random model's greedy text walk through all words in a random order instead of
    repeating itself, so that responses end at lengths of their own."""
    weight = model.model.embed_tokens.weight
    with torch.no_grad():
        weight *= 10
        order = torch.randperm(len(weight) - WORDS) + WORDS
        model.lm_head.weight[order.roll(-1)] = weight[order]
        model.lm_head.weight[:WORDS] = 0
    model.generation_config.eos_token_id = [EOS, *range(ENDS, len(weight), ENDS)]


def prepare(
    folder: Path,
    shape: Shape,
    workload: Workload,
    steps: int,
    *,
    cpu: bool = True,
    half: bool = False,
) -> None:
    """Write the rows of so many steps, the policy and, where one is read, a reward model; the
    weights ``half`` as long, in bfloat16, if so asked."""
    torch.manual_seed(SEED)
    config = shape.config
    config.tie_word_embeddings = not workload.greedy
    with torch.device("cpu" if cpu else "cuda"):
        policy = LlamaForCausalLM(config)
        if workload.greedy:
            walking(policy)
        elif workload.online:
            unending(policy)
        written: dict[str, Any] = {"model": policy}
        if workload.scorer:
            config.num_labels = 1
            written["scorer"] = LlamaForSequenceClassification(config)
            written["scorer"].model.load_state_dict(policy.model.state_dict())
    for place, model in written.items():
        (model.bfloat16() if half else model).save_pretrained(folder / place)
        tokenizer(shape).save_pretrained(folder / place)
    del policy, model, written
    if not cpu:
        torch.cuda.empty_cache()  # the sides are other processes
    count = workload.batch // workload.group * steps
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in rows(workload.kind, count, shape):
            file.write(json.dumps(row) + "\n")


def read(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "rows.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
