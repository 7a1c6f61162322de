"""Settings from file, environment and flags, made into one typed value and checked together.

A later source wins: defaults, the YAML file, `BATCHER_*` variables, flags. (The command line reads the
variables along with the flags.)
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import msgspec
import yaml

from batcher.errors import ConfigError
from batcher.jobs.lines import LineDefaults
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.retry import RetryClass, RetryPolicy
from batcher.limits.retry_presets import on_preset
from batcher.pricing import Price
from batcher.text.durations import deadline_in_s, duration_s

ProviderName: TypeAlias = Literal["groq", "openai-compatible"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]

MAX_FILE_BYTES = 1024 * 1024
_LONGEST_S = 30 * 86400
_DURATIONS = ("timeout", "grace", "connect_timeout", "max_runtime")
_CHOICES = {"provider": get_args(ProviderName), "log_level": get_args(LogLevel)}
_PROXY = re.compile(r"(https?|socks5h?)://.+", re.IGNORECASE)
_ACCOUNT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_VARIABLE = re.compile(r"(?!gsk_)[A-Za-z_][A-Za-z0-9_]*")


class AccountSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The owner of a quota, such as an organisation at Groq.

    Attributes:
        keys: variables that hold keys of this account; all of them draw on the same quota.
        weight: how large a share of the work the account takes while others have room, too.
    """

    keys: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    weight: Annotated[float, msgspec.Meta(gt=0)] = 1.0


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a run is to be done; the names are those of the flags and of the keys in the YAML file.

    Attributes:
        provider: who answers; None is `groq`, or `openai-compatible` where `base_url` is given.
        base_url: the API's address; None is the provider's own.
        api_key_env: the variable that holds the key; None is the provider's usual one.
        env_file: a file of `NAME=value` lines to look for the key in, too.
        insecure_http: allow plain http to other machines.
        accounts: whose quota is used, by name; none is one account with the key of `api_key_env`.
        model: for lines that name none.
        weights: models for lines that name none, each taking its share of them.
        service_tier: Groq's tier for all calls; `auto` uses flex for what on_demand cannot take.
        fallback: models for lines that name no fallback of their own.
        fallback_after_s: jobs that have a fallback take it once their model's lane is held up for longer.
        default_max_completion_tokens: for short lines that set no maximum.
        rpm: requests a minute, per model.
        tpm: tokens a minute, per model.
        rpd: requests a day, per model.
        tpd: tokens a day, per model.
        itpm: input tokens a minute, per model.
        otpm: output tokens a minute, per model.
        window: `any` keeps minute limits over every 60 s; `bucket` spends Groq's full bucket at the start.
        concurrency: the most calls in flight over the whole run; how many are of use is found out.
        batch_size: queued jobs of equal priority among which those with the same long prefix are grouped.
        batch_wait_s: how long such a group waits for the answer to its first, which fills the prompt cache.
        timeout: seconds for one attempt from its start to the last byte.
        connect_timeout: seconds for a connection to come about.
        grace: seconds that calls in flight may go on after a stop.
        deadline: a duration or an ISO time at which the run ends.
        max_runtime: seconds after which the run ends, however much is left of the deadline.
        max_cost: dollars that the answers of an output may cost, those of earlier runs included.
        retry: how often and how long apart failed calls are tried again, by class of failure.
        breaker: when a failing provider is left alone for a while.
        prices: dollars per million tokens by model, before the built-in tables.
        proxy: URL of a proxy for all calls; proxy variables of the environment are not obeyed.
        ca_file: PEM file with further certificate authorities to trust.
        log_level: what goes to stderr.
    """

    provider: ProviderName | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    env_file: str | None = None
    insecure_http: bool = False
    accounts: dict[str, AccountSettings] = {}
    model: str | None = None
    weights: dict[str, Annotated[float, msgspec.Meta(gt=0)]] = {}
    service_tier: Literal["on_demand", "flex", "auto"] | None = None
    fallback: tuple[str, ...] = ()
    fallback_after_s: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)] = 30.0
    default_max_completion_tokens: Positive | None = None
    rpm: Positive | None = None
    tpm: Positive | None = None
    rpd: Positive | None = None
    tpd: Positive | None = None
    itpm: Positive | None = None
    otpm: Positive | None = None
    window: Literal["any", "bucket"] = "any"
    concurrency: Positive = 256
    batch_size: Positive = 256
    batch_wait_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 2.0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)] = 300.0
    connect_timeout: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)] = 10.0
    grace: Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)] = 60.0
    deadline: str | None = None
    max_runtime: Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)] | None = None
    max_cost: Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None = None
    retry: RetryPolicy = RetryPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    prices: dict[str, Price] = {}
    proxy: str | None = None
    ca_file: str | None = None
    log_level: LogLevel = "warning"

    @property
    def provider_name(self) -> ProviderName:
        """The provider that answers."""
        return self.provider or ("openai-compatible" if self.base_url else "groq")

    @property
    def host(self) -> str:
        """The host of the API's address, "" for the provider's own."""
        return urlsplit(self.base_url).netloc if self.base_url else ""

    @property
    def key_variable(self) -> str:
        """The environment variable that holds the key."""
        usual = "GROQ_API_KEY" if self.provider_name == "groq" else "OPENAI_API_KEY"
        return self.api_key_env or usual


def load_settings(file: Path | None, overrides: Mapping[str, object]) -> Settings:
    """Return the settings of `file` (None: no file) with `overrides` on top; a None override is absent.

    Raises:
        ConfigError: a value or a key makes no sense; the message says where and what would.
    """
    layers = [] if file is None else [(str(file), _read_yaml(file))]
    layers.append(("the options", {name: value for name, value in overrides.items() if value is not None}))
    merged: dict[str, Any] = {}
    for place, values in layers:
        # Each layer by itself, so that a message names the place where the value stands.
        merged |= _understood(values, place)
    settings = msgspec.convert(merged, Settings, strict=True)
    if settings.provider == "openai-compatible" and not settings.base_url:
        raise ConfigError("provider openai-compatible needs base_url, e.g. http://localhost:8000/v1")
    if settings.accounts and settings.api_key_env is not None:
        raise ConfigError("accounts: they name their keys, and so does api_key_env: give one of them")
    if settings.weights and settings.model is not None:
        raise ConfigError(
            "weights: they choose a model for lines that name none, and so does model: give one"
        )
    if settings.service_tier is not None and settings.provider_name != "groq":
        raise ConfigError("service_tier: only groq has tiers; for others set it in the lines' params")
    return settings


def _understood(values: dict[str, Any], place: str) -> dict[str, Any]:
    """Return the values of one place with durations in seconds, once they all make sense."""
    try:
        _check_names(values)
        if isinstance(retry := values.get("retry"), dict):
            values["retry"] = on_preset(retry)
        for name in _DURATIONS:
            if isinstance(text := values.get(name), str):
                values[name] = duration_s(text, name)
        if isinstance(deadline := values.get("deadline"), int | float | date):
            values["deadline"] = str(deadline)
        _check_values(msgspec.convert(values, Settings, strict=True))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{place}: {_in_words(error)}") from None
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from None
    return values


def line_defaults(settings: Settings) -> LineDefaults:
    """Return what stands in for a job line's silence."""
    return LineDefaults(
        model=settings.model,
        fallback=settings.fallback,
        default_max_completion_tokens=settings.default_max_completion_tokens,
        weights=settings.weights,
    )


