"""The plan of a stage on virtual CPU devices, at sizes that can be counted by hand."""

import dataclasses
import json

import jax
import pytest

from gemma3_jax import chips, settings
from gemma3_jax.cli import plan as cli_plan
from gemma3_jax.cli import program
from gemma3_jax.model import config, execution
from gemma3_jax.planning import compiling, costs, hlo, plan, topologies
from gemma3_jax.train import settings as train_settings
from tests import toys
from tests.checkpoint import test_hf

TOY = dataclasses.replace(toys.TOY, num_layers=2, num_local_per_global=1, embed_dim=32, vocab_size=128)
STAGE = settings.StageEntry(
    num_steps=10, seq_len=64, batch_size=8, optimizer=train_settings.AdamW(peak_lr=1e-3, warmup_steps=1)
)


def recipe(mesh=None, *, remat="full", **fields) -> settings.Train:
    return settings.Train(
        model=TOY,
        stage_order=("only",),
        stages={"only": dataclasses.replace(STAGE, **fields)},
        mesh=settings.Mesh(**(mesh or {"data": 4, "seq": 2})),
        execution=execution.Execution(dtype="bfloat16", remat=remat),
    )


def sizes(data: int, seq: int) -> dict[str, int]:
    return {"replica": 1, "data": data, "seq": seq, "model": 1}


