"""Providers, deployments and model groups; the versions of configuration and the processes that read it."""

from typing import ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils import timezone

from gateway import outbound, providers, vault
from gateway.capabilities import CAPABILITIES
from gateway.providers import kind_choices
from gateway.routing import strategy_choices
from gateway.versioning import Versioned

SLUG = RegexValidator(r"^[a-z0-9][a-z0-9_-]*\Z", "Lower-case letters, digits, '-' and '_'.")
NAME = RegexValidator(r"^[^\s\x00-\x1f,]+\Z", "No spaces, commas or control characters.")


class ConfigVersion(models.Model):
    """How often a section of the snapshot has changed. One row a section."""

    section = models.CharField(primary_key=True, max_length=20)
    number = models.PositiveBigIntegerField(default=1)

    def __str__(self) -> str:
        return f"{self.section} {self.number}"


class GatewayProcess(models.Model):
    """One run of a gateway process: whose holds are whose, and who still lives."""

    id = models.CharField(primary_key=True, max_length=40)
    host = models.CharField(max_length=200)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField(default=timezone.now)
    heartbeat_at = models.DateTimeField(default=timezone.now)
    stopped_at = models.DateTimeField(null=True)
    swept_at = models.DateTimeField(null=True, help_text="When the holds it left behind were closed.")

    class Meta:
        verbose_name_plural = "gateway processes"
        ordering: ClassVar = ["-started_at"]

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}"


class Provider(Versioned):
    """An upstream. Credentials are written and never read back."""

    snapshot_section = "catalog"

    slug = models.CharField(max_length=60, unique=True, validators=[SLUG])
    kind = models.CharField(max_length=30, choices=kind_choices)
    base_url = models.CharField(max_length=500, blank=True, help_text="Ends in /v1 for OpenAI-compatible servers.")
    credentials = models.TextField(blank=True, default="", editable=False, help_text="Encrypted.")
    price_book = models.CharField(
        max_length=60, blank=True, help_text="Whose list prices apply; empty: those of the slug, else of the kind."
    )
    connect_timeout = models.FloatField(default=5.0, validators=[MinValueValidator(0.1), MaxValueValidator(120)])
    first_byte_timeout = models.FloatField(
        default=600.0,
        validators=[MinValueValidator(0.1), MaxValueValidator(3600)],
        help_text="Seconds; OpenAI's SDK: 600.",
    )
    idle_timeout = models.FloatField(
        default=120.0,
        validators=[MinValueValidator(0.1), MaxValueValidator(3600)],
        help_text="Seconds between two chunks.",
    )
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["slug"]

    def __str__(self) -> str:
        return self.slug

    def clean(self) -> None:
        if self.base_url:
            outbound.check_url(self.base_url)
            self._check_ending()

    def _check_ending(self) -> None:
        """Requests would go to `/v1/v1/messages`, and each of them would be answered with 404."""
        endings = providers.vendor(self.kind).wrong_endings if self.kind in providers.kinds() else ()
        for ending in endings:
            if self.base_url.rstrip("/").endswith(ending):
                raise ValidationError({"base_url": f"The base URL of this kind is without {ending} at its end."})

    def set_credentials(self, *, api_key: str | None, headers: dict[str, str] | None = None) -> None:
        """Encrypt and keep what the upstream asks for; `headers` are extra ones, secret too."""
        self.credentials = vault.seal({"api_key": api_key, "headers": headers or {}})


class Deployment(Versioned):
    """A model at a provider, under the public name that clients ask for."""

    snapshot_section = "catalog"

    name = models.CharField(max_length=200, unique=True, validators=[NAME])
    provider = models.ForeignKey(Provider, on_delete=models.CASCADE, related_name="deployments")
    upstream_model = models.CharField(max_length=200, validators=[NAME])
    weight = models.PositiveIntegerField(default=1, help_text="Share among deployments of one model; 0 drains.")
    priority = models.IntegerField(default=0, help_text="Lower goes first.")
    context_window = models.PositiveBigIntegerField(null=True, blank=True, help_text="Tokens; empty: unknown.")
    max_output = models.PositiveBigIntegerField(null=True, blank=True, help_text="Tokens; empty: unknown, 4 096.")
    strategy = models.CharField(max_length=30, blank=True, choices=strategy_choices)
    version = models.CharField(
        max_length=60, blank=True, default="", validators=[NAME], help_text="Traffic weights split by it."
    )
    max_parallel = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Requests at a time; empty: no limit."
    )
    rpm = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Requests a minute; empty: no limit."
    )
    tpm = models.PositiveBigIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)], help_text="Tokens a minute; empty: no limit."
    )
    capabilities = models.JSONField(
        default=dict,
        blank=True,
        help_text="Which of them it has (true) and has not (false); unknown ones count as there.",
    )
    enabled = models.BooleanField(default=True)
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        told = self.capabilities
        if not isinstance(told, dict) or not all(isinstance(there, bool) for there in told.values()):
            raise ValidationError({"capabilities": "An object of capabilities, each true or false."})
        if unknown := sorted(set(told) - set(CAPABILITIES)):
            known = ", ".join(sorted(CAPABILITIES))
            raise ValidationError({"capabilities": f"Not known: {', '.join(unknown)[:200]}. There are: {known}."})


