"""The settings of the commands that keep people's judgements: truing collect and truing ledger."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from truing.config import Topic
from truing.settings import CommandTopic, as_list


def _positional(description: str) -> Any:
    return Field(description=description, json_schema_extra={"positional": True})


class LedgerTopic(Topic):
    """Ledger: where judgements are kept"""

    ledger: str = _positional(
        "The ledger: a file (SQLite), or postgresql+psycopg://user@host/database."
    )


class CampaignTopic(LedgerTopic):
    """Campaign"""

    campaign: str = Field(description="The campaign's name.")


class CollectCreateConfig(CampaignTopic, CommandTopic):
    """Collect create: a new campaign, and the ledger if there is none"""

    kind: Literal["pairwise", "ranking", "rating", "thumbs", "steps", "demonstration", "edit"] = (
        Field("pairwise", description="What people do with each item.")
    )
    aspects: Annotated[list[str], BeforeValidator(as_list)] = Field(
        [], description="What is rated, for kind rating: helpful, true, and so on; or in rules."
    )
    guideline: str | None = Field(
        None, description="File (Markdown) of the guideline. The same command adds a new version."
    )
    consent: str | None = Field(None, description="File of what people consent to first.")
    warning: str | None = Field(None, description="File of a warning of what they may see.")
    rules: str | None = Field(
        None,
        description="YAML file of the campaign's rules: overlap, gold_share, critique and so on. "
        "None: one judgement of each item.",
    )
    seed: int = Field(0, ge=0, description="Seed of the orders in which things are shown.")

    @model_validator(mode="after")
    def _aspects_fit(self) -> Self:
        if self.aspects and self.kind != "rating":
            raise ValueError("aspects are for kind rating, and have no effect without")
        if self.kind == "rating" and not self.aspects and self.rules is None:
            raise ValueError("kind rating needs aspects: what is rated")
        return self


class CollectImportConfig(CampaignTopic, CommandTopic):
    """Collect import: prompts and responses to be judged, or judgements made elsewhere"""

    dataset_name: str = Field(
        description="A file, a folder or a hub name, in any format that trainings read; or samples."
    )
    dataset_train_split: str = Field("train", description="Split to import, where there are any.")
    against: str | None = Field(
        None,
        description="A second file of samples, for kind pairwise: each prompt's first response in "
        "the one against its first in the other. None: the two come from one file.",
    )
    responses: int = Field(
        2, ge=1, le=64, description="How many of a prompt's samples make an item, where they do."
    )
    purpose: Literal["work", "gold", "practice", "screening"] = Field(
        "work",
        description="What the items are for. All but work need judgements, as the right answers.",
    )
    judgements: bool = Field(
        False, description="Take over what the rows say too, not only what they are about."
    )

    @model_validator(mode="after")
    def _purpose_fits(self) -> Self:
        if self.purpose != "work" and not self.judgements:
            raise ValueError(f"purpose {self.purpose} needs judgements: the rows' own are right")
        if self.against is not None and self.judgements:
            raise ValueError("judgements has no effect with against: samples say nothing")
        return self


class CollectExportConfig(CampaignTopic, CommandTopic):
    """Collect export: what was judged, as files to train on, with a data card"""

    output_dir: str = Field(description="Folder to write: train.*, test.* if any, and README.md.")
    kind: Literal["comparison", "ranking", "label", "steps", "demonstration"] = Field(
        "comparison", description="The rows: which columns, and so which training."
    )
    format: Literal["jsonl", "parquet"] = Field("jsonl", description="The files.")
    rows: Literal["annotator", "votes"] = Field(
        "annotator",
        description="annotator: a row for each judgement. votes: one for each item, with the share "
        "of votes (chosen_probability, a tie counting a half); for comparison and label.",
    )
    ties: Literal["leave_out", "half"] = Field(
        "leave_out",
        description="Pairs without a better one: left out, or kept with chosen_probability 0.5, "
        "which `truing reward` understands and `truing dpo` does not.",
    )
    aspect: str | None = Field(
        None, description="For rankings out of ratings: the aspect to rank by."
    )
    test_share: float = Field(
        0.0, ge=0, lt=1, description="Share of the prompts (and annotators) kept for test.*."
    )
    split_by: Annotated[list[Literal["prompt", "annotator"]], BeforeValidator(as_list)] = Field(
        ["prompt"],
        description="What train and test never share. Rows that cross are dropped and counted.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        complaints = {
            "rows votes is for kind comparison or label": self.rows == "votes"
            and self.kind not in ("comparison", "label"),
            "ties is for kind comparison": self.ties != "leave_out" and self.kind != "comparison",
            "aspect is for kind ranking": self.aspect is not None and self.kind != "ranking",
            "split_by needs prompt, and may add annotator": "prompt" not in self.split_by,
        }
        if said := next((text for text, wrong in complaints.items() if wrong), None):
            raise ValueError(said)
        return self


class CollectStatusConfig(LedgerTopic, CommandTopic):
    """Collect status: how far campaigns have come"""

    campaign: str | None = Field(None, description="The campaign's name. None: all.")


class CollectPersonConfig(LedgerTopic, CommandTopic):
    """Collect person: what is known of one person, for them to have, or to be erased"""

    person: str = Field(description="Their email, or their pseudonym.")
    export: str | None = Field(None, description="JSON file for all that the ledger holds of them.")
    erase: bool = Field(
        False,
        description="Delete who they are and what they wrote. What they chose stays, by a "
        "pseudonym that leads nowhere. It cannot be undone.",
    )
    runs: str = Field(
        "runs", description="Folder in which to look for runs that were made from their judgements."
    )

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if self.export is None and not self.erase:
            raise ValueError("nothing to do: give export (a file), erase, or both")
        return self


class LedgerVerifyConfig(LedgerTopic, CommandTopic):
    """Ledger verify: whether every row is what was written"""

    heads: list[str] = Field(
        [], description="Heads noted elsewhere, such as in a data card, that the chains must hold."
    )


class LedgerUpgradeConfig(LedgerTopic, CommandTopic):
    """Ledger upgrade: the tables of an older version brought to this one"""
