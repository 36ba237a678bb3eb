"""Write the pictures of the lead's pages in docs/images/, of a made-up campaign in the real app.

python scripts/lead_screenshots.py [name ...]
"""

import sys
from pathlib import Path
from typing import Any

from selenium.webdriver.common.by import By

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.screenshots import Camera, Tour, pictured  # noqa: E402
from tests.web.house import PASSWORD, House  # noqa: E402
from tests.web.leading import LEAD, Scene, scene  # noqa: E402
from truing.data.ledger import Ledger  # noqa: E402

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


def campaign(folder: Path) -> tuple[Any, Ledger, Tour]:
    house = House(folder)
    made = scene(house)
    made.ledger.add_document(made.campaign.id, "guideline", GUIDE)
    return house.app, house.ledger, lambda camera: pages(camera, made)


if __name__ == "__main__":
    pictured(sys.argv[1:], 900, campaign)
