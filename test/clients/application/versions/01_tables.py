"""The first tables"""
import sqlalchemy as sa
from alembic import op

revision = "01"
down_revision = None


def upgrade():
    op.create_table("sensor", sa.Column("name", sa.String(40), primary_key=True), sa.Column("kind", sa.Enum("hot", "cold", name="kind"), nullable=False))
    op.create_table(
        "reading",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("sensor", sa.String(40), sa.ForeignKey("sensor.name")),
        sa.Column("amount", sa.Integer),
        sa.Column("note", sa.String(20)),
        sa.Column("scale", sa.Integer))
    op.create_table("usage", sa.Column("sensor", sa.String(40), primary_key=True), sa.Column("times", sa.Integer, nullable=False))
    op.create_table("scratch", sa.Column("id", sa.Integer, sa.Identity(), primary_key=True), sa.Column("v", sa.Text))
    op.bulk_insert(sa.table("sensor", sa.column("name"), sa.column("kind", sa.Enum(name="kind"))), [{"name": "shared", "kind": "hot"}])


def downgrade():
    for table in ("scratch", "usage", "reading", "sensor"):
        op.drop_table(table)
    op.execute("DROP TYPE kind")
