"""Who a secret belongs to, on the data plane: `keys.authentication`, on the snapshot's own values."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from gateway.errors import AuthenticationFailed, KeyExpired, KeyRevoked, Unavailable
from gateway.types import Caller, Limit, Role
from keys import authentication, secrets
from keys.actors import SYSTEM
from keys.authentication import Credential, Credentials, authenticate
from keys.models import Team, User, VirtualKey
from keys.services import rotate_key
from tests.support.world import make_budget, make_key, row_of

PEPPER = b"pepper"
SECRET = secrets.new_secret()
CALLER = Caller("key_1", "a key", None, None, Role.MEMBER, None, (), (), ())


def known(**fields):
    digest = secrets.digest(SECRET, PEPPER)
    values = {"digest": digest, "caller": CALLER, "revoked": False, "expires_at": None, "valid_until": None}
    return Credentials({digest: Credential(**{**values, **fields})})


def asked(credentials, secret=SECRET, now=1000.0, **options):
    return authenticate(credentials, secret, pepper=PEPPER, now=now, **options)


class TestAuthenticate:
    def test_a_known_secret(self):
        assert asked(known()) is CALLER

    @pytest.mark.parametrize(
        "secret",
        [None, "", "x", SECRET[:-1], SECRET + "x", SECRET.lower(), "x" * 513, secrets.new_secret()],
        ids=["none", "empty", "short", "cut off", "too long", "lower case", "far too long", "another one"],
    )
    def test_another_one(self, secret):
        with pytest.raises(AuthenticationFailed) as caught:
            asked(known(), secret)
        assert caught.value.code == "invalid_api_key"

    def test_a_cached_answer_is_the_same_answer(self):
        credentials = known(expires_at=1000.0)
        assert asked(credentials, now=1.0) is asked(credentials, now=2.0) is CALLER
        with pytest.raises(KeyExpired):
            asked(credentials, now=1000.0)

    def test_unknown_secrets_do_not_fill_the_memory(self):
        credentials = known()
        for number in range(100):
            with pytest.raises(AuthenticationFailed):
                asked(credentials, f"sk-guess-{number}")
        assert len(credentials._seen) == 0

    def test_another_pepper(self):
        with pytest.raises(AuthenticationFailed):
            authenticate(known(), SECRET, pepper=b"other", now=0)

    def test_revoked_is_said_before_expired(self):
        with pytest.raises(KeyRevoked):
            asked(known(revoked=True, expires_at=1.0))

    @pytest.mark.parametrize(("now", "ends"), [(999.9, False), (1000.0, True), (1000.1, True)])
    def test_an_end_is_its_first_moment(self, now, ends):
        for credentials, error in (
            (known(expires_at=1000.0), KeyExpired),
            (known(valid_until=1000.0), AuthenticationFailed),
        ):
            if ends:
                with pytest.raises(error):
                    asked(credentials, now=now)
            else:
                assert asked(credentials, now=now) is CALLER

    def test_cut_off_an_unknown_key_of_ours_may_be_new(self):
        with pytest.raises(Unavailable):
            asked(known(), secrets.new_secret(), cut_off=True)
        with pytest.raises(AuthenticationFailed):
            asked(known(), "sk-not-ours", cut_off=True)
        assert asked(known(), cut_off=True) is CALLER
        with pytest.raises(KeyRevoked):
            asked(known(revoked=True), cut_off=True)


@pytest.mark.usefixtures("committed")
class TestLoad:
    def caller(self, key):
        credentials = authentication.load()
        return authenticate(credentials, key.secret, pepper=django_settings.KEY_PEPPER, now=0)

    def test_who_is_behind_a_key(self):
        key = make_key("alice", "red", name="laptop", tags=["a"], allowed_models=["m"], role=Role.MEMBER.value)
        caller = self.caller(key)
        assert (caller.key_id, caller.key_name, caller.user_id, caller.team) == (key.id, "laptop", "alice", "red")
        assert (caller.role, caller.tags, caller.allowed_models) == (Role.MEMBER, ("a",), frozenset({"m"}))
        assert caller.owner == "user:alice"

    def test_a_key_of_nobody_owns_itself(self):
        key = make_key()
        caller = self.caller(key)
        assert (caller.user_id, caller.team, caller.owner) == (None, None, f"key:{key.id}")
        assert (caller.limits, caller.budgets) == ((), ())

    def test_an_empty_list_of_models_is_not_no_list(self):
        assert self.caller(make_key(allowed_models=[])).allowed_models == frozenset()
        assert self.caller(make_key()).allowed_models is None

    def test_the_keys_own_team_goes_before_the_users(self):
        make_key("alice", "red")
        assert self.caller(make_key("alice", "blue")).team == "blue"
        assert self.caller(make_key("alice")).team == "red"

    def test_limits_of_key_user_and_team(self):
        key = make_key("alice", "red", rate_limit_rpm=1, max_parallel=2)
        User.objects.update(rate_limit_tpm=3)
        Team.objects.update(rate_limit_rpm=4)
        assert self.caller(key).limits == (
            Limit("key", key.id, 1, None, 2), Limit("user", "alice", None, 3, None),
            Limit("team", "red", 4, None, None),
        )  # fmt: skip

    def test_budgets_of_key_user_team_and_everyone(self):
        key = make_key("alice", "red", monthly_quota_dollars=Decimal(1))
        make_key("bob", "blue")
        for scope, owner in (
            ("user", "alice"),
            ("team", "red"),
            ("organisation", ""),
            ("user", "bob"),
            ("team", "blue"),
        ):
            make_budget(scope, owner, dollars=2)
        budgets = self.caller(key).budgets
        assert [(terms.scope, terms.owner) for terms in budgets] == [
            ("key", key.id), ("user", "alice"), ("team", "red"), ("organisation", ""),
        ]  # fmt: skip
        assert budgets[0].limit_usd == 1

    def test_both_secrets_of_a_rotation(self):
        key = make_key("alice")
        _, secret, _ = rotate_key(actor=SYSTEM, key=row_of(key), grace_seconds=60)
        credentials = authentication.load()
        assert len(credentials.by_digest) == 2
        for known_secret in (key.secret, secret):
            assert authenticate(credentials, known_secret, pepper=django_settings.KEY_PEPPER, now=0).key_id == key.id
        VirtualKey.objects.update(previous_until=timezone.now() - timedelta(seconds=1))
        with pytest.raises(AuthenticationFailed):
            authenticate(
                authentication.load(), key.secret, pepper=django_settings.KEY_PEPPER, now=timezone.now().timestamp()
            )

    def test_it_asks_the_database_twice_however_many_there_are(self, django_assert_num_queries):
        for number in range(30):
            make_key(f"user-{number}", f"team-{number % 3}")
        with django_assert_num_queries(2):
            assert len(authentication.load().by_digest) == 30
