"""The snapshot: a change is seen at once where it was made, soon elsewhere, and nothing is read in vain."""

import threading
from contextlib import contextmanager

import pytest
from django.db import OperationalError, connections, transaction

from gateway import registry, snapshot, versioning
from gateway.models import ConfigVersion, Deployment, GroupMember, ModelGroup, Provider
from gateway.snapshot import SnapshotStore
from keys import authentication
from keys.models import Team, User, VirtualKey
from security.models import Policy
from tests.support.waiting import eventually
from tests.support.world import (
    make_budget,
    make_deployment,
    make_group,
    make_key,
    make_price,
    make_provider,
    row_of,
)


@pytest.fixture
def store(committed):
    """Another process's, as it were: told nothing, it finds changes by looking."""
    store = SnapshotStore()
    store.current()
    yield store
    store.stop_polling()


def numbers():
    return dict(ConfigVersion.objects.values_list("section", "number"))


@contextmanager
def raises_the_number_of(section):
    before = numbers().get(section, 0)
    yield
    assert numbers().get(section, 0) > before, f"{section} was changed and nobody would notice"


class TestEveryWriteRaisesTheVersion:
    def test_creating_saving_and_deleting(self, committed):
        with raises_the_number_of("keys"):
            key = make_key("alice", "red")
        with raises_the_number_of("keys"):
            row_of(key).save()
        with raises_the_number_of("keys"):
            row_of(key).delete()

    @pytest.mark.parametrize("model", [VirtualKey, User, Team])
    def test_of_keys_and_people(self, committed, model):
        make_key("alice", "red")
        with raises_the_number_of("keys"):
            model.objects.update(rate_limit_rpm=5)
        with raises_the_number_of("keys"):
            rows = list(model.objects.all())
            model.objects.bulk_update(rows, ["rate_limit_rpm"])

    def test_deleting_many(self, committed):
        make_key("alice")
        with raises_the_number_of("keys"):
            VirtualKey.objects.all().delete()

    def test_creating_many(self, committed):
        with raises_the_number_of("keys"):
            Team.objects.bulk_create([Team(name="a"), Team(name="b")])

    def test_of_budgets(self, committed):
        with raises_the_number_of("keys"):
            budget = make_budget(dollars=1)
        with raises_the_number_of("keys"):
            type(budget).objects.filter(pk=budget.pk).update(limit_dollars=2)

    def test_of_the_catalog(self, committed):
        with raises_the_number_of("catalog"):
            provider = make_provider("http://127.0.0.1:1/v1")
        with raises_the_number_of("catalog"):
            deployment = make_deployment(provider)
        with raises_the_number_of("catalog"):
            group = make_group("pair", deployment)
        with raises_the_number_of("catalog"):
            GroupMember.objects.all().delete()
        with raises_the_number_of("catalog"):
            group.deployments.add(deployment)
        with raises_the_number_of("catalog"):
            group.deployments.clear()
        with raises_the_number_of("catalog"):
            Provider.objects.update(enabled=False)

    def test_of_what_goes_with_another(self, committed):
        # Deleting a provider deletes its deployments, and those their memberships.
        make_group("pair", make_deployment(make_provider("http://127.0.0.1:1/v1")))
        with raises_the_number_of("catalog"):
            Provider.objects.all().delete()
        assert not GroupMember.objects.exists()

    def test_of_prices_and_policies(self, committed):
        with raises_the_number_of("prices"):
            make_price()
        with raises_the_number_of("policies"):
            policy = Policy.objects.create(name="p")
        with raises_the_number_of("policies"):
            policy.delete()

    def test_get_or_create_and_update_or_create(self, committed):
        with raises_the_number_of("keys"):
            Team.objects.get_or_create(name="a")
        with raises_the_number_of("keys"):
            Team.objects.update_or_create(name="a", defaults={"cost_centre": "7"})

    def test_not_what_the_snapshot_does_not_read(self, committed):
        key = make_key("alice")
        before = numbers()
        VirtualKey.objects.filter(pk=key.id).update_quietly(last_used=None)
        row = row_of(key)
        row.save(update_fields=["last_used"])
        user = User.objects.get()
        user.save(update_fields=["last_login"])
        assert numbers() == before

    def test_two_at_once_are_two(self, committed):
        versioning.bump("keys")
        before, barrier = numbers()["keys"], threading.Barrier(4)

        def raise_it():
            barrier.wait()
            versioning.bump("keys")
            connections.close_all()

        threads = [threading.Thread(target=raise_it) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert numbers()["keys"] == before + 4


class TestRefresh:
    def test_only_what_moved_is_read_again(self, store, monkeypatch):
        read = []
        for section, (field, load) in snapshot._SECTIONS.items():
            monkeypatch.setitem(snapshot._SECTIONS, section, (field, lambda s=section, f=load: read.append(s) or f()))
        store.refresh()
        assert read == []
        make_key()
        store.refresh()
        assert read == ["keys"]
        store.refresh()
        assert read == ["keys"]

    def test_what_did_not_move_is_the_same_object(self, store):
        before = store.current()
        make_key()
        store.refresh()
        after = store.current()
        assert after.credentials is not before.credentials
        assert after.catalog is before.catalog
        assert after.prices is before.prices

    def test_a_rolled_back_change_is_none(self, store):
        before = store.current()
        with transaction.atomic():
            Team.objects.create(name="never")
            transaction.set_rollback(True)
        store.refresh()
        assert store.current() is before

    def test_one_that_fails_leaves_the_last(self, store, monkeypatch):
        before = store.current()
        make_key()
        monkeypatch.setitem(snapshot._SECTIONS, "keys", ("credentials", _broken))
        with pytest.raises(OperationalError):
            store.refresh()
        assert store.current() is before
        store.refresh_if_used()  # after a commit: the change is made, so this must not raise
        monkeypatch.undo()
        store.refresh()
        assert len(store.current().credentials.by_digest) == 1

    def test_a_process_without_a_snapshot_reads_none(self, committed, monkeypatch):
        store = SnapshotStore()
        monkeypatch.setattr(store, "refresh", _broken)
        store.refresh_if_used()

    def test_a_change_between_numbers_and_rows_is_found_the_next_time(self, store, monkeypatch):
        versions = snapshot._versions

        def numbers_then_change():
            found = versions()
            make_key()
            return found

        make_key()
        monkeypatch.setattr(snapshot, "_versions", numbers_then_change)
        store.refresh()
        monkeypatch.undo()
        store.refresh()
        assert len(store.current().credentials.by_digest) == VirtualKey.objects.count() == 2


def _broken(*_):
    raise OperationalError("gone")


class TestPolling:
    def test_a_change_elsewhere_is_found_within_a_second(self, store):
        store.start_polling(lambda: None)
        make_key()
        eventually(lambda: len(store.current().credentials.by_digest) == 1, within=1)

    def test_what_comes_along_runs_after_each_poll(self, store):
        runs = []
        store.start_polling(lambda: runs.append(1))
        eventually(lambda: len(runs) >= 3, within=3)

    def test_a_database_that_goes_and_comes_back(self, store, monkeypatch):
        monkeypatch.setattr(snapshot, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(snapshot, "_CUT_OFF_AFTER", 0.2)
        versions = snapshot._versions
        store.start_polling(lambda: None)
        assert store.seconds_cut_off() == 0
        monkeypatch.setattr(snapshot, "_versions", _broken)
        assert eventually(store.seconds_cut_off, within=3) > 0.2
        monkeypatch.setattr(snapshot, "_versions", versions)
        eventually(lambda: store.seconds_cut_off() == 0, within=3)

    def test_without_polling_nothing_is_cut_off(self, store):
        assert store.seconds_cut_off() == 0

    def test_stopping_twice_is_stopping(self, store):
        store.start_polling(lambda: None)
        store.stop_polling()
        store.stop_polling()


def test_it_holds_what_is_there(committed, store):
    provider = make_provider("http://127.0.0.1:1/v1", headers={"X-Team": "t"})
    make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b", enabled=False))
    store.refresh()
    catalog = store.current().catalog
    assert set(catalog.deployments) == {"a"}
    assert catalog.deployments["a"].provider.headers["X-Team"] == "t"
    assert [d.name for d in catalog.groups["pair"].pools[0].deployments] == ["a"]
    assert {card.id for card in registry.visible(catalog, None)} == {"a", "pair"}
    assert authentication.load().by_digest == store.current().credentials.by_digest
    assert Deployment.objects.count() == 2
    assert ModelGroup.objects.count() == 1


@pytest.mark.parametrize(
    ("allowed", "seen"),
    [(None, {"a", "b", "pair"}), ({"a"}, {"a", "pair"}), ({"pair"}, {"pair"}), (set(), set()), ({"nobody"}, set())],
)
def test_a_key_sees_what_it_may_use(committed, allowed, seen):
    provider = make_provider("http://127.0.0.1:1/v1")
    make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))
    cards = registry.visible(registry.load(), None if allowed is None else frozenset(allowed))
    assert {card.id for card in cards} == seen
