"""Write the pictures of the lead's pages in docs/images/, of a made-up campaign in the real app.

python scripts/lead_screenshots.py [name ...]
"""

import sys
import tempfile
from pathlib import Path

from selenium.webdriver.common.by import By

from scripts.screenshots import FOLDER, Camera
from tests.browser import browser, served
from tests.web.house import PASSWORD, House
from tests.web.leading import LEAD, Scene, scene

GUIDE = "Prefer the answer that **helps** more.\n\n- True before pretty\n- Short before long\n"


def pages(camera: Camera, made: Scene) -> None:
    """Everything that somebody who leads sees."""
    camera.go("/sign-in?next=/lead")
    camera.driver.find_element(By.ID, "email").send_keys(LEAD)
    camera.driver.find_element(By.ID, "password").send_keys(PASSWORD)
    camera.click("button.main")
    camera.shoot("lead-campaigns")
    one = made.people[3]  # who leans to one side
    for name, path in {
        "new": "/lead/new",
        "keys": "/lead/keys",
        "overview": made.at("?hourly=18"),
        **{name: made.at(f"/{name}") for name in ("items", "texts", "people", "agreement")},
        **{name: made.at(f"/{name}") for name in ("questions", "export")},
        "person": made.at(f"/people/{one.id}"),
        "decide": made.at(f"/decide/{made.items[1].id}"),
    }.items():
        camera.go(path)
        camera.shoot(f"lead-{name}")


def main(wanted: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for suffix, width, height, dark in (
        ("light", 1280, 900, False),
        ("dark", 1280, 900, True),
        ("phone", 390, 844, False),
    ):
        with tempfile.TemporaryDirectory() as folder:
            house = House(Path(folder))
            made = scene(house)
            made.ledger.add_document(made.campaign.id, "guideline", GUIDE)
            with (
                browser(Path(folder) / "profile", width=width, height=height, dark=dark) as driver,
                served(house.app) as url,
            ):
                pages(Camera(driver, url, suffix, wanted), made)
            house.ledger.close()


if __name__ == "__main__":
    main(sys.argv[1:])