@pytest.fixture(scope="module")
def topology():
    """Eight chips whose devices are this machine's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topologies.Topology, "devices", lambda self: jax.devices()[: self.num_devices])
        yield topologies.find("v5e:2x4")


@pytest.fixture(scope="module")
def made(topology):
    """The plan of the recipe as it stands."""
    return plan.make(settings.resolve(recipe(), "only"), topology)


def test_bytes_of_arguments_are_those_of_the_arrays(topology, made):
    program = compiling.make_program(settings.resolve(recipe(), "only"), topology, None)
    with jax.set_mesh(program.mesh):
        params = jax.jit(
            lambda: jax.tree.map(jax.numpy.zeros_like, program.param_shapes), out_shardings=program.param_shardings
        )()
    state = program.begin(params)
    on_first = [shard.data.nbytes for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards[:1]]
    kinds = made.hbm_bytes_by_kind
    assert made.fits and kinds["parameters"] + kinds["optimizer"] == sum(on_first)
    assert kinds["batch"] == 2 * 32 * (5 * 4 + 1)  # 2 rows of 8, half of their 64 tokens: five numbers and a flag
    assert kinds["teacher"] == 0 and kinds["gradients"] == kinds["parameters"]
    assert sum(kinds.values()) == made.hbm_bytes_per_chip
    assert made.hbm_bytes_per_chip == sum(kinds.values())


def test_flops_are_those_of_the_formula_and_of_recomputation(topology, made):
    once, twice = plan.make(settings.resolve(recipe(remat="none"), "only"), topology), made
    assert once.flops_per_step_formula == twice.flops_per_step_formula
    assert 1 < once.flops_ratio < twice.flops_ratio < 2
    assert 0 < once.mfu_bound < 1 and once.step_seconds_bound == max(once.seconds_by_limit.values())


def test_options_of_the_chip_reach_the_compiler(topology, monkeypatch):
    monkeypatch.setattr(chips, "compiler_options", lambda device_kind: {"xla_no_such_option": device_kind})
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        plan.make(settings.resolve(recipe(), "only"), topology)


def test_the_bound_is_of_the_busiest_shard_and_flops_are_the_mean(topology, monkeypatch):
    """A global kernel of two shards, whose queries are not balanced: 7 visits of blocks on one, 3 on the other."""
    query, key = hlo.Shape("bf16", (4, 1024, 256)), hlo.Shape("bf16", (1, 2048, 256))
    operands = hlo.Shape("s16", (1, 2, 4)), query, key, key
    call = costs.CustomCall("tpu_custom_call", "splash_mha_fwd_segmented_residuals.2", 3, operands, (), None)
    flops = costs.flops
    monkeypatch.setattr(costs, "flops", lambda module: flops(module)._replace(matmul_flops=1e6, custom_calls=(call,)))
    unbalanced = plan.make(settings.resolve(recipe(), "only"), topology)
    of_visit = 3 * 2 * 2 * 4 * 512 * 512 * 256
    assert unbalanced.flops_per_step_hlo == 8 * (1e6 + 5 * of_visit)
    assert unbalanced.seconds_by_limit["products"] == (1e6 + 7 * of_visit) / topology.chip.peak_flops


def test_a_cpu_has_no_estimate(made):
    assert made.estimated_cycles is made.estimated_mfu is made.profile is None and "profile" not in made.as_json()


def test_weights_are_gathered_over_the_shards_they_rest_in(made):
    by_kind = {}
    for one in made.collective_bytes:
        by_kind.setdefault(one["kind"], set()).update(one["axes"])
    assert {"data", "seq"} <= by_kind["all-gather"] and made.dcn_bytes_per_step == 0 < made.ici_bytes_per_step


@pytest.mark.slow
def test_a_teacher_beside_it_is_counted_by_itself(topology):
    config = settings.resolve(
        recipe(loss="distill", samples=dataclasses.replace(STAGE.samples, num_samples=16)), "only"
    )
    alone, beside = (plan.make(config, topology, teacher_model=model) for model in (None, TOY))
    assert alone.hbm_bytes_by_kind["teacher"] == 0 < beside.hbm_bytes_by_kind["teacher"]
    assert alone.hbm_bytes_by_kind["batch"] > beside.hbm_bytes_by_kind["batch"]  # has stored targets
    assert beside.flops_per_step_hlo > 1.2 * alone.flops_per_step_hlo


@pytest.mark.slow
def test_a_stage_whose_teacher_is_start_has_a_teacher_of_its_own_model(topology):
    distilled = recipe(loss="distill", teacher="start", samples=dataclasses.replace(STAGE.samples, estimator="whole"))
    assert plan.make(settings.resolve(distilled, "only"), topology).hbm_bytes_by_kind["teacher"] > 0


def does_not_fit(message: str) -> jax.stages.Lowered:
    class Lowered(jax.stages.Lowered):
        def __init__(self): ...

        def lower(self, *_):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: {message}")

    return Lowered()


@pytest.mark.parametrize(
    "message",
    [  # of libtpu 0.0.42.1, then of 0.0.50.1, for arguments of 20 GiB and no temporary; the same of buffers assigned
        "Ran out of memory on HBM, the total memory required for HLO temporaries (20.00G) exceeds available HBM "
        "(15.75G).",
        "E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO temporaries (20.00G) "
        "exceeds available HBM (15.75G). HLO module: jit_f.",
        "XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm. Exceeded "
        "hbm capacity by 4.25G.",
        "E1000: CompileTimeHbmOom: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.00G "
        "of 15.75G hbm. Exceeded hbm capacity by 4.25G.",
    ],
)
def test_a_program_that_does_not_fit_says_how_much_it_wants(message, topology, monkeypatch):
    """The arguments are in what either message says, so that the kinds add up to it."""
    monkeypatch.setattr(compiling.program.Program, "jitted", lambda self: does_not_fit(message))
    result = plan.make(settings.resolve(recipe(), "only"), topology)
    assert not result.fits and result.hbm_bytes_per_chip == 20 * 2**30 == sum(result.hbm_bytes_by_kind.values())
    assert result.hbm_bytes_allowed == round(15.75 * 2**30) and result.flops_per_step_hlo is None


def test_a_mesh_of_tpu7x_has_two_devices_a_chip(topology, monkeypatch):
    chips = topologies.find("tpu7x:2x2x1")
    message = "Ran out of memory in memory space hbm. Used 95.00G of 94.74G hbm."
    monkeypatch.setattr(compiling.program.Program, "jitted", lambda self: does_not_fit(message))
    result = plan.make(settings.resolve(recipe(), "only"), chips)
    assert result.num_chips == 4 and result.mesh == sizes(4, 2)
    of_v5e = plan.make(settings.resolve(recipe(), "only"), topology)
    assert result.days_per_stage * 8 * 1153.5 == pytest.approx(of_v5e.days_per_stage * 8 * 197)
    error = r"data 2 x seq 1 .* = 2 devices, 2 a chip, and tpu7x:2x2x1 x 1 slices has 8; set data 8, or choose .* 2x2x1"
    with pytest.raises(ValueError, match=error):
        plan.make(settings.resolve(recipe({"data": 2, "seq": 1}), "only"), chips)


def test_another_error_of_the_compiler_is_not_taken_for_that(topology, monkeypatch):
    def lower(self, *_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(compiling.program.Program, "jitted", lambda self: type("", (), {"lower": lower})())
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        plan.make(settings.resolve(recipe(), "only"), topology)


# --- what does not go together ---


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"data": 2, "seq": 2}, r"only: mesh is replica 1 x data 2 x seq 2 x model 1 = 4 chips, and v5e:2x4 x 1 slices "
         r"has 8; set data 4, or choose a slice of 2x2"),
        ({"data": 16, "seq": 2}, r"only: mesh is .* = 32 chips, and .* has 8; set data 4, or choose a slice of 4x8"),
        ({"seq": 3}, r"only: mesh has replica x seq x model = 3, which does not divide the 8 devices"),
    ],
)  # fmt: skip
def test_the_error_of_a_mesh_of_another_size_names_sizes_that_match(topology, mesh, message):
    with pytest.raises(ValueError, match=message):
        plan.make(settings.resolve(recipe(mesh), "only"), topology)


def test_so_does_that_of_a_mesh_with_fewer_chips_than_slices(topology):
    message = r"mesh is .* = 1 chips, and v5e:2x2 x 2 slices has 8; set data 8, or choose a slice of 1x1, 2x2, 2x4"
    with pytest.raises(ValueError, match=message):
        plan.make(settings.resolve(recipe({"data": 1}), "only"), topologies.find("v5e:2x2", 2))


def test_the_error_of_a_batch_that_does_not_split_names_one_that_does(topology):
    message = r"only: 6 sequences in a step do not split over replica x data = 4 .*; make it 4, 2 x 4"
    with pytest.raises(ValueError, match=message):
        plan.make(settings.resolve(recipe(batch_size=6), "only"), topology)


def test_a_teacher_of_other_ids_is_refused(topology):
    distilled = recipe(loss="distill", samples=dataclasses.replace(STAGE.samples, num_samples=16))
    with pytest.raises(ValueError, match="--teacher_model has 262144 ids, config.model.vocab_size is 128"):
        plan.make(settings.resolve(distilled, "only"), topology, teacher_model=config.SIZES["270m"])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "loss is next_token, which has no teacher"),
        ({"loss": "distill", "teacher": "start"}, "teacher is start, which has the model of the stage"),
        ({"loss": "distill", "targets": "stored"}, "targets is stored, which replaces the teacher"),
    ],
)
def test_a_teacher_where_there_is_none_is_refused(fields, why):
    stage_config = settings.resolve(recipe(**fields), "only")
    assert cli_plan.find_teacher(None, stage_config) is None
    with pytest.raises(ValueError, match=f"--teacher_model is 1b, but config.stages.only.{why}; leave it out"):
        cli_plan.find_teacher("1b", stage_config)


def test_the_teacher_is_the_one_that_the_config_names(tmp_path):
    distilled = settings.resolve(recipe(loss="distill"), "only")
    assert cli_plan.find_teacher("1b", distilled) == config.SIZES["1b"]
    assert cli_plan.find_teacher(None, distilled) is None  # its targets are stored
    with pytest.raises(ValueError, match="--teacher_model is 3b; it must be one of 270m, 1b"):
        cli_plan.find_teacher("3b", distilled)
    directory = test_hf.make_directory(tmp_path / "teacher")
    with_teacher = dataclasses.replace(distilled, teacher=str(directory))
    assert cli_plan.find_teacher(None, with_teacher) == test_hf.MODEL


# --- what to change ---


def test_changes_come_cheapest_first_and_each_on_top_of_the_ones_before():
    changes = list(plan.changes(recipe(batch_size=16, seq_len=2048, remat="none"), "only", sizes(4, 1)))
    flags, last = [change.flags[-1] for change in changes], changes[-1]
    prefix = "--config.stages.only"
    assert flags[:4] == [
        "--config.execution.remat=full",
        f"{prefix}.grad_accum_steps=2",
        f"{prefix}.grad_accum_steps=4",
        f"{prefix}.mesh.data=2 {prefix}.mesh.seq=2 {prefix}.batch_size=8",
    ]
    assert len(last.flags) == len(flags) and last.config.execution.remat == "full"
    assert last.config.stages["only"].mesh == settings.Mesh(data=1, seq=4)
    assert last.config.stages["only"].seq_len == 1024


def test_the_first_change_that_fits_is_the_answer(made):
    tried = []

    def attempt(change):
        tried.append(change)
        return dataclasses.replace(made, fits=len(tried) == 2)

    config = recipe(batch_size=32)
    result = plan.search(config, "only", sizes(4, 2), attempt)
    assert result.fits and result.notes[-1] == "with " + " ".join(tried[1].flags) and len(tried) == 2
    assert plan.search(config, "only", sizes(4, 2), lambda _: dataclasses.replace(made, fits=False)) is None


# --- the verb ---

CONFIG = """
def get_config():
    return {"model": %r, "mesh": {"data": 4, "seq": 2}, "stage_order": ("only",),
            "stages": {"only": {"seq_len": 64, "batch_size": 8, "num_steps": 10}}}
