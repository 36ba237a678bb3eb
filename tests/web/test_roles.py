"""Who may do what: every route of the app, with everybody."""

import re
from typing import Any

import pytest

from tests.web.house import Browser, House, campaign, person
from tests.web.leading import LEAD, REVIEWER, Scene, scene
from truing.data.ledger import Answer, Told

# The least that one must be for each route. "anyone": signed in or not; "key": a key of the API.
LEAST = {
    **dict.fromkeys(("GET /sign-in", "POST /sign-in", "POST /sign-out"), "anyone"),
    **dict.fromkeys(("GET /invitation/{secret}", "POST /invitation/{secret}"), "anyone"),
    "GET /": "annotator",
    **dict.fromkeys(
        (
            "GET /tasks/{campaign_id}",
            "GET /tasks/{campaign_id}/history",
            "GET /tasks/{campaign_id}/screening",
            "GET /tasks/{campaign_id}/questions",
            "POST /tasks/{campaign_id}/undo",
            "POST /tasks/{campaign_id}/paper/{paper_id}",
            "GET /judge/{lease_id}",
            "POST /judge/{lease_id}",
            "POST /judge/{lease_id}/draft",
            "POST /judge/{lease_id}/release",
            "GET /judge/{lease_id}/explained",
        ),
        "annotator",
    ),
    **dict.fromkeys(
        (
            "GET /lead",
            "GET /lead/{campaign_id}",
            "GET /lead/{campaign_id}/progress",
            "GET /lead/{campaign_id}/people",
            "GET /lead/{campaign_id}/people/{annotator_id}",
            "GET /lead/{campaign_id}/agreement",
            "GET /lead/{campaign_id}/decide/{item_id}",
            "POST /lead/{campaign_id}/decide/{item_id}",
            "GET /lead/{campaign_id}/questions",
            "POST /lead/{campaign_id}/questions/{question_id}",
            "POST /lead/{campaign_id}/join",
        ),
        "reviewer",
    ),
    **dict.fromkeys(
        (
            "GET /lead/new",
            "POST /lead/new",
            "GET /lead/keys",
            "POST /lead/keys",
            "GET /lead/{campaign_id}/items",
            "POST /lead/{campaign_id}/items",
            "GET /lead/{campaign_id}/texts",
            "POST /lead/{campaign_id}/texts",
            "POST /lead/{campaign_id}/state",
            "POST /lead/{campaign_id}/people/{annotator_id}",
            "POST /lead/{campaign_id}/invite",
            "GET /lead/{campaign_id}/export",
            "POST /lead/{campaign_id}/export",
            "GET /openapi.json",
        ),
        "admin",
    ),
    **dict.fromkeys(
        (
            "GET /api/v1/campaigns",
            "POST /api/v1/campaigns",
            "GET /api/v1/campaigns/{campaign_id}",
            "POST /api/v1/campaigns/{campaign_id}/state",
            "GET /api/v1/campaigns/{campaign_id}/progress",
            "GET /api/v1/campaigns/{campaign_id}/items",
            "POST /api/v1/campaigns/{campaign_id}/items",
            "GET /api/v1/campaigns/{campaign_id}/judgements",
            "GET /api/v1/campaigns/{campaign_id}/annotators",
            "GET /api/v1/campaigns/{campaign_id}/agreement",
        ),
        "key",
    ),
}
ROLES = ("nobody", "annotator", "reviewer", "admin")
WHO = {"annotator": "ada@example.org", "reviewer": REVIEWER, "admin": LEAD}


def routes(app: Any) -> list[tuple[str, str]]:
    """Method and path of everything that the app answers, static files aside."""
    found = list[tuple[str, str]]()

    def walk(many: Any, before: str = "") -> None:
        for route in many:
            inner = getattr(route, "original_router", None)
            if inner is not None:
                walk(inner.routes)
            elif methods := getattr(route, "methods", None):
                found.extend((m, before + route.path) for m in methods if m != "HEAD")

    walk(app.routes)
    return sorted(set(found))


def test_every_route_is_in_the_table(house: House) -> None:
    assert {f"{method} {path}" for method, path in routes(house.app)} == LEAST.keys()


