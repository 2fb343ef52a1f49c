"""A column's name"""
from alembic import op

revision = "04"
down_revision = "03"


def upgrade():
    op.alter_column("reading", "note", new_column_name="remark")


def downgrade():
    op.alter_column("reading", "remark", new_column_name="note")
