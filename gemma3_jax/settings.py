"""What `train` can be told: every field with its default and its unit.

A config file (`experiments/demo.py` is one) sets what differs; `--config.a.b=value` overrides that.
"""

import dataclasses

from gemma3_jax.data import settings as data_settings
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.evals import settings as evals_settings
from gemma3_jax.model import config as model_config
from gemma3_jax.model import execution as model_execution
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.train import settings as train_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How many ways each axis splits. 0 in config.mesh: `data` takes the devices that are left, the others are 1.

    0 in the mesh of a stage: as config.mesh says.
    """

    replica: int = 0  # whole copies of the parameters; over several slices a multiple of their number
    data: int = 0  # shards of parameters (ZeRO-3) and of the rows of a step
    seq: int = 0  # shards of a row
    model: int = 0  # shards of heads and of the MLP

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            if size < 0:
                raise ValueError(f"{axis} is {size}; it must be at least 0")


LOSSES = ("next_token", "distill")
START = "start"  # as a teacher: the parameters that the stage starts with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What is measured while a stage trains."""

    every_steps: int = 0  # and at the end of the stage; 0: never
    num_rows: int = 64  # of the stage's data that no stage of the stage_order comes to in this form
    measures: evals_settings.Measures = evals_settings.Measures()  # what `evaluate` measures, too

    def __post_init__(self):
        if self.every_steps < 0 or self.num_rows < 1:
            raise ValueError(
                f"every_steps is {self.every_steps} and num_rows {self.num_rows}; the first must be at least 0, the "
                "second at least 1"
            )
        if self.measures.tasks and not self.every_steps:
            raise ValueError("measures.tasks are set, but every_steps is 0, which is never; set it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the recipe."""

    num_steps: int
    seq_len: int  # tokens
    batch_size: int
    grad_accum_steps: int = 1  # parts of a step's rows, one after the other: less memory, the same gradient
    rope_scale: float = 0.0  # of the global layers; 0: config.model.rope_scale
    loss: str = "next_token"  # or distill: from what a teacher says of every token
    teacher: str = ""  # a checkpoint of any kind that `convert` reads; start: the stage's own; empty: config.teacher
    targets: str = ""  # directory that `teach` wrote; empty: the teacher runs beside the student
    samples: distill_settings.Samples = distill_settings.Samples()
    quant: quant_settings.Quant = quant_settings.Quant()  # what the weights are rounded to where they are used
    evaluation: Evaluation = Evaluation()
    hard_label_weight: float = 0.0  # share of the token that did come in what is minimised, beside the teacher's word
    data: str = ""  # directory that `prepare` wrote; empty: config.data
    mixture: dict[str, data_settings.Bucket] = dataclasses.field(default_factory=dict)  # empty: as it was prepared
    mesh: Mesh = Mesh()
    optimizer: train_settings.AdamW = train_settings.AdamW()
    spike_guard: train_settings.SpikeGuard = train_settings.SpikeGuard()
    ema_decay: float = 0.0  # of an exponential average of the parameters, kept beside them; 0: none
    z_loss: float = 0.0  # of the squared log-denominator of the softmax, added to what is minimised

    def __post_init__(self):
        for name in ("num_steps", "seq_len", "batch_size", "grad_accum_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % self.grad_accum_steps:
            raise ValueError(
                f"batch_size is {self.batch_size} and grad_accum_steps {self.grad_accum_steps}; make the first a "
                "multiple of the second"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must be at least 0 and under 1")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; it must be one of {', '.join(LOSSES)}")
        if self.loss == "next_token" and (self.teacher or self.targets or self.hard_label_weight):
            raise ValueError("teacher, targets or hard_label_weight are set, but loss is next_token; set it to distill")
        if self.teacher and self.targets:
            raise ValueError(f"teacher is {self.teacher} and targets are {self.targets}; name one of them")
        _check_is_directory("targets", self.targets)
        _check_is_directory("teacher", self.teacher)
        if not 0 <= self.hard_label_weight <= 1:
            raise ValueError(f"hard_label_weight is {self.hard_label_weight}; it must be from 0 to 1")
        if self.rope_scale < 0 or self.z_loss < 0:
            raise ValueError(f"rope_scale is {self.rope_scale} and z_loss {self.z_loss}; neither may be under 0")
        self.optimizer.check_fits(self.num_steps)


def _check_is_directory(name: str, path: str) -> None:
    if "://" in path:
        raise ValueError(f"{name} is {path}; it must be a directory (of a file system that all hosts share)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The whole of a run."""

    model: model_config.Config
    data: str = ""  # directory that `prepare` wrote
    teacher: str = ""  # of the stages whose loss is distill: a checkpoint of any kind that `convert` reads
    documents: str = ""  # that evaluations read, where they name none of their own; as `evaluate --input`
    num_data_workers: int = 0  # processes that read ahead on each host; 0: threads
    init_from: str = ""  # a checkpoint of any kind that `convert` reads; empty: fresh parameters
    seed: int = 0  # of fresh parameters and of the order of the data
    mesh: Mesh = Mesh()
    execution: model_execution.Execution = model_execution.Execution(dtype="bfloat16", remat="full")
    stage_order: tuple[str, ...] = ()  # names of stages, in the order they are walked
    stages: dict[str, Stage] = dataclasses.field(default_factory=dict)
    checkpoints: train_settings.Checkpoints = train_settings.Checkpoints()
    deadlines: train_settings.Deadlines = train_settings.Deadlines()
    log: train_settings.Log = train_settings.Log()

    def __post_init__(self):
        if not self.stage_order:
            raise ValueError("stage_order is empty; it lists the stages, in order")
        for name in self.stage_order:
            if name not in self.stages:
                raise ValueError(f"stage_order names stage {name}; stages has: {', '.join(self.stages) or 'none'}")
        if self.teacher == START:
            raise ValueError("teacher is start, which is for one stage; set config.stages.NAME.teacher")
        if self.teacher and "distill" not in [self.stages[name].loss for name in self.stage_order]:
            raise ValueError(
                f"teacher is {self.teacher}, but no stage of stage_order distils; set the loss of one to distill"
            )
        _check_is_directory("teacher", self.teacher)
        if len(set(self.stage_order)) < len(self.stage_order):
            raise ValueError(f"stage_order is {self.stage_order}; name every stage once")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")
        if self.num_data_workers < 0:
            raise ValueError(f"num_data_workers is {self.num_data_workers}; it must be at least 0")
