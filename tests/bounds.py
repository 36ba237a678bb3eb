"""What a quickstart with the annotators' own labels must reach.

python -m tests.bounds runs/quickstart/summary.json
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def violations(figures: Mapping[str, Any]) -> list[str]:
    """What does not hold, of the figures of a summary.json."""
    wins, facts, over = (figures[name] for name in ("win_rate", "facts", "overoptimisation"))
    held = {
        f"{contest}: low end above {least}": wins[contest]["low"] > least
        for contest, least in (("dpo_vs_sft", 0.6), ("ppo_vs_sft", 0.6), ("sft_vs_base", 0.5))
    }
    # Exact facts: alignment must not lower them, on any kind of held-out prompt nor of any type.
    held |= {
        f"{system}: facts not lowered, {kind}, {fact}": not figure["lowered"]
        for system in ("dpo", "ppo")
        for kind, table in facts[system].items()
        for fact, figure in table.items()
        if "all" in (kind, fact)
    }
    # The run without a KL penalty is a warning: the score rises, and gold falls below its start.
    held |= {
        "at least 500 prompts": wins["dpo_vs_sft"]["n"] >= 500,
        "reward model above a coin": figures["reward_accuracy"]["low"] > 0.5,
        "memory below 3 GB": figures["peak_mb"] < 3000,
        "without KL: the reward is gamed": over["gamed"],
        "without KL: gold rose at first": over["gold"]["best"] > over["gold"]["start"],
    }
    return [name for name, holds in held.items() if not holds]


if __name__ == "__main__":
    found = violations(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print("\n".join(found) or "the bounds hold")
    sys.exit(bool(found))
