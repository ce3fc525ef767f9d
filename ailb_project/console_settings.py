"""How the console looks: django-unfold's settings. No models here, the settings module imports this."""

from functools import partial
from typing import Any

from django.http import HttpRequest
from django.urls import reverse_lazy

# A drawn icon in the page itself: no request, and no 404 in the log for /favicon.ico.
_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'%3E"
    "%3Crect width='32' height='32' rx='7' fill='%230f766e'/%3E"
    "%3Cpath d='M8 16h6l4-7m-4 7l4 7m0-14h6m-6 7h6m-10 0h4m0 7h6' stroke='white' stroke-width='2.4' fill='none'/%3E"
    "%3C/svg%3E"
)


def _sees(model: str, request: HttpRequest) -> bool:
    from ailb_project import console

    return console.sees(request, model)


def _item(title: str, icon: str, model: str) -> dict[str, Any]:
    link = reverse_lazy(f"admin:{model.replace('.', '_')}_changelist")
    return {"title": title, "icon": icon, "link": link, "permission": partial(_sees, model)}


UNFOLD: dict[str, Any] = {
    "SITE_TITLE": "AILB",
    "SITE_HEADER": "AILB",
    "SITE_SUBHEADER": "LLM gateway",
    "SITE_SYMBOL": "hub",
    "SITE_URL": None,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: _ICON}],
    # An object's history is the audit log's.
    "SHOW_HISTORY": partial(_sees, "security.auditentry"),
    "SHOW_BACK_BUTTON": True,
    "DASHBOARD_CALLBACK": "ailb_project.console_home.home",
    # Tailwind's teal: white text on its 700 passes WCAG AA.
    "COLORS": {
        "primary": {
            "50": "#f0fdfa",
            "100": "#ccfbf1",
            "200": "#99f6e4",
            "300": "#5eead4",
            "400": "#2dd4bf",
            "500": "#14b8a6",
            "600": "#0f766e",
            "700": "#115e59",
            "800": "#134e4a",
            "900": "#0f3d3a",
            "950": "#042f2e",
        }
    },
    "SIDEBAR": {
        "navigation": [
            {"items": [{"title": "Home", "icon": "home", "link": reverse_lazy("admin:index")}]},
            {
                "title": "Keys and people",
                "items": [
                    _item("Virtual keys", "key", "keys.virtualkey"),
                    _item("Users", "person", "keys.user"),
                    _item("Teams", "groups", "keys.team"),
                    _item("Rate limits", "speed", "keys.ratelimit"),
                ],
            },
            {
                "title": "Spending",
                "items": [
                    _item("Budgets", "account_balance_wallet", "billing.budget"),
                    _item("Alerts", "notifications", "billing.alert"),
                    _item("Webhooks", "webhook", "billing.webhook"),
                    _item("Deliveries", "outgoing_mail", "billing.delivery"),
                    _item("Ledger", "receipt_long", "billing.ledgerentry"),
                    _item("Prices", "sell", "billing.price"),
                ],
            },
            {
                "title": "Providers and models",
                "items": [
                    _item("Providers", "cloud", "gateway.provider"),
                    _item("Deployments", "deployed_code", "gateway.deployment"),
                    _item("Model groups", "account_tree", "gateway.modelgroup"),
                    _item("Traffic weights", "balance", "gateway.trafficweight"),
                    _item("Gateway processes", "memory", "gateway.gatewayprocess"),
                ],
            },
            {
                "title": "Security",
                "items": [
                    _item("Policies", "policy", "security.policy"),
                    _item("Events", "gpp_maybe", "security.securityevent"),
                    _item("Audit log", "history", "security.auditentry"),
                ],
            },
            {
                "title": "Memory and knowledge",
                "items": [
                    _item("Sessions", "forum", "memory.session"),
                    _item("Collections", "library_books", "rag.collection"),
                    _item("Documents", "description", "rag.document"),
                ],
            },
        ]
    },
}
