"""`truing demo-campaign`: replies of two of the quickstart's models, for people to compare."""

import json
from pathlib import Path

from truing import console
from truing.data.ledger import Ledger
from truing.data.schema import Prompt
from truing.feedback.worker import fill
from truing.generation.engine import Sampling
from truing.quickstart.plan import Plan
from truing.settings_web import DemoCampaignConfig
from truing.worlds.measuring import LONGEST
from truing.worlds.service import cases

NAME = "Judge five yourself"
GUIDELINE = """A shop's assistant replies to a customer. Above the message stand the shop's *policy*
and what is known of the *order*.

Choose the reply that serves the customer better:

1. **What it says is so**, by the policy and the order: names, days, sums, decisions.
2. It **answers** what was asked, and does what the policy asks for.
3. It is kind, and not longer than it need be.

### Example

> Order: parcel for Ada, in Lyon since Tuesday. Message: Where is my parcel?

A: *Hello Ada, it has been in Lyon since Tuesday.* B: *Hello Ben, it will come soon!*

**A much better**: B takes her for somebody else, and says nothing that she can use."""


def run(config: DemoCampaignConfig) -> None:
    """Let two models reply to held-out prompts, and open a campaign of the pairs. The same command
    again goes on with the same campaign."""
    folder = Path(config.run_dir)
    models = {name: str(folder / name) for name in (config.first, config.second)}
    if len(models) < 2:
        raise ValueError(f"first and second are both {config.first}: name two runs")
    for name, place in models.items():
        if not (Path(place) / "run.json").is_file():
            raise ValueError(
                f"{place} is no run: run `truing quickstart` first, or name another of its runs "
                f"than {name}"
            )
    told = json.loads((Path(models[config.first]) / "run.json").read_text(encoding="utf-8"))
    seed = int(told.get("seed") or 0)
    plan = Plan(seed=seed)
    # Prompts that served no other end.
    start = plan.prompts + plan.held_out_pairs + plan.watched
    shown = cases(config.num_items, seed=seed, split="heldout", start=start)
    with Ledger.open(config.ledger) as ledger:
        known = [campaign for campaign in ledger.campaigns() if campaign.name == NAME]
        campaign = known[0] if known else ledger.create_campaign(NAME, "pairwise", seed=seed)
        ledger.add_document(campaign.id, "guideline", GUIDELINE)
        filled = fill(
            ledger,
            campaign,
            models,
            [Prompt(case.prompt, case.key) for case in shown],
            Sampling(max_completion_length=LONGEST, seed=seed),
        )
        ledger.set_campaign(campaign.id, state="open")
    console.table(
        NAME, {"pairs added": filled.added, "left out, both the same": filled.equal,
               "there already": filled.already}
    )  # fmt: skip
    console.say(f"Now: [cyan]truing serve {console.plain(config.ledger)}[/cyan]")
