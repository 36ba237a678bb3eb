"""Solutions in steps: a text taken apart at a separator, and the tokens that each step ends with.

Steps are tokenised one by one, each behind a separator whose ids are always the same, so a step's
end never holds the beginning of the next, and it can be found in the ids alone. The last step ends
with the response.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from truing.data.batch import Encoder
from truing.data.schema import Text


def split_steps(text: str, separator: str) -> list[str]:
    """The steps of a text; blank ones are none."""
    return [step for step in text.split(separator) if step.strip()]


def ids_behind(
    tokenizer: PreTrainedTokenizerBase, signs: Sequence[str], text: str
) -> tuple[int, ...]:
    """Ids of a text as it stands behind the first of the signs that it does not merge with."""
    for sign in signs:
        anchor, joint = (
            list[int](tokenizer(each, add_special_tokens=False)["input_ids"])  # pyright: ignore
            for each in (sign, sign + text)
        )
        if joint[: len(anchor)] == anchor:
            return tuple(joint[len(anchor) :])
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore


def separator_ids(tokenizer: PreTrainedTokenizerBase, separator: str) -> tuple[int, ...]:
    """The ids that stand for a separator. Raises ValueError where there are none."""
    if ids := ids_behind(tokenizer, ("a", "1"), separator):
        return ids
    raise ValueError(
        f"the step_separator {separator!r} is nothing to this tokenizer: choose another text"
    )


def step_ends(ids: Sequence[int], separator: Sequence[int]) -> list[int]:
    """Where each step ends: the last token of each separator, and the last of all."""
    ends: list[int] = []
    place, size = 0, len(separator)
    while place + size <= len(ids):
        if tuple(ids[place : place + size]) == tuple(separator):
            place += size
            ends.append(place - 1)
        else:
            place += 1
    return ends if ends and ends[-1] == len(ids) - 1 else [*ends, len(ids) - 1]


@dataclass
class StepEncoder(Encoder):
    """An `Encoder` that tokenises responses step by step, as `step_ends` needs them."""

    separator: str = "\n"

    @classmethod
    def of(cls, encoder: Encoder, separator: str) -> "StepEncoder":
        """The same in everything else; the counts are shared."""
        e = encoder
        return cls(e.tokenizer, e.template, e.max_length, e.truncation_mode, e.counts, separator)

    @cached_property
    def mark(self) -> tuple[int, ...]:
        """The separator in ids."""
        return separator_ids(self.tokenizer, self.separator)

    def _response(
        self, prompt: Text, prompt_ids: tuple[int, ...], response: Text
    ) -> tuple[int, ...]:
        # Blank steps go before a template writes something behind them.
        last = response if isinstance(response, str) else response[-1].content
        text = self.separator.join(split_steps(last, self.separator))
        if not isinstance(response, str):
            response = (*response[:-1], replace(response[-1], content=text))
        else:
            response = text
        return super()._response(prompt, prompt_ids, response)

    def _continuation(self, prompt: str, prompt_ids: tuple[int, ...], text: str) -> tuple[int, ...]:
        first, *rest = split_steps(text, self.separator) or [""]
        ids = super()._continuation(prompt, prompt_ids, first)
        for step in rest:
            ids += self.mark + ids_behind(self.tokenizer, (self.separator, "\n", "a"), step)
        return ids
