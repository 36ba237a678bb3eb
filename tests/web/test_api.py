"""The REST API: what it gives, whom it turns away, and that nothing makes it stumble."""

import json
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.web.house import House, campaign, person
from tests.web.leading import LEAD, REVIEWER, scene
from truing.data.ledger import NewItem, NewResponse

SLOW = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def client(house: House, email: str = LEAD, role: str = "admin") -> TestClient:
    """A program with a key."""
    known = house.ledger.identity(email=email)
    number = known["annotator_id"] if known else person(house.ledger, email, role=role).id
    secret = house.ledger.issue_token("api", 3600, annotator_id=number, data={"name": "test"})
    headers = {"authorization": f"Bearer {secret}"}
    return TestClient(house.app, base_url="http://localhost", headers=headers)


def test_a_campaign_from_its_items_to_its_end(house: House) -> None:
    api = client(house)
    made = api.post(
        "/api/v1/campaigns",
        json={"name": "replies", "kind": "pairwise", "rules": {"overlap": 2, "edit": False}},
    )
    assert made.status_code == 201
    told = made.json()
    assert (told["state"], told["rules"]["overlap"], told["rules"]["edit"]) == ("draft", 2, False)
    path = f"/api/v1/campaigns/{told['id']}"
    both = [{"content": "yes", "run": "a"}, {"content": [{"role": "assistant", "content": "no"}]}]
    items = [{"prompt": f"Q {i}", "responses": both, "score": 0.5 if i else None} for i in range(3)]
    assert api.post(f"{path}/items", json={"items": items}).json() == {"added": 3}
    assert api.post(f"{path}/state", json={"state": "pilot"}).json()["round"] == 0
    assert api.post(f"{path}/state", json={"state": "open"}).json()["round"] == 1
    assert api.post(f"{path}/state", json={"state": "draft"}).status_code == 400
    progress = api.get(f"{path}/progress").json()
    assert (progress["slots"], progress["filled"], progress["done"]) == (6, 0, 0)
    first = api.get(f"{path}/items?limit=2").json()
    rest = api.get(f"{path}/items?after={first[-1]['id']}").json()
    assert [item["prompt"] for item in first + rest] == ["Q 0", "Q 1", "Q 2"]
    assert first[0]["responses"][1]["content"] == both[1]["content"]
    assert api.get("/api/v1/campaigns").json()[0]["name"] == "replies"


def test_judgements_are_all_there_page_by_page(house: House) -> None:
    made = scene(house)
    api, path = client(house), f"/api/v1/campaigns/{made.campaign.id}"
    rows, after = list[dict[str, Any]](), 0
    while page := api.get(f"{path}/judgements?after={after}&limit=17").json():
        rows += page
        after = page[-1]["seq"]
    assert len(rows) == sum(len(made.ledger.judgements(item.id)) for item in made.items)
    assert len({row["id"] for row in rows}) == len(rows)
    names = {one.pseudonym for one in made.people}
    assert {row["annotator"] for row in rows} <= names
    people = api.get(f"{path}/annotators").json()
    assert {one["annotator"] for one in people} == names
    assert [one["flags"] for one in people if one["flags"]] == [["side"]]
    told = api.get(f"{path}/agreement").json()
    assert told["wins"][0]["a"] == "dpo-7b"
    assert told["same_side"]["low"] < told["same_side"]["value"]
    text = json.dumps([rows, people, told])
    assert "ada@example.org" not in text


def test_an_empty_campaign_has_an_answer_to_everything(house: House) -> None:
    made = campaign(house.ledger)
    api = client(house)
    for path in ("", "/progress", "/items", "/judgements", "/annotators", "/agreement"):
        assert api.get(f"/api/v1/campaigns/{made.id}{path}").status_code == 200


