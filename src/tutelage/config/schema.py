"""The one configuration schema: every key, its unit, its default and why. Unknown keys are errors.

Read with `tutelage.config.load`; `tutelage config schema` prints it as JSON Schema for editors.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Section(BaseModel):
    """A part of the configuration; keys that are not in the schema are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


class TooLong(StrEnum):
    """What happens to a document longer than `data.max_tokens`."""

    ERROR = "error"
    DROP = "drop"
    DROP_OLDEST_TURNS = "drop_oldest_turns"


class TrainOn(StrEnum):
    """Which assistant turns carry loss."""

    ASSISTANT = "assistant"
    LAST_TURN = "last_turn"


class ControlStrings(StrEnum):
    """What happens to text of a message that looks like a control token, such as `<|im_end|>` typed by a user."""

    TEXT = "text"
    REFUSE = "refuse"


class Method(StrEnum):
    """Full fine-tuning of every weight, or low-rank adapters."""

    FULL = "full"
    LORA = "lora"


class Layout(StrEnum):
    """How the documents of a step are laid out for the model; the loss does not depend on it."""

    AUTO = "auto"
    PACKED = "packed"
    PADDED = "padded"
    SINGLE = "single"


class Checkpointing(StrEnum):
    """What a layer computes again in the backward pass instead of keeping it."""

    AUTO = "auto"
    NONE = "none"
    SELECTIVE = "selective"
    LAYERS = "layers"
    OFFLOAD = "offload"


class Parallel(StrEnum):
    """What each process of `torchrun` holds of the model; the loss does not depend on it."""

    AUTO = "auto"
    REPLICATE = "replicate"
    SHARD = "shard"
    TENSOR = "tensor"


class Quantisation(StrEnum):
    """How the frozen matrices below adapters are kept while the adapters train."""

    NONE = "none"
    NF4 = "nf4"


class Optimiser(StrEnum):
    """How the moments of AdamW are kept."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"


class Schedule(StrEnum):
    """Learning rate after warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; master weights stay fp32 unless `bf16_pure`."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    BF16_PURE = "bf16_pure"


_YES_OR_NO = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def _layout_from_bool(value: Any) -> Any:
    asked = _YES_OR_NO.get(str(value).lower())
    return value if asked is None else Layout.PACKED if asked else Layout.PADDED


def _checkpointing_from_bool(value: Any) -> Any:
    asked = _YES_OR_NO.get(str(value).lower())
    return value if asked is None else Checkpointing.LAYERS if asked else Checkpointing.NONE


class ModelConfig(Section):
    """The base model."""

    path: str = "lab"
    """A local Hugging Face folder, a Hub name, or `lab` for the small base model that ships with tutelage."""
    revision: str | None = None
    """Commit, tag or branch of a Hub model; the commit it resolves to is recorded with the run."""
    template: str | None = None
    """Chat template: None keeps the model's own; otherwise `chatml`, `llama3`, `plain`, or a path to a .jinja file."""
    template_variables: dict[str, bool | int | float | str] = {}
    """Settings of the template, as `enable_thinking: false`; whoever talks to the model later must give the same ones."""
    attention: Literal["auto", "tutelage", "sdpa", "eager"] = "auto"
    """Attention implementation; `auto` takes the per-document one where the model can be isolated, else sdpa."""
    dropout: float | None = Field(default=None, ge=0, lt=1)
    """Dropout of attention and hidden layers, for every dropout setting the architecture has; None keeps the model's."""
    quantisation: Quantisation = Quantisation.NONE
    """`nf4` keeps the frozen matrices below adapters in 4 bits (QLoRA, arXiv 2305.14314): for `train.method: lora`; it needs
    `pip install "tutelage[low-memory]"`."""


class Columns(Section):
    """Names of the columns of one source, where they differ from the format's own."""

    messages: str | None = None
    """List of messages (`messages` format; `conversations` of ShareGPT)."""
    prompt: str | None = None
    """Prompt, as text or as messages."""
    completion: str | None = None
    """Completion of the prompt."""
    instruction: str | None = None
    """Instruction of an Alpaca row."""
    input: str | None = None
    """Further input of an Alpaca row; it may be empty."""
    output: str | None = None
    """Answer of an Alpaca row."""
    system: str | None = None
    """System message of the row."""
    history: str | None = None
    """Earlier turns of an Alpaca row: pairs of question and answer."""
    chosen: str | None = None
    """Preferred answer of a preference pair."""
    rejected: str | None = None
    """Rejected answer of a preference pair."""
    tools: str | None = None
    """Tools on offer, as a list or as JSON text."""
    text: str | None = None
    """Text of a plain document."""


