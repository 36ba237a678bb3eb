"""How far campaigns have come: `truing collect status`."""

from collections import Counter

from truing import console
from truing.data.ledger import Ledger
from truing.settings_collect import CollectStatusConfig


def status(config: CollectStatusConfig) -> None:
    """Print how far one campaign has come, or all."""
    with Ledger.open(config.ledger) as ledger:
        found = ledger.campaigns()
        if config.campaign is not None:
            found = [ledger.campaign(config.campaign)]
        if not found:
            raise ValueError(f"{config.ledger} holds no campaign: make one, truing collect create")
        names = {person.id: person.pseudonym for person in ledger.annotators()}
        for campaign in found:
            progress = ledger.progress(campaign.id)
            by = Counter[str]()
            for row in ledger.tallies(campaign.id):
                by[names[row["annotator_id"]]] += row["done"]
            stale = sum(row["campaign_id"] == campaign.id for row in ledger.exports(stale=True))
            console.table(f"Campaign {campaign.name}", {
                "kind": campaign.kind,
                "state": campaign.state,
                "items": progress.items,
                "judgements": f"{progress.filled} of {progress.slots} wanted",
                "skipped": progress.skipped,
                "today": progress.today,
                "hours of work": f"{progress.active_ms / 3.6e6:.1f}",
                **{f"by {name}": count for name, count in by.most_common(20)},
                **({"exports that are stale": stale} if stale else {}),
            })  # fmt: skip
