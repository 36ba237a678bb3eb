"""The settings of a reward model: which loss, and what becomes of ties and ratings."""

from typing import Literal, Self

from pydantic import Field, model_validator

from truing.config import Topic


class RewardTopic(Topic):
    """Reward model"""

    loss_type: Literal["bradley_terry", "plackett_luce", "regression", "process"] = Field(
        "bradley_terry",
        description="bradley_terry: all pairs of a ranking; plackett_luce: its likelihood as a "
        "whole; regression: squared error to its scores; process: whether each step of a solution "
        "is right.",
    )
    ties: Literal["drop", "half", "breslow"] = Field(
        "drop",
        description="Answers that share a rank. drop: they form no pair, and plackett_luce leaves "
        "out their ranking; half (bradley_terry): a pair that either wins with probability 1/2; "
        "breslow (plackett_luce): each is chosen from all of them and the rest.",
    )
    standardize_ratings: bool = Field(
        True,
        description="Regression: bring the ratings to mean 0 and standard deviation 1 over the "
        "training rows; false: learn them as they are.",
    )
    center_rewards_coefficient: float | None = Field(
        None,
        ge=0,
        description="Weight of (chosen + rejected)^2, which keeps scores near 0; try 0.01.",
    )
    score_l2_coefficient: float | None = Field(
        None,
        ge=0,
        description="Weight of the mean squared score, which draws all scores to 0 and their "
        "differences too. None: 0.",
    )
    reward_reference: str | None = Field(
        None,
        description="Prompt/completion rows whose mean score becomes 0. None: the demonstrations "
        "of the SFT run that the model comes from, else the chosen responses.",
    )

    step_separator: str = Field(
        "\n",
        min_length=1,
        description="Process: the text between two steps, in training and, for the model keeps it, "
        "wherever it scores a response.",
    )
    step_aggregation: Literal["product", "min"] = Field(
        "product",
        description="Process: the score of a solution, the log-probability that all its steps are "
        "right (product) or that the worst one is (min). The model keeps it.",
    )

    @model_validator(mode="after")
    def _fits_the_loss(self) -> Self:
        complaints = {
            "ties: half belongs to loss_type: bradley_terry": self.ties == "half"
            and self.loss_type != "bradley_terry",
            "ties: breslow belongs to loss_type: plackett_luce": self.ties == "breslow"
            and self.loss_type != "plackett_luce",
            "standardize_ratings has no effect without loss_type: regression": (
                not self.standardize_ratings and self.loss_type != "regression"
            ),
            "center_rewards_coefficient would pull scores off what they are to mean: it belongs to "
            "loss_type: bradley_terry or plackett_luce": (
                self.center_rewards_coefficient and self.loss_type in ("regression", "process")
            ),
            "score_l2_coefficient would pull scores off what they are to mean: it belongs to "
            "loss_type: bradley_terry or plackett_luce": (
                self.score_l2_coefficient and self.loss_type in ("regression", "process")
            ),
            "reward_reference would move a zero that has a meaning of its own, so it does not "
            "belong to loss_type: process": self.reward_reference and self.loss_type == "process",
            "step_separator and step_aggregation have no effect without loss_type: process": (
                (self.step_separator, self.step_aggregation) != ("\n", "product")
                and self.loss_type != "process"
            ),
        }
        if said := next((text for text, wrong in complaints.items() if wrong), None):
            raise ValueError(f"{said}, but it is {self.loss_type}")
        return self