class SourceConfig(Section):
    """One source of examples."""

    path: str
    """File, folder, glob, or Hub data set name (`hub:owner/name`). Formats: .jsonl, .json, .txt, .gz of these, .parquet, .csv."""
    kind: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "preference", "text"] = "auto"
    """Layout of a row; `auto` looks at the first rows and says what it took them for."""
    name: str | None = None
    """Name of the source in curves and reports; None takes the file's stem."""
    weight: float | None = Field(default=None, gt=0)
    """Multiplier on this source's epochs: 2 means each of its documents is seen twice per epoch, 0.5 half of them."""
    share: float | None = Field(default=None, gt=0, lt=1)
    """Share of this source in all trained tokens, e.g. 0.1 for 10 % replay. Sources without a share divide the rest."""
    epochs: float | None = Field(default=None, gt=0)
    """At most this many passes over this source in the whole run."""
    columns: Columns = Columns()
    """Column names of this source, where they differ from the format's own."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = Field(default=None, gt=0)
    """Use the first rows only, for a trial."""

    @model_validator(mode="after")
    def _weight_or_share(self) -> SourceConfig:
        if self.weight is not None and self.share is not None:
            raise ValueError("give either weight or share, not both")
        return self


class Retrieve(Section):
    """Passages from texts of your own, put before each question: a model that reads need not know, and need not invent."""

    corpus: str | None = None
    """File, folder or glob of texts (as a source of kind `text`); the passages that share most words with a question (BM25) stand
    before it, in every conversation of the run. Null retrieves nothing. It needs `pip install "tutelage[retrieval]"`."""
    passages: int = Field(default=3, gt=0)
    """How many passages a question gets, at most; one that shares no word with any passage gets none."""
    passage_words: int = Field(default=100, gt=0)
    """Longest passage in words; texts are cut at ends of sentences or lines where there are some."""


class DataConfig(Section):
    """What is learned from, and what of it counts."""

    train: list[SourceConfig] = []
    """Sources to train on."""
    held_out: list[SourceConfig] = []
    """Sources to evaluate on; in addition to what `held_out_fraction` takes away from `train`."""
    held_out_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Part of each training source kept for evaluation, chosen by content hash; near-identical prompts stay on one side."""
    max_tokens: int = Field(default=2048, gt=1)
    """Longest document in tokens."""
    too_long: TooLong = TooLong.ERROR
    """What to do with longer conversations: `error`, `drop` (counted) or `drop_oldest_turns` (counted). None is ever cut inside a
    turn. Plain text is read in windows of `data.max_tokens`, every token predicted once."""
    max_bad_fraction: float = Field(default=0.0, ge=0, le=1)
    """Rows of a source that may be unusable before the run stops; 0 asks you to look at the first one."""
    train_on: TrainOn = TrainOn.ASSISTANT
    """Which assistant turns are trained: all, or only the last."""
    train_reasoning: bool = True
    """Whether reasoning content of trained turns carries loss."""
    train_tool_calls: bool = True
    """Whether tool calls of trained turns carry loss."""
    control_strings: ControlStrings = ControlStrings.TEXT
    """Control tokens typed into message text: keep them as `text`, or `refuse` the row."""
    retrieve: Retrieve = Retrieve()
    """Passages from texts of your own before each question; `tutelage chat --retrieve` does the same."""
    cache: str | None = "auto"
    """Folder that keeps prepared documents, so that the next run with the same data starts at once; `auto` is tutelage in
    XDG_CACHE_HOME, or ~/.cache/tutelage; `off` or null prepares anew each time."""
    cache_gigabytes: float = Field(default=100, ge=0)
    """Size that the folder may have, in 10^9 bytes: beyond it, the entries that were used longest ago are removed."""
    workers: int | None = Field(default=None, ge=0)
    """Processes that prepare documents; 0 prepares in the process of the run itself. Null is one a core where there are rows
    enough to win back their start. The documents are the same, whatever their number."""


class LoraConfig(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685), through peft."""

    rank: int = Field(default=16, gt=0)
    """Rank r of the update."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale: the update is multiplied by alpha / rank; twice the rank is the usual choice."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    targets: str | list[str] = "all-linear"
    """Modules to adapt: `all-linear`, or a list of module names."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) (arXiv 2312.03732)."""
    dora: bool = False
    """Weight-decomposed adapters (arXiv 2402.09353)."""


class EarlyStopping(Section):
    """Stop when the held-out loss no longer improves; the best checkpoint is the result."""

    patience: int = Field(default=3, gt=0)
    """Evaluations without improvement before the run stops."""
    min_improvement: float = Field(default=0.0, ge=0)
    """Smallest fall of the held-out loss (nats per token) that counts."""


