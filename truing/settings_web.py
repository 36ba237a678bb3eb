"""The settings of the labelling app."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from truing.settings import CommandTopic, LoadTopic, as_list
from truing.settings_collect import CampaignTopic, LedgerTopic
from truing.settings_judging import PromptsTopic, SamplingTopic

PROXIES = ["127.0.0.1", "::1"]


class ServeConfig(LedgerTopic, CommandTopic):
    """Serve: the pages for people who judge, and for those who lead them"""

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on. The default is for this computer alone; 0.0.0.0 is for "
        "all that reach it, and needs TLS.",
    )
    port: int = Field(7117, ge=0, le=65535, description="Port. 0: any that is free.")
    workers: int = Field(
        1,
        ge=1,
        description="Processes. Each counts failed sign-ins alone, and allows its share of them.",
    )
    ssl_certfile: str | None = Field(
        None, description="File of the TLS certificate, in PEM. None: no TLS here."
    )
    ssl_keyfile: str | None = Field(None, description="File of its private key, in PEM.")
    behind_tls: bool = Field(
        False,
        description="Whether a proxy in front of it speaks TLS with the browsers; cookies then "
        "need TLS, and the proxy's word about clients' addresses is taken.",
    )
    forwarded_allow_ips: Annotated[list[str], BeforeValidator(as_list)] = Field(
        PROXIES,
        description="With behind_tls: addresses or networks of the proxies whose word is taken.",
    )


class WorkerConfig(CampaignTopic, PromptsTopic, SamplingTopic, LoadTopic, CommandTopic):
    """Worker: answers of models to prompts, put into a campaign's queue ahead of the people"""

    models: Annotated[list[str], BeforeValidator(as_list)] = Field(
        description="Who answers: run folders, Hugging Face folders or hub names. Each item holds "
        "the answers of all of them."
    )
    dataset_train_split: str = Field(
        "train", description="Split that the prompts come from, where a dataset has splits."
    )
    num_generations: int = Field(1, ge=1, description="Answers of each model to each prompt.")


class DemoCampaignConfig(LedgerTopic, CommandTopic):
    """Demo campaign: two of the quickstart's models, to be compared by you"""

    run_dir: str = Field("runs/quickstart", description="Folder that truing quickstart wrote.")
    first: str = Field("sft", description="One of its runs.")
    second: str = Field("dpo", description="Another of its runs.")
    num_items: int = Field(20, ge=1, description="Pairs of replies.")