def shown(settings: Settings) -> str:
    """Return the settings as YAML for `--show-config`; a password in the proxy's address is masked."""
    values: dict[str, Any] = msgspec.to_builtins(settings)
    values["provider"] = settings.provider_name
    values["api_key_env"] = settings.key_variable
    for name in ("proxy", "base_url"):
        if values[name]:
            values[name] = re.sub(r"//.*@", "//***@", values[name])
    text: str = yaml.safe_dump(values, sort_keys=False)
    return text


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    if len(text) > MAX_FILE_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes: is this the configuration file?")
    # Aliases can make a small file enormous once expanded, and a configuration has no use for them.
    try:
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ConfigError(f"{file}: YAML aliases (*name) are not taken: write the value out")
        values = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ConfigError(f"{file}: expected `name: value` lines, such as `model: openai/gpt-oss-20b`")
    return {name.replace("-", "_"): value for name, value in values.items()}


def _check_names(values: dict[str, Any]) -> None:
    """Refuse names that are not known, in the sections, too: a typo must not pass for a setting."""
    sections = [("", values, list(Settings.__struct_fields__))]
    for name, policy in (("retry", RetryPolicy), ("breaker", BreakerPolicy)):
        if isinstance(section := values.get(name), dict):
            known = [field.name for field in fields(policy)] + ["preset"] * (name == "retry")
            sections.append((f"{name}.", section, known))
            known = [field.name for field in fields(RetryClass)]
            sections += [(f"{name}.{inner}.", section[inner], known) for inner in section]
    if isinstance(prices := values.get("prices"), dict):
        known = [field.name for field in fields(Price)]
        sections += [(f"prices.{model}.", price, known) for model, price in prices.items()]
    if isinstance(accounts := values.get("accounts"), dict):
        known = list(AccountSettings.__struct_fields__)
        sections += [(f"accounts.{owner}.", account, known) for owner, account in accounts.items()]
    for prefix, section, known in sections:
        for name in section if isinstance(section, dict) else ():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise ConfigError(f"unknown key {prefix + str(name)!r}; {hint}")


