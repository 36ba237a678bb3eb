"""The settings of `truing conformance`."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from truing.settings import CommandTopic, as_list

Against = Literal[
    "dpo",
    "robust",
    "cdpo",
    "ipo",
    "simpo",
    "orpo",
    "hinge",
    "bradley_terry",
    "soft_bradley_terry",
    "plackett_luce",
    "regression",
    "gae",
    "rloo",
    "ppo",
    "value",
]


class ConformanceConfig(CommandTopic):
    """Conformance: losses against optima that are known exactly"""

    quick: bool = Field(
        False,
        description="Fewer steps, and fewer broken variants, of what is sampled; no transformer.",
    )
    only: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [],
        description="Only these: names of algorithms (ppo), environments (tree) or levels (L1). "
        "None given: all.",
    )
    module: str | None = Field(
        None,
        description="A function of your own, as module:function, in the place of ours: "
        "fn(logp_chosen_B, logp_rejected_B, ref_logp_chosen_B, ref_logp_rejected_B, *, beta) -> "
        "loss_B against a direct loss; "
        "fn(score_chosen_B, score_rejected_B) -> loss_B against bradley_terry; "
        "fn(score_first_B, score_second_B, p_first_wins_B) -> loss_B against soft_bradley_terry; "
        "fn(score_PK, rank_PK) -> loss_P against plackett_luce; "
        "fn(score_B, rating_B) -> loss_B against regression; "
        "fn(reward_BT, value_BT, mask_BT, *, gamma, lam) -> advantage_BT against gae; "
        "fn(reward_PG) -> advantage_PG against rloo; "
        "fn(logp_BT, old_logp_BT, advantage_BT, *, clip) -> loss_BT against ppo; "
        "fn(value_BT, old_value_BT, return_BT, *, clip) -> loss_BT against value.",
    )
    against: Against | None = Field(
        None,
        description="In whose place a function of your own stands: dpo, unless another is named.",
    )
    peer: Literal["trl"] | None = Field(
        None, description="Another library's functions in the place of ours; it must be installed."
    )
    list: bool = Field(False, description="Name the checks, and measure none.")

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if self.module and self.peer:
            raise ValueError("give module or peer, not both")
        if self.against and not self.module:
            raise ValueError("against has no effect without module")
        return self
