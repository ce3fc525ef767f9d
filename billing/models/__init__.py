"""What answers cost, what may be spent, and what models are priced at."""

from billing.models.alerts import Alert, Delivery, Webhook
from billing.models.budgets import Budget
from billing.models.ledger import LedgerEntry
from billing.models.prices import Price

__all__ = ["Alert", "Budget", "Delivery", "LedgerEntry", "Price", "Webhook"]
