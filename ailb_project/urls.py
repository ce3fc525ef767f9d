"""Every path that Django answers. The data plane's own (`/v1/chat/completions`, `/metrics`, `/livez`, …) are taken
before they get here: see `ailb_project.asgi`.
"""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, path, re_path
from django.views.generic import RedirectView

from billing.api import alerts
from billing.api import views as billing
from gateway import api as gateway
from gateway import openapi
from gateway.api import configuration, explanation, statistics
from keys.api import limits
from keys.api import views as keys
from security import api as security

handler400 = "gateway.render.bad_request"
handler403 = "gateway.render.permission_denied"
handler404 = "gateway.render.not_found"
handler500 = "gateway.render.server_error"

# OpenAI's and Anthropic's paths that are not there yet, with whatever is below them.
NOT_YET = (
    "completions|responses|embeddings|messages|images|audio|files|uploads|batches|moderations|assistants|threads|"
    "vector_stores|fine_tuning|realtime"
)

urlpatterns: list[URLPattern | URLResolver] = [
    path("", RedirectView.as_view(url="/admin/")),
    path("admin/", admin.site.urls),
    path("api/keys", keys.KeysView.as_view()),
    path("api/keys/<str:key_id>", keys.KeyView.as_view()),
    path("api/keys/<str:key_id>/rotate", keys.KeyRotateView.as_view()),
    path("api/users", keys.UsersView.as_view()),
    path("api/users/<path:user_id>", keys.UserView.as_view()),
    path("api/teams", keys.TeamsView.as_view()),
    path("api/teams/<path:name>", keys.TeamView.as_view()),
    path("api/limits", limits.LimitsView.as_view()),
    path("api/limits/<int:limit_id>", limits.LimitView.as_view()),
    path("api/billing/budget", billing.BudgetsView.as_view()),
    path("api/billing/budget/<str:key_id>", billing.KeyBudgetView.as_view()),
    path("api/billing/budgets/<int:budget_id>", billing.BudgetView.as_view()),
    path("api/billing/usage", billing.UsageView.as_view()),
    path("api/alerts", alerts.AlertsView.as_view()),
    path("api/alerts/<int:alert_id>/acknowledge", alerts.AlertAcknowledgementView.as_view()),
    path("api/webhooks", alerts.WebhooksView.as_view()),
    path("api/webhooks/<int:webhook_id>", alerts.WebhookView.as_view()),
    path("api/webhooks/<int:webhook_id>/deliveries", alerts.DeliveriesView.as_view()),
    path("api/providers", configuration.ProvidersView.as_view()),
    path("api/providers/<str:name>", configuration.ProviderView.as_view()),
    path("api/providers/<str:name>/discover", configuration.ProviderDiscoverView.as_view()),
    path("api/deployments", configuration.DeploymentsView.as_view()),
    path("api/deployments/<path:name>", configuration.DeploymentView.as_view()),
    path("api/models", configuration.ModelGroupsView.as_view()),
    path("api/models/<path:name>", configuration.ModelGroupView.as_view()),
    path("api/routing/weights", configuration.TrafficWeightsView.as_view()),
    path("api/routing/weights/<path:version>", configuration.TrafficWeightView.as_view()),
    path("api/routing/stats", statistics.RoutingStatisticsView.as_view()),
    path("api/routing/explain", explanation.RoutingExplanationView.as_view()),
    path("api/audit", security.AuditView.as_view()),
    path("api/schema", openapi.SchemaView.as_view(), name="schema"),
    path("api/docs", openapi.DocsView.as_view(), name="docs"),
    path("v1/models", gateway.ModelsView.as_view()),
    path("v1/models/<path:model>", gateway.ModelView.as_view()),
    re_path(rf"^v1/(?:{NOT_YET})(?:/.*)?\Z", gateway.NotYetView.as_view()),
]
