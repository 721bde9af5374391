"""YAML that no settings are: bombs, depth, wrong kinds, secrets.  Each is one sentence with file and line, and exit status 2."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline import secret_text
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.gateway import keys
from pipeline.plan import hardware, money
from pipeline.positions import bounded

SOURCES = "curate:\n  sources:\n    - {kind: python-docs, packages: [stdlib]}\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
HOSTILE = {
    "aliases that repeat each other": (LAUGHS, ":5: cannot be settings: more than 50,000 values"),
    "a list within itself": ("a: &a [1, *a]\n", ":1: cannot be settings: *a stands inside of what it names"),
    "a section within itself": ("a: &a\n  b: *a\n", ":2: cannot be settings: *a stands inside"),
    "merged into itself": ("a: &a\n  <<: *a\n", ":2: cannot be settings: *a stands inside"),
    "deep lists": (
        "a: " + "[" * 5000 + "]" * 5000,
        ":1: cannot be settings: nested more than 40 levels deep",
    ),
    "deep sections": ("".join(f"{' ' * n}a:\n" for n in range(300)), ":41: cannot be settings: nested more"),
    "lists that do not end": ("a: " + "[" * 5000, ":1: cannot be settings: nested more than 40"),
    "a million values": ("a: [" + "1," * 60_000 + "]", ":1: cannot be settings: more than 50,000 values"),
    "megabytes": ("# " + "x" * 1_100_000 + "\n", ": cannot be read: more than 1,000,000 bytes"),
    "no text": (b"\xff\xfe\x00a: 1", ": cannot be read: it is not UTF-8 text"),
    "a control character": ("a: \x07\n", ": cannot be read: "),
    "an unknown anchor": ("a: *nowhere\n", ":1: this is not YAML: found undefined alias"),
    "two documents": ("a: 1\n---\nb: 2\n", ":2: this is not YAML: "),
    "a Python object": ("description: !!python/object/apply:os.system [ls]\n", ":1: this is not YAML: "),
    "a list": ("- 1\n", ":1: expected SETTING: VALUE lines"),
    "a key that is a list": ("? [a, b]\n: 1\n", ":1: this is not YAML: "),
    "a key twice": ("description: a\ndescription: b\n", ":2: this is not YAML: "),
    "a number without end": (f"model: {{context: {'9' * 5000}}}\n", ": cannot be read: Exceeds the limit"),
    "half a surrogate": ('description: "\\ud800"\n', ":1: this is not YAML: found invalid Unicode"),
    "a number beyond floats": (
        f"pretrain: {{max_steps: 1{'0' * 400}}}\n" + SOURCES,
        ":1: pretrain.max_steps: is beyond",
    ),
    "NUL in a path": ('model: {base: "a\\0b"}\n', ":1: model.base: holds a character of no text"),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "configs" / "sites").mkdir(parents=True)
    (tmp_path / "configs" / "train").mkdir()
    (tmp_path / "configs" / "sites" / "local.yaml").write_text("threads: 2\n")
    (tmp_path / "recipes" / "small.yaml").write_text(SOURCES)
    return tmp_path


def refused(root: Path, name: str = "small", overrides: str = "", site: str = "local") -> str:
    began = time.process_time()
    with pytest.raises(UserError) as caught:
        recipes.load(name, root, overrides, site)
    assert caught.value.exit_status == 2
    assert time.process_time() - began < 20  # the bombs took hours, and all memory
    return str(caught.value)


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_recipe_is_refused_in_one_sentence(root: Path, case: str) -> None:
    text, said = HOSTILE[case]
    put(root / "recipes" / "small.yaml", text)
    message = refused(root)
    assert message.startswith(f"recipes/small.yaml{said}")
    assert "\n" not in message
    assert len(message) < 600


@pytest.mark.parametrize("case", ["aliases that repeat each other", "a list within itself", "deep lists"])
def test_so_is_every_other_file_of_settings(root: Path, case: str, tmp_path: Path) -> None:
    text, said = HOSTILE[case]
    put(root / "configs" / "train" / "own.yaml", text)
    put(root / "recipes" / "small.yaml", "use: {train: own}\n" + SOURCES)
    assert refused(root).startswith(f"configs/train/own.yaml{said}")
    put(root / "recipes" / "small.yaml", SOURCES)
    site = put(tmp_path / "site.yaml", text)
    assert f"site.yaml{said}" in refused(root, site=str(site))
    table = put(tmp_path / "table.yaml", text)
    with pytest.raises(UserError, match=r"table.yaml:\d+: cannot be settings"):
        hardware.kinds(table)
    with pytest.raises(UserError, match=r"table.yaml:\d+: cannot be settings"):
        money.prices(table)


def test_a_value_of_set_is_held_to_the_same(root: Path) -> None:
    assert refused(root, overrides=f"'curate.filters={'[' * 300}'").startswith("SET: curate.filters: nested")
    assert "stands inside of what it names" in refused(root, overrides="'curate.filters=&a [1, *a]'")
    assert "a value is one line" in refused(root, overrides="'description=a\nmodel: {context: 64}'")


def test_anchors_and_merged_sections_are_taken_as_before(root: Path) -> None:
    put(
        root / "recipes" / "small.yaml",
        "pretrain: &one\n  lr: 1e-3\n  max_steps: 50\ntrain:\n  <<: *one\n  max_steps: 70\n" + SOURCES,
    )
    loaded = recipes.load("small", root)
    assert (loaded.settings.train.lr, loaded.settings.train.max_steps) == (1e-3, 70)
    assert bounded("a: &a [1]\nb: [*a, *a]\n")


def test_the_command_ends_with_status_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = put(tmp_path / "bomb.yaml", LAUGHS)
    for verb in ("plan", "explain", "run"):
        assert main([verb, str(recipe), "--runs", str(tmp_path / "runs")]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert "bomb.yaml:5" in "".join(said.split())


# ------------------------------------------------------------------------------- secrets

SECRETS = {
    "environment": ("${oc.env:MY_SECRET}", "holds '${'"),
    "environment with a default": ("a ${oc.env:MY_SECRET,none} b", "holds '${'"),
    "a resolver of another name": ("${oc.decode:${oc.env:MY_SECRET}}", "holds '${'"),
    "a resolver's name put together": ("${oc.${x}:MY_SECRET}", "holds '${'"),
    "a password in an address": ("https://anna:s3cr3t-word@example.org/x", "has a user name or password"),
    "a password with a slash": ("https://anna:s3cr3t-word/2@example.org/x", "has a user name or password"),
    "a user alone": ("s3://s3cr3t-word@bucket/x.jsonl", "has a user name or password"),
    "a token behind an address": ("https://example.org/x?a=1&token=s3cr3t-word", "has a key or token"),
    "a signed address": ("https://b.s3.amazonaws.com/x?X-Amz-Signature=s3cr3t-word", "has a key or token"),
    "an Azure signature": ("https://a.blob.core.windows.net/x?sv=2&sig=s3cr3t-word", "has a key or token"),
    "a token behind a hash": ("https://example.org/x#access_token=s3cr3t-word", "has a key or token"),
    "a variable": ("export WANDB_API_KEY=s3cr3t-word", "gives a key or password its value"),
    "a short name": ("DB_PASS=s3cr3t-word psql", "gives a key or password its value"),
    "a name in one word": ("PGPASSWORD=s3cr3t-word psql", "gives a key or password its value"),
    "any key": ("export MY_KEY=s3cr3t-word", "gives a key or password its value"),
    "an option": ("tool --api-key s3cr3t-word", "gives a key or password its value"),
    "an option with its value": ("tool --db-password=s3cr3t-word", "gives a key or password its value"),
    "a login": ("curl -u anna:s3cr3t-word https://example.org", "gives a key or password its value"),
    "a header": ("curl -H Authorization:s3cr3t-word", "gives a key or password its value"),
    "a bearer": ("send Bearer s3cr3t-word-s3cr3t-word", "gives a key or password its value"),
    "an address without scheme": (
        "anna:s3cr3t-word@db.example.org:5432/x",
        "gives a key or password its value",
    ),
    "a token of the web": (
        "eyJ" + "s3cr3t" * 3 + ".eyJ" + "s3cr3t" * 3 + ".s3cr3t",
        "looks like an access key",
    ),
    "a private key": ("-----BEGIN RSA PRIVATE KEY----- s3cr3t-word", "looks like an access key"),
    "a key with dashes": ("sk-ant-api03-" + "s3cr3t-word" * 3, "looks like an access key"),
    "a hub's token": ("hf_" + "s3cr3tword" * 4, "looks like an access key"),
}
PLACES = (
    "description: '{}'\n",
    "model: {{base: '{}'}}\n",
    "tracking: {{mlflow: '{}'}}\n",
    "site: {{slurm: {{setup: ['{}']}}}}\n",
    "curate: {{filters: {{Some: {{address: '{}'}}}}}}\n",
    "use: {{train: '{}'}}\n",
    "no_such_setting: '{}'\n",
    "stages: '{}'\n",
)


@pytest.mark.parametrize("case", SECRETS)
def test_a_secret_is_refused_wherever_it_stands_and_not_repeated(
    root: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "s3cr3t-word")
    text, why = SECRETS[case]
    for place in PLACES:
        put(root / "recipes" / "small.yaml", place.format(text))
        message = refused(root)
        assert message.startswith("recipes/small.yaml:1: ")
        assert why in message
        assert "s3cr3t" not in message
    put(root / "recipes" / "small.yaml", SOURCES)
    for words in (f"'description={text}'", f"'curate.filters={{A: {{b: \"{text}\"}}}}'"):
        message = refused(root, overrides=words)
        assert message.startswith("SET: ")
        assert "s3cr3t" not in message
    put(root / "configs" / "sites" / "local.yaml", f"name: '{text}'\n")
    message = refused(root)
    assert message.startswith("configs/sites/local.yaml:1: name: ")
    assert "s3cr3t" not in message


def test_a_secret_put_together_from_settings_is_refused(root: Path) -> None:
    text = "description: 'anna:s3cr3t-word'\nmodel: {base: 'https://${description}@example.org'}\n" + SOURCES
    put(root / "recipes" / "small.yaml", text)
    message = refused(root)
    assert message.startswith("recipes/small.yaml:2: model.base: has a user name or password")
    assert "s3cr3t" not in message


def test_a_parameter_that_names_a_secret_is_refused(root: Path) -> None:
    put(root / "recipes" / "small.yaml", "curate:\n  classifiers:\n    Some: {hf_token: s3cr3t-word}\n")
    message = refused(root)
    assert message.startswith("recipes/small.yaml:3: curate.classifiers.Some.hf_token: is a secret's name")
    assert "s3cr3t" not in message


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "db_password", "Authorization", "my-credentials", "token"])
def test_a_name_that_ends_in_a_secrets_is_one(name: str) -> None:
    assert [place for place, _ in secret_text.faults({"x": {name: "s3cr3t"}})] == [f"x.{name}"]
    assert not list(
        secret_text.faults(
            {"x": {"end_token": "</s>", "tokens": "5", "keys_file": "keys", "secret": "of-the-cluster"}}
        )
    )


def test_words_that_are_no_settings_are_not_repeated_with_their_secrets(root: Path) -> None:
    for words in (
        "https://a:s3cr3t-word@h",
        "'description=\"https://a:s3cr3t-word@h",
        "'a=[https://a:s3cr3t-word@h'",
    ):
        assert "s3cr3t" not in refused(root, overrides=words)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org:8080/a@b",
        "abfs://container@account.dfs.core.windows.net/x.jsonl",
        "nvcr.io/nvidia/tritonserver:26.01@sha256:" + "0" * 64,
        "export HF_TOKEN=$(cat /run/token)",
        "export TOKENIZERS_PARALLELISM=false",
        "https://example.org/x?max_tokens=5&keys=all",
        "module load cuda; export A=b",
        "write to anna@example.org",
        "export SSH_KEY=/home/me/.ssh/id, TLS_KEY=~/tls.key and API_KEY=$(cat key)",
        "--tokenizer=x --max-tokens 5 --token-type a, --password-file /run/x",
        "tritonserver:26.01@sha256:" + "0" * 64 + " is from registry.example.com:5000/tritonserver",
        "sk-learn-contrib-packages-of-all-kinds, the bearer of news; user:group; date -u +%H:%M",
    ],
)
def test_what_is_no_secret_is_taken(root: Path, text: str) -> None:
    assert secret_text.fault(text) is None
    put(root / "recipes" / "small.yaml", f"description: '{text}'\n" + SOURCES)
    assert recipes.load("small", root).settings.description == text


def test_another_setting_and_a_written_dollar_are_taken(root: Path) -> None:
    text = "description: 'context ${model.context}, \\${oc.env:HOME}'\n" + SOURCES
    put(root / "recipes" / "small.yaml", text)
    assert recipes.load("small", root).settings.description == "context 256, ${oc.env:HOME}"


def test_an_error_that_holds_an_address_with_a_secret_is_shown_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["trace", "http://anna:s3cr3t-word@127.0.0.1:1"],
        ["diff", "https://h/x?token=s3cr3t-word", "b"],
    ):
        assert main([*words, "--runs", str(tmp_path)]) == 2
        assert "s3cr3t" not in "".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("mode", "said"),
    [(0o600, None), (0o400, None), (0o640, "read"), (0o604, "read"), (0o666, "read and change")],
)
def test_a_file_of_keys_that_others_may_read_is_told(
    tmp_path: Path, mode: int, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = put(tmp_path / "keys", "alice: 0123456789abcdef0123\n")
    file.chmod(mode)
    told = keys.exposed(file)
    assert told == (
        said and f"others on this machine may {said} {file}, which holds secrets: chmod 600 {file}"
    )
    keys.Keys(file)
    assert [record.message for record in caplog.records] == ([told] if told else [])
    assert keys.exposed(tmp_path / "gone") is None
