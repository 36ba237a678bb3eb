"""People, their part in campaigns, what they agreed to, and their tokens."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.ledgers import Clock, Team
from truing.data.ledger import Ledger, NewItem, NewResponse

Make = Callable[..., Team]


def test_an_identity_is_found_by_its_email_in_any_case(ledger: Ledger) -> None:
    made = ledger.add_annotator(name="Milo", email=" Milo@Example.org ", password_hash="argon")
    found = ledger.identity(email="MILO@example.ORG")
    assert found is not None
    assert (found["annotator_id"], found["name"]) == (made.id, "Milo")
    assert found["email"] == "milo@example.org"
    assert ledger.identity(email="nobody") is None
    assert ledger.identity(annotator_id=made.id) == found
    assert made.pseudonym.startswith("p-")
    assert "milo" not in made.pseudonym  # nor could it be by chance: it has no such letters
    with pytest.raises(ValueError, match="in the ledger already"):
        ledger.add_annotator(email="milo@example.org")
    with pytest.raises(ValueError, match="without control characters"):
        ledger.add_annotator(email="a\0b")
    for how in ({"role": "boss"}, {"source": "cat"}):
        with pytest.raises(ValueError, match="needed: one of"):
            ledger.add_annotator(**how)  # pyright: ignore[reportArgumentType]


def test_a_suspended_person_is_signed_out(ledger: Ledger, clock: Clock) -> None:
    who = ledger.add_annotator(email="a").id
    secret = ledger.issue_token("session", 60, annotator_id=who, data={"csrf": "x"})
    found = ledger.token("session", secret)
    assert found is not None
    assert (found["annotator_id"], found["data"]) == (who, {"csrf": "x"})
    assert ledger.token("api", secret) is None
    assert ledger.token("session", secret + "x") is None
    ledger.set_annotator(who, state="suspended")
    assert ledger.token("session", secret) is None
    again = ledger.issue_token("session", 60, annotator_id=who)
    assert ledger.token("session", again) is None
    ledger.set_annotator(who, state="active", role="reviewer", tags=["law", "art", "law"])
    assert ledger.token("session", again) is not None
    assert ledger.annotator(who).tags == ["art", "law"]
    clock.on(30)
    ledger.touch_token(found["id"], 60)
    clock.on(31)
    assert ledger.token("session", again) is None
    ledger.set_password(who, "new")
    found = ledger.identity(annotator_id=who)
    assert found is not None
    assert found["password_hash"] == "new"
    assert ledger.verify() == []


def test_an_invitation_is_used_once(ledger: Ledger) -> None:
    campaign = ledger.create_campaign("c", "pairwise").id
    secret = ledger.issue_token("invitation", 60, campaign_id=campaign, data={"role": "annotator"})
    found = ledger.token("invitation", secret)
    assert found is not None
    assert (found["campaign_id"], found["annotator_id"]) == (campaign, None)
    assert [ledger.end_token(found["id"]) for _ in range(2)] == [True, False]
    assert ledger.token("invitation", secret) is None


def test_consent_is_of_a_version(ledger: Ledger) -> None:
    made = Team(ledger)
    first = ledger.add_document(made.id, "consent", "You may leave.")
    same = ledger.add_document(made.id, "consent", "You may leave.")
    second = ledger.add_document(made.id, "consent", "You may leave at any time.")
    guideline = ledger.add_document(made.id, "guideline", "Be kind.\0")
    assert (same, second.version, guideline.version) == (first, 2, 1)
    assert ledger.document(made.id, "consent") == second
    assert ledger.document(made.id, "warning") is None
    assert ledger.documents(made.id) == [first, second, guideline]
    ledger.accept(made.people[0], first.id)
    ledger.accept(made.people[0], second.id, accepted=False)
    assert ledger.accepted(made.people[0], made.id) == {first.id: True, second.id: False}
    ledger.accept(made.people[0], second.id)
    assert ledger.accepted(made.people[0], made.id)[second.id]
    assert ledger.accepted(made.people[1], made.id) == {}
    assert ledger.verify() == []


def test_members(team: Make) -> None:
    made = team()
    ledger, person = made.ledger, made.people[0]
    before = ledger.heads()
    assert ledger.join(made.id, person).state == "active"
    assert ledger.heads() == before
    member = ledger.set_member(
        made.id, person, state="suspended", progress=lambda _: {"quiz": [3, 2]}
    )
    assert (member.state, member.progress) == ("suspended", {"quiz": [3, 2]})
    assert ledger.memberships(person) == [member]
    assert [a.id for a in ledger.annotators(made.id)] == made.people
    with pytest.raises(LookupError):
        ledger.member(made.id, 99)


def test_of_two_who_note_progress_at_once_neither_is_lost(team: Make) -> None:
    made = team()
    person = made.people[0]

    def note(name: int) -> None:
        made.ledger.set_member(made.id, person, progress=lambda was: {**was, str(name): True})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(note, range(40)))
    assert made.ledger.member(made.id, person).progress == {str(n): True for n in range(40)}
    assert made.ledger.verify() == []


def test_campaigns(ledger: Ledger) -> None:
    made = ledger.create_campaign("c", "ranking", config={"overlap": 3}, seed=4)
    assert ledger.campaign("c") == ledger.campaign(made.id) == made
    with pytest.raises(ValueError, match="there is a campaign 'c' already"):
        ledger.create_campaign("c", "ranking")
    with pytest.raises(LookupError, match="there are: c"):
        ledger.campaign("d")
    changed = ledger.set_campaign(made.id, state="open", round=2)
    assert (changed.state, changed.round, changed.config) == ("open", 2, {"overlap": 3})
    with pytest.raises(ValueError, match="state is 'ajar'"):
        ledger.set_campaign(made.id, state="ajar")
    assert ledger.verify() == []


def test_items_that_their_kind_cannot_have_are_refused(ledger: Ledger) -> None:
    made, one = ledger.create_campaign("c", "pairwise").id, NewResponse("a")
    for item, said in (
        (NewItem("p", (one,)), "came with 1; needed: 2"),
        (NewItem("p", (one, one), wanted=0), "wants 0 judgements"),
        (NewItem("p", (one, one), purpose="gold"), "without `expected`"),
        (NewItem("p", (one, one), purpose="fun"), "purpose is 'fun'"),
        (NewItem("p", (one, one), kind="fun"), "kind is 'fun'"),
        (NewItem("p", (one, one), domain="a\nb"), "without control characters"),
    ):
        with pytest.raises(ValueError, match=said):
            ledger.add_items(made, [item])
    assert ledger.progress(made).items == 0


def test_prompts_are_stored_once_and_texts_come_back_as_they_were(ledger: Ledger) -> None:
    made = ledger.create_campaign("c", "pairwise").id
    odd = "a\0b \ud800 \u202e <script> \U0001f600"
    chat = [{"role": "user", "content": odd}]
    two = (NewResponse(odd, "model", "run", {"seed": 3}), NewResponse({"steps": ["a", odd]}))
    assert ledger.add_items(made, [NewItem(chat, two), NewItem(chat, two[::-1])]) == 2
    first, second = ledger.items([1, 2])
    assert first.prompt == second.prompt == chat
    assert [r.content for r in first.responses] == [odd, {"steps": ["a", odd]}]
    assert (first.responses[0].model, first.responses[0].origin) == ("model", {"seed": 3})
    assert ledger.verify() == []
    with pytest.raises(LookupError, match="no item 3"):
        ledger.item(3)


def test_tallies_are_of_days(team: Make, clock: Clock) -> None:
    made = team()
    made.judge()
    clock.on(86400)
    made.judge()
    days = [(row["day"], row["done"]) for row in made.ledger.tallies(made.id)]
    assert [done for _, done in days] == [1, 1]
    assert made.ledger.progress(made.id, made.people[0]).today == 1
    assert made.ledger.progress(made.id).done == 2
