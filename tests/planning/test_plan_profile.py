"""`plan --profile` and `--compare`: what is printed and written, on a plan that nothing was compiled for."""

import dataclasses
import importlib.util
import json
import re

import pytest

from gemma3_jax.cli import plan as cli_plan
from gemma3_jax.cli import program
from gemma3_jax.planning import plan, profile_file
from tests import toys
from tests.planning import profiles

CONFIG = """
def get_config():
    return {"model": %r, "stage_order": ("only",),
            "stages": {"only": {"seq_len": 64, "batch_size": 8, "num_steps": 10}}}
"""

UNKNOWN = dict.fromkeys(field.name for field in dataclasses.fields(plan.Plan))
PLAN = plan.Plan(
    **UNKNOWN
    | {
        "stage": "only",
        "topology": "v5e:2x4",
        "num_slices": 1,
        "num_chips": 8,
        "mesh": {"replica": 1, "data": 8, "seq": 1, "model": 1},
    }
    | {"seq_len": 64, "batch_size": 8, "fits": True, "hbm_bytes_per_chip": 5, "hbm_bytes_allowed": 9}
    | {"hbm_bytes_by_kind": {"parameters": 5}, "flops_per_step_formula": 8e6, "flops_per_step_hlo": 9e6}
    | {"flops_ratio": 1.1, "collective_bytes": (), "seconds_by_limit": {"products": 1e-6}, "step_seconds_bound": 1e-6}
    | {
        "mfu_bound": 0.5,
        "tokens_per_stage": 5120,
        "days_per_stage": 0.1,
        "mfu": 0.4,
        "compile_seconds": 1.0,
        "notes": (),
    }
)
ESTIMATED = dataclasses.replace(
    PLAN,
    profile=profiles.BEFORE,
    estimated_cycles=profiles.BEFORE.cycles,
    compiler_cycles=3000,
    estimated_step_seconds=profiles.BEFORE.seconds,
    estimated_mfu=profiles.BEFORE.mfu,
    runs_without_estimate=profiles.BEFORE.runs_without_estimate,
)


@pytest.fixture
def verb(tmp_path, monkeypatch, capsys):
    """Runs the verb; what it compiles has this plan."""
    file = tmp_path / "toy.py"
    file.write_text(CONFIG % dataclasses.asdict(toys.TOY))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: name == "libtpu" or find_spec(name, *rest))
    monkeypatch.setattr(cli_plan.os, "environ", dict(cli_plan.os.environ))

    def run(result, *flags):
        monkeypatch.setattr(plan, "make", lambda *_, **__: result)
        status = program.main(["plan", f"--config={file}", "--topology=v5e:2x4", *flags])
        return status, *capsys.readouterr()

    return run


def test_an_estimate_is_called_one_and_says_what_is_not_in_it(verb):
    status, out, _ = verb(ESTIMATED)
    expected = (
        "estimated, not measured    0.000 s: MFU 25.0%, 4.00e+03 cycles, 3.00e+03 of them by the compiler's model"
    )
    assert status == 0 and expected in out
    assert "cycles not estimated:   waiting for links and memory, 1 x collective, 8 x scatter/gather/sort" in out


def test_what_the_chip_waits_for_is_said(verb, tmp_path):
    waiting = profiles.WAITING
    result = dataclasses.replace(
        ESTIMATED,
        profile=waiting,
        estimated_exposed_seconds=waiting.exposed_seconds * 2e6,
        estimated_step_seconds=waiting.seconds,
        estimated_mfu=waiting.mfu,
    )
    status, out, _ = verb(result, f"--profile={tmp_path}")
    assert status == 0 and "of it, waiting             2.000 s for links and memory" in out and "MFU 20.0%" in out
    assert "waiting for links and memory," not in out
    rows = out[out.index("the chip waits, by estimate, 0.000 s in a step") :].splitlines()
    assert rows[2].split() == "0.0000 16.0% reduce-scatter data+seq local layers, backward".split()


def test_a_profile_is_printed_and_written(verb, tmp_path):
    directory = tmp_path / "new" / "profile"
    status, out, err = verb(ESTIMATED, f"--profile={directory}")
    assert status == 0 and f"{directory / 'profile.html'}: " in err
    for row in (
        "local layers, forward        3            0       3   75.0%",
        "       3  75.0%     1  local layers, forward  product",
    ):
        assert row in out
    assert re.search(r"^ +8 +100  loss, forward  scatter/gather/sort  scatter +gemma3_jax/losses/a.py:7$", out, re.M)
    written = profile_file.load(directory / "profile.json")
    assert written.instructions == profiles.BEFORE.instructions
    assert written.title.endswith("toy.py, only, 8 x 64 tokens, this job")
    assert b"treemap" not in (directory / "profile.html").read_bytes() and len(list(directory.iterdir())) == 2


def test_another_profile_is_set_beside_it(verb, tmp_path):
    other = tmp_path / "other.json"
    other.write_bytes(profile_file.dump(profiles.AFTER))
    status, out, _ = verb(ESTIMATED, f"--profile={tmp_path / 'new'}", f"--compare={other}")
    assert status == 0 and "  other: 0.000 s, MFU 28.6%, the job after" in out
    assert re.search(r"^ +4 +4 +1.14  all places +all kinds$", out, re.M)
    assert re.search(r"^ +8 +0  loss, forward  scatter/gather/sort$", out, re.M)
    assert "the job after" in (tmp_path / "new" / "profile.html").read_text()


def test_json_stays_one_object_with_a_profile(verb, tmp_path):
    status, out, _ = verb(ESTIMATED, f"--profile={tmp_path}", "--json")
    assert status == 0 and json.loads(out)["runs_without_estimate"] == {"collective": 1, "scatter/gather/sort": 8}
    assert (tmp_path / "profile.json").is_file()


def test_a_step_without_an_estimate_has_no_profile_to_write(verb, tmp_path):
    for fits, why in ((True, "the compiler estimated nothing"), (False, "the step does not fit")):
        status, _, err = verb(dataclasses.replace(PLAN, fits=fits), f"--profile={tmp_path / 'new'}")
        assert status == 0 and f"--profile: {why}, so no profile is written" in err
    assert not (tmp_path / "new").exists()


def test_errors_of_profile_flags_come_before_the_compiler(verb, tmp_path):
    file = tmp_path / "file"
    file.write_text("{}")
    for flags, message in (
        (["--compare=a.json"], "--compare needs --profile=DIR"),
        (["--profile="], "--profile is empty; it must be a directory"),
        ([f"--profile={file}"], f"--profile {file} is not a directory; name another one"),
        ([f"--profile={file}/new"], f"--profile {file}/new cannot be written: {file} is no directory, or not writable"),
        ([f"--profile={tmp_path}", f"--compare={file}"], f"{file} is not a profile that `plan --profile` wrote"),
        ([f"--profile={tmp_path}", "--compare=none.json"], "none.json"),
    ):
        status, _, err = verb(None, *flags)
        assert status == 1 and message in err and err.count("\n") == 1, err
