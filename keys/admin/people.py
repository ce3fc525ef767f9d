# mypy: disallow-untyped-decorators=False, warn-return-any=False
"""Users and teams in the console, and the pages that set passwords."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.contrib.auth import update_session_auth_hash
from django.contrib.auth.models import Group
from django.contrib.auth.views import PasswordChangeView
from django.core.exceptions import ValidationError
from django.db import models
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse, reverse_lazy
from django.utils.decorators import method_decorator
from django.views.decorators.debug import sensitive_post_parameters
from unfold.contrib.filters.admin import AutocompleteSelectFilter, ChoicesDropdownFilter
from unfold.decorators import action, display
from unfold.forms import AdminOwnPasswordChangeForm, AdminPasswordChangeForm

from ailb_project.console import ConsoleAdmin, Refused, actor_of, refusals
from gateway.types import Role
from keys import policy, selectors, services
from keys.actors import Actor
from keys.models import Team, User
from keys.policy import Reach
from keys.signing_in import SignInForm

_LIMITS = ("Limits", {"fields": (("rate_limit_rpm", "rate_limit_tpm", "max_parallel"),)})
_LIMITS_AND_QUEUE = (
    "Limits",
    {"fields": (("rate_limit_rpm", "rate_limit_tpm", "max_parallel"), ("max_wait_ms", "queue_weight"))},
)
_ROLES = {"admin": "danger", "finance": "info", "team_lead": "warning", "viewer": "primary"}


class PeopleAdmin(ConsoleAdmin):
    """What users and teams have in common. Who may change everybody may delete those that own no keys."""

    resource = "people"
    ways = {"view": "read", "add": "create", "change": "update", "delete": "update"}
    has_service = True

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        everybody = policy.reach(actor_of(request), "people", "update") is Reach.ALL
        return everybody and super().has_delete_permission(request, obj)


@admin.register(User)
class UserAdmin(PeopleAdmin):
    policy_names = {"username": "user_id"}
    fixed = ("username",)
    list_display = ("username", "display_name", "email", "role_badge", "team", "signs_in", "last_login")
    list_filter = (("role", ChoicesDropdownFilter), "is_active", ("team", AutocompleteSelectFilter))
    list_select_related = ("team",)
    search_fields = ("username", "display_name", "email")
    autocomplete_fields = ("team",)
    ordering = ("username",)
    actions_detail = ("set_password",)
    readonly_fields = ("signs_in", "last_login", "created_at")
    add_fieldsets = (
        (None, {"fields": ("username", "display_name", "email", "role", "team")}),
        _LIMITS,
    )
    fieldsets = (
        (None, {"fields": ("username", "display_name", "email", "role", "team")}),
        ("Signing in", {"fields": (("is_active", "signs_in"), ("last_login", "created_at"))}),
        _LIMITS,
    )

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return selectors.people(actor=actor, action=action)

    def has_password_permission(self, request: HttpRequest, object_id: str | None = None) -> bool:
        """Raises `Http404` for a person whom they do not see."""
        allowed = policy.allowed_fields(actor_of(request), "people", "update")
        if object_id is not None:
            self.get_object(request, unquote(object_id))
        return self.may(request, "change") and (allowed is None or "password" in allowed)

    @display(description="role", ordering="role", label=_ROLES)
    def role_badge(self, user: User) -> tuple[str, str]:
        return user.role, user.get_role_display()

    @display(description="password", boolean=True)
    def signs_in(self, user: User) -> bool:
        """Without one they only own keys."""
        return bool(user.password) and user.has_usable_password()

    # writing

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        values = dict(form.cleaned_data)
        if "team" in values:
            values["team"] = values["team"].name if values["team"] is not None else None
        if change:
            changes = {name: values[name] for name in form.changed_data}
            services.update_user(actor=actor_of(request), user=obj, changes=changes)
            require_an_admin()
        else:
            obj.pk = services.create_user(actor=actor_of(request), user_id=values.pop("username"), **values).pk
        obj.refresh_from_db()

    def remove(self, request: HttpRequest, obj: Any) -> None:
        if obj.pk == request.user.pk:
            raise ValidationError("This is you: somebody else has to do that.")
        super().remove(request, obj)
        require_an_admin()

    def response_add(self, request: HttpRequest, obj: Any, post_url_continue: Any = None) -> HttpResponse:
        """On to the page that has the button for a password."""
        if "_addanother" not in request.POST and "_popup" not in request.POST:
            # As Django's own UserAdmin does.
            posted = request.POST.copy()
            posted["_continue"] = "1"
            request.POST = posted  # type: ignore[assignment]
        return super().response_add(request, obj, post_url_continue)

    @action(description="Set password", url_path="password", icon="password", permissions=["password"])
    @method_decorator(sensitive_post_parameters())
    def set_password(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """A password that its owner has to replace when they sign in with it."""
        user: Any = self.get_object(request, unquote(object_id))
        if user.pk == request.user.pk:
            return HttpResponseRedirect(reverse("admin:password_change"))
        form = GivenPasswordForm(user, request.POST or None)
        if form.is_valid():
            try:
                with refusals():
                    new = form.cleaned_data["password1"]
                    services.set_password(actor=actor_of(request), user=user, password=new, must_change=True)
            except Refused as refused:
                return self.refuse(request, refused, request.path)
            self.message_user(request, f"{user} signs in with it, and then sets their own.", messages.SUCCESS)
            return HttpResponseRedirect(reverse(self._url_name("change"), args=[user.pk]))
        request.current_app = self.admin_site.name
        context = {"title": f"Password of {user}", "opts": self.opts, "original": user, "form": form}
        return TemplateResponse(
            request, "admin/auth/user/change_password.html", {**self.admin_site.each_context(request), **context}
        )


class GivenPasswordForm(AdminPasswordChangeForm):
    """Without Django's switch for signing in without a password: `may sign in` is the switch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fields.pop("usable_password", None)


