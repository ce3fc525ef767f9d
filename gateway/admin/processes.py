# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Gateway processes, and the versions of the configuration that they read, in the console."""

from django.contrib import admin
from django.utils import timezone
from unfold.decorators import display

from ailb_project.console import READ, ConsoleAdmin
from gateway.models import ConfigVersion, GatewayProcess


@admin.register(GatewayProcess)
class GatewayProcessAdmin(ConsoleAdmin):
    resource = "providers"
    ways = READ
    list_display = ("host", "pid", "started_at", "heartbeat", "stopped_at", "swept_at")
    search_fields = ("host", "id__exact")
    ordering = ("-started_at",)
    fieldsets = (
        (None, {"fields": (("host", "pid"), "id", ("started_at", "heartbeat_at"), ("stopped_at", "swept_at"))}),
    )

    @display(description="last heard of", ordering="heartbeat_at")
    def heartbeat(self, process: GatewayProcess) -> str:
        seconds = int((timezone.now() - process.heartbeat_at).total_seconds())
        return f"{seconds} s ago" if seconds < 120 else f"{process.heartbeat_at:%Y-%m-%d %H:%M:%S}"


@admin.register(ConfigVersion)
class ConfigVersionAdmin(ConsoleAdmin):
    resource = "providers"
    ways = READ
    list_display = ("section", "number")
    fieldsets = ((None, {"fields": ("section", "number")}),)
