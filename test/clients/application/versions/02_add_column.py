"""Columns with and without defaults"""
import sqlalchemy as sa
from alembic import op

revision = "02"
down_revision = "01"


def upgrade():
    op.add_column("reading", sa.Column("unit", sa.String(8), nullable=False, server_default="C"))
    op.add_column("reading", sa.Column("taken_at", sa.DateTime(timezone=True), server_default=sa.func.now()))
    op.add_column("usage", sa.Column("day", sa.Integer, nullable=False, server_default="0"))


def downgrade():
    op.drop_column("usage", "day")
    op.drop_column("reading", "taken_at")
    op.drop_column("reading", "unit")
