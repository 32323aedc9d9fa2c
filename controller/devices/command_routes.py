"""Commands to devices over HTTP.

Invariant: a tenant commands its own devices only; every command is an audit row in the transaction that stores it.
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Final, Literal, cast

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Connection

from controller.audit.store import record
from controller.database.connection import Database
from controller.database.http import database
from controller.devices import command_store
from controller.devices.commands import CommandSender
from controller.devices.list_routes import MAX_IDS, FilterDocument, Id, matching
from controller.devices.store import find_device
from controller.errors import NotFoundError
from controller.tenants.access import Principal
from controller.tenants.guard import permit

MAX_LISTED: Final = 50

router = APIRouter(prefix="/api/v1", tags=["devices"])
Db = Annotated[Database, Depends(database)]
Reader = Annotated[Principal, Depends(permit("devices.read"))]
Writer = Annotated[Principal, Depends(permit("devices.write"))]
Kind = Literal["restart", "logs"]


class CommandRequest(BaseModel):
    """restart: end serving and start it again. logs: send the ends of the device's logs."""

    model_config = ConfigDict(extra="forbid")
    kind: Kind


class CommandsRequest(CommandRequest):
    """To named devices, or to all that a filter matches. Exactly one of the two."""

    devices: list[Id] | None = Field(default=None, min_length=1, max_length=MAX_IDS)
    filter: FilterDocument | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> CommandsRequest:
        if (self.devices is None) == (self.filter is None):
            raise ValueError("give either `devices` or `filter`")
        return self


def sender(request: Request) -> CommandSender:
    """Return the application's sender of commands."""
    return cast("CommandSender", request.app.state.commands)


Sender = Annotated[CommandSender, Depends(sender)]


@router.post("/devices/{device}/commands", status_code=201)
def command_device(device: str, asked: CommandRequest, principal: Writer, db: Db, sending: Sender) -> dict[str, Any]:
    """Command one device; the command holds for an hour, and is done once."""
    with db.begin() as connection:
        if not command_store.active_devices(connection, principal.tenant, [device]):
            raise NotFoundError(f"there is no device {device!r}", "no_device")
        made = _order(connection, principal, sending, [device], asked.kind)
    return {"id": made[0], "kind": asked.kind, "device": device}


@router.post("/devices/commands", status_code=201)
def command_devices(asked: CommandsRequest, principal: Writer, db: Db, sending: Sender) -> dict[str, Any]:
    """Command many devices; tells how many."""
    with db.begin() as connection:
        wanted = asked.devices or matching(connection, principal, (asked.filter or FilterDocument()).value())
        found = command_store.active_devices(connection, principal.tenant, wanted)
        _order(connection, principal, sending, found, asked.kind)
    return {"devices": len(found), "kind": asked.kind}


@router.get("/devices/{device}/commands")
def list_commands(device: str, principal: Reader, db: Db) -> dict[str, Any]:
    """Return a device's commands, the newest first, without the texts of their answers."""
    with db.read() as connection:
        if find_device(connection, principal.tenant, device) is None:
            raise NotFoundError(f"there is no device {device!r}", "no_device")
        rows = command_store.of_device(connection, principal.tenant, device, MAX_LISTED)
    return {"commands": [dict(row._mapping) for row in rows]}


@router.get("/commands/{command}")
def show_command(command: str, principal: Reader, db: Db) -> dict[str, Any]:
    """Return a command with the text of its answer."""
    with db.read() as connection:
        row = command_store.find(connection, principal.tenant, command)
    if row is None:
        raise NotFoundError(f"there is no command {command!r}", "no_command")
    return dict(row._mapping)


def _order(
    connection: Connection, principal: Principal, sending: CommandSender, devices: list[str], kind: Kind
) -> list[str]:
    made = sending.order(connection, principal.tenant, devices, kind)
    record(
        connection,
        tenant=principal.tenant,
        actor=principal.actor,
        action=f"commands.{kind}",
        thing=f"device:{devices[0]}" if len(devices) == 1 else "devices",
        at=time.time(),
        body={"devices": len(devices), "first": made[:10]},
    )
    return made
