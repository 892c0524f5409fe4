"""Credentials: found where people leave them; missing or wrong ones are told soon, never shown."""

import json
import logging
from pathlib import Path

import pytest

from imagen import storage
from imagen.errors import StorageError
from imagen.redaction import redacted, secrets_in

pytestmark = [pytest.mark.gcs, pytest.mark.timeout(60)]  # each error comes within 15 s

SAMPLE = """
import sys
from imagen import storage
from imagen.errors import ImagenError
try:
    storage.put(sys.argv[1] + "/x", b"data")
    print(storage.get(sys.argv[1] + "/x").decode())
except ImagenError as err:
    print(f"error: {err}")
"""
TOKEN = "ya29.a-token-that-nobody-may-see"


@pytest.fixture
def known(gcs):
    """A server that wants the token that its own endpoints hand out."""
    gcs.server.access(tokens=[TOKEN], issues=TOKEN)
    return gcs


def test_a_service_accounts_key_is_used(known, program, service_account):
    path = service_account(known.server.endpoint)
    done, _ = program(SAMPLE, known.url, **known.env, GOOGLE_APPLICATION_CREDENTIALS=path)
    assert (done.stdout, done.stderr) == ("data\n", "")
    assert known.server.counts()["tokens"] == [TOKEN]


def test_fsspecs_own_setting_may_name_the_key(known, program, service_account):
    path = service_account(known.server.endpoint)
    done, _ = program(SAMPLE, known.url, **known.env, FSSPEC_GS_TOKEN=path)
    assert (done.stdout, done.stderr) == ("data\n", "")


