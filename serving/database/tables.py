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

conversations = Table(
    "conversations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),
    Column("title", Text, nullable=False),
    Column("model", Text, nullable=False),  # of the latest answer, as it was asked for
    Column("system", Text),  # null: the model's own prompt; "": none
    Column("leaf_id", Integer),  # the message that ends the branch on screen
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
    Index("conversations_of_a_key", "key", "updated_at_ms"),
)

# A tree: an answer made again, or a question asked otherwise, is one more child of the same parent.
messages = Table(
    "messages",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("conversation_id", String(64), ForeignKey("conversations.id"), nullable=False, index=True),
    Column("parent_id", Integer, ForeignKey("messages.id")),
    Column("role", String(16), nullable=False),  # user or assistant
    Column("content", Text, nullable=False),
    Column("reasoning", Text, nullable=False),
    Column("answer", Text),  # JSON: who answered and how fast; null for a question
    Column("created_at", BigInteger, nullable=False),
)

system_prompts = Table(
    "system_prompts",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("text", Text, nullable=False),
)

# What was said in a comparison on the page; its id is its permanent link, which nobody can guess.
saved_comparisons = Table(
    "saved_comparisons",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("key", String(64), nullable=False),  # whose it is; "" where no key is wanted
    Column("title", Text, nullable=False),  # the first question
    Column("content", Text, nullable=False),  # JSON: serving.comparison_store.SavedComparison
    Column("created_at", BigInteger, nullable=False),
    Column("changed_at", BigInteger, nullable=False),
)
Index("ix_saved_comparisons_key_changed_at", saved_comparisons.c.key, saved_comparisons.c.changed_at)

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
