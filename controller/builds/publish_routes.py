"""Where builders hand in what they signed for the repository: new versions of the roles that vouch for builds.

Invariant: a path is taken only when the very file that it vouches for lies in the tenant's artifacts, so that no device
is sent to what cannot be fetched. Whether the signature and the version are right is decided in `controller/trust`.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from tuf.api.metadata import Root

from controller.builds import store
from controller.tenants.access import Principal
from controller.tenants.guard import permit
from controller.trust import metadata, repository
from controller.trust.routes import Db, OurKeeper, RolesRequest, record_roles

router = APIRouter(tags=["trust"])


@router.post("/api/v1/trust/roles")
def put_roles(
    asked: RolesRequest, principal: Annotated[Principal, Depends(permit("builds.make"))], db: Db, keep: OurKeeper
) -> dict[str, Any]:
    """Take new versions of delegated roles, all or none. 409 ("not_next") when somebody else was first: read again."""
    now, tenant = time.time(), principal.tenant
    with db.begin() as connection:
        root = metadata.read(repository.require_root(connection, tenant), Root)
        taken = repository.take_roles(
            connection,
            tenant,
            asked.roles,
            lambda _path, length, sha256: store.artifact_size(connection, tenant, sha256) == length,
            keep.online_for(tenant, root.signed),
            now,
        )
        record_roles(connection, principal, taken, now)
    return {"versions": taken.versions, "added": taken.added}
