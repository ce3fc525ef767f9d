"""Who does something on the control plane, as services, policy and audit see them."""

import msgspec

from gateway.types import Role


class Actor(msgspec.Struct, frozen=True):
    """A caller of a service. A key of a person acts on that person's own things only, whatever their role."""

    role: Role
    via: str
    """api, console, command, environment, file, system or grpc"""
    user_id: str | None = None
    team: str | None = None
    key_id: str | None = None
    ip: str | None = None
    own_only: bool = False

    @property
    def label(self) -> str:
        """How the audit log names them."""
        if self.user_id is not None:
            return f"user:{self.user_id}"
        return f"key:{self.key_id}" if self.key_id is not None else self.via


SYSTEM = Actor(role=Role.ADMIN, via="system")
COMMAND = Actor(role=Role.ADMIN, via="command")
ENVIRONMENT = Actor(role=Role.ADMIN, via="environment")
FILE = Actor(role=Role.ADMIN, via="file")
"""The configuration file (`gateway.config_file`)."""
