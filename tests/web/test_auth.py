"""Who gets in, by which door, and what they may see there."""

import logging
import re
from typing import Any

import pytest
from fastapi.routing import APIRoute

from tests.web.house import PASSWORD, Browser, House, campaign, person
from truing.web.app import ROUTERS
from truing.web.auth import ABSOLUTE, IDLE, Throttle, fits, hashed, inside, invite
from truing.web.middleware import BODY

SQL = "x'); DROP TABLE judgements; --"


def routes() -> list[tuple[str, str]]:
    """Every (method, path) of the app, but for files."""
    found = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)]
    return [(method, r.path) for r in found for method in sorted(r.methods or ())]


def test_the_routes_that_are_tried_are_there() -> None:
    assert {("GET", "/"), ("POST", "/judge/{lease_id}"), ("POST", "/sign-out")} <= {*routes()}


def session(browser: Browser) -> str:
    """The session's cookie as the server set it last."""
    found = [c.value for c in browser.cookies.jar if c.name == "truing" and c.domain != ""]
    assert found
    return str(found[-1])


def test_an_invitation_makes_an_account_once(house: House) -> None:
    made = campaign(house.ledger, name="Café")
    link = invite(house.ledger, campaign_id=made.id, tags=("physics",))
    browser = house.browser()
    assert "Café" in browser.visit(link).text
    told = {"email": " Ada@Example.org ", "name": "Ada"}
    assert browser.submit(link, **told, password="short").status_code == 400
    assert browser.submit(link, email="", password=PASSWORD).status_code == 400
    assert "Your campaigns" in browser.submit(link, **told, password=PASSWORD).text
    me = house.ledger.identity(email="ada@example.org")
    assert me is not None
    assert me["password_hash"].startswith("$argon2id$")
    who = house.ledger.annotator(me["annotator_id"])
    assert (who.role, who.tags) == ("annotator", ["physics"])
    assert browser.visit(link).status_code == 404
    assert house.browser().visit(link).status_code == 404
    # The account is there for later.
    assert "Your campaigns" in house.browser("ada@example.org").visit("/").text


def test_an_invitation_for_somebody_who_is_there(house: House) -> None:
    first, second = campaign(house.ledger), campaign(house.ledger, name="second")
    me = person(house.ledger, "ada@example.org", first)
    link = invite(house.ledger, campaign_id=second.id)
    stranger = house.browser()
    stranger.visit(link)
    came = stranger.submit(link, email="ada@example.org", password=PASSWORD)
    assert came.status_code == 400
    assert "sign in first" in came.text
    browser = house.browser("ada@example.org")
    assert "Take part" in browser.visit(link).text
    browser.submit(link)
    assert [m.campaign_id for m in house.ledger.memberships(me.id)] == [first.id, second.id]


def test_a_link_for_a_new_password_ends_the_old_sessions(house: House) -> None:
    me = person(house.ledger)
    old, fresh = house.browser("ada@example.org"), house.browser()
    link = invite(house.ledger, annotator_id=me.id)
    fresh.visit(link)
    fresh.submit(link, password="quite another one")
    assert old.visit("/").url.path == "/sign-in"
    assert fresh.visit("/").url.path == "/"
    assert house.browser().sign_in(password="quite another one").url.path == "/"


def test_an_invitation_for_a_made_up_role_is_refused(house: House) -> None:
    with pytest.raises(ValueError, match="needed: one of annotator, reviewer, admin"):
        invite(house.ledger, role="king")


def test_sign_in_makes_a_new_session(house: House) -> None:
    """A session that an attacker planted beforehand is worth nothing afterwards."""
    person(house.ledger)
    browser = house.browser()
    browser.cookies.set("truing", "planted-by-somebody-else")
    browser.sign_in()
    first = session(browser)
    assert first != "planted-by-somebody-else"
    browser.visit("/")
    browser.submit("/sign-out")
    browser.sign_in()
    second = session(browser)
    assert second != first
    thief = house.browser()
    for planted in (first, "planted-by-somebody-else"):
        thief.cookies.set("truing", planted)
        assert thief.visit("/").url.path == "/sign-in"
    assert browser.visit("/").url.path == "/"


