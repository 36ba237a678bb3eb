"""How much of everything the quickstart takes, counted in rows and steps and never in seconds."""

from collections.abc import Sequence
from dataclasses import dataclass

from truing.worlds.service import Case, cases


@dataclass(frozen=True)
class Plan:
    """Sizes of one quickstart. No prompt serves two ends, but for the trainings after the judging:
    they share its prompts."""

    seed: int = 0
    demonstrations: int = 6000
    ranked: int = 2000  # prompts whose samples the annotators compare, each with each
    samples: int = 4  # of each such prompt
    held_out_pairs: int = 400  # for testing the reward model
    prompts: int = 500  # held-out prompts of the evaluation
    best_of: int = 4
    watched: int = 64  # held-out prompts looked at while a policy trains
    rollouts: int = 18  # of PPO
    unbraked: int = 16  # rollouts of the run without a KL penalty

    def demonstrated(self) -> Sequence[Case]:
        return cases(self.demonstrations, seed=self.seed, split="train")

    def compared(self) -> Sequence[Case]:
        return cases(self.ranked, seed=self.seed, split="train", start=self.demonstrations)

    def evaluated(self) -> Sequence[Case]:
        return cases(self.prompts, seed=self.seed, split="heldout")

    def compared_held_out(self) -> Sequence[Case]:
        return cases(self.held_out_pairs, seed=self.seed, split="heldout", start=self.prompts)

    def looked_at(self) -> Sequence[Case]:
        start = self.prompts + self.held_out_pairs
        return cases(self.watched, seed=self.seed, split="heldout", start=start)
