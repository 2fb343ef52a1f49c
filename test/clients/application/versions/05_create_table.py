"""A table that begins with what others have"""
import sqlalchemy as sa
from alembic import op

revision = "05"
down_revision = "04"


def upgrade():
    op.create_table(
        "label",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("reading_id", sa.Integer, sa.ForeignKey("reading.id", ondelete="CASCADE"), nullable=False),
        sa.Column("name", sa.String(40), nullable=False))
    op.execute("INSERT INTO label (reading_id, name) SELECT id, 'old' FROM reading")
    op.execute("UPDATE reading SET scale = 1 WHERE scale IS NULL")


def downgrade():
    op.drop_table("label")
