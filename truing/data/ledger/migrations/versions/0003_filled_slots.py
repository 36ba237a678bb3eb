"""Filled slots counted up to what each item wants: judgements beyond that were counted too."""

from alembic import op
from sqlalchemy import case, column, func, select, table

revision = "0003"
down_revision = "0002"
PEOPLE = 0  # the chain that is of no campaign


def upgrade() -> None:
    streams = table("streams", column("id"), column("filled"))
    items = table("items", *map(column, ("campaign_id", "purpose", "done", "wanted")))
    came = func.sum(case((items.c.done < items.c.wanted, items.c.done), else_=items.c.wanted))
    mine = (items.c.campaign_id == streams.c.id) & (items.c.purpose == "work")
    filled = select(func.coalesce(came, 0)).where(mine).scalar_subquery()
    op.execute(streams.update().where(streams.c.id != PEOPLE).values(filled=filled))
