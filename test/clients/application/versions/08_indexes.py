"""Indexes, one of them concurrently"""
from alembic import op

revision = "08"
down_revision = "07"


def upgrade():
    op.create_index("ix_reading_taken_at", "reading", ["taken_at"])
    op.create_index("ix_reading_remark", "reading", ["remark"])
    with op.get_context().autocommit_block():
        op.create_index("ix_reading_sensor", "reading", ["sensor"], postgresql_concurrently=True, if_not_exists=True)
    op.drop_index("ix_reading_remark")


def downgrade():
    op.drop_index("ix_reading_sensor")
    op.drop_index("ix_reading_taken_at")
