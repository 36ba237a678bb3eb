"""The rules of a campaign, as its config holds them: who sees what next, and what the pages ask."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from truing.config import ConfigError, Topic, check
from truing.feedback.assign import Policy

ASSIGNED = ("cap", "daily_cap", "retest_share", "retest_distance", "gold_share", "gold_delay")
ASSIGNED += (
    "overlap",
    "quiz_size",
    "quiz_pass",
    "control_share",
    "balanced",
    "lease_minutes",
    "window",
)
# Rules that say something of one kind of campaign alone.
OF_KIND = {"aspects": "rating", "scale": "rating"}
OF_KIND |= dict.fromkeys(("strength", "ties", "both_bad"), "pairwise")


class Rules(Topic):
    """Rules: what a campaign asks, and of whom"""

    advice: ClassVar[Mapping[str, str]] = {"seed": "a campaign has its seed beside its rules"}

    overlap: int = Field(1, ge=1, description="People who judge each item.")
    cap: int | None = Field(None, ge=1, description="Most answers of one person, in all.")
    daily_cap: int | None = Field(None, ge=1, description="Most answers of one person per day.")
    tags: list[str] = Field([], description="What each annotator must be expert in.")
    retest_share: float = Field(
        0.05, ge=0, lt=1, description="Share of decisions that ask again, with the sides swapped."
    )
    retest_distance: int = Field(20, ge=0, description="Answers that lie at least between the two.")
    gold_share: float = Field(
        0.0, ge=0, lt=1, description="Share of decisions on items whose answer is certain."
    )
    gold_delay: int = Field(
        20, ge=0, description="Answers before somebody learns how a gold item went."
    )
    quiz_size: int = Field(0, ge=0, description="Screening items asked first.")
    quiz_pass: int = Field(0, ge=0, description="How many of them must be right.")
    control_share: float = Field(
        1.0, ge=0, le=1, description="Decisions from the random arm; the others by score."
    )
    balanced: bool = Field(False, description="Whether domains with least work come first.")
    lease_minutes: float = Field(30.0, gt=0, description="How long an item is held for somebody.")
    window: int = Field(32, ge=1, description="Open items looked at for each decision.")
    aspects: list[str] = Field(
        ["helpful"], description="What a rating is of, such as helpful, honest, harmless."
    )
    scale: int = Field(5, ge=2, le=9, description="Ratings go from 1 to this.")
    strength: bool = Field(True, description="Whether a comparison asks how much better.")
    ties: bool = Field(True, description="Whether two responses may be equally good.")
    both_bad: bool = Field(True, description="Whether both may be bad.")
    critique: Literal["off", "optional", "required"] = Field(
        "optional", description="Whether reasons are asked for, after the choice."
    )
    edit: bool = Field(True, description="Whether a response may be improved, after the choice.")
    auto_submit: bool = Field(
        False, description="Whether a choice is submitted at once; only without critique and edit."
    )
    mask: bool = Field(True, description="Whether names are blanked where a model names itself.")
    break_minutes: float = Field(50.0, gt=0, description="Work after which a break is suggested.")
    warned_tag: str = Field(
        "",
        description="Items with this tag are for those alone who took the content warning. Empty: "
        "all items are.",
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.auto_submit and (self.critique != "off" or self.edit):
            raise ValueError(
                "auto_submit leaves no room for a critique or an edit: set critique to off and "
                "edit to false, or auto_submit to false"
            )
        if not self.aspects or len({*self.aspects}) != len(self.aspects):
            raise ValueError(f"aspects are {self.aspects}; needed: one or more, each once")
        self.policy()
        return self

    def policy(self, seed: int = 0) -> Policy:
        """What `truing.feedback.assign` decides by."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in ASSIGNED}
        return Policy(seed, tags=frozenset(self.tags), **chosen)


def config_of(kind: str, rules: Mapping[str, object]) -> dict[str, Any]:
    """The config of a new campaign of this kind with these rules, wherever they were given.

    Raises ConfigError for a rule that there is not, that cannot be used, or that has no effect in
    this kind of campaign.
    """
    known = check(Rules, rules)
    for name, only in OF_KIND.items():
        if name in rules and kind != only:
            raise ConfigError(f"{name} has no effect with kind {kind}, only with {only}: leave out")
    return {"rules": known.model_dump(mode="json", exclude_unset=True)}


def rules_of(config: Mapping[str, object]) -> Rules:
    """The rules that a campaign's config holds, under ``rules`` or beside it. Raises ConfigError
    for an unknown key."""
    nested = config.get("rules")
    told = dict(nested) if isinstance(nested, Mapping) else {}
    told |= {name: value for name, value in config.items() if name != "rules"}
    told.pop("seed", None)  # where a campaign was made before it had its own
    return check(Rules, told)