def test_sessions_end(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    person(house.ledger)
    idle, busy = house.browser("ada@example.org"), house.browser("ada@example.org")
    real, later = house.ledger.now, [0.0]
    monkeypatch.setattr(house.ledger, "now", lambda: real() + int(1000 * later[0]))
    for hour in range(1, ABSOLUTE // 3600 + 1):
        later[0] = 3600.0 * hour - 60
        assert busy.visit("/").url.path == "/", hour
        if 3600 * hour > IDLE + 3600:
            assert idle.visit("/").url.path == "/sign-in"
    later[0] = ABSOLUTE + 60.0
    assert busy.visit("/").url.path == "/sign-in"


def test_a_suspended_person_is_out_at_once(house: House) -> None:
    me = person(house.ledger)
    browser = house.browser("ada@example.org")
    house.ledger.set_annotator(me.id, state="suspended")
    assert browser.visit("/").url.path == "/sign-in"
    assert house.browser().sign_in().status_code == 401


def test_passwords_are_tried_slowly(house: House) -> None:
    person(house.ledger)
    browser = house.browser()
    codes = [browser.sign_in(password=f"wrong {n}").status_code for n in range(7)]
    assert codes == [401] * 5 + [429] * 2
    came = browser.sign_in()
    assert came.status_code == 429
    assert int(came.headers["retry-after"]) > 60
    # Whether a name is there cannot be told from the answer.
    other = House.browser(house)
    texts = {other.sign_in(email=f"{n}@example.org").status_code for n in range(3)}
    assert texts == {401}


def test_a_throttle_lets_go() -> None:
    now = [0.0]
    throttle = Throttle(2, 10.0, lambda: now[0])
    for moment in (0.0, 4.0):
        now[0] = moment
        assert throttle.wait("a") == 0
        throttle.failed("a")
    assert throttle.wait("a") == 6.0
    assert throttle.wait("b") == 0
    now[0] = 10.5
    assert throttle.wait("a") == 0
    throttle.failed("a")
    assert throttle.wait("a") > 0
    throttle.forget("a")
    assert throttle.wait("a") == 0


def test_passwords_are_hashed_and_compared() -> None:
    known = hashed(PASSWORD)
    assert known != hashed(PASSWORD)
    assert fits(PASSWORD, known)
    assert not fits(PASSWORD + " ", known)
    assert not fits("nobody has this password", None)
    assert not fits(PASSWORD, "no hash")
    for bad in ("", "short", "x" * 201):
        with pytest.raises(ValueError, match="needed: 10 to 200"):
            hashed(bad)


@pytest.mark.parametrize("to", ["//evil.example", "/\\evil.example", "https://evil.example", "", 3])
def test_nobody_is_sent_elsewhere(house: House, to: Any) -> None:
    person(house.ledger)
    assert inside(to) == "/"
    browser = house.browser()
    browser.visit("/sign-in")
    came = browser.submit("/sign-in", email="ada@example.org", password=PASSWORD, next=str(to))
    assert came.url.host == "localhost"


def test_after_sign_in_one_is_where_one_wanted_to_go(house: House) -> None:
    made = campaign(house.ledger)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser()
    assert browser.visit(f"/tasks/{made.id}").url.path == "/sign-in"
    to = re.search(r'name="next" value="([^"]+)"', browser.page.text)
    assert to
    came = browser.submit("/sign-in", email="ada@example.org", password=PASSWORD, next=to[1])
    assert came.url.path == f"/tasks/{made.id}"


# --- forms from elsewhere -------------------------------------------------------------------------


def test_every_form_needs_its_token(house: House) -> None:
    person(house.ledger, "ada@example.org", campaign(house.ledger))
    browser, other = house.browser("ada@example.org"), house.browser()
    other.visit("/sign-in")
    for method, path in routes():
        if method != "POST" or path.startswith("/api/"):
            continue
        to = re.sub(r"\{\w+\}", "1", path)
        for token in ("", "0" * 64, other.csrf, None):
            data = {} if token is None else {"csrf": token}
            assert browser.post(to, data=data).status_code == 403, (path, token)


def test_a_form_from_another_site_is_refused(house: House) -> None:
    browser = house.browser()
    browser.visit("/sign-in")
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        data = {"csrf": browser.csrf, "email": "a", "password": PASSWORD}
        assert browser.post("/sign-in", data=data, headers=headers).status_code == 403
        headers = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
        assert browser.post("/sign-in", data=data, headers=headers).status_code == 401


def test_a_token_from_before_sign_in_is_void_after_it(house: House) -> None:
    person(house.ledger)
    browser = house.browser()
    browser.visit("/sign-in")
    before = browser.csrf
    browser.sign_in()
    assert browser.post("/sign-out", data={"csrf": before}).status_code == 403


# --- headers, limits, log -------------------------------------------------------------------------


def test_every_page_is_fenced_in(house: House) -> None:
    person(house.ledger, "ada@example.org", campaign(house.ledger))
    browser = house.browser("ada@example.org")
    for path in ("/", "/tasks/1", "/nowhere", "/tasks/x", "/static/app.css"):
        headers = browser.visit(path).headers
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'")
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        kept = "immutable" if path.startswith("/static") else "no-store"
        assert kept in headers["cache-control"]
        assert ("server" in headers) is False


def test_cookies_are_out_of_reach(house: House, tmp_path: Any) -> None:
    person(house.ledger)
    browser = house.browser()
    for path in ("/sign-in",):
        cookie = browser.get(path).headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=lax" in cookie
    (tmp_path / "tls").mkdir()
    safe = House(tmp_path / "tls", secure=True)
    person(safe.ledger)
    made = Browser(safe.app)
    made.base_url = "https://localhost"  # type: ignore[assignment]
    made.sign_in()
    session = next(c for c in made.cookies.jar if c.name == "__Host-truing")
    assert session.secure
    assert made.visit("/").headers["strict-transport-security"]


def test_too_large_a_form_is_refused(house: House) -> None:
    browser = house.browser()
    browser.visit("/sign-in")
    assert browser.post("/sign-in", data={"csrf": "x" * (BODY + 1)}).status_code == 413
    many = "&".join(f"f{n}=1" for n in range(500))
    headers = {"content-type": "application/x-www-form-urlencoded"}
    assert browser.post("/sign-in", content=many, headers=headers).status_code in (400, 403)


def test_the_log_says_what_happened_and_no_secret(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    me = person(house.ledger)
    link = invite(house.ledger)
    with caplog.at_level(logging.INFO, "truing.access"):
        browser = house.browser()
        browser.visit(link)
        browser.sign_in()
        browser.visit("/?token=secret")
    text = caplog.text
    assert "GET /invitation/… 200" in text
    assert f" {me.pseudonym} GET / 200" in text
    assert "POST /sign-in 303" in text
    for secret in (link.split("/")[-1], PASSWORD, "ada@example.org", "token=secret"):
        assert secret not in text


# --- other people's things ------------------------------------------------------------------------


def test_nobody_gets_in_without_signing_in(house: House) -> None:
    campaign(house.ledger)
    browser = house.browser()
    browser.visit("/sign-in")
    for method, path in routes():
        if path.startswith(("/sign-", "/invitation", "/api/")):
            continue
        to = re.sub(r"\{\w+\}", "1", path)
        if method == "GET":
            assert browser.get(to).url.path == "/sign-in", path
        else:
            came = browser.post(to, data={"csrf": browser.csrf})
            assert came.status_code == 401, path


def test_what_is_anothers_is_not_there(house: House) -> None:
    mine, theirs = campaign(house.ledger), campaign(house.ledger, name="theirs")
    person(house.ledger, "ada@example.org", mine, theirs)
    person(house.ledger, "eve@example.org", mine)
    ada, eve = house.browser("ada@example.org"), house.browser("eve@example.org")
    lease, other = ada.work(theirs), ada.work(mine)
    ada.judge(choice="a1")
    eve.work(mine)
    for path in (f"/judge/{lease}", f"/judge/{other}", f"/judge/{lease}/explained", "/judge/99"):
        assert eve.get(path).status_code == 404, path
    for path in (f"/tasks/{theirs.id}", f"/tasks/{theirs.id}/history", "/tasks/99"):
        assert eve.get(path).status_code == 404, path
    for path in (f"/judge/{lease}", f"/judge/{lease}/draft", f"/judge/{lease}/release"):
        came = eve.submit(path, script=True, token="t", choice="b1", action="judge")
        assert came.status_code == 404, path
    came = eve.submit(f"/judge/{other}", script=True, token="t", choice="b1", reopened="1")
    assert came.status_code == 404
    assert eve.submit(f"/tasks/{theirs.id}/undo", script=True).status_code == 404
    assert house.ledger.progress(theirs.id).done == 0
    assert house.ledger.assignment(lease, 1).state == "leased"


def test_numbers_that_are_none(house: House) -> None:
    person(house.ledger, "ada@example.org", campaign(house.ledger))
    browser = house.browser("ada@example.org")
    for number in ("0", "-1", "x", "1'--", "99999999999999999999", "1.5", "%00", "٣"):
        assert browser.get(f"/judge/{number}").status_code == 404, number
        assert browser.get(f"/tasks/{number}").status_code == 404, number


def test_sql_in_every_field_is_a_text(house: House) -> None:
    made = campaign(house.ledger)
    house.ledger.add_document(made.id, "consent", SQL)
    person(house.ledger, "ada@example.org", made)
    browser = house.browser()
    assert browser.sign_in(email=SQL, password=SQL).status_code == 401
    browser.sign_in()
    browser.visit(f"/tasks/{made.id}")
    assert browser.submit(f"/tasks/{made.id}/paper/1", answer=SQL).status_code == 400
    browser.submit(f"/tasks/{made.id}/paper/1", answer="accept")
    lease = browser.work(made)
    names = ("token", "action", "choice", "critique", "edit-0", "reason", "text", "active_ms")
    good = {"token": "t", "action": "judge", "choice": "a1"}
    for name in (*names, "timing", "reopened"):
        came = browser.submit(f"/judge/{lease}", True, **{**good, "token": f"t-{name}", name: SQL})
        assert came.status_code in (200, 400, 409), name
        browser.submit(f"/tasks/{made.id}/undo")
    assert browser.submit(f"/judge/{lease}/draft", True, choice=SQL).status_code in (200, 409)
    assert browser.work(made)
    assert house.ledger.campaigns()


def test_an_invitation_with_sql_for_a_name(house: House) -> None:
    link = invite(house.ledger)
    browser = house.browser()
    browser.visit(link)
    assert browser.submit(link, email=SQL, name=SQL, password=PASSWORD).status_code == 200
    assert house.ledger.identity(email=SQL)