def refused(browser: Browser, method: str, path: str) -> bool:
    """Whether the door stays shut: another role, or nobody. Behind it there may be an error."""
    browser.follow_redirects = False
    data = None if method == "GET" else {"csrf": browser.csrf}
    came = browser.request(method, path, data=data)
    assert came.status_code < 500, came.text
    if came.status_code == 303:
        return came.headers["location"].startswith("/sign-in")
    told = "with another role" in came.text or "You are signed out" in came.text
    assert told == (came.status_code in (401, 403)) or "A key is needed" in came.text, came.text
    return came.status_code in (401, 403)


def filled(path: str, made: Scene, lease: int) -> str:
    known = {"campaign_id": made.campaign.id, "annotator_id": made.people[0].id, "secret": "none"}
    known |= {"item_id": made.items[0].id, "question_id": 1, "paper_id": 1, "lease_id": lease}
    return re.sub(r"\{(\w+)\}", lambda name: str(known[name[1]]), path)


@pytest.mark.parametrize("role", ROLES)
def test_each_role_gets_what_it_may_and_no_more(house: House, role: str) -> None:
    made = scene(house)
    held = made.ledger.lease(
        made.items[-6].id, made.people[0].id, [r.id for r in made.items[-6].responses]
    )
    wrong, browser = list[str](), house.browser(WHO.get(role, ""))
    if role == "nobody":
        browser.visit("/sign-in")
    for route, least in LEAST.items():
        method, path = route.split(" ")
        if least == "anyone":
            continue
        may = least != "key" and ROLES.index(role) >= ROLES.index(least)
        if refused(browser, method, filled(path, made, held.id)) == may:
            wrong.append(f"{role}: {route}")
    assert wrong == []


def test_the_walk_would_see_an_open_door(house: House) -> None:
    made = scene(house)
    shut = refused(house.browser(WHO["annotator"]), "GET", made.at("/people"))
    open_ = refused(house.browser(WHO["reviewer"]), "GET", made.at("/people"))
    assert (shut, open_) == (True, False)


def test_annotators_see_no_link_to_the_leads_pages(house: House) -> None:
    made = scene(house)
    for role, there in (("annotator", False), ("reviewer", True)):
        browser = house.browser(WHO[role])
        made.ledger.join(made.campaign.id, made.reviewer.id)
        assert ('href="/lead"' in browser.visit("/").text) is there


def test_reviewers_see_no_names_of_people_or_systems(house: House) -> None:
    made = scene(house)
    browser = house.browser(REVIEWER)
    one = made.people[0]
    for path in ("", "/people", f"/people/{one.id}", "/agreement", f"/decide/{made.items[0].id}"):
        text = browser.visit(made.at(path)).text
        assert "ada@example.org" not in text
        assert not [name for name in ("sft-7b", "dpo-7b", "org/sft") if name in text], path
    admin = house.browser(LEAD)
    assert "ada@example.org" in admin.visit(made.at("/people")).text
    assert "sft-7b" in admin.visit(made.at("/agreement")).text
    # Deciding is blind for admins, too.
    assert "sft-7b" not in admin.visit(made.at(f"/decide/{made.items[0].id}")).text


def test_what_a_lead_is_of_another_campaign_is_not_found(house: House) -> None:
    made = scene(house)
    other = campaign(house.ledger, name="other")
    browser = house.browser(LEAD)
    number = made.items[0].id
    asked = Told(number, made.people[0].id, (Answer("question", {}, "Why?"),), "q")
    made.ledger.record(made.campaign.id, [asked])
    (question,) = made.ledger.questions(made.campaign.id)
    for path in (
        f"/lead/{other.id}/decide/{number}",
        f"/lead/{other.id}/people/{made.people[0].id}",
        "/lead/999",
        "/lead/999/people",
        f"/lead/{other.id}/people/{2**62}",
    ):
        assert browser.visit(path).status_code == 404, path
    path = f"/lead/{other.id}/questions/{question.judgement.id}"
    browser.visit(f"/lead/{other.id}")
    assert browser.submit(path, text="no").status_code == 404
    assert made.ledger.questions(made.campaign.id)[0].answers == ()


def test_a_suspended_admin_is_out_at_once(house: House) -> None:
    made = scene(house)
    person(house.ledger, "second@example.org", role="admin")
    browser = house.browser("second@example.org")
    assert browser.visit("/lead").status_code == 200
    (who,) = [a for a in made.ledger.annotators() if a.role == "admin" and a.id != made.lead.id]
    made.ledger.set_annotator(who.id, state="suspended")
    browser.follow_redirects = False
    assert browser.get("/lead").headers["location"].startswith("/sign-in")
