"""Constraints"""
from alembic import op

revision = "09"
down_revision = "08"


def upgrade():
    op.create_check_constraint("ck_reading_amount", "reading", "amount >= 0")
    op.create_unique_constraint("uq_label_name", "label", ["reading_id", "name"])
    op.create_foreign_key("fk_usage_sensor", "usage", "sensor", ["sensor"], ["name"])
    op.create_check_constraint("ck_usage_times", "usage", "times > 0")
    op.drop_constraint("ck_usage_times", "usage")


def downgrade():
    op.drop_constraint("fk_usage_sensor", "usage")
    op.drop_constraint("uq_label_name", "label")
    op.drop_constraint("ck_reading_amount", "reading")