def test_texts_that_are_no_unicode_come_out_as_they_are(house: House) -> None:
    made = campaign(house.ledger, items=1)
    both = NewResponse("half \ud800 and \x00"), NewResponse("whole")
    house.ledger.add_items(made.id, [NewItem("\udfff?", both)])
    came = client(house).get(f"/api/v1/campaigns/{made.id}/items")
    assert came.status_code == 200
    assert json.loads(came.content)[1]["responses"][0]["content"] == "half \ud800 and \x00"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": "x", "kind": "nonsense"}, 422),
        ({"name": ""}, 422),
        ({"name": "x", "more": 1}, 422),
        ({"name": "x", "rules": {"nonsense": 1}}, 400),
        ({"name": "x", "rules": {"overlap": 0}}, 400),
        ({"name": "x", "rules": {"rules": {"overlap": 2}}}, 400),
        ({"name": "a\x00b"}, 400),
        ({"name": "taken"}, 400),
        ([], 422),
    ],
)
def test_odd_campaigns_are_refused(house: House, body: Any, status: int) -> None:
    campaign(house.ledger, name="taken")
    came = client(house).post("/api/v1/campaigns", json=body)
    assert came.status_code == status, came.text
    assert len(house.ledger.campaigns()) == 1


def test_items_come_whole_or_not_at_all(house: House) -> None:
    made = campaign(house.ledger, items=1)
    good = {"prompt": "Q", "responses": [{"content": "a"}, {"content": "b"}]}
    bad = {"prompt": "Q", "responses": [{"content": "a"}]}
    path = f"/api/v1/campaigns/{made.id}/items"
    assert client(house).post(path, json={"items": [good, bad]}).status_code == 400
    assert len(house.ledger.item_numbers(made.id)) == 1


def test_nobody_gets_in_without_a_living_key(house: House) -> None:
    made = scene(house, items=6)
    path = "/api/v1/campaigns"
    no_key = TestClient(house.app, base_url="http://localhost")
    assert no_key.get(path).status_code == 401
    assert no_key.get(path, headers={"authorization": "Bearer x"}).status_code == 401
    assert no_key.get(path, headers={"authorization": "Basic eDp4"}).status_code == 401
    # A session's cookie is no key, nor is its secret.
    browser = house.browser(LEAD)
    assert browser.get(path).status_code == 401
    told = {"authorization": f"Bearer {browser.cookies['truing']}"}
    assert no_key.get(path, headers=told).status_code == 401
    assert client(house, REVIEWER).get(path).status_code == 403
    api = client(house, "second@example.org")
    assert api.get(path).status_code == 200
    known = made.ledger.identity(email="second@example.org")
    assert known is not None
    made.ledger.set_annotator(known["annotator_id"], role="annotator")
    assert api.get(path).status_code == 403
    made.ledger.set_annotator(known["annotator_id"], state="suspended")
    assert api.get(path).status_code == 401


def test_the_specification_is_for_admins_and_keys(house: House) -> None:
    scene(house, items=6)
    assert client(house).get("/openapi.json").json()["info"]["title"] == "Truing"
    assert house.browser(LEAD).get("/openapi.json").status_code == 200
    assert house.browser(REVIEWER).get("/openapi.json").status_code == 403
    assert client(house, REVIEWER).get("/openapi.json").status_code == 403
    assert house.browser().get("/openapi.json").url.path == "/sign-in"
    told = {"accept": "application/json"}
    assert house.browser().get("/openapi.json", headers=told).status_code == 401
    paths = client(house).get("/openapi.json").json()["paths"]
    assert paths
    assert all(path.startswith("/api/v1/") for path in paths)


def test_schemathesis_finds_no_server_error(house: House) -> None:
    """Every operation of the specification with odd and with fitting input."""
    scene(house, items=6)
    api = client(house)
    schema = schemathesis.openapi.from_asgi("/openapi.json", house.app, headers=dict(api.headers))
    tried = dict[str, set[int]]()

    def check(case: Any) -> None:
        came = case.call(headers=dict(api.headers))
        tried.setdefault(case.operation.label, set()).add(came.status_code)
        case.validate_response(came, checks=[not_a_server_error])

    quick = settings(max_examples=25, deadline=None, suppress_health_check=SLOW, database=None)
    for found in schema.get_all_operations():
        for mode in GenerationMode:
            operation: Any = found
            quick(given(case=operation.ok().as_strategy(generation_mode=mode))(check))()
    assert len(tried) == 10
    # It was let in (but for the requests without a key), and some requests were fitting.
    codes = set.union(*tried.values())
    assert 403 not in codes
    assert {200, 201, 404, 422} <= codes
