"""Texts to token ids, and token ids to one `Layout` that every model call understands.

Two steps. An `Encoder` turns a prompt and a response into a `Tokens` (ids, and which of them are
scored). `padded`, `packed` or `shared` place many `Tokens` into the rows of a model's input. What a
model returns for a layout is per *sequence* (B, T), so nothing above this file knows about rows.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from truing.data.schema import Message, Text

PLAIN_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].capitalize() }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
# The transcript form of Anthropic's helpful-harmless data. The new lines stand inside expressions,
# for transformers has Jinja drop the one that follows a block.
HH_TEMPLATE = (
    "{% for m in messages %}"
    "{{ ('\\n\\nHuman: ' if m['role'] == 'user' else '\\n\\nAssistant: ') + m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
NAMED_TEMPLATES = {"plain": PLAIN_TEMPLATE, "hh": HH_TEMPLATE}
# Responses in a row that share its prompt. Attention grows with the square of the row: on two CPUs,
# with the quickstart's model and prompts twice as long as responses, 4 was quicker than 2 or 8.
SHARERS = 4


class Tokens(NamedTuple):
    """A prompt and its response. Response tokens are scored, prompt tokens only condition."""

    prompt: tuple[int, ...]
    response: tuple[int, ...]

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass
class Encoder:
    """Prompt and response texts to ids for one tokenizer, counting whatever it had to change.

    ``template`` is "auto" (the tokenizer's own chat template), "plain", "hh" or the path of a Jinja
    file; it is used for message lists only. ``max_length`` bounds prompt plus response in tokens;
    ``truncation_mode`` says whether a longer response is cut at its end or its row left out.
    ``counts`` collects what was changed or left out, for the run's report.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = "auto"
    max_length: int | None = None
    truncation_mode: Literal["keep_start", "drop"] = "keep_start"
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def eos(self) -> int:
        return int(self.tokenizer.eos_token_id)  # pyright: ignore[reportArgumentType]

    @property
    def told(self) -> str:
        """The counts in words."""
        return ", ".join(f"{note}: {n}" for note, n in self.counts.items()) or "none was read"

    @cached_property
    def chat_template(self) -> str | None:
        """The template in use; None when the tokenizer has none and none was named."""
        if self.template == "auto":
            return self.tokenizer.chat_template  # pyright: ignore[reportReturnType]
        if self.template in NAMED_TEMPLATES:
            return NAMED_TEMPLATES[self.template]
        path = Path(self.template)
        if not path.is_file():
            raise ValueError(
                f"chat_template is {self.template!r}: neither 'auto', 'plain', 'hh' nor a file"
            )
        return path.read_text(encoding="utf-8")

    @cached_property
    def _prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts in front of any text (<s>, or nothing)."""
        ids: list[int] = self.tokenizer("")["input_ids"]  # pyright: ignore
        return tuple(i for i in ids if i != self.tokenizer.eos_token_id or i == self._bos)

    @property
    def _bos(self) -> Any:
        return self.tokenizer.bos_token_id

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore

    def render(self, messages: Sequence[Message], *, generate: bool) -> str:
        """The chat template applied to ``messages``; ``generate`` opens the assistant's turn."""
        if self.chat_template is None:
            raise ValueError(
                "the data holds chat messages but the tokenizer has no chat template: set "
                "chat_template to 'plain' (\"User: ...\"), 'hh' (\"Human: ...\") or a Jinja file"
            )
        try:
            return self.tokenizer.apply_chat_template(  # pyright: ignore[reportReturnType]
                [{"role": m.role, "content": m.content} for m in messages],
                chat_template=self.chat_template,
                add_generation_prompt=generate,
                tokenize=False,
            )
        except TemplateError as error:
            roles = ", ".join(m.role for m in messages)
            raise ValueError(
                f"the chat template ({self.template}) refuses messages of the roles {roles}: "
                f"{error}. Give another chat_template, or mend the rows"
            ) from None

    def prompt(self, prompt: Text) -> tuple[int, ...]:
        """Ids of a prompt that a response is to follow: the same in training and sampling."""
        if isinstance(prompt, str):
            return self._prefix + self._ids(prompt)
        return self._with_prefix(self.render(prompt, generate=True))

    def _with_prefix(self, text: str) -> tuple[int, ...]:
        ids = self._ids(text)
        # Many templates write the BOS themselves; one is enough.
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def encode(self, prompt: Text, response: Text) -> Tokens | None:
        """Ids of prompt and response, the response ended by exactly one EOS.

        None for a row that is left out: a prompt without room for any response, or a response too
        long in the mode "drop". A response that is cut loses its EOS. All of it is counted.
        """
        return next(self.encode_each(prompt, [response]), None)

    def encode_each(
        self, prompt: Text, responses: Sequence[Text], cut: Container[int] = ()
    ) -> Iterator[Tokens | None]:
        """`encode` of each response in turn, with the prompt read and, if it leaves no room,
        counted once: there is nothing then. Those that were ``cut`` when they were sampled (by
        number) get no EOS, which nobody wrote."""
        prompt_ids = self.prompt(prompt)
        room = None if self.max_length is None else self.max_length - len(prompt_ids)
        if room is not None and room < 1:
            self.counts["prompts too long, left out"] += 1
            return
        for number, response in enumerate(responses):
            response_ids = self._response(prompt, prompt_ids, response)
            if number in cut and len(response_ids) > 1:
                self.counts["responses cut when sampled: no end is learnt"] += 1
                response_ids = response_ids[:-1]
            if room is not None and len(response_ids) > room:
                if self.truncation_mode == "drop":
                    self.counts["responses too long, left out"] += 1
                    yield None
                    continue
                self.counts["responses truncated"] += 1
                response_ids = response_ids[:room]
            yield Tokens(prompt_ids, response_ids)

    def _response(
        self, prompt: Text, prompt_ids: tuple[int, ...], response: Text
    ) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if not isinstance(response, str):
                raise ValueError(
                    f"a response in messages came for the plain prompt {prompt[:60]!r}: give both "
                    "as text or both as messages"
                )
            ids = self._continuation(prompt, prompt_ids, response)
        else:
            reply = response if not isinstance(response, str) else (Message("assistant", response),)
            opened = self.render(prompt, generate=True)
            whole = self.render((*prompt, *reply), generate=False)
            if not whole.startswith(opened):
                # Templates that trim or reorder: the reply's own text still follows the prompt.
                whole = opened + "".join(m.content for m in reply)
            ids = self._continuation(opened, prompt_ids, whole[len(opened) :].rstrip("\n"))
        while ids and ids[-1] == self.eos:
            ids = ids[:-1]
        return (*ids, self.eos)

    def _continuation(self, prompt: str, prompt_ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        """Ids of ``text`` as it stands behind the prompt (word-start marks depend on that)."""
        joint = self._with_prefix(prompt + text) if prompt else self._prefix + self._ids(text)
        if joint[: len(prompt_ids)] == prompt_ids:
            return joint[len(prompt_ids) :]
        # A token straddles the boundary. The prompt's ids must be those of sampling, so the
        # response is tokenised by itself.
        self.counts["responses split at a token boundary"] += 1
        # Behind a sign that does not merge with it: at the very start it might get a word mark.
        for sign in ("\n", "a"):
            anchor, ids = self._ids(sign), self._ids(sign + text)
            if ids[: len(anchor)] == anchor:
                return ids[len(anchor) :]
        return self._ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of response ids, special tokens left out.

        A sentence-piece decoder drops the space in front of the first word, so the ids are decoded
        behind an anchor that is then removed.
        """
        anchor = self._ids("a")
        text = str(self.tokenizer.decode([*anchor, *ids], skip_special_tokens=True))
        start = str(self.tokenizer.decode(list(anchor), skip_special_tokens=True))
        return text[len(start) :]


@dataclass(frozen=True)
class Layout:
    """Token sequences placed into the rows of a model's input (R rows, C columns).

    ids, positions, documents, segments (R, C): token, its position in its own document, the
    (first) sequence of that document (-1 for filling), and 0 for prompt, 1 for response; the
    responses to a shared prompt count on, and a token sees its prompt and its own response.
    row, column, target, mask (B, T): for the t-th scored token of sequence b, the cell whose hidden
    state predicts it, its id, and whether it exists. last (B, 2): each sequence's final cell.
    """

    ids_RC: Tensor
    positions_RC: Tensor
    documents_RC: Tensor
    segments_RC: Tensor
    row_BT: Tensor
    column_BT: Tensor
    target_BT: Tensor
    mask_BT: Tensor
    last_B2: Tensor
    kind: Literal["padded", "packed", "shared"] = "padded"

    def to(self, device: torch.device | str) -> "Layout":
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    @property
    def scored(self) -> int:
        """Number of scored tokens."""
        return int(self.mask_BT.sum())


def padded(sequences: Sequence[Tokens], *, score_prompt: bool = False, fill: int = 0) -> Layout:
    """One sequence a row, filled on the right. Causal attention never looks at the filling."""
    return _place(sequences, [[i] for i in range(len(sequences))], score_prompt, fill)


def packed(
    sequences: Sequence[Tokens], *, capacity: int, score_prompt: bool = False, fill: int = 0
) -> Layout:
    """Several sequences a row of at most ``capacity`` tokens (first fit, longest first).

    Positions restart with each sequence, and attention stays within it: transformers derives the
    block-diagonal mask from the restarts. Raises ValueError for a sequence longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(sequences)), key=lambda i: -sequences[i].length):
        length = sequences[i].length
        if length > capacity:
            raise ValueError(f"a sequence of {length} tokens does not fit a row of {capacity}")
        fits = next((r for r, free in enumerate(room) if free >= length), None)
        if fits is None:
            rows.append([])
            room.append(capacity)
            fits = len(rows) - 1
        rows[fits].append(i)
        room[fits] -= length
    return _place(sequences, rows, score_prompt, fill)


