"""A key of two columns"""
from alembic import op

revision = "07"
down_revision = "06"


def upgrade():
    op.drop_constraint("usage_pkey", "usage", type_="primary")
    op.create_primary_key("usage_pkey", "usage", ["sensor", "day"])


def downgrade():
    op.drop_constraint("usage_pkey", "usage", type_="primary")
    op.create_primary_key("usage_pkey", "usage", ["sensor"])
