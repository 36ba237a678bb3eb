"""Texts to token ids: an `Encoder` turns a prompt and a response into a `Tokens`."""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from truing.data.layout import Tokens
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
