"""The tables of `state.db`, in one place so that a migration and a foreign key can see them all.

Invariant: every row of a tenant's carries the tenant. Times are seconds since 1970 UTC (REAL); JSON columns hold what
the wire's structs hold. Statements about a table stand only in the `store.py` of the feature that owns it; the owner
is named above each group. Telemetry lives elsewhere (`series.db`, telemetry/series.py).
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

# tenants/store.py ---------------------------------------------------------------------------------------------------

tenants = Table(
    "tenants",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("created", Float, nullable=False),
)

api_tokens = Table(  # opaque bearer tokens of people and machines, hashed
    "api_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("role", String(16), nullable=False),  # admin | operator | viewer | builder | gateway
    Column("secret_sha256", String(64), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float),
    Column("revoked", Float),
)

login_codes = Table(  # the one-time links to the console
    "login_codes",
    metadata,
    Column("code_sha256", String(64), primary_key=True),
    Column("token_id", ForeignKey("api_tokens.id"), nullable=False),
    Column("expires", Float, nullable=False),
    Column("used", Float),
)

sessions = Table(  # cookie sessions of the console
    "sessions",
    metadata,
    Column("id_sha256", String(64), primary_key=True),
    Column("token_id", ForeignKey("api_tokens.id"), nullable=False),
    Column("expires", Float, nullable=False),
)

# devices/store.py ---------------------------------------------------------------------------------------------------

join_tokens = Table(
    "join_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("secret_sha256", String(64), nullable=False),
    Column("uses_left", Integer, nullable=False),
    Column("tags", JSON, nullable=False),  # given to every device that joins with it
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

devices = Table(
    "devices",
    metadata,
    Column("id", String(28), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("tags", JSON, nullable=False),
    Column("public_key", Text, nullable=False),  # wire/envelope.py: encode_public_key
    Column("join_token", ForeignKey("join_tokens.id"), nullable=False),
    Column("enrolled", Float, nullable=False),
    Column("revoked", Float),
    # what the device says of itself (wire 4.3 to 4.6)
    Column("online", Boolean, nullable=False, default=False),
    Column("last_seen", Float),
    Column("boot", String(128)),
    Column("session", Integer),
    Column("agent_version", String(128)),
    Column("profile", String(128)),
    Column("facts", JSON),  # wire Facts as builtins
    Column("reported", JSON),  # wire Reported as builtins
    # how far its outbox is stored here (wire 4.2)
    Column("stream", String(64)),
    Column("sequence", Integer, nullable=False, default=0),
    Index("devices_by_tenant", "tenant", "id"),
    UniqueConstraint("join_token", "public_key"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("serial", String(48), primary_key=True),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("pem", Text, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

# devices/command_store.py -------------------------------------------------------------------------------------------

commands = Table(
    "commands",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("state", String(16), nullable=False),  # waiting | sent | answered | expired
    Column("envelope", LargeBinary, nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("sent", Float),  # the last time
    Column("answered", Float),
    Column("outcome", String(32)),
    Column("detail", Text),
    Column("text", Text),
    Index("commands_by_device", "device", "created"),
    Index("commands_by_state", "state"),
)

# builds/store.py ----------------------------------------------------------------------------------------------------

artifacts = Table(  # the files themselves lie in the artifact store, under their SHA-256
    "artifacts",
    metadata,
    Column("tenant", ForeignKey("tenants.name"), primary_key=True),
    Column("sha256", String(64), primary_key=True),
    Column("size", Integer, nullable=False),
    Column("created", Float, nullable=False),
)

models = Table(
    "models",
    metadata,
    Column("tenant", ForeignKey("tenants.name"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("created", Float, nullable=False),
)

model_versions = Table(
    "model_versions",
    metadata,
    Column("tenant", String(63), primary_key=True),
    Column("model", String(63), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("source_sha256", String(64), nullable=False),  # the ONNX file as uploaded
    Column("data_sha256", String(64), nullable=False),  # npz: calibration, held-out, golden
    Column("created", Float, nullable=False),
)

build_jobs = Table(
    "build_jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("target", JSON, nullable=False),  # {"profile", "arch", "optimization"}
    Column("state", String(16), nullable=False),  # waiting | running | done | failed
    Column("attempt", Integer, nullable=False, default=0),
    Column("lease_until", Float),
    Column("progress", Text, nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("created", Float, nullable=False),
    Column("finished", Float),
)

builds = Table(
    "builds",
    metadata,
    Column("id", String(34), primary_key=True),  # of a refused candidate: made from its job and precision
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("model", String(63), nullable=False),
    Column("version", Integer, nullable=False),
    Column("job", ForeignKey("build_jobs.id"), nullable=False),
    Column("precision", String(16), nullable=False),
    Column("target", JSON, nullable=False),  # wire Target as builtins
    Column("figures", JSON, nullable=False),  # wire Figures as builtins
    Column("verdict", String(16), nullable=False),  # published | accepted | refused
    Column("reasons", JSON, nullable=False),
    Column("manifest_sha256", String(64)),  # of the envelope's bytes; null unless published
    Column("manifest_size", Integer),
    Column("created", Float, nullable=False),
    Index("builds_by_model", "tenant", "model", "version"),
)

# rollouts/store.py --------------------------------------------------------------------------------------------------

releases = Table(
    "releases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("models", JSON, nullable=False),  # {model: version}
    Column("created", Float, nullable=False),
    UniqueConstraint("tenant", "name"),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("release", ForeignKey("releases.id"), nullable=False),
    Column("selector", JSON, nullable=False),
    Column("policy", JSON, nullable=False),  # frozen at creation
    Column("state", String(16), nullable=False),
    Column("wanted", String(16), nullable=False),  # run | pause | abort | rollback: what an operator asked for
    Column("stage", Integer, nullable=False, default=0),
    Column("stages", JSON, nullable=False),  # per stage: device ids, state, times, reasons
    Column("reasons", JSON, nullable=False),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Column("concluded", Float),
)

executions = Table(
    "executions",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("tenant", ForeignKey("tenants.name"), nullable=False),
    Column("rollout", ForeignKey("rollouts.id"), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("device", ForeignKey("devices.id"), nullable=False),
    Column("component", String(80), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("build", String(34)),
    Column("why", JSON, nullable=False),  # why this build for this device
    Column("state", String(24), nullable=False),
    Column("fault", JSON),
    Column("figures", JSON),
    Column("created", Float, nullable=False),
    Column("updated", Float, nullable=False),
    Index("executions_by_rollout", "rollout"),
    Index("executions_by_device", "device", "component"),
)

execution_events = Table(
    "execution_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("execution", ForeignKey("executions.id"), nullable=False),
    Column("stream", String(64), nullable=False),
    Column("sequence", Integer, nullable=False),
    Column("at", Float, nullable=False),  # by the device's clock
    Column("received", Float, nullable=False),
    Column("origin", String(24), nullable=False),
    Column("state", String(24), nullable=False),
    Column("detail", Text, nullable=False),
    Column("fault", JSON),
    Index("events_by_execution", "execution", "id"),
    UniqueConstraint("execution", "stream", "sequence"),
)

desired_items = Table(  # what each device shall run now; the assignment is made from these rows
    "desired_items",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("component", String(80), primary_key=True),
    Column("generation", Integer, nullable=False),
    Column("execution", String(32), nullable=False),
    Column("build", String(34)),  # null: remove the component
    Column("policy", JSON, nullable=False),
)

assignments = Table(  # the newest signed assignment of each device: stored before it is sent
    "assignments",
    metadata,
    Column("device", ForeignKey("devices.id"), primary_key=True),
    Column("epoch", Integer, nullable=False),
    Column("number", Integer, nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    Column("issued", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("published", Float),
)

# trust/store.py -----------------------------------------------------------------------------------------------------

trust_metadata = Table(  # signed metadata of each tenant's repository, byte for byte
    "trust_metadata",
    metadata,
    Column("tenant", ForeignKey("tenants.name"), primary_key=True),
    Column("role", String(80), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("content", LargeBinary, nullable=False),
    Column("length", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("expires", Float, nullable=False),
    Column("created", Float, nullable=False),
)

# audit/store.py -----------------------------------------------------------------------------------------------------

audit = Table(  # rows are written unsealed in the caller's transaction; the sealer numbers and chains them
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("tenant", String(63), nullable=False),
    Column("at", Float, nullable=False),
    Column("actor", String(128), nullable=False),
    Column("action", String(64), nullable=False),
    Column("thing", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("body", JSON, nullable=False),
    Column("number", Integer),
    Column("previous_hash", String(64)),
    Column("hash", String(64)),
    Index("audit_by_tenant", "tenant", "number"),
)
