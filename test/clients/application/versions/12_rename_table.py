"""A table's name"""
from alembic import op

revision = "12"
down_revision = "11"


def upgrade():
    op.rename_table("label", "tag")


def downgrade():
    op.rename_table("tag", "label")