"""


@pytest.fixture
def verb(topology, tmp_path, monkeypatch, capsys):
    file = tmp_path / "toy.py"
    file.write_text(CONFIG % dataclasses.asdict(TOY))
    monkeypatch.setattr(cli_plan.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(cli_plan.os, "environ", dict(cli_plan.os.environ))

    def run(*flags):
        status = program.main(["plan", f"--config={file}", *flags])
        return status, *capsys.readouterr()

    return run


def test_json_has_what_scripts_rely_on(verb):
    status, out, err = verb("--stage=only", "--topology=v5e:2x4", "--json")
    result = json.loads(out)
    assert status == 0, err
    promised = {"fits", "hbm_bytes_per_chip", "hbm_bytes_by_kind", "flops_per_step_formula", "flops_per_step_hlo"}
    promised |= {"collective_bytes", "step_seconds_bound", "mfu_bound", "compile_seconds"}
    promised |= {
        "estimated_cycles",
        "compiler_cycles",
        "estimated_step_seconds",
        "estimated_mfu",
        "runs_without_estimate",
    }
    assert promised <= result.keys() and result["fits"] is True
    assert {"kind", "axes", "num_bytes", "crosses_slices"} <= result["collective_bytes"][0].keys()


def test_the_table_says_the_verdict(verb, made, monkeypatch):
    monkeypatch.setattr(plan, "make", lambda *_, **__: made)
    status, out, _ = verb("--topology=v5e:2x4")
    assert status == 0 and "GiB: fits" in out and "MFU" in out and "activations" in out


def test_a_stage_that_does_not_fit_gets_a_change_to_try(verb, made, monkeypatch):
    monkeypatch.setattr(plan, "make", lambda *_, **__: dataclasses.replace(made, fits=False))
    status, out, _ = verb("--topology=v5e:2x4")
    prefix = "--config.stages.only"
    assert status == 0 and "GiB: does not fit" in out and f"try {prefix}.grad_accum_steps=2" in out
    _, out, err = verb("--topology=v5e:2x4", "--search")
    assert "no change of the search makes it fit; use more chips" in out and f"{prefix}.grad_accum_steps=2" in err


def test_a_stage_that_there_is_not_is_one_line(verb):
    status, _, err = verb("--stage=other", "--topology=v5e:2x4")
    assert status == 1 and "--stage is other; config.stages has: only" in err


def test_an_mfu_is_a_fraction(verb):
    status, _, err = verb("--topology=v5e:2x4", "--mfu=40")
    assert status == 1 and "--mfu is 40.0; it must be over 0 and at most 1" in err