def shared(sequences: Sequence[Tokens], *, fill: int = 0) -> Layout:
    """Neighbours with the same prompt share a row, up to `SHARERS` of them; it stands there once.

    The model needs a mask then: see `truing.models.model.Model.place`.
    """
    rows: list[list[int]] = []
    for i, tokens in enumerate(sequences):
        room = rows and len(rows[-1]) < SHARERS
        if room and tokens.prompt and tokens.prompt == sequences[rows[-1][0]].prompt:
            rows[-1].append(i)
        else:
            rows.append([i])
    return _place(sequences, rows, False, fill, share=True)


def _place(
    sequences: Sequence[Tokens],
    rows: list[list[int]],
    score_prompt: bool,
    fill: int,
    *,
    share: bool = False,
) -> Layout:
    if any(s.length == 0 for s in sequences):
        raise ValueError("a sequence of no tokens cannot be placed")
    # A prompt in front of a response: once in a shared row, else always.
    opened = {i: not share or i == row[0] for row in rows for i in row}
    sizes = [s.length if opened[i] else len(s.response) for i, s in enumerate(sequences)]
    width = max(sum(sizes[i] for i in row) for row in rows)
    cells = torch.zeros(4, len(rows), width, dtype=torch.long)
    cells[0], cells[2] = fill, -1
    alone = all(len(row) == 1 for row in rows)
    # Of each sequence the scored ids, and the cells in front of them, which predict them.
    scored: dict[int, tuple[int, list[int], list[int]]] = {}
    last = torch.zeros(len(sequences), 2, dtype=torch.long)
    for r, row in enumerate(rows):
        c = 0
        for order, i in enumerate(row):
            (prompt, response), n = sequences[i], sizes[i]
            ids, begin = [*prompt, *response], sequences[i].length - n
            cells[:, r, c : c + n] = torch.tensor(
                [
                    ids[begin:],
                    list(range(begin, begin + n)),
                    [row[0] if share else i] * n,
                    [(1 + order * share) * (t >= len(prompt)) for t in range(begin, begin + n)],
                ]
            )
            # The first token of a document has nothing that predicts it.
            first = max(1, 0 if score_prompt else len(prompt))
            before = [t - 1 if t - 1 < begin else c + t - 1 - begin for t in range(first, len(ids))]
            scored[i] = (r, before, ids[first:])
            last[i] = torch.tensor([r, c + n - 1])
            c += n
        # Filled cells continue the count where each sequence has a row: no mask is needed then.
        # Else each is a document of its own, at position 0, which no context is too short for.
        cells[1, r, c:] = torch.arange(c, width) if alone else 0
    longest = max(1, max(len(ids) for _, _, ids in scored.values()))
    grid = torch.zeros(4, len(sequences), longest, dtype=torch.long)
    for i, (r, before, ids) in scored.items():
        n = len(ids)
        grid[:, i, :n] = torch.tensor([[r] * n, before, ids, [1] * n])
    row_BT, column_BT, target_BT, mask_BT = grid
    ids, positions, documents, segments = cells
    places = (ids, positions, documents, segments, row_BT, column_BT, target_BT, mask_BT.bool())
    return Layout(*places, last, "padded" if alone else "shared" if share else "packed")
