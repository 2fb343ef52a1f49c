"""A table that goes"""
import sqlalchemy as sa
from alembic import op

revision = "11"
down_revision = "10"


def upgrade():
    op.drop_table("scratch")


def downgrade():
    op.create_table("scratch", sa.Column("id", sa.Integer, sa.Identity(), primary_key=True), sa.Column("v", sa.Text))