class ModelGroup(Versioned):
    """One public name for several deployments."""

    snapshot_section = "catalog"

    name = models.CharField(max_length=200, unique=True, validators=[NAME])
    strategy = models.CharField(max_length=30, blank=True, choices=strategy_choices)
    deployments = models.ManyToManyField(Deployment, through="GroupMember", related_name="groups")
    hedging = models.BooleanField(
        default=False,
        help_text="Ask a second deployment once the first is slower than 19 in 20 of its answers; both are paid for.",
    )
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class GroupMember(Versioned):
    """A deployment's place in a group."""

    snapshot_section = "catalog"

    group = models.ForeignKey(ModelGroup, on_delete=models.CASCADE, related_name="members")
    deployment = models.ForeignKey(Deployment, on_delete=models.CASCADE, related_name="memberships")
    position = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["group", "position", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["group", "deployment"], name="one_place_in_a_group"),
        ]

    def __str__(self) -> str:
        return f"{self.group} {self.position}: {self.deployment}"


class GroupFallback(Versioned):
    """A group that answers where nothing in another does."""

    snapshot_section = "catalog"

    group = models.ForeignKey(ModelGroup, on_delete=models.CASCADE, related_name="fallbacks")
    fallback = models.ForeignKey(ModelGroup, on_delete=models.CASCADE, related_name="fallback_of")
    position = models.PositiveIntegerField(default=0)

    class Meta:
        ordering: ClassVar = ["group", "position", "id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["group", "fallback"], name="a_fallback_once"),
            models.CheckConstraint(condition=~models.Q(group=models.F("fallback")), name="no_fallback_to_itself"),
        ]

    def __str__(self) -> str:
        return f"{self.group} {self.position}: {self.fallback}"


class TrafficWeight(Versioned):
    """A version's share of the traffic: of one group's, or of all (no group), where the group does not say."""

    snapshot_section = "catalog"

    group = models.ForeignKey(
        ModelGroup, on_delete=models.CASCADE, null=True, blank=True, related_name="traffic_weights",
        help_text="Empty: all traffic.",
    )  # fmt: skip
    version = models.CharField(max_length=60, validators=[NAME])
    weight = models.PositiveSmallIntegerField(
        validators=[MaxValueValidator(100)], help_text="0 to 100, among the weights of the other versions; 0 drains."
    )
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)

    class Meta:
        ordering: ClassVar = ["group", "version"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["group", "version"], name="one_weight_a_version"),
            # SQL takes two nulls for different.
            models.UniqueConstraint(
                fields=["version"], condition=models.Q(group=None), name="one_weight_a_version_of_all"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.version} of {self.group or 'all'}: {self.weight}"


class RoutingStatistics(models.Model):
    """How requests to one deployment went in one span of time: what one process counted in five minutes, which only
    that process writes, or an hour or a day of all of them. See `gateway.statistics`.
    """

    start = models.DateTimeField()
    seconds = models.PositiveIntegerField(help_text="How long the span is.")
    process = models.CharField(max_length=40, blank=True, help_text="Empty: of all processes.")
    # Names, as in the ledger: what is deleted has had its requests all the same.
    provider = models.CharField(max_length=60, blank=True)
    deployment = models.CharField(max_length=200, blank=True)
    succeeded = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    failed_attempts = models.PositiveBigIntegerField(default=0)
    latency_sum = models.FloatField(default=0.0, help_text="Milliseconds.")
    latencies = models.BinaryField(help_text="MessagePack: the counts of the sketch's buckets, by number.")
    error_at = models.DateTimeField(null=True)
    error_code = models.CharField(max_length=100, blank=True, default="")
    error_status = models.PositiveIntegerField(null=True)

    class Meta:
        verbose_name_plural = "routing statistics"
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["start", "seconds", "process", "provider", "deployment"], name="one_tally_of_a_span"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.deployment} from {self.start}, {self.seconds} s"


class ProcessLoad(models.Model):
    """What one gateway process has in flight and which of its circuits are not closed, as it last said."""

    process = models.CharField(primary_key=True, max_length=40)
    in_flight = models.JSONField(default=dict, help_text="Requests, by deployment.")
    circuits = models.JSONField(default=dict, help_text="State as in ailb_circuit_state, by deployment.")

    def __str__(self) -> str:
        return self.process
