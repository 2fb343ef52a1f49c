"""A value of an enum"""
from alembic import op

revision = "06"
down_revision = "05"


def upgrade():
    with op.get_context().autocommit_block():
        op.execute("ALTER TYPE kind ADD VALUE 'wet'")


def downgrade():
    raise NotImplementedError
