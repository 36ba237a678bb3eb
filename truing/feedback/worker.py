"""`truing worker`: what models answer, put into a campaign's queue before anybody asks for it.

The pages never generate; they show what is there. Models are loaded one after the other.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from truing import console
from truing.data.batch import Encoder
from truing.data.formats import load
from truing.data.ledger import Campaign, Ledger, NewItem, NewResponse
from truing.data.ledger.campaigns import item_digest
from truing.data.schema import Prompt, Text
from truing.feedback.assign import place
from truing.feedback.rules import rules_of
from truing.generation.engine import Sampling
from truing.generation.sample import complete
from truing.models.loading import Loading, resolve
from truing.models.model import load_policy
from truing.settings_web import WorkerConfig


class Filled(NamedTuple):
    """Items ``added``, and those not: all answers ``equal``, or the item there ``already``."""

    added: int
    equal: int
    already: int


def run(config: WorkerConfig) -> None:
    """Sample from each model for every prompt, and add an item for each prompt."""
    prompts = load(config.prompts, Prompt, split=config.dataset_train_split)
    sampling = Sampling(
        temperature=config.temperature,
        top_p=config.top_p,
        max_completion_length=config.max_completion_length,
        seed=config.seed,
    )
    with Ledger.open(config.ledger) as ledger:
        filled = fill(
            ledger,
            ledger.campaign(config.campaign),
            {name: name for name in config.models},
            prompts.rows[: config.num_prompts],
            sampling,
            samples=config.num_generations,
            batch_size=config.generation_batch_size,
            loading=Loading.of(config),
            template=config.chat_template,
        )
    console.table(
        f"Campaign {config.campaign}",
        {
            "items added": filled.added,
            "left out, all answers equal": filled.equal,
            "there already": filled.already,
        },
    )


def fill(
    ledger: Ledger,
    campaign: Campaign,
    models: Mapping[str, str],
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    samples: int = 1,
    batch_size: int = 64,
    loading: Loading | None = None,
    template: str = "auto",
) -> Filled:
    """Answers of ``models`` (name -> folder or hub name) to the prompts, as items of a campaign.

    The same call again adds nothing, for the draws are the same. A prompt to which all answers are
    the same is left out where there is more than one: there is nothing to choose. Raises ValueError
    for a number of answers that the campaign's kind cannot have.
    """
    for source in models.values():
        resolve(source)  # the last, too, before the first has answered everything
    answers: list[list[NewResponse]] = [[] for _ in prompts]
    for name, source in models.items():
        policy = load_policy(source, loading)
        encoder = Encoder(policy.tokenizer, template=template)
        # Numbers of their own, or equal models would always agree.
        drawn = Sampling(**{**vars(sampling), "stream": f"worker {name}"})
        keys = [prompt.key for prompt in prompts]
        texts = [prompt.prompt for prompt in prompts]
        done = complete(
            policy, encoder, texts, drawn, keys=keys, samples=samples, batch_size=batch_size
        )
        for found, group in zip(answers, done, strict=True):
            for t in group:
                origin = {**vars(drawn), "sample": t.sample, "finish_reason": t.finish}
                text = encoder.decode(t.response_ids)
                found.append(NewResponse(text, model=name, run=str(source), origin=origin))
    new, equal, already = dict[bytes, NewItem](), 0, 0
    there = set(ledger.item_numbers(campaign.id))
    for digest, item in _items(campaign, prompts, answers):
        if digest in there or digest in new:
            already += 1
        elif len(item.responses) > 1 and len({r.content for r in item.responses}) == 1:
            equal += 1
        else:
            new[digest] = item
    return Filled(ledger.add_items(campaign.id, new.values()), equal, already)


def _items(
    campaign: Campaign, prompts: Sequence[Prompt], answers: Sequence[Sequence[NewResponse]]
) -> Iterator[tuple[bytes, NewItem]]:
    policy = rules_of(campaign.config).policy(campaign.seed)
    for prompt, found in zip(prompts, answers, strict=True):
        asked = _plain(prompt.prompt)
        digest = item_digest(asked, [response.content for response in found])
        control, key = place(policy, digest.hex())
        yield (
            digest,
            NewItem(
                asked,
                tuple(found),
                wanted=policy.overlap,
                control=control,
                key=key if control else None,
            ),
        )


def _plain(text: Text) -> object:
    if isinstance(text, str):
        return text
    return [{"role": message.role, "content": message.content} for message in text]
