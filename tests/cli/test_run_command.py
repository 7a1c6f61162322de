"""`batcher run`: where its settings come from, where its results go, and what it says."""

import json
import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from command_line import Ended, call, simulator_thread

from batcher.cli.run import output_path, run
from batcher.config import Settings
from batcher.providers.simulator.fault_plan import FaultPlan
from batcher.providers.simulator.settings import SimulatorSettings

JOB = '{"id":"a","model":"m","prompt":"hi"}\n'
OPTIONS = [param for param in run.params if isinstance(param, click.Option)]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory with one job in `jobs.jsonl`."""
    (tmp_path / "jobs.jsonl").write_text(JOB)
    return tmp_path


def settings_of(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended
    values = yaml.safe_load(ended.stdout)
    assert isinstance(values, dict)
    return values


def test_flags_win_over_variables_and_those_over_the_file(here: Path) -> None:
    (here / "c.yaml").write_text("rpm: 1\ntpm: 1\nconcurrency: 1\ntimeout: 1m\n")
    command = ["run", "jobs.jsonl", "--show-config", "-c", "c.yaml", "--rpm", "3"]
    values = settings_of(call(*command, cwd=here, BATCHER_RPM="2", BATCHER_TPM="2", BATCHER_TIMEOUT="2m"))
    assert [values[name] for name in ("rpm", "tpm", "concurrency", "timeout")] == [3, 2, 1, 120.0]


def test_the_file_may_be_named_by_variable(here: Path) -> None:
    (here / "c.yaml").write_text("rpm: 7\n")
    ended = call("run", "jobs.jsonl", "--show-config", cwd=here, BATCHER_CONFIG="c.yaml")
    assert settings_of(ended)["rpm"] == 7


def test_a_file_that_lies_around_is_mentioned_and_not_read(here: Path) -> None:
    (here / "batcher.yaml").write_text("base_url: https://elsewhere.example/v1\nno such key: 1\n")
    ended = call("run", "jobs.jsonl", "--simulate", cwd=here)
    assert ended.code == 0
    assert ended.stderr.startswith("./batcher.yaml is not read without -c batcher.yaml\n")
    assert call("run", "jobs.jsonl", "--simulate", "-q", cwd=here) == Ended(0, "", "")


VALUES = {
    "output": "x.jsonl",
    "provider": "groq",
    "base_url": "http://localhost/v1",
    "api_key_env": "MINE",
    "env_file": ".env",
    "insecure_http": "1",
    "timeout": "90",
    "model": "m",
    "rpm": "5",
    "tpm": "6",
    "concurrency": "7",
    "deadline": "2h",
    "max_runtime": "2400",
    "max_cost": "5.5",
    "grace": "8",
    "limit": "9",
    "retry_failed": "1",
    "on_changed": "keep",
    "fresh": "1",
    "strict": "1",
    "simulate": "1",
    "log_level": "debug",
    "show_config": "1",
    "as_json": "1",
    "quiet": "1",
    "config": "c.yaml",
}


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_may_be_set_by_a_variable(option: click.Option) -> None:
    assert option.name is not None
    long = max(option.opts, key=len)
    assert option.envvar == "BATCHER_" + long.removeprefix("--").replace("-", "_").upper()
    by_flag = [long] if option.is_flag else [long, VALUES[option.name]]
    parsed = [
        run.make_context("run", [*args, "jobs.jsonl"], auto_envvar_prefix=None).params
        for args in _with_variable(option.envvar, VALUES[option.name], by_flag)
    ]
    assert parsed[0] == parsed[1]
    assert parsed[0] != run.make_context("run", ["jobs.jsonl"]).params


def _with_variable(name: str, value: str, by_flag: list[str]) -> Any:
    yield by_flag
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield []


def test_variables_alone_may_set_everything(here: Path) -> None:
    (here / "c.yaml").write_text("model: from-the-file\nca_file: ca.pem\n")
    environ = {str(option.envvar): VALUES[option.name or ""] for option in OPTIONS}
    values = settings_of(call("run", "jobs.jsonl", cwd=here, **environ))
    assert values["ca_file"] == "ca.pem"
    assert values["insecure_http"] is True
    shown = {name: text for name, text in VALUES.items() if name in values and name != "insecure_http"}
    assert {name: str(values[name]).removesuffix(".0") for name in shown} == shown
    assert set(values) == set(Settings.__struct_fields__)


def test_what_is_shown_hides_passwords_and_keys(here: Path) -> None:
    (here / "c.yaml").write_text("proxy: http://user:sesame@proxy.example:3128\n")
    environ = {"GROQ_API_KEY": "gsk_sesame", "OPENAI_API_KEY": "sk-sesame"}
    ended = call("run", "jobs.jsonl", "--show-config", "-c", "c.yaml", cwd=here, **environ)
    assert settings_of(ended)["proxy"] == "http://***@proxy.example:3128"
    assert "sesame" not in ended.stdout + ended.stderr
    assert {path.name for path in here.iterdir()} == {"c.yaml", "jobs.jsonl"}


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        ([], 2, "Missing argument 'FILE...'"),
        (["jobs.jsonl", "--template", "t"], 2, "No such option '--template'"),
        (["jobs.jsonl", "--max-cost", "0"], 2, "'--max-cost': expected a number above 0, got '0'"),
        (["jobs.jsonl", "--max-cost", "inf"], 2, "expected a number above 0, got 'inf'"),
        (["jobs.jsonl", "--max-cost", "nan"], 2, "expected a number above 0, got 'nan'"),
        (["jobs.jsonl", "--max-cost", "$5"], 2, "expected a number above 0, got '$5'"),
        (["jobs.jsonl", "--rpm", "lots"], 2, "'--rpm': expected a whole number from 1 on, got 'lots'"),
        (["jobs.jsonl", "--tpm", "1.5"], 2, "'--tpm': expected a whole number from 1 on, got '1.5'"),
        (
            ["jobs.jsonl", "--max-cost", "5", "--base-url", "http://127.0.0.1:9/v1"],
            78,
            "the price of m is unknown, so no budget can hold",
        ),
        (["jobs.jsonl", "--concurrency", "0"], 2, "expected a whole number from 1 on, got '0'"),
        (["jobs.jsonl", "--limit", "0"], 2, "'--limit': expected a whole number from 1 on, got '0'"),
        (["jobs.jsonl", "--on-changed", "ask"], 2, "'ask' is not one of 'error', 'rerun', 'keep'"),
        (["jobs.jsonl", "-o", "x.json"], 2, "batcher: x.json: a result file's name ends in .jsonl"),
        (["jobs.jsonl", "-o", "x.errors.jsonl"], 2, "the name of a side file of another output"),
        (["jobs.jsonl", "-o", "{home}.jsonl"], 2, "only {date}, {time}, {run_id}, {stem} are filled in"),
        (["jobs.jsonl", "-o", "{.jsonl"], 2, "only {date}, {time}, {run_id}, {stem} are filled in"),
        (["-"], 2, "name the result file with -o"),
        (["jobs.jsonl", "jobs.jsonl"], 2, "name the result file with -o"),
        (["nope.jsonl", "--simulate"], 66, "batcher: nope.jsonl: No such file or directory; check the name"),
        (["jobs.jsonl"], 78, "set GROQ_API_KEY"),
        (["jobs.jsonl"], 78, "to try without a key, use --simulate"),
        (["jobs.jsonl", "-c", "nope.yaml"], 78, "batcher: nope.yaml: cannot be read"),
        (["jobs.jsonl", "--timeout", "soon"], 2, "'--timeout': duration: 'soon' is not a duration"),
        (["jobs.jsonl", "--deadline", "soon"], 2, "'--deadline': deadline: 'soon' is neither"),
        (["jobs.jsonl", "--deadline", "2020-01-01"], 2, "has passed already: choose a later time"),
        (["jobs.jsonl", "--base-url", "http://203.0.113.5/v1"], 78, "plain http would show the key"),
        (["jobs.jsonl", "--base-url", "https://host.example/v1"], 78, "set OPENAI_API_KEY"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_run_says_why(here: Path, args: list[str], code: int, message: str) -> None:
    ended = call("run", *args, cwd=here)
    assert (ended.code, ended.stdout) == (code, "")
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("given", "files", "path"),
    [
        (None, ["jobs.jsonl"], "results/jobs.jsonl"),
        (None, ["a/b/jobs.v2.jsonl"], "results/jobs.v2.jsonl"),
        (None, ["jobs.jsonl.gz"], "results/jobs.jsonl"),
        (None, ["jobs.v2.jsonl.zst"], "results/jobs.v2.jsonl"),
        (None, ["jobs"], "results/jobs.jsonl"),
        ("x.jsonl", ["a", "b"], "x.jsonl"),
        ("x.jsonl", ["-"], "x.jsonl"),
        ("out/{stem}/{run_id}.jsonl", ["a/jobs.jsonl.gz"], "out/jobs/0123abcd.jsonl"),
    ],
)
def test_where_results_go(given: str | None, files: list[str], path: str) -> None:
    assert output_path(given, tuple(files), "0123abcd") == Path(path)


def test_date_and_time_are_filled_in() -> None:
    path = output_path("{date}/{time}.jsonl", ("jobs.jsonl",), "0123abcd")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d/\d{6}\.jsonl", str(path))


def test_a_dash_streams_to_stdout() -> None:
    assert output_path("-", ("a", "b"), "0123abcd") is None


def test_a_run_says_what_it_did_and_the_same_again_has_nothing_to_do(here: Path) -> None:
    first = call("run", "jobs.jsonl", "--simulate", cwd=here)
    assert (first.code, first.stdout) == (0, "")
    assert re.fullmatch(
        r"1 job to run\n"
        r"1 answered in \d+\.\d s \(.*/s\); 1 call, .*cost \$0\.0000\n"
        r"results: results/jobs.jsonl\n",
        first.stderr,
    )
    again = call("run", "jobs.jsonl", "--simulate", cwd=here)
    assert again.code == 0
    assert again.stderr.startswith("nothing to run, 1 answered before\n")


def test_the_summary_as_json_is_the_summary_file(here: Path) -> None:
    ended = call("run", "jobs.jsonl", "--simulate", "--json", "-q", cwd=here)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.count("\n") == 1
    assert json.loads(ended.stdout) == json.loads((here / "results" / "jobs.summary.json").read_bytes())


def test_bad_lines_are_named_even_if_quiet(here: Path) -> None:
    (here / "jobs.jsonl").write_text(JOB + "{\n")
    ended = call("run", "jobs.jsonl", "--simulate", "-q", cwd=here)
    assert (ended.code, ended.stdout) == (3, "")
    assert ended.stderr.startswith("jobs.jsonl:2: ")
    assert "1 answered, 1 bad line in" in ended.stderr


def test_an_early_end_says_how_to_go_on(here: Path) -> None:
    ended = call("run", "jobs.jsonl", "--simulate", "-q", "--deadline", "0.000001", cwd=here)
    assert ended.code == 75
    assert ended.stderr == "batcher: the run's deadline has passed; nothing was sent yet\n"


def test_a_long_limit_says_when_to_go_on(here: Path) -> None:
    plan = FaultPlan(by_id={"hi": ("429-day",)})
    with simulator_thread(SimulatorSettings(faults=plan)) as server:
        ended = call("run", "jobs.jsonl", "--base-url", f"{server.url}/v1", "--json", cwd=here)
    assert ended.code == 75
    content = json.loads(ended.stdout)
    assert f"run the same command again after {content['resume_at']}" in ended.stderr


def test_foreign_text_cannot_steer_the_terminal(here: Path) -> None:
    (here / "jobs.jsonl").write_text(JOB + '{"id":"b","model":"m","prompt":"x","\x1b]0;evil\x07\u202e":1}\n')
    ended = call("run", "jobs.jsonl", "--simulate", cwd=here)
    assert ended.code == 3
    assert not {"\x1b", "\x07", "\u202e"} & set(ended.stderr)


def test_help_starts_with_examples_and_names_every_option(here: Path) -> None:
    ended = call("run", "--help", cwd=here)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith("Examples:\n  batcher run jobs.jsonl --simulate ")
    assert all(opt in ended.stdout for option in OPTIONS for opt in option.opts)
