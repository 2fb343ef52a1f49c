"""Columns that go"""
import sqlalchemy as sa
from alembic import op

revision = "10"
down_revision = "09"


def upgrade():
    op.drop_column("reading", "scale")
    op.drop_column("reading", "unit")


def downgrade():
    op.add_column("reading", sa.Column("unit", sa.String(8), nullable=False, server_default="C"))
    op.add_column("reading", sa.Column("scale", sa.Integer))