def test_workload_identity_federation_is_used(known, program, tmp_path):
    (tmp_path / "subject").write_text("a token of another cloud")
    audience = (
        "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/q"
    )
    config = {
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": f"{known.server.endpoint}/sts",
        "credential_source": {"file": str(tmp_path / "subject")},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    path = str(tmp_path / "config.json")
    done, _ = program(SAMPLE, known.url, **known.env, GOOGLE_APPLICATION_CREDENTIALS=path)
    assert (done.stdout, done.stderr) == ("data\n", "")


def test_the_service_account_of_a_machine_is_used(known, program):
    """As on a VM, and as GKE's workload identity answers."""
    host = known.server.endpoint.removeprefix("http://")
    machine = {"GCE_METADATA_HOST": host, "GCE_METADATA_IP": host}
    done, _ = program(SAMPLE, known.url, **known.env, **machine)
    assert (done.stdout, done.stderr) == ("data\n", "")


def test_what_gcloud_leaves_is_used(known, program, tmp_path, service_account):
    """The file of `gcloud auth application-default login`, where it is looked for."""
    key = service_account(known.server.endpoint)
    (tmp_path / "gcloud").mkdir()
    home = tmp_path / "gcloud" / "application_default_credentials.json"
    home.write_text(Path(key).read_text())
    code = "import os; os.environ.pop('STORAGE_EMULATOR_HOST')\n"
    code += "from imagen import credentials\nprint(credentials.find('gs://b').token)"
    done, _ = program(code, **known.env, CLOUDSDK_CONFIG=str(tmp_path / "gcloud"))
    assert done.stdout == f"{TOKEN}\n", done.stderr


def test_nobody_may_read_a_public_bucket(gcs, program):
    done, _ = program(SAMPLE, gcs.url, **gcs.env, FSSPEC_GS_TOKEN="anon")
    assert (done.stdout, done.stderr) == ("data\n", "")
    assert gcs.server.counts()["tokens"] == []


@pytest.fixture
def refused(program, record_property):
    """Return the message and hint of a program that must fail, and nothing but them."""

    def run(url: str, **environment: str) -> str:
        done, seconds = program(SAMPLE, url, **environment)
        record_property("seconds", round(seconds, 1))
        print(f"{seconds:.1f} s: {done.stdout}")
        assert done.returncode == 0
        assert done.stderr == ""  # no traceback, of nobody's
        assert done.stdout.startswith("error: ")
        assert TOKEN not in done.stdout
        return done.stdout

    return run


def test_missing_credentials_are_an_error_that_names_the_bucket(refused):
    told = refused("gs://some-bucket")
    assert "no credentials for bucket `gs://some-bucket`" in told
    assert "hint: log in with `gcloud auth application-default login`" in told
    assert "FSSPEC_GS_TOKEN=anon" in told


def test_a_key_file_that_is_not_there_is_an_error(refused, tmp_path):
    path = str(tmp_path / "none.json")
    told = refused("gs://some-bucket", GOOGLE_APPLICATION_CREDENTIALS=path)
    assert "`gs://some-bucket`" in told
    assert "none.json was not found" in told


def test_a_key_file_that_is_no_key_is_an_error(refused, tmp_path):
    (tmp_path / "key.json").write_text('{"private_key": "very secret"')
    path = str(tmp_path / "key.json")
    told = refused("gs://some-bucket", GOOGLE_APPLICATION_CREDENTIALS=path)
    assert "`gs://some-bucket`" in told
    assert "is not a valid json file" in told
    assert "very secret" not in told


def test_a_key_that_was_withdrawn_is_an_error(gcs, refused, service_account, private_key):
    gcs.server.access(tokens=[TOKEN], issues="")
    path = service_account(gcs.server.endpoint)
    told = refused(gcs.url, **gcs.env, GOOGLE_APPLICATION_CREDENTIALS=path)
    assert f"credentials for bucket `{gcs.url}` are of no use" in told
    assert "invalid_grant" in told
    assert private_key[100:120] not in told


def test_a_token_that_the_store_does_not_know_is_an_error(gcs, refused, service_account):
    gcs.server.access(tokens=["another"], issues=TOKEN)
    path = service_account(gcs.server.endpoint)
    told = refused(gcs.url, **gcs.env, GOOGLE_APPLICATION_CREDENTIALS=path)
    assert f"bucket `{gcs.url}`: the credentials were refused (401): Invalid Credentials" in told
    assert "hint: log in with" in told


def test_nobody_is_told_that_a_bucket_is_private(known, refused):
    told = refused(known.url, **known.env, FSSPEC_GS_TOKEN="anon")
    assert f"bucket `{known.url}`" in told
    assert "Anonymous caller does not have storage.objects.get access" in told


def test_a_bucket_that_is_denied_is_an_error(gcs, refused):
    gcs.server.access(denied=[gcs.name])
    told = refused(gcs.url, **gcs.env)
    assert f"cannot write `{gcs.url}/x`: permission denied" in told
    assert "does not have storage.objects.get access" in told
    assert "credentials of the bucket" in told


def test_a_bucket_that_does_not_exist_is_an_error(gcs, refused):
    told = refused("gs://no-such-bucket", **gcs.env)
    assert "bucket `gs://no-such-bucket` does not exist" in told
    assert "hint: create it, or correct the address" in told


def test_an_endpoint_that_nobody_listens_at_is_an_error(refused):
    told = refused("gs://some-bucket", STORAGE_EMULATOR_HOST="http://127.0.0.1:9")
    assert "bucket `gs://some-bucket` cannot be reached at http://127.0.0.1:9" in told
    assert "Cannot connect to host" in told


def test_an_endpoint_that_never_answers_is_an_error(gcs, refused):
    gcs.server.faults({"kind": "hang", "seconds": 600})
    told = refused(gcs.url, **gcs.env)
    assert f"bucket `{gcs.url}` cannot be reached" in told
    assert "no answer in" in told


def test_an_error_is_told_again_and_what_was_mended_works_at_once(gcs):
    gcs.server.access(tokens=["another"])
    for _ in range(2):
        with pytest.raises(StorageError, match="401"):
            storage.exists(f"{gcs.url}/x")
    gcs.server.access()
    assert storage.exists(f"{gcs.url}/x") is False


def test_a_token_that_ends_in_mid_run_is_renewed(known, service_account, monkeypatch):
    import datetime as dt

    from imagen import store

    path = service_account(known.server.endpoint)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", path)
    storage.put(f"{known.url}/x", b"data")
    fs, _ = store.filesystem(known.url)
    fs.credentials.credentials.expiry = dt.datetime(2000, 1, 1)
    known.server.access(tokens=["ya29.new"], issues="ya29.new")
    assert storage.get(f"{known.url}/x") == b"data"
    fs.credentials.credentials.expiry = dt.datetime(2000, 1, 1)
    known.server.access(tokens=["ya29.new"], issues="")
    with pytest.raises(StorageError, match=r"permission denied \(no new token: .*invalid_grant"):
        storage.get(f"{known.url}/x")


# secrets


SECRETS = [
    f"Authorization: Bearer {TOKEN}",
    f"token {TOKEN}.",
    "https://user:hunter22@host/path",
    "https://storage.googleapis.com/b/o?X-Goog-Algorithm=a&X-Goog-Signature=hunter22&x=1",
    "https://b.s3.amazonaws.com/o?X-Amz-Signature=hunter22",
    "http://127.0.0.1/upload/storage/v1/b/b/o?uploadType=resumable&upload_id=hunter22",
    '{"type": "service_account", "private_key": "hunter22", "x": 1}',
    "-----BEGIN PRIVATE KEY-----\nhunter22\n-----END PRIVATE KEY-----",
    "hf_hunter22hunter22hunter22",
]


@pytest.mark.parametrize("text", SECRETS)
def test_secrets_are_taken_out_of_texts(text):
    shown = redacted(text)
    assert "hunter22" not in shown
    assert TOKEN not in shown
    assert redacted(shown) == shown
    assert list(secrets_in({"a": [{"b": text}], "c": "plain"})) == ["a[0].b"]


@pytest.mark.parametrize(
    "text",
    [
        "gs://bucket/run/base",
        "cannot read `gs://b/x@2`: it does not exist",
        "https://host/list.txt?page=2&size=64",
        "a red circle: 3@4, token count 7",
        "ema@0.05",
    ],
)
def test_other_texts_stay_as_they_are(text):
    assert redacted(text) == text


def test_no_error_and_no_log_shows_a_token_or_the_address_of_an_upload(
    known, service_account, monkeypatch, caplog
):
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", service_account(known.server.endpoint))
    storage.put(f"{known.url}/x", b"data")
    caplog.set_level(logging.INFO)
    told = []
    for where, size in (("upload_id", 60 * 2**20), ("^/upload/", 3)):
        known.server.faults({"kind": "status", "status": 400, "path": where})
        with pytest.raises(StorageError) as err:
            storage.put(f"{known.url}/y", bytes(size))
        told.append(str(err.value))
    for text in (*told, caplog.text):
        assert TOKEN not in text
        assert "upload_id" not in text
        assert "PRIVATE" not in text


def test_a_config_with_a_secret_in_it_is_refused_before_it_is_stored_anywhere(tmp_path):
    from imagen import config as configs
    from imagen.errors import ConfigError
    from train.config import TrainStageConfig

    path = tmp_path / "config.yaml"
    path.write_text("out: https://me:hunter22@host/runs\n")
    with pytest.raises(ConfigError, match=r"`out` of .* holds a secret") as err:
        configs.load_config(TrainStageConfig, str(path))
    assert "hunter22" not in str(err.value)
