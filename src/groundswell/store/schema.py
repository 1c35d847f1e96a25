"""The tables, as the newest migration leaves them. Portable SQL only: SQLite today, PostgreSQL too.

Times are whole milliseconds since 1970 (``_ms``), money is whole nano-dollars (``_nano``): no floats, so that
what was stored is what was meant. A change here needs a migration in ``migrations/versions`` and a new
``SCHEMA_VERSION``; a test compares the two.
"""

from __future__ import annotations

import sqlalchemy as sa

SCHEMA_VERSION = "0002"

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, unique=True),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("name", sa.String(128), nullable=False),
    sa.Column("scopes", sa.String(256), nullable=False),
    sa.Column("last4", sa.String(4), nullable=False),
    sa.Column("parent_id", sa.String(32), sa.ForeignKey("api_keys.id"), index=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger),
    sa.Column("revoked_ms", sa.BigInteger),
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("request", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.Column("finished_ms", sa.BigInteger),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
    sa.CheckConstraint("cost_nano >= 0", name="cost"),
    sa.Index(None, "state", "finished_ms"),
    sa.Index(None, "tenant", "created_ms", "id"),
)

tasks = sa.Table(
    "tasks",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("job_id", sa.String(64), sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    # Copies of the job's, so that choosing whose turn it is reads one index.
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("job_created_ms", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("owner", sa.String(64)),
    sa.Column("lease_until_ms", sa.BigInteger),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("updated_ms", sa.BigInteger, nullable=False),
    sa.UniqueConstraint("job_id", "kind", "number"),
    sa.Index(None, "state", "tenant", "job_created_ms", "job_id", "number"),
)

idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("key", sa.String(256), nullable=False),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("job_id", sa.String(64), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False, index=True),
    sa.UniqueConstraint("tenant", "key"),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("work_id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(128), nullable=False),
    sa.Column("key_id", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("node_id", sa.String(128), nullable=False),
    sa.Column("engine_id", sa.String(128), nullable=False),
    sa.Column("input_tokens", sa.BigInteger, nullable=False),
    sa.Column("output_tokens", sa.BigInteger, nullable=False),
    sa.Column("pixels", sa.BigInteger, nullable=False),
    sa.Column("media_ms", sa.BigInteger, nullable=False),
    sa.Column("price_input_nano", sa.BigInteger, nullable=False),
    sa.Column("price_output_nano", sa.BigInteger, nullable=False),
    sa.Column("price_pixel_nano", sa.BigInteger, nullable=False),
    sa.Column("cost_nano", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("continued", sa.Integer, nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.CheckConstraint("cost_nano >= 0", name="cost"),
    sa.CheckConstraint(
        "input_tokens >= 0 AND output_tokens >= 0 AND pixels >= 0 AND media_ms >= 0", name="amounts"
    ),
    sa.CheckConstraint(
        "price_input_nano >= 0 AND price_output_nano >= 0 AND price_pixel_nano >= 0", name="prices"
    ),
    sa.Index(None, "tenant", "created_ms"),
    sa.Index(None, "key_id", "created_ms"),
)

engines = sa.Table(
    "engines",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("url", sa.String(2048), nullable=False, unique=True),
    sa.Column("aliases", sa.JSON, nullable=False),
    sa.Column("price_input_nano", sa.BigInteger, nullable=False),
    sa.Column("price_output_nano", sa.BigInteger, nullable=False),
    sa.Column("price_pixel_nano", sa.BigInteger, nullable=False),
    sa.Column("slots", sa.Integer),
    sa.Column("fingerprint", sa.String(128), nullable=False, server_default=""),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)

invites = sa.Table(
    "invites",
    metadata,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("node_id", sa.String(64), nullable=False),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("used_by", sa.String(64)),
)

joined_nodes = sa.Table(
    "joined_nodes",
    metadata,
    sa.Column("node_id", sa.String(64), primary_key=True),
    sa.Column("public_key", sa.String(64), nullable=False, unique=True),
    sa.Column("created_ms", sa.BigInteger, nullable=False),
)
