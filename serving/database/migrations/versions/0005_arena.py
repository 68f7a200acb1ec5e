"""What was asked and answered in the arena, and the question sets people keep."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "arena_battles",
        sa.Column(
            "comparison_id", sa.String(64), sa.ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True
        ),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("question_set", sa.String(64)),
        sa.Column("question_number", sa.Integer),
        sa.Column("content", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_arena_battles_question_set_key", "arena_battles", ["question_set", "key"])
    op.create_table(
        "question_sets",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("questions", sa.Text, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_question_sets_key", "question_sets", ["key"])
