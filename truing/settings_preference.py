"""The settings of learning from judgements directly: of dpo, what each loss takes, and of kto."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator

from truing.config import Topic

LossType = Literal[
    "sigmoid", "robust", "ipo", "ipo_mean", "hinge", "simpo", "cpo", "orpo", "plackett_luce"
]
# What each loss_type acts on, with its authors' numbers (of ipo, ipo_mean and hinge: TRL's). Of the
# settings that only some losses know, those that stand here are taken and the others refused.
LOSSES: dict[str, dict[str, float | str]] = {
    "sigmoid": {"beta": 0.1, "label_smoothing": 0.0, "rpo_alpha": 0.0},
    "robust": {"beta": 0.1, "label_smoothing": 0.1, "rpo_alpha": 0.0},
    "ipo": {"beta": 0.1, "rpo_alpha": 0.0},
    "ipo_mean": {"beta": 0.1, "rpo_alpha": 0.0},
    "hinge": {"beta": 0.1, "rpo_alpha": 0.0},
    "simpo": {"beta": 2.0, "simpo_gamma": 1.0, "learning_rate": 6e-7},
    "cpo": {"beta": 0.1, "cpo_alpha": 1.0},
    "orpo": {"beta": 0.1, "learning_rate": 5e-6},
    "plackett_luce": {"beta": 0.1, "ties": "drop"},
}
WITHOUT_REFERENCE = ("simpo", "cpo", "orpo")
# Settings that not all losses know; None where they are not given.
PARTICULAR = ("label_smoothing", "rpo_alpha", "simpo_gamma", "cpo_alpha", "ties")
# The reference's log-probs are always computed ahead.
PRECOMPUTED = {"precompute_ref_log_probs": ("true",)}


class PreferenceTopic(Topic):
    """Preference"""

    settled: ClassVar[Mapping[str, tuple[str, ...]]] = PRECOMPUTED

    loss_type: LossType = Field(
        "sigmoid",
        description="sigmoid: DPO, or cDPO with label_smoothing; robust: DPO corrected for flipped "
        "labels; ipo: IPO on sums over tokens, as its paper; ipo_mean: on means over tokens, which "
        "TRL calls ipo; hinge: SLiC and RSO; plackett_luce: DPO on whole rankings, which the "
        "others read as their pairs; and without a reference simpo, cpo and orpo. "
        "docs/dpo.md has them all.",
    )
    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the tie to the reference policy (per nat of log-ratio). Where "
        "there is none, the scale of log-probs (simpo, where it is 2 if not given, and cpo), or "
        "the weight of the odds ratio (orpo: lambda).",
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="Share of the labels that are taken to be wrong (sigmoid, robust). None: 0, "
        "with robust 0.1.",
    )
    rpo_alpha: float | None = Field(
        None,
        ge=0,
        description="Weight of the NLL of the chosen response, per token, that is added to a loss "
        "of pairs beside a reference: without it both responses often become less likely. "
        "None: 0.",
    )
    simpo_gamma: float | None = Field(
        None, ge=0, description="Margin that simpo asks for, in nats times beta. None: 1."
    )
    cpo_alpha: float | None = Field(
        None, ge=0, description="Weight of the imitation of the chosen in cpo. None: 1."
    )
    ties: Literal["drop", "breslow"] | None = Field(
        None,
        description="Rankings with answers that share a rank, in plackett_luce. drop: left out; "
        "breslow: each of those that tie is chosen from all of them and the rest. None: drop.",
    )
    ref_model_name_or_path: str | None = Field(
        None,
        description="Reference policy. None: the model that training starts from; simpo, cpo and "
        "orpo have none.",
    )
    ref_log_probs_cache: str | None = Field(
        None,
        description="Folder in which the reference's log-probs are kept for other runs: the same "
        "responses beside the same reference are read there, not computed again. None: the run "
        "keeps its own until it is finished.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, values: object) -> object:
        """Where nothing is given, a loss has its own numbers, and config.yaml then holds them."""
        if not isinstance(values, dict):
            return values
        said = cast(dict[str, Any], values)
        loss = LOSSES.get(str(said.get("loss_type", "sigmoid")))
        given = {k: v for k, v in said.items() if v is not None or k not in PARTICULAR}
        return given if loss is None else {**loss, **given}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for name in PARTICULAR:
            if getattr(self, name) is not None and name not in LOSSES[self.loss_type]:
                takers = " and ".join(n for n, other in LOSSES.items() if name in other)
                raise ValueError(
                    f"{name} has no effect with loss_type {self.loss_type}: only with {takers}"
                )
        for name in ("ref_model_name_or_path", "ref_log_probs_cache"):
            if getattr(self, name) is not None and self.loss_type in WITHOUT_REFERENCE:
                raise ValueError(
                    f"{name} has no effect with loss_type {self.loss_type}, which has no "
                    "reference: take it out"
                )
        if self.loss_type == "robust" and not self.label_smoothing:
            raise ValueError(
                "loss_type robust needs label_smoothing above 0, the share of flipped labels: "
                "without any it is DPO (sigmoid)"
            )
        return self

    @property
    def loss_options(self) -> dict[str, float]:
        """What the loss is given besides log-probs."""
        every = {
            "beta": self.beta,
            "label_smoothing": self.label_smoothing,
            "gamma": self.simpo_gamma,
            "alpha": self.cpo_alpha,
        }
        return {name: value for name, value in every.items() if value is not None}


class UnpairedTopic(Topic):
    """Thumbs up and down"""

    settled: ClassVar[Mapping[str, tuple[str, ...]]] = PRECOMPUTED

    beta: float = Field(
        0.1,
        gt=0,
        description="Strength of the tie to the reference policy (per nat of log-ratio).",
    )
    desirable_weight: float = Field(
        1.0, gt=0, description="Weight of the responses with a thumb up (the paper's lambda_D)."
    )
    undesirable_weight: float = Field(
        1.0,
        gt=0,
        description="Weight of those with a thumb down (lambda_U). desirable_weight times the "
        "number of the first over this times the number of the others should lie from 1 to 4/3.",
    )
    ref_model_name_or_path: str | None = Field(
        None, description="Reference policy. None: the model that training starts from."
    )
    ref_log_probs_cache: str | None = Field(
        None,
        description="Folder in which the reference's log-probs are kept for other runs: the same "
        "responses beside the same reference are read there, not computed again. None: the run "
        "keeps its own until it is finished.",
    )

    @property
    def loss_options(self) -> dict[str, float]:
        """What the loss is given besides log-probs."""
        names = ("beta", "desirable_weight", "undesirable_weight")
        return {name: getattr(self, name) for name in names}
