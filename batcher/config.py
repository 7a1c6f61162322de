"""Settings from file, environment and flags, made into one typed value and checked together.

A later source wins: defaults, the YAML file, `BATCHER_*` variables, flags. (The command line reads the
variables along with the flags.)
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import msgspec
import msgspec.inspect

from batcher.config_source import FINITE, WORKABLE, Keys, Source, dotted, is_duration, read_file
from batcher.errors import ConfigError
from batcher.jobs.lines import LineDefaults
from batcher.limits.breaker import BreakerPolicy
from batcher.limits.retry import ClassName, RetryClass, RetryPolicy
from batcher.limits.retry_presets import on_preset
from batcher.pricing import Price
from batcher.text.durations import deadline_in_s, duration_s

ProviderName: TypeAlias = Literal["groq", "openai-compatible"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=WORKABLE)]

OPTIONS = "the options"

_LONGEST_S = 30 * 86400
_Wait: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=_LONGEST_S)]
_Span: TypeAlias = Annotated[float, msgspec.Meta(ge=1, le=_LONGEST_S)]
_Weight: TypeAlias = Annotated[float, msgspec.Meta(gt=0, le=FINITE)]
_Dollars: TypeAlias = Annotated[float, msgspec.Meta(ge=0, le=FINITE)]
_NUMBERS: Mapping[type, Mapping[str, Any]] = {
    RetryPolicy: {"calls": Positive, "longest_asked_wait_s": _Wait},
    RetryClass: {"attempts": Positive | None, "first_wait_s": _Wait, "longest_wait_s": _Wait},
    BreakerPolicy: {
        "window_s": _Span,
        "minimum_volume": Positive,
        "failure_rate": Annotated[float, msgspec.Meta(gt=0, le=1)],
        "failures_in_a_row": Positive,
        "first_wait_s": Annotated[float, msgspec.Meta(gt=0, le=_LONGEST_S)],
        "longest_wait_s": _Wait,
        "probe_timeout_s": _Span,
        "successes_to_close": Positive,
    },
    Price: {"input_usd": _Dollars, "output_usd": _Dollars, "cached_input_usd": _Dollars | None},
}
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
    weight: _Weight = 1.0


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
    weights: dict[str, _Weight] = {}
    service_tier: Literal["on_demand", "flex", "auto"] | None = None
    fallback: tuple[str, ...] = ()
    fallback_after_s: _Wait = 30.0
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
    grace: _Wait = 60.0
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
    given = {name: value for name, value in overrides.items() if value is not None}
    sources = [] if file is None else [read_file(file)]
    sources.append(Source(name=OPTIONS, values=given))
    merged: dict[str, Any] = {}
    for source in sources:
        # Each by itself, so that a message names the place where the value stands.
        merged |= _understood(source)
    settings = msgspec.convert(merged, Settings, strict=True)
    _check_together(settings, sources)
    return settings


def _understood(source: Source) -> dict[str, Any]:
    """Return the values of one place with durations in seconds, once each of them makes sense."""
    _check_names(source)
    values = _in_seconds(source, dict(source.values))
    if isinstance(retry := values.get("retry"), dict):
        try:
            values["retry"] = on_preset(retry)
        except ConfigError as error:
            raise source.error(("retry", "preset"), str(error)) from None
    if isinstance(deadline := values.get("deadline"), int | float | date):
        values["deadline"] = str(deadline)
    try:
        settings = msgspec.convert(values, Settings, strict=True)
    except msgspec.ValidationError as error:
        raise source.refused(error, values, Settings) from None
    _check_values(settings, source)
    return values


def _in_seconds(source: Source, values: dict[str, Any], keys: Keys = ()) -> dict[str, Any]:
    """Return the values with the durations that are text in seconds, in `retry` and `breaker`, too."""
    for name, value in values.items():
        inner = (*keys, name)
        if isinstance(value, dict) and inner[0] in ("retry", "breaker"):
            values[name] = _in_seconds(source, dict(value), inner)
        elif isinstance(value, str) and is_duration(name):
            try:
                values[name] = duration_s(value, dotted(inner))
            except ConfigError as error:
                raise source.error(inner, str(error)) from None
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
    import yaml  # noqa: PLC0415 - takes 10 ms

    values: dict[str, Any] = msgspec.to_builtins(settings)
    values["provider"] = settings.provider_name
    if not settings.accounts:
        values["api_key_env"] = settings.key_variable
    for name in ("proxy", "base_url"):
        if values[name]:
            values[name] = re.sub(r"//.*@", "//***@", values[name])
    text: str = yaml.safe_dump(values, sort_keys=False)
    return text


def _check_names(source: Source) -> None:
    """Refuse names that are not known, in the sections, too: a typo must not pass for a setting."""
    values = source.values
    sections: list[tuple[Keys, Any, list[str]]] = [((), values, list(Settings.__struct_fields__))]
    for name, policy in (("retry", RetryPolicy), ("breaker", BreakerPolicy)):
        if isinstance(section := values.get(name), dict):
            known = [field.name for field in fields(policy)] + ["preset"] * (name == "retry")
            sections.append(((name,), section, known))
            known = [field.name for field in fields(RetryClass)]
            sections += [((name, inner), section[inner], known) for inner in section]
    if isinstance(prices := values.get("prices"), dict):
        known = [field.name for field in fields(Price)]
        sections += [(("prices", model), price, known) for model, price in prices.items()]
    if isinstance(accounts := values.get("accounts"), dict):
        known = list(AccountSettings.__struct_fields__)
        sections += [(("accounts", owner), account, known) for owner, account in accounts.items()]
    for keys, section, known in sections:
        for name in section if isinstance(section, dict) else ():
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
                raise source.error((*keys, name), f"unknown key {dotted((*keys, str(name)))!r}; {hint}")


def _check_values(settings: Settings, source: Source) -> None:
    if settings.deadline is not None:
        try:
            deadline_in_s(settings.deadline, datetime.now(UTC))
        except ConfigError as error:
            raise source.error(("deadline",), str(error)) from None
    if settings.api_key_env is not None and not _VARIABLE.fullmatch(settings.api_key_env):
        # Whatever stands there may be the key, so it is not shown.
        what = "expected the name of a variable, such as GROQ_API_KEY, not a key"
        raise source.refusal(("api_key_env",), what)
    if settings.proxy is not None and not _PROXY.fullmatch(settings.proxy):
        # An unknown scheme would be passed over and the calls made without a proxy. It may hold a password.
        what = "expected an address that begins with http://, https:// or socks5://"
        raise source.refusal(("proxy",), what)
    _check_accounts(settings, source)
    _check_numbers(settings, source)


def _check_accounts(settings: Settings, source: Source) -> None:
    seen: set[str] = set()
    for name, account in settings.accounts.items():
        if not _ACCOUNT.fullmatch(name):
            what = f"accounts: {name!r} is no name: expected letters, digits, '.', '_' and '-'"
            raise source.error(("accounts", name), what)
        for position, variable in enumerate(account.keys):
            keys = ("accounts", name, "keys")
            if not _VARIABLE.fullmatch(variable):
                # Whatever stands there may be the key, so it is not shown.
                what = f"{dotted(keys)}: expected names of variables, not keys"
                raise source.error((*keys, position), what)
            if variable in seen:
                raise source.error((*keys, position), f"{dotted(keys)}: {variable} is named twice")
            seen.add(variable)


def _check_numbers(settings: Settings, source: Source) -> None:
    """Refuse numbers of the sections with which nothing would ever be tried, opened or waited for."""
    parts: list[tuple[Keys, Any]] = [(("retry",), settings.retry), (("breaker",), settings.breaker)]
    parts += [(("retry", name), settings.retry.of(name)) for name in get_args(ClassName)]
    parts += [(("prices", model), price) for model, price in settings.prices.items()]
    for keys, part in parts:
        for name, kind in _NUMBERS[type(part)].items():
            try:
                msgspec.convert(getattr(part, name), kind)
            except msgspec.ValidationError:
                raise source.refused_value((*keys, name), msgspec.inspect.type_info(kind)) from None
        if isinstance(part, RetryClass | BreakerPolicy) and part.first_wait_s > part.longest_wait_s:
            what = f"{part.first_wait_s:g} is longer than longest_wait_s, {part.longest_wait_s:g}: change one"
            raise source.refusal((*keys, "first_wait_s"), what)


def _check_together(settings: Settings, sources: Sequence[Source]) -> None:
    """Refuse values of which each makes sense, but not beside the other."""

    def says(name: str) -> str:
        source = next(source for source in reversed(sources) if name in source.values)
        return f"{source.where((name,))} {'set' if source.name == OPTIONS else 'sets'} {name}"

    if settings.provider == "openai-compatible" and not settings.base_url:
        raise ConfigError(
            f"{says('provider')} to openai-compatible, which needs base_url, e.g. http://localhost:8000/v1"
        )
    if settings.accounts and settings.api_key_env is not None:
        raise ConfigError(f"{says('accounts')}, and {says('api_key_env')}; both say where keys are: drop one")
    if settings.weights and settings.model is not None:
        raise ConfigError(
            f"{says('weights')}, and {says('model')}; both are for lines that name no model: drop one"
        )
    if settings.service_tier is not None and settings.provider_name != "groq":
        other = says("provider" if settings.provider else "base_url")
        raise ConfigError(
            f"{says('service_tier')}, and {other}; only groq has tiers: others take one in params"
        )