def _in_words(error: msgspec.ValidationError) -> str:
    """Turn `Expected `int`, got `str` - at `$.rpm`` into `rpm: expected int, got str`."""
    what, _, where = str(error).replace("`", "").partition(" - at $.")
    what = what[:1].lower() + what[1:]
    if where in _CHOICES:
        what += f"; expected {' or '.join(_CHOICES[where])}"
    return f"{where}: {what}" if where else what


def _check_values(settings: Settings) -> None:
    if settings.deadline is not None:
        deadline_in_s(settings.deadline, datetime.now(UTC))
    if settings.api_key_env is not None and not _VARIABLE.fullmatch(settings.api_key_env):
        # Whatever stands there may be the key, so it is not shown.
        raise ConfigError("api_key_env: expected the name of a variable, such as GROQ_API_KEY, not a key")
    if settings.accounts:
        _check_accounts(settings)
    if settings.weights and settings.model is not None:
        raise ConfigError(
            "weights: they choose the model where a line names none, and so does model: give one"
        )
    if settings.service_tier is not None and settings.provider_name != "groq":
        raise ConfigError("service_tier: only groq has service tiers; lines may set it in their params")
    if settings.proxy is not None and not _PROXY.fullmatch(settings.proxy):
        # An unknown scheme would be passed over and the calls made without a proxy. It may hold a password.
        raise ConfigError("proxy: expected an address that begins with http://, https:// or socks5://")
    for name, value, lowest in _numbers(settings):
        if not lowest <= value < math.inf:
            raise ConfigError(f"{name}: expected a number from {lowest} on, got {value}")


def _check_accounts(settings: Settings) -> None:
    seen: set[str] = set()
    for name, account in settings.accounts.items():
        if not _ACCOUNT.fullmatch(name):
            raise ConfigError(f"accounts: {name!r} is no name: expected letters, digits, '.', '_' and '-'")
        for variable in account.keys:
            if not _VARIABLE.fullmatch(variable):
                # Whatever stands there may be the key, so it is not shown.
                raise ConfigError(f"accounts.{name}.keys: expected names of variables, not keys")
            if variable in seen:
                raise ConfigError(f"accounts.{name}.keys: {variable} is named twice")
            seen.add(variable)


def _numbers(settings: Settings) -> Iterator[tuple[str, float, int]]:
    """Yield name, value and lower bound of each number in the sections."""
    for section, policy in (("retry", settings.retry), ("breaker", settings.breaker)):
        for name, value in asdict(policy).items():
            numbers = value.items() if isinstance(value, dict) else [("", value)]
            for inner, number in numbers:
                if isinstance(number, int | float):
                    least = isinstance(number, int) or name == "probe_timeout_s"
                    yield ".".join(filter(None, (section, name, inner))), number, int(least)
    for model, weight in settings.weights.items():
        yield f"weights.{model}", weight, 0
    for owner, account in settings.accounts.items():
        yield f"accounts.{owner}.weight", account.weight, 0
    for model, price in settings.prices.items():
        for name, value in asdict(price).items():
            if value is not None:
                yield f"prices.{model}.{name}", value, 0
