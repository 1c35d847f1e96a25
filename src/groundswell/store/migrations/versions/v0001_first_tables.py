"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("scopes", sa.String(length=256), nullable=False),
        sa.Column("last4", sa.String(length=4), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=True),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["parent_id"], ["api_keys.id"], name=op.f("fk_api_keys_parent_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
        sa.UniqueConstraint("digest", name=op.f("uq_api_keys_digest")),
    )
    op.create_index(op.f("ix_api_keys_parent_id"), "api_keys", ["parent_id"], unique=False)
    op.create_table(
        "engines",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("aliases", sa.JSON(), nullable=False),
        sa.Column("price_input_nano", sa.BigInteger(), nullable=False),
        sa.Column("price_output_nano", sa.BigInteger(), nullable=False),
        sa.Column("price_pixel_nano", sa.BigInteger(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=True),
        sa.Column("fingerprint", sa.String(length=128), server_default="", nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_engines")),
        sa.UniqueConstraint("url", name=op.f("uq_engines_url")),
    )
    op.create_table(
        "idempotency",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("key", sa.String(length=256), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_idempotency")),
        sa.UniqueConstraint("tenant", "key", name=op.f("uq_idempotency_tenant_key")),
    )
    op.create_index(op.f("ix_idempotency_created_ms"), "idempotency", ["created_ms"], unique=False)
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("cost_nano >= 0", name=op.f("ck_jobs_cost")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_state_finished_ms"), "jobs", ["state", "finished_ms"], unique=False)
    op.create_index(
        op.f("ix_jobs_tenant_created_ms_id"), "jobs", ["tenant", "created_ms", "id"], unique=False
    )
    op.create_table(
        "usage",
        sa.Column("work_id", sa.String(length=64), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("key_id", sa.String(length=32), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("model", sa.String(length=256), nullable=False),
        sa.Column("node_id", sa.String(length=128), nullable=False),
        sa.Column("engine_id", sa.String(length=128), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("pixels", sa.BigInteger(), nullable=False),
        sa.Column("media_ms", sa.BigInteger(), nullable=False),
        sa.Column("price_input_nano", sa.BigInteger(), nullable=False),
        sa.Column("price_output_nano", sa.BigInteger(), nullable=False),
        sa.Column("price_pixel_nano", sa.BigInteger(), nullable=False),
        sa.Column("cost_nano", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("continued", sa.Integer(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("cost_nano >= 0", name=op.f("ck_usage_cost")),
        sa.CheckConstraint(
            "input_tokens >= 0 AND output_tokens >= 0 AND pixels >= 0 AND media_ms >= 0",
            name=op.f("ck_usage_amounts"),
        ),
        sa.CheckConstraint(
            "price_input_nano >= 0 AND price_output_nano >= 0 AND price_pixel_nano >= 0",
            name=op.f("ck_usage_prices"),
        ),
        sa.PrimaryKeyConstraint("work_id", name=op.f("pk_usage")),
    )
    op.create_index(op.f("ix_usage_key_id_created_ms"), "usage", ["key_id", "created_ms"], unique=False)
    op.create_index(op.f("ix_usage_tenant_created_ms"), "usage", ["tenant", "created_ms"], unique=False)
    op.create_table(
        "tasks",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("job_id", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("tenant", sa.String(length=128), nullable=False),
        sa.Column("job_created_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=True),
        sa.Column("lease_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_tasks_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("job_id", "kind", "number", name=op.f("uq_tasks_job_id_kind_number")),
    )
    op.create_index(
        op.f("ix_tasks_state_tenant_job_created_ms_job_id_number"),
        "tasks",
        ["state", "tenant", "job_created_ms", "job_id", "number"],
        unique=False,
    )
