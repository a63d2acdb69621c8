"""The config of `train`: every field with its default and its unit.

A config file (`experiments/demo.py` is one) sets what differs; `--config.a.b=value` overrides that. The rest of the
program reads `StageConfig`, made by `resolve`: a stage with everything that it inherits from the run filled in.
"""

import dataclasses
import itertools

from gemma3_jax.data import settings as data_settings
from gemma3_jax.distill import settings as distill_settings
from gemma3_jax.evals import settings as evals_settings
from gemma3_jax.model import config as model_config
from gemma3_jax.model import execution as model_execution
from gemma3_jax.model import lora as model_lora
from gemma3_jax.quant import settings as quant_settings
from gemma3_jax.train import settings as train_settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The size of each mesh axis. 0 in config.mesh: `data` takes the remaining devices, the others are 1.

    0 in the mesh of a stage: the value of config.mesh.
    """

    replica: int = 0  # copies of the parameters; over several slices a multiple of the number of slices
    data: int = 0  # shards of the parameters (ZeRO-3) and of the batch
    seq: int = 0  # shards of a sequence
    model: int = 0  # shards of the heads and of the MLP

    def __post_init__(self):
        for axis, size in dataclasses.asdict(self).items():
            if size < 0:
                raise ValueError(f"{axis} is {size}; it must be at least 0")


LOSSES = ("next_token", "distill")
# Ours: times 1 / embed_dim, the peak learning rate of a model that has been trained; 5e-5 for 270M, 6e-6 for 27B.
TRAINED_LR = 0.03
ADAPTERS_LR = 10.0  # ours too: the peak learning rate of adapters, as a multiple of that
START = "start"  # as a teacher: the initial parameters of the stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation while a stage trains."""

    every_steps: int = 0  # and at the end of the stage; 0: never
    num_rows: int = 64  # sequences of the stage's data that no stage trains on
    measures: evals_settings.Measures = evals_settings.Measures()  # as `evaluate` has them

    def __post_init__(self):
        if self.every_steps < 0 or self.num_rows < 1:
            raise ValueError(
                f"every_steps is {self.every_steps} and num_rows {self.num_rows}; the first must be at least 0, the "
                "second at least 1"
            )
        if self.measures.tasks and not self.every_steps:
            raise ValueError("measures.tasks are set, but every_steps is 0, which is never; set it")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageEntry:
    """One entry of config.stages. An empty field is inherited from the run; `resolve` fills it in."""

    num_steps: int = 0  # 0: as many as `epochs` take
    epochs: float = 0.0  # how often the data's sequences are drawn, of a stage without num_steps
    seq_len: int = 0  # tokens; 0: that of the data's sequences, if all have one length
    batch_size: int  # sequences of a step
    grad_accum_steps: int = 1  # parts of a batch, computed one after the other to save memory
    rope_scale: float = 0.0  # of the global layers; 0: config.model.rope_scale
    loss: str = "next_token"  # or distill: against a teacher's distribution over the next token
    teacher: str = ""  # a checkpoint that `convert` reads; start: the stage's initial parameters; empty: config.teacher
    targets: str = ""  # directory that `teach` wrote; empty: the teacher runs in every training step
    samples: distill_settings.Samples = distill_settings.Samples()
    quant: quant_settings.Quant = quant_settings.Quant()  # what the weights are rounded to where they are used
    evaluation: EvaluationConfig = EvaluationConfig()
    hard_label_weight: float = 0.0  # weight of the next token's cross-entropy; the distillation loss has the rest
    data: str = ""  # directory that `prepare` wrote; empty: config.data
    mixture: dict[str, data_settings.Bucket] = dataclasses.field(default_factory=dict)  # empty: as it was prepared
    mesh: Mesh = Mesh()
    optimizer: train_settings.AdamW = train_settings.AdamW()
    spike_guard: train_settings.SpikeGuard = train_settings.SpikeGuard()
    ema_decay: float = 0.0  # of an exponential moving average of the parameters; 0: none
    z_loss: float = 0.0  # weight of the squared log-denominator of the softmax in the loss

    def __post_init__(self):
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}; it must be at least 0")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageConfig(StageEntry):
    """A stage with everything that it inherits filled in: `data`, `teacher`, `mesh`, its model and the run's fields."""

    name: str
    first_step: int  # steps of the run before it
    model: model_config.Config  # with the stage's RoPE scale
    execution: model_execution.Execution
    lora: model_lora.Lora
    seed: int
    init_from: str
    num_data_workers: int

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.seq_len


