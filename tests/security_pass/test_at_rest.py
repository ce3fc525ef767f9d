"""What is kept, and who may read it: hashes instead of keys, sealed credentials, files for their owner alone."""

import os
import stat
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway import vault
from gateway.models import Provider
from keys import secrets
from keys.models import VirtualKey
from tests.api.doors import Cast, Door
from tests.console.pages import CREDENTIAL, HEADER
from tests.support.serving import ADMIN_KEY, SECRETS
from tests.system.conftest import chat, openai_settings


def modes(folder: Path) -> dict[str, str]:
    """What others may do with each thing, where that is anything."""
    found = {}
    for path in (folder, *folder.rglob("*")):
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & 0o077 and not stat.S_ISSOCK(path.lstat().st_mode):
            found[str(path.relative_to(folder.parent))] = oct(mode)
    return found


@pytest.mark.parametrize("made_by_us", [True, False], ids=["its own folder", "a mounted one that everybody may enter"])
def test_everything_in_the_data_folder_is_its_owners_alone(make_gateway, upstream, made_by_us: bool):
    gateway = make_gateway(empty=True, **openai_settings(upstream))
    if not made_by_us:
        gateway.folder.mkdir()
        gateway.folder.chmod(0o755)
    before = os.umask(0o022)
    try:
        gateway.start(jobs=True)
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        for stream in (False, True):
            httpx2.post(
                f"{gateway.url}/v1/chat/completions", json=chat(stream=stream), headers=headers, trust_env=False
            )
        assert modes(gateway.folder) == ({} if made_by_us else {gateway.folder.name: "0o755"})
        assert gateway.stop() == 0
    finally:
        os.umask(before)
    assert modes(gateway.folder) == ({} if made_by_us else {gateway.folder.name: "0o755"})
    assert {"ailb.sqlite3", "secret_key", "first-run.txt"} <= {path.name for path in gateway.folder.iterdir()}


def test_several_workers_leave_nothing_open_either(make_gateway, redis_url):
    gateway = make_gateway(empty=True, REDIS_URL=redis_url).start("--workers", "2")
    assert gateway.status("/metrics") == 200
    assert modes(gateway.folder) == {}
    gateway.stop()


def test_of_a_key_the_database_has_a_hash_that_the_pepper_is_needed_for(cast: Cast):
    row = VirtualKey.objects.filter(pk=cast.key.pk).values().get()
    secret = cast.secrets["alice's key"]
    assert row["digest"] == secrets.digest(secret, b"another pepper") or len(row["digest"]) == 64
    assert row["digest"] != secrets.digest(secret, b"another pepper")
    body = secret.removeprefix("sk-ailb_")
    assert not any(body[i : i + 5] in str(row) for i in range(len(body) - 4)), "four characters are shown, no more"


def test_a_digest_from_a_stolen_database_is_no_key(cast: Cast):
    digest = VirtualKey.objects.get(pk=cast.keys["admin key"].pk).digest
    assert Door(secret=digest).get("/api/keys").status == 401


def test_credentials_are_sealed_and_sealed_anew_each_time(world):
    provider: Any = world["gateway.provider"]
    assert CREDENTIAL not in provider.credentials
    assert HEADER not in provider.credentials
    assert vault.seal({"a": "b"}) != vault.seal({"a": "b"})


def test_a_tampered_credential_is_not_opened(world):
    provider: Any = world["gateway.provider"]
    middle = len(provider.credentials) // 2
    swapped = "A" if provider.credentials[middle] != "A" else "B"
    with pytest.raises(vault.VaultError):
        vault.open_sealed(provider.credentials[:middle] + swapped + provider.credentials[middle + 1 :])


def test_an_error_of_the_vault_says_nothing_of_what_it_was_given():
    with pytest.raises(vault.VaultError) as caught:
        vault.open_sealed("gAAAA-not-a-token-of-ours")
    assert "gAAAA" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_new_encryption_keys_do_not_stop_the_start(make_gateway, upstream):
    """The environment has the credential: it is sealed anew."""
    gateway = make_gateway(empty=True, **openai_settings(upstream)).start()
    gateway.stop()
    gateway.settings["AILB_ENCRYPTION_KEYS"] = SECRETS["AILB_ENCRYPTION_KEYS"]
    gateway.start()
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    answer = httpx2.post(f"{gateway.url}/v1/chat/completions", json=chat(), headers=headers, trust_env=False)
    assert answer.status_code == 200
    gateway.stop()


def test_a_provider_shows_no_credential_by_accident(world):
    provider = Provider.objects.get(pk=world["gateway.provider"].pk)
    assert CREDENTIAL not in f"{provider} {provider!r}"
