"""The tables as they are now. How older databases get there is in `migrations/versions`; a test holds both together.

Moments are whole seconds since 1970, days are UTC."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    text,
)

metadata = MetaData()

# A row is never deleted: a revoked key still says that keys are wanted here, and whose usage it was.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("prefix", String(16), nullable=False, unique=True),
    Column("sha256", String(64), nullable=False),
    Column("admin", Boolean, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
)
Index(
    "one_live_key_a_name",
    api_keys.c.name,
    unique=True,
    sqlite_where=text("revoked_at IS NULL"),
    postgresql_where=text("revoked_at IS NULL"),
)

usage = Table(
    "usage",
    metadata,
    Column("day", Date, primary_key=True),
    Column("key", String(64), primary_key=True),  # its name; "" where no key is wanted
    Column("model", Text, primary_key=True),  # `name@version`, several joined by "+", or the base's name
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("lanes", Text, nullable=False),  # JSON: a list of {model, adapter, digest, scale, system}
    Column("created_at", BigInteger, nullable=False, index=True),
)

votes = Table(
    "votes",
    metadata,
    Column("comparison_id", String(64), ForeignKey("comparisons.id"), primary_key=True),
    Column("voter", String(64), primary_key=True),
    Column("choice", String(16), nullable=False),  # the lane's number, "tie" or "both_bad"
    Column("created_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger),
)

# What a comparison in the arena was about; who answered is in `comparisons`, who won in `votes`.
arena_battles = Table(
    "arena_battles",
    metadata,
    Column("comparison_id", String(64), ForeignKey("comparisons.id", ondelete="CASCADE"), primary_key=True),
    Column("key", String(64), nullable=False),  # who asked
    Column("question_set", String(64)),  # NULL: a question of one's own
    Column("question_number", Integer),  # its place in the set, from 0
    Column("content", Text, nullable=False),  # JSON: serving.battle_store.Battle
    Column("created_at", BigInteger, nullable=False),
)
Index("ix_arena_battles_question_set_key", arena_battles.c.question_set, arena_battles.c.key)

question_sets = Table(
    "question_sets",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False, index=True),  # whose it is; "" where no key is wanted
    Column("title", Text, nullable=False),
    Column("questions", Text, nullable=False),  # JSON: a list of texts
    Column("created_at", BigInteger, nullable=False),
)