def _check_is_directory(name: str, path: str) -> None:
    if "://" in path:
        raise ValueError(f"{name} is {path}; it must be a directory (of a file system that all hosts share)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """The config of a run."""

    model: model_config.Config  # what is left out is that of init_from
    data: str = ""  # directory that `prepare` wrote
    teacher: str = ""  # of the stages that distill: a checkpoint of any kind that `convert` reads
    documents: str = ""  # the default of evaluation.measures.documents; as `evaluate --input`
    num_data_workers: int = 0  # processes that read ahead on each host; 0: threads
    init_from: str = ""  # a checkpoint of any kind that `convert` reads; empty: fresh parameters
    seed: int = 0  # of fresh parameters, the order of the data, and sampled targets
    mesh: Mesh = Mesh()
    execution: model_execution.Execution = model_execution.Execution(dtype="bfloat16", remat="full")
    lora: model_lora.Lora = model_lora.Lora()  # adapters on the frozen weights of init_from, in all stages
    stage_order: tuple[str, ...] = ()  # names of stages, in the order they run
    stages: dict[str, StageEntry] = dataclasses.field(default_factory=dict)
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
                f"teacher is {self.teacher}, but no stage of stage_order distills; set the loss of one to distill"
            )
        _check_is_directory("teacher", self.teacher)
        if len(set(self.stage_order)) < len(self.stage_order):
            raise ValueError(f"stage_order is {self.stage_order}; name every stage once")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; it must be from 0 to 2**32 - 1")
        if self.lora.rank and (rounds := [name for name in self.stage_order if self.stages[name].quant.format]):
            raise ValueError(
                f"lora.rank is {self.lora.rank}, and stage {rounds[0]} rounds weights that it trains (quant.format); "
                "with adapters none of them trains: set one of the two, or lora.base_format, which packs them"
            )
        if self.num_data_workers < 0:
            raise ValueError(f"num_data_workers is {self.num_data_workers}; it must be at least 0")


def _rescaled(model: model_config.Config, rope_scale: float) -> model_config.Config:
    """Returns the model at another RoPE scale, to which its context length does not apply."""
    if rope_scale == model.rope_scale:
        return model
    return dataclasses.replace(model, rope_scale=rope_scale, context_length=0)


def resolve(config: Train, name: str) -> StageConfig:
    """Returns the stage `name` with everything that it inherits from the run filled in."""
    entry = config.stages[name]
    needs_teacher = entry.loss == "distill" and not entry.targets
    measures = entry.evaluation.measures
    inherited = {
        "data": entry.data or config.data,
        "teacher": entry.teacher or (config.teacher if needs_teacher else ""),
        "mesh": Mesh(
            **{axis: size or getattr(config.mesh, axis) for axis, size in dataclasses.asdict(entry.mesh).items()}
        ),
        "rope_scale": entry.rope_scale or config.model.rope_scale,
        "evaluation": dataclasses.replace(
            entry.evaluation, measures=dataclasses.replace(measures, documents=measures.documents or config.documents)
        ),
    }
    before = itertools.takewhile(lambda other: other != name, config.stage_order)
    return StageConfig(
        **{field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)} | inherited,
        name=name,
        first_step=sum(config.stages[other].num_steps for other in before) if name in config.stage_order else 0,
        model=_rescaled(config.model, inherited["rope_scale"]),
        execution=config.execution,
        lora=config.lora,
        seed=config.seed,
        init_from=config.init_from,
        num_data_workers=config.num_data_workers,
    )
