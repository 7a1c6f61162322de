"""Settings: where they come from, what they refuse, and in which words."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from batcher.config import AccountSettings, Settings, load_settings, shown
from batcher.errors import ConfigError
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.retry import RetryClass, RetryPolicy
from batcher.pricing import Price


def from_text(tmp_path: Path, text: str | bytes, **overrides: Any) -> Settings:
    file = tmp_path / "batcher.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_settings(file, overrides)


FULL = """\
provider: openai-compatible
base_url: http://localhost:8000/v1
api-key-env: MY_KEY            # with a dash, as the flag is spelt
env_file: .env
insecure_http: true
model: my-model
fallback: [a, b]
default_max_completion_tokens: 100
rpm: 1000
tpm: 250000
rpd: 14400
tpd: 500000
itpm: 200000
otpm: 50000
window: bucket
concurrency: 8
batch_size: 64
batch_wait_s: 0.5
fallback_after_s: 60
timeout: 2m
connect_timeout: 1.5s
grace: 0
deadline: 2h
max_runtime: 50m
max_cost: 12.5
retry: {preset: simple, server: {attempts: 7}, network: {longest_wait_s: 10, wait: jitter}, calls: 9}
breaker: {failures_in_a_row: 5, first_wait_s: 1}
prices: {my-model: {input_usd: 0.1, output_usd: 0.4}, o: {input_usd: 1, output_usd: 2, cached_input_usd: 0}}
proxy: http://proxy.internal:3128
ca_file: /etc/ssl/internal.pem
log_level: debug
"""

OTHER_CHOICES = """\
accounts: {team-a: {keys: [KEY_A, KEY_A2], weight: 2}, team-b: {keys: [KEY_B]}}
weights: {m: 0.6, n: 0.4}
service_tier: auto
"""


def test_a_file_may_set_everything(tmp_path: Path) -> None:
    assert from_text(tmp_path, FULL) == Settings(
        provider="openai-compatible",
        base_url="http://localhost:8000/v1",
        api_key_env="MY_KEY",
        env_file=".env",
        insecure_http=True,
        model="my-model",
        fallback=("a", "b"),
        default_max_completion_tokens=100,
        rpm=1000,
        tpm=250_000,
        rpd=14_400,
        tpd=500_000,
        itpm=200_000,
        otpm=50_000,
        window="bucket",
        concurrency=8,
        batch_size=64,
        batch_wait_s=0.5,
        fallback_after_s=60.0,
        timeout=120.0,
        connect_timeout=1.5,
        grace=0.0,
        deadline="2h",
        max_runtime=3000.0,
        max_cost=12.5,
        retry=RetryPolicy(
            timeout=RetryClass(attempts=3, first_wait_s=2.0, wait="doubling"),
            server=RetryClass(attempts=7, wait="fixed"),
            network=RetryClass(longest_wait_s=10, wait="jitter"),
            rate_limit=RetryClass(attempts=10, longest_wait_s=60.0, wait="doubling"),
            calls=9,
        ),
        breaker=BreakerPolicy(failures_in_a_row=5, first_wait_s=1),
        prices={
            "my-model": Price(input_usd=0.1, output_usd=0.4),
            "o": Price(input_usd=1, output_usd=2, cached_input_usd=0),
        },
        proxy="http://proxy.internal:3128",
        ca_file="/etc/ssl/internal.pem",
        log_level="debug",
    )
    said = {line.split(":")[0].replace("-", "_") for line in (FULL + OTHER_CHOICES).splitlines()}
    assert said == set(Settings.__struct_fields__)


def test_what_stands_in_place_of_a_single_key_and_a_single_model(tmp_path: Path) -> None:
    assert from_text(tmp_path, OTHER_CHOICES) == Settings(
        accounts={
            "team-a": AccountSettings(keys=("KEY_A", "KEY_A2"), weight=2.0),
            "team-b": AccountSettings(keys=("KEY_B",)),
        },
        weights={"m": 0.6, "n": 0.4},
        service_tier="auto",
    )


def test_what_each_is_right_may_not_fit_together(tmp_path: Path) -> None:
    file = tmp_path / "batcher.yaml"
    for name, value, message in (
        ("model", "m", ":2 sets weights, and the options set model; both are for lines that name no model"),
        ("api_key_env", "K", ":1 sets accounts, and the options set api_key_env; both say where keys are"),
        (
            "base_url",
            "http://h/v1",
            ":3 sets service_tier, and the options set base_url; only groq has tiers",
        ),
        ("provider", "openai-compatible", "the options set provider to openai-compatible, which needs"),
    ):
        with pytest.raises(ConfigError) as caught:
            from_text(tmp_path, OTHER_CHOICES, **{name: value})
        assert str(caught.value).startswith((f"{file}{message}", message))


def test_both_places_are_named_in_either_order(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, "rpm: 1\nmodel: a\n", weights={"m": 1})
    file = tmp_path / "batcher.yaml"
    assert f"the options set weights, and {file}:2 sets model; " in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, "weights: {m: 1}\nmodel: a\n", model="b", weights={"m": 2})
    assert "the options set weights, and the options set model; " in str(caught.value)


def test_what_an_option_takes_back_does_not_clash(tmp_path: Path) -> None:
    assert from_text(tmp_path, "weights: {m: 1}\n", weights={}, model="a").model == "a"


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert from_text(tmp_path, text) == Settings() == load_settings(None, {})


def test_overrides_win_and_none_is_no_override(tmp_path: Path) -> None:
    settings = from_text(tmp_path, "rpm: 5\nmodel: a\n", rpm=7, model=None, timeout="90")
    assert (settings.rpm, settings.model, settings.timeout) == (7, "a", 90.0)


def test_an_override_completes_what_the_file_leaves_open(tmp_path: Path) -> None:
    settings = from_text(tmp_path, "provider: openai-compatible\n", base_url="http://localhost/v1")
    assert settings.base_url == "http://localhost/v1"


REFUSED: dict[str, tuple[str, str]] = {
    "a key in place of its variable": (
        "accounts: {a: {keys: [gsk_0123]}}",
        "accounts.a.keys: expected names of",
    ),
    "a variable twice": ("accounts: {a: {keys: [K]}, b: {keys: [K]}}", "accounts.b.keys: K is named twice"),
    "an account without keys": (
        "accounts: {a: {keys: []}}",
        "accounts.a.keys: expected a list [a, b] of 1 or more, got an empty list",
    ),
    "a strange account name": ("accounts: {'a b': {keys: [K]}}", "accounts: 'a b' is no name"),
    "a typo in an account": ("accounts: {a: {keys: [K], wieght: 2}}", "did you mean 'weight'"),
    "a weight of nothing": ("weights: {m: 0}", "weights.m: expected a number above 0, got 0"),
    "an endless weight": ("weights: {m: .inf}", "weights.m: expected a number above 0, got inf"),
    "unknown key": ("modle: x", "unknown key 'modle'; did you mean 'model'?"),
    "unlike any key": ("zzz: 1", "unknown key 'zzz'; known are provider, base_url, "),
    "a key in the file": ("api_key: gsk_secret", "unknown key 'api_key'; did you mean 'api_key_env'?"),
    "nested": ("retry: {sever: {}}", "unknown key 'retry.sever'; did you mean 'server'?"),
    "a number of no class": ("retry: {attempts: 3}", "unknown key 'retry.attempts'; known are network, "),
    "nested twice": (
        "retry: {server: {attempt: 1}}",
        "unknown key 'retry.server.attempt'; did you mean 'attempts'?",
    ),
    "no such preset": ("retry: {preset: hard}", "retry.preset: expected standard or simple, got 'hard'"),
    "no preset at all": ("retry: {preset: [simple]}", "retry.preset: expected standard or simple, got ["),
    "not a class": ("retry: {server: 5}", "retry.server: expected `name: value` pairs, got 5"),
    "no such wait": (
        "retry: {server: {wait: long}}",
        "retry.server.wait: expected doubling or fixed or jitter, got 'long'",
    ),
    "nested breaker": ("breaker: {window: 1}", "unknown key 'breaker.window'; did you mean 'window_s'?"),
    "nested price": ("prices: {m: {input: 1}}", "unknown key 'prices.m.input'; did you mean 'input_usd'?"),
    "half a price": ("prices: {m: {input_usd: 1}}", "prices.m: output_usd is missing"),
    "not a section": ("retry: 5", "retry: expected `name: value` pairs, got 5"),
    "text for a number": ("rpm: '5'", "rpm: expected a whole number from 1 on, got '5'"),
    "a flag for a number": ("rpm: true", "rpm: expected a whole number from 1 on, got true"),
    "no requests": ("rpm: 0", "rpm: expected a whole number from 1 on, got 0"),
    "no concurrency": ("concurrency: 0", "concurrency: expected a whole number from 1 on, got 0"),
    "no such provider": (
        "provider: grok",
        "provider: expected groq or openai-compatible, got 'grok'",
    ),
    "no such level": ("log_level: loud", "expected debug or error or info or warning, got 'loud'"),
    "no duration": ("timeout: soon", "timeout: 'soon' is not a duration; write seconds or 90s, 15m, 2h, 1d"),
    "no time at all": (
        "timeout: 0",
        "timeout: expected a duration (90, 15m, 2h) above 0 and up to 30d, got 0",
    ),
    "endless": ("timeout: .inf", "above 0 and up to 30d, got inf"),
    "not a number": ("timeout: .nan", "above 0 and up to 30d, got nan"),
    "negative grace": ("grace: -1", "grace: expected a duration (90, 15m, 2h) from 0 to 30d, got -1"),
    "no deadline": ("deadline: soon", "deadline: 'soon' is neither a duration (90, 15m, 2h) nor an ISO time"),
    "a flag as deadline": ("deadline: true", "deadline: 'True' is neither"),
    "a proxy without scheme": ("proxy: user:secret@host:3128", "proxy: expected an address that begins with"),
    "a proxy that would be passed over": (
        "proxy: sokcs5://host",
        "begins with http://, https:// or socks5://",
    ),
    "no such window": ("window: sliding", "window: expected any or bucket, got 'sliding'"),
    "no such tier": ("service_tier: slow", "service_tier: expected auto or flex or on_demand, got 'slow'"),
    "a wait too long for a batch": ("batch_wait_s: 11m", "(90, 15m, 2h) from 0 to 10m, got '11m'"),
    "no wait": ("fallback_after_s: soon", "fallback_after_s: 'soon' is not a duration; write seconds or 90s"),
    "no wait inside": (
        "retry: {server: {first_wait_s: x}}",
        "retry.server.first_wait_s: 'x' is not a duration",
    ),
    "per cent": (
        "breaker: {failure_rate: 50}",
        "failure_rate: expected a number above 0 and up to 1, got 50",
    ),
    "no rate": ("breaker: {failure_rate: 0}", "failure_rate: expected a number above 0 and up to 1, got 0"),
    "no failures": ("breaker: {failures_in_a_row: 0}", "expected a whole number from 1 on, got 0"),
    "a window of no second": ("breaker: {window_s: 0.5}", "breaker.window_s: expected a duration"),
    "an outage without waits": ("breaker: {first_wait_s: 0}", "(90, 15m, 2h) above 0 and up to 30d, got 0"),
    "a breaker that opens for less": (
        "breaker: {first_wait_s: 10m}",
        "breaker.first_wait_s: 600 is longer than longest_wait_s, 300: change one",
    ),
    "a wait cut by another": (
        "retry: {server: {wait: fixed, first_wait_s: 60}}",
        "retry.server.first_wait_s: 60 is longer than longest_wait_s, 30: change one",
    ),
    "no attempt": (
        "retry: {timeout: {attempts: 0}}",
        "retry.timeout.attempts: expected a whole number from 1 on, got 0",
    ),
    "no call": ("retry: {calls: 0}", "retry.calls: expected a whole number from 1 on, got 0"),
    "nan wait": (
        "retry: {server: {first_wait_s: .nan}}",
        "retry.server.first_wait_s: expected a duration (90, 15m, 2h) from 0 to 30d, got nan",
    ),
    "no time for a probe": (
        "breaker: {probe_timeout_s: 0}",
        "breaker.probe_timeout_s: expected a duration (90, 15m, 2h) from 1 to 30d, got 0",
    ),
    "endless wait": ("breaker: {longest_wait_s: .inf}", "breaker.longest_wait_s: expected a duration"),
    "negative price": (
        "prices: {m: {input_usd: -1, output_usd: 1}}",
        "prices.m.input_usd: expected a number",
    ),
    "a provider without an address": (
        "provider: openai-compatible",
        "batcher.yaml:1 sets provider to openai-compatible, which needs base_url, e.g. http://localhost:8000/v1",
    ),
    "a list": ("- 1", "expected `name: value` lines, such as `model: openai/gpt-oss-20b`"),
    "a word": ("model", "expected `name: value` lines"),
    "numbers as names": ("1: 2", "expected `name: value` lines"),
    "not YAML": ("a: 1\nb: {", "batcher.yaml:2: not YAML: expected the node content"),
    "an alias": ("model: &x y\nfallback: [*x]", "YAML aliases (*name) are not taken: write the value out"),
    "a python tag": ("model: !!python/object/apply:os.getcwd []", "batcher.yaml:1: not YAML: could not"),
    "an unknown tag": ("model: !env KEY", "batcher.yaml:1: not YAML: could not determine a constructor"),
    "deep": ("[" * 500, "not YAML: "),
    "a date that is none": ("deadline: 2026-13-01", "not YAML: month must be in 1..12"),
    "a flag that is none": ("insecure_http: !!bool x", "not YAML: 'x'"),
    "a time that is none": ("deadline: !!timestamp x", "not YAML: "),
    "beyond arithmetic": ("rpm: 0x" + "f" * 5000, "from 1 on, got a number of more than 64 bits"),
    "two documents": ("model: a\n---\nmodel: b", "not YAML: but found another document"),
    "not text": ("model: \0", "not YAML: "),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_makes_no_sense_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_text(tmp_path, text)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "batcher.yaml"))


@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h", "HTTP"])
def test_proxies_that_are_known(scheme: str) -> None:
    assert load_settings(None, {"proxy": f"{scheme}://host:3128"}).proxy == f"{scheme}://host:3128"


def test_a_bad_override_is_blamed_on_the_options_and_not_on_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^the options: timeout: 'x' is not a duration"):
        from_text(tmp_path, "rpm: 5", timeout="x")
    with pytest.raises(ConfigError, match=r"^the options: unknown key 'modle'; did you mean 'model'\?"):
        load_settings(None, {"modle": "x"})


@pytest.mark.parametrize("name", ["gsk_0123456789abcdef", "sk-0123456789", "MY KEY", ""])
def test_a_key_in_place_of_its_variable_is_refused_and_not_shown(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(None, {"api_key_env": name})
    assert "expected the name of a variable" in str(caught.value)
    assert "0123" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "deadline"),
    [
        ("90", "90"),
        ("2026-12-24T18:00", "2026-12-24T18:00"),
        ("2026-12-24T18:00:00Z", "2026-12-24 18:00:00+00:00"),
        ("2026-12-24", "2026-12-24"),
    ],
    ids=["number", "text", "YAML time", "YAML date"],
)
def test_deadlines_may_be_written_bare_in_yaml(tmp_path: Path, text: str, deadline: str) -> None:
    assert from_text(tmp_path, f"deadline: {text}\n").deadline == deadline


@pytest.mark.parametrize(
    ("given_settings", "provider", "variable"),
    [
        ({}, "groq", "GROQ_API_KEY"),
        ({"base_url": "http://localhost/v1"}, "openai-compatible", "OPENAI_API_KEY"),
        ({"base_url": "https://proxy.example/groq", "provider": "groq"}, "groq", "GROQ_API_KEY"),
        ({"api_key_env": "MINE"}, "groq", "MINE"),
    ],
    ids=["default", "an address", "Groq elsewhere", "own variable"],
)
def test_who_answers_and_where_the_key_is(
    given_settings: dict[str, str], provider: str, variable: str
) -> None:
    settings = load_settings(None, given_settings)
    assert (settings.provider_name, settings.key_variable) == (provider, variable)


@pytest.mark.parametrize("name", ["proxy", "base_url"])
@pytest.mark.parametrize("password", ["secret", "se@cret", "se/cret", "se:cret@"])
def test_passwords_in_addresses_are_masked(name: str, password: str) -> None:
    settings = load_settings(None, {name: f"http://user:{password}@host.example:3128/path"})
    text = shown(settings)
    assert "cret" not in text
    assert yaml.safe_load(text)[name] == "http://***@host.example:3128/path"


DURATIONS = """\
fallback_after_s: 30s
batch_wait_s: 1.5s
retry: {longest_asked_wait_s: 2m, server: {first_wait_s: 2s, longest_wait_s: 1m}}
breaker: {window_s: 2m, longest_wait_s: 10m}
"""


def test_all_times_may_be_written_as_durations(tmp_path: Path) -> None:
    assert from_text(tmp_path, DURATIONS) == Settings(
        fallback_after_s=30.0,
        batch_wait_s=1.5,
        retry=RetryPolicy(
            longest_asked_wait_s=120.0, server=RetryClass(first_wait_s=2.0, longest_wait_s=60.0)
        ),
        breaker=BreakerPolicy(window_s=120.0, longest_wait_s=600.0),
    )


@pytest.mark.parametrize("text", [FULL, DURATIONS, "retry: {preset: simple}"])
def test_what_is_shown_can_be_read_again(tmp_path: Path, text: str) -> None:
    settings = from_text(tmp_path, text)
    again = from_text(tmp_path, shown(settings))
    assert again == msgspec.structs.replace(
        settings, provider=settings.provider_name, api_key_env=settings.key_variable
    )


def test_accounts_that_are_shown_can_be_read_again(tmp_path: Path) -> None:
    settings = from_text(tmp_path, OTHER_CHOICES)
    assert from_text(tmp_path, shown(settings)) == msgspec.structs.replace(settings, provider="groq")
