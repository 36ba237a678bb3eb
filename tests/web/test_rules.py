"""The rules of a campaign mean the same wherever they are given: command, page, API."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.web.house import House, person
from truing.cli import main
from truing.config import ConfigError
from truing.data.ledger import Ledger
from truing.feedback.rules import OF_KIND, Rules, config_of, rules_of

# No value is the default.
ALL: dict[str, Any] = {
    **{"overlap": 3, "cap": 90, "daily_cap": 40, "tags": ["law"], "balanced": True},
    **{"retest_share": 0.1, "retest_distance": 7, "gold_share": 0.2, "gold_delay": 5},
    **{"quiz_size": 4, "quiz_pass": 2, "control_share": 0.25, "window": 8},
    **{"lease_minutes": 12.5, "break_minutes": 20.0, "critique": "off", "edit": False},
    **{"aspects": ["true", "kind"], "scale": 7, "strength": False, "ties": False},
    **{"both_bad": False, "auto_submit": True, "mask": False, "warned_tag": "harm"},
}
KINDS = ("pairwise", "rating")


def of(kind: str) -> dict[str, Any]:
    return {name: value for name, value in ALL.items() if OF_KIND.get(name, kind) == kind}


def created(house: House, kind: str, rules: dict[str, Any], folder: Path) -> None:
    """The same rules by the command, by the page, by the API."""
    file = folder / "rules.yaml"
    file.write_text(yaml.safe_dump(rules), encoding="utf-8")
    place = str(folder / "ledger.sqlite")
    told = ["--campaign", "command", "--kind", kind, "--rules", str(file), "--seed", "3"]
    assert main(["collect", "create", place, *told]) == 0
    lead = person(house.ledger, "lead@example.org", role="admin")
    browser = house.browser("lead@example.org")
    browser.visit("/lead/new")
    came = browser.submit("/lead/new", name="page", kind=kind, rules=file.read_text())
    assert came.status_code == 200, came.text
    key = house.ledger.issue_token("api", 3600, annotator_id=lead.id, data={"name": "test"})
    body = {"name": "api", "kind": kind, "rules": rules, "seed": 3}
    headers = {"authorization": f"Bearer {key}"}
    came = browser.post("/api/v1/campaigns", json=body, headers=headers)
    assert came.status_code == 201, came.text


@pytest.mark.parametrize("kind", KINDS)
def test_every_rule_is_taken_everywhere(house: House, tmp_path: Path, kind: str) -> None:
    assert set(ALL) == set(Rules.model_fields)
    assert all(ALL[name] != Rules.model_fields[name].default for name in ALL)
    wanted = Rules(**of(kind))
    created(house, kind, of(kind), tmp_path)
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        for name in ("command", "page", "api"):
            made = ledger.campaign(name)
            assert rules_of(made.config) == wanted, name
            # Nothing that was not said is written down, so a default may still change.
            assert set(made.config["rules"]) == set(of(kind)), name
        assert ledger.campaign("command").seed == ledger.campaign("api").seed == 3


WRONG = [
    ({"overlapp": 2}, "overlapp. Did you mean overlap"),
    ({"seed": 4}, "seed has no place here"),
    ({"overlap": 0}, "overlap: got 0"),
    ({"gold_share": 0.6, "retest_share": 0.6}, "below 1"),
    ({"scale": 7}, "scale has no effect with kind pairwise, only with rating"),
]


@pytest.mark.parametrize(("rules", "said"), WRONG, ids=[next(iter(r)) for r, _ in WRONG])
def test_what_is_no_rule_is_refused_everywhere(
    house: House,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rules: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said.replace(".", r"\.")):
        config_of("pairwise", rules)
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules), encoding="utf-8")
    place = str(tmp_path / "other.sqlite")
    assert main(["collect", "create", place, "--campaign", "c", "--rules", str(file)]) == 1
    complaint = " ".join(capsys.readouterr().err.split())
    assert said in complaint
    assert "rules.yaml" in complaint
    assert not Path(place).exists()
    person(house.ledger, "lead@example.org", role="admin")
    browser = house.browser("lead@example.org")
    browser.visit("/lead/new")
    came = browser.submit("/lead/new", name="page", kind="pairwise", rules=file.read_text())
    assert came.status_code == 400
    assert said.partition(" came")[0] in came.text
    assert house.ledger.campaigns() == []


def test_aspects_are_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rules.yaml"
    rating = [
        "collect",
        "create",
        str(tmp_path / "l.sqlite"),
        "--campaign",
        "c",
        "--kind",
        "rating",
    ]
    file.write_text("aspects: [true]\n", encoding="utf-8")
    for more, said in (
        ([], "needs aspects"),
        (["--aspects", "kind", "--rules", str(file)], "give them once"),
    ):
        assert main([*rating, *more]) in (1, 2)
        assert said in " ".join(capsys.readouterr().err.split())
    file.write_text("overlap: 2\n", encoding="utf-8")
    assert main([*rating, "--rules", str(file)]) == 1
    assert "needs aspects" in " ".join(capsys.readouterr().err.split())
    assert main([*rating, "--aspects", "kind", "--rules", str(file)]) == 0
    with Ledger.open(tmp_path / "l.sqlite") as ledger:
        rules = rules_of(ledger.campaign("c").config)
    assert (rules.aspects, rules.overlap) == (["kind"], 2)