@admin.register(Team)
class TeamAdmin(PeopleAdmin):
    everyones = True
    policy_names = {"name": "team"}
    fixed = ("name",)
    list_display = ("name", "cost_centre", "people", "keys", "rate_limit_rpm", "rate_limit_tpm", "max_parallel")
    search_fields = ("name", "cost_centre")
    ordering = ("name",)
    readonly_fields = ("created_at",)
    fieldsets = ((None, {"fields": ("name", "cost_centre", "created_at")}), _LIMITS_AND_QUEUE)

    def scoped(self, actor: Actor, action: str) -> models.QuerySet:
        return selectors.teams(actor=actor, action=action)

    def get_queryset(self, request: HttpRequest) -> models.QuerySet:
        rows = super().get_queryset(request)
        return rows.annotate(
            number_of_people=models.Count("members", distinct=True), number_of_keys=models.Count("keys", distinct=True)
        )

    @display(description="people", ordering="number_of_people")
    def people(self, team: Any) -> int:
        return int(team.number_of_people)

    @display(description="keys", ordering="number_of_keys")
    def keys(self, team: Any) -> int:
        return int(team.number_of_keys)

    def write(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        if change:
            changes = {name: form.cleaned_data[name] for name in form.changed_data}
            services.update_team(actor=actor_of(request), team=obj, changes=changes)
        else:
            obj.pk = services.create_team(actor=actor_of(request), **form.cleaned_data).pk
        obj.refresh_from_db()


def require_an_admin() -> None:
    """Refuse to leave nobody who can sign in and change things. Locks, so that two admins cannot demote each other."""
    admins = User.objects.select_for_update().filter(role=Role.ADMIN.value, is_active=True)
    if not any(user.has_usable_password() for user in admins):
        raise ValidationError("This is the last admin who can sign in: make another one first.")


# ── one's own password ──────────────────────────────────────────────────────────────────────────────────────────────


class OwnPasswordForm(AdminOwnPasswordChangeForm):
    def clean(self) -> Any:
        cleaned = super().clean()
        new = self.cleaned_data.get("new_password1")
        if new and new == self.cleaned_data.get("old_password"):
            self.add_error("new_password1", "That is the password you have.")
        return cleaned


class OwnPasswordView(PasswordChangeView):
    """As Django's, with the service that audits it and ends the first password's time."""

    form_class = OwnPasswordForm
    template_name = "admin/console/own_password.html"
    success_url = reverse_lazy("admin:index")

    def form_valid(self, form: Any) -> HttpResponse:
        user: Any = self.request.user
        try:
            with refusals():
                new = form.cleaned_data["new_password1"]
                services.set_password(actor=actor_of(self.request), user=user, password=new)
        except Refused as refused:
            form.add_error("new_password1", refused.error)
            return self.form_invalid(form)
        update_session_auth_hash(self.request, user)
        messages.success(self.request, "Your password was changed.")
        return HttpResponseRedirect(str(self.success_url))

    def get_context_data(self, **told: Any) -> dict[str, Any]:
        return {**super().get_context_data(**told), **admin.site.each_context(self.request)}


def extra_urls() -> list[URLPattern]:
    """Before unfold's own page of this name, by its hook for more URLs."""
    return [path("password_change/", admin.site.admin_view(OwnPasswordView.as_view()), name="password_change")]


admin.site.index_title = "Home"
admin.site.login_form = SignInForm
admin.site.extra_urls = extra_urls  # type: ignore[attr-defined]

# Nobody is in a Django group here: roles are the policy's.
if admin.site.is_registered(Group):
    admin.site.unregister(Group)