class Guard(Section):
    """Steps that are left out: weights stay as they were, and `incidents.jsonl` says what happened."""

    left_out_steps: int = Field(default=3, ge=0)
    """How many of 128 steps in a row may be left out; one more ends the run, or rolls it back."""
    roll_back: int = Field(default=0, ge=0)
    """How many times a run that leaves out too many steps may go back to the newest checkpoint before the first of them, and on from
    there without the steps from the first to the last of them. It wants `train.checkpoint_every_steps`."""
    spike_deviations: float = Field(default=0.0, ge=0)
    """Leave out a step whose loss or gradient norm lies that many standard deviations above the mean of the last 128 steps; 6 is
    usual, 0 leaves out only what is not finite."""


class OnBreach(StrEnum):
    """What happens when fine-tuning costs more than a budget allows."""

    WARN = "warn"
    STOP = "stop"
    BEST = "best"


class Gate(Section):
    """What fine-tuning may cost, looked at with every evaluation."""

    forgetting: float | None = Field(default=None, gt=0)
    """How much the loss on held-out plain text (sources of kind `text`) may rise above what it was before training, as a part of that:
    0.03 is 3 %. Null does not watch it."""
    style: float | None = Field(default=None, gt=0, lt=1)
    """How much more of the answers to held-out prompts may show a habit (repeat words, begin alike, end alike) than of the held-out
    answers themselves, and than at its lowest in this run: 0.2 is 20 of 100. Null does not watch it."""
    instruction: float | None = Field(default=None, gt=0, lt=1)
    """How far the share of right answers may fall below its highest in this run: 0.15 is 15 of 100. Asked are tasks of `evaluate.tasks`
    that are answered in words. Null does not watch it."""
    prompts: int = Field(default=64, gt=0)
    """Held-out prompts, and tasks, that `style` and `instruction` ask at each evaluation, at most."""
    max_new_tokens: int = Field(default=64, gt=0)
    """Longest answer to them in tokens; the held-out answers are cut there too."""
    on_breach: OnBreach = OnBreach.WARN
    """`warn` says so and goes on; `stop` ends the run with the weights as they are; `best` ends it with the weights of the lowest
    held-out loss within the budgets."""
    most_replay_weight: float = Field(default=1.0, ge=1)
    """Hold the budget of `forgetting`: after each evaluation, tokens of plain text among `data.train` come to weigh more the more of it is used up, up to
    so many times what they weigh otherwise, and less again. Documents and their order stay as planned. 1 holds nothing; 8 is plenty."""


