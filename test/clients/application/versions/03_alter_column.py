"""Other types and nullability; numbers beyond those of an integer follow"""
import sqlalchemy as sa
from alembic import op

revision = "03"
down_revision = "02"


def upgrade():
    op.alter_column("reading", "amount", type_=sa.BigInteger, nullable=False)
    op.alter_column("reading", "sensor", nullable=False)
    op.alter_column("reading", "note", type_=sa.String(200))


def downgrade():
    op.alter_column("reading", "note", type_=sa.String(20))
    op.alter_column("reading", "sensor", nullable=True)
    op.alter_column("reading", "amount", type_=sa.Integer, nullable=True)