class TrainConfig(Section):
    """How it is learned."""

    method: Method = Method.FULL
    """`full` or `lora`."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the documents."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate. SFT wants far less than pre-training: 1e-5 to 5e-5 full, 1e-4 to 5e-4 LoRA."""
    schedule: Schedule = Schedule.COSINE
    """Course of the learning rate after warm-up."""
    warmup_fraction: float = Field(default=0.03, ge=0, lt=1)
    """Part of all steps with rising learning rate."""
    final_fraction: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, as a part of the peak."""
    batch_tokens: int = Field(default=16384, gt=0)
    """Tokens per optimiser step over all ranks, at most. A step is a whole number of packs."""
    batch_sequences: int | None = Field(default=None, gt=0)
    """Documents per optimiser step; when set, it replaces `batch_tokens`."""
    micro_tokens: int | None = Field(default=None, gt=1)
    """Tokens of one forward pass (one pack); None takes `data.max_tokens`, or less where memory is too small for that."""
    packing: Annotated[Layout, BeforeValidator(_layout_from_bool)] = Layout.AUTO
    """`auto` packs when the model can be isolated; `true`/`packed`, `false`/`padded`, or `single` (one document a pass)."""
    shared_prefixes: bool = True
    """Compute what packed documents begin with in common once, as one prompt of several answers, where it saves a sixth of the tokens
    or more and the model allows it; `train.batch_tokens` then counts the tokens that are computed."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of order, dropout, NEFTune noise and new weights."""
    precision: Precision = Precision.AUTO
    """`auto` takes bf16 on a GPU, and on a CPU where a timed product of it is at least half as fast again as one of fp32."""
    optimiser: Optimiser = Optimiser.ADAMW
    """`adamw`, or `adamw_8bit`, which keeps its moments in a quarter of the memory, those of embeddings apart, or `paged_adamw_8bit`,
    which on a GPU lets the driver move them to the host where memory gets short; the latter two need
    `pip install "tutelage[low-memory]"`."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay, on matrices only."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW decay rates of the first and second moment."""
    epsilon: float = Field(default=1e-8, gt=0)
    """AdamW denominator term."""
    clip_grad_norm: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0 turns clipping off."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings (NEFTune, arXiv 2310.05914); 5 is the paper's smallest setting, 0 off."""
    gradient_checkpointing: Annotated[Checkpointing, BeforeValidator(_checkpointing_from_bool)] = Checkpointing.AUTO
    """Compute activations again in the backward pass instead of keeping them: `none`, or `selective` (all but matrix products and
    attention), or `layers` (all inside a layer: about a third more time); `auto` takes the first that fits. `offload` is `layers` with
    the inputs of the layers in the host's memory until the backward pass: least memory on a GPU, and copies both ways."""
    compile: bool = False
    """Let torch compile the decoder layers: ten seconds or more to begin with, for any number of layers and any lengths of packs, and
    then faster steps, on a CPU by one or two percent. Off, as it takes hundreds of steps to win the beginning back."""
    lora: LoraConfig = LoraConfig()
    """Adapter settings, used when `method` is `lora`."""
    guard: Guard = Guard()
    """Steps with a loss or gradient that is not finite, or far above the ones before."""
    evaluate_every_steps: int | None = Field(default=None, gt=0)
    """Steps between evaluations; None evaluates before, after, and ten times in between when there is held-out data."""
    evaluate_every_tokens: int | None = Field(default=None, gt=0)
    """Tokens of trained documents between evaluations, in place of steps: as many evaluations whatever a step holds. An evaluation comes
    after the step that passes a multiple of it."""
    early_stopping: EarlyStopping | None = None
    """Stop when held-out loss no longer improves."""
    gate: Gate = Gate()
    """What fine-tuning may cost: budgets, and what happens when one is used up."""
    max_minutes: float | None = Field(default=None, gt=0)
    """Stop so long after the command began, at the edge of a step and with a checkpoint, as on SIGTERM; for batch systems."""
    checkpoint_every_steps: int | None = Field(default=None, gt=0)
    """Steps between checkpoints; None keeps only the best (with held-out data) and the last."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """How many checkpoints stay on disk beside the best."""
    save_in_background: bool = False
    """Copy what a checkpoint holds to the host's memory, and write it while training goes on; a model in parts is saved in the foreground
    all the same. Off, because the copy takes as much memory of the host as the checkpoint has bytes, 12 for each weight of full
    fine-tuning in fp32."""
    parallel: Parallel = Parallel.AUTO
    """What each process of `torchrun` holds: all weights (`replicate`) or a part of each (`shard`, FSDP2); `auto` shards where
    weights, gradients and moments would fill more than half of a process's memory. `tensor`: a part of each matrix, and all
    processes compute every pass together, for steps of fewer packs than GPUs; full fine-tuning only."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, or `cuda:N`."""
    threads: int | None = Field(default=None, gt=0)
    """CPU threads of one process; None leaves torch's choice."""


class SampleConfig(Section):
    """Answers written before, during and after training, so that one can see what changes."""

    prompts: list[str] = []
    """Prompts to answer; without any, the first few held-out or training prompts serve."""
    count: int = Field(default=4, ge=0)
    """How many prompts are taken from the data when `prompts` is empty."""
    max_new_tokens: int = Field(default=96, gt=0)
    """Longest answer in tokens."""
    system: str | None = None
    """System message of the sampled conversations."""


class HarnessConfig(Section):
    """Tasks of lm-evaluation-harness, for figures that can be put beside published ones (an extra: `pip install 'tutelage[harness]'`)."""

    tasks: list[str] = []
    """Names of tasks, as `lm_eval ls tasks` lists them."""
    folder: str | None = None
    """A folder of tasks of one's own, as YAML files; `!function` in them runs the code that stands beside them."""
    limit: int | None = Field(default=None, gt=0)
    """Documents of each task, the first ones; null does all of them."""


class EvaluateConfig(Section):
    """What `tutelage eval` asks base and tuned model; training reads none of it but `tasks`, for `train.gate.instruction`."""

    tasks: list[str] = []
    """Files of tasks that code can score: constraints, numbers, exact answers, choices, refusals."""
    harness: HarnessConfig = HarnessConfig()
    prompts: int = Field(default=200, ge=0)
    """Held-out prompts that both models answer."""
    max_new_tokens: int = Field(default=128, gt=0)
    """Longest answer in tokens; an answer that runs into it counts as one that does not end."""


class RunConfig(Section):
    """Where the run is kept."""

    dir: str | None = None
    """Run directory; None makes `runs/<date>-<name>`."""
    name: str = "sft"
    """Name in the default run directory."""
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Experiment trackers beside the run's own files; each needs its extra installed."""

    @field_validator("name")
    @classmethod
    def _is_one_name(cls, name: str) -> str:
        if "/" in name or "\\" in name:
            raise ValueError(f"`{name}` is a path; give the name of one folder, or run.dir")
        return name


class Config(Section):
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    sample: SampleConfig = SampleConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    run: RunConfig = RunConfig()
