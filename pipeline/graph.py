"""The stages, declared as data: what each one needs, runs in and leaves behind.

A stage names the settings sections that it reads, the artifacts that it consumes (by the
stage that publishes them), the toolchain it runs in and the files that prove that it
produced what it promised.  :func:`resolve` turns the list of stages of one recipe into
steps with their parents; nothing else in the controller knows one stage from another.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pipeline import schema
from pipeline.errors import UserError


@dataclass(frozen=True)
class Stage:
    """A kind of work.

    ``sections`` are the settings sections that count, or single settings of one
    (``model.context``).  ``version`` is raised by hand when the same settings and inputs
    would no longer give the same output.  ``consumes`` maps the name under which the step finds an input to
    the stages that can supply it, in order of preference; ``optional`` names may be
    absent.  ``produces`` are the files and folders that a finished step must have.
    ``live`` marks a stage whose product is a running server and not only files.
    ``carries`` are files outside the package that the work takes in (relative to the
    repository); ``module`` does the work, ``pipeline.stages.NAME`` unless given.  ``engines`` are
    other ways to do it (the section's setting ``engine``): name, toolchain and module of each.
    """

    name: str
    version: int
    toolchain: str
    sections: tuple[str, ...]
    produces: tuple[str, ...]
    consumes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    optional: tuple[str, ...] = ()
    uses_base_model: bool = False
    writes_card: bool = False  # of the model, with the base's name and licence
    uses_documents: bool = False
    uses_adapters: bool = False
    live: bool = False
    carries: tuple[str, ...] = ()
    module: str = ""
    engines: tuple[tuple[str, str, str], ...] = ()
    purpose: str = ""

    def by(self, engine: str) -> Stage:
        """The stage as an engine does it; one that is not among ``engines`` is the stage's own."""
        for name, toolchain, module in self.engines:
            if name == engine:
                return replace(self, toolchain=toolchain, module=module)
        return self

    @property
    def source(self) -> str:
        """The module whose ``run(step)`` does the work."""
        return self.module or f"pipeline.stages.{self.name}"


MODELS = ("pretrain", "train", "align")
TRAINING = ("pretrain", "train", "reward", "align")  # spread over GPUs and machines
READING = ("sample", "evaluate", "export")  # over the GPUs of one machine, where there are any
DATA_AND_MODELS = (("data", ("curate",)), *((name, (name,)) for name in MODELS))
NEMO = ("nemo", "nemo", "pipeline.engines.nemo.step")

ASKED = "evaluate.attributes"  # what the chat template of a fine-tuned model asks for

STAGES: tuple[Stage, ...] = (
    Stage(
        name="curate",
        version=5,
        toolchain="core",
        sections=("curate", "model.vocab_size", "model.context", "model.template_date"),
        uses_documents=True,
        uses_base_model=True,
        produces=(
            "pretrain/train",
            "sft/train.jsonl",
            "preference/train.jsonl",
            "tokenizer/tokenizer.json",
            "report.json",
        ),
        purpose="raw documents to pre-training, instruction and preference data",
    ),
    Stage(
        name="pretrain",
        version=3,
        toolchain="core",
        sections=("model", "pretrain"),
        consumes=(("data", ("curate",)),),
        engines=(NEMO,),
        produces=("model.json", "model/config.json"),
        purpose="a language model from scratch",
    ),
    Stage(
        name="train",
        version=4,
        toolchain="core",
        sections=("model", "train"),
        consumes=(("data", ("curate",)), ("pretrain", ("pretrain",))),
        optional=("pretrain",),
        engines=(NEMO,),
        uses_base_model=True,
        produces=("model.json",),
        purpose="supervised fine-tuning on the instruction pairs",
    ),
    Stage(
        name="reward",
        version=3,
        toolchain="core",
        sections=("model", "reward", ASKED),
        consumes=(("data", ("curate",)), ("pretrain", ("pretrain",)), ("train", ("train",))),
        optional=("pretrain", "train"),
        uses_base_model=True,
        produces=("model/config.json",),
        purpose="a reward model on the preference pairs",
    ),
    Stage(
        name="sample",
        version=2,
        toolchain="core",
        sections=("model", "sample", ASKED),
        consumes=(
            ("data", ("curate",)),
            ("pretrain", ("pretrain",)),
            ("train", ("train",)),
            ("reward", ("reward",)),
        ),
        optional=("pretrain", "train", "reward"),
        uses_base_model=True,
        produces=("preference/train.jsonl", "sft/train.jsonl", "report.json"),
        purpose="the model's own answers, scored, as preference pairs and best-of-n data",
    ),
    Stage(
        name="align",
        version=4,
        toolchain="core",
        sections=("model", "align", ASKED),
        consumes=(
            ("data", ("curate",)),
            ("pretrain", ("pretrain",)),
            ("train", ("train",)),
            ("pairs", ("sample",)),
        ),
        optional=("pretrain", "train", "pairs"),
        engines=(("aligner", "nemo", "pipeline.engines.aligner.step"),),
        uses_base_model=True,
        produces=("model.json",),
        purpose="preference optimisation",
    ),
    Stage(
        name="evaluate",
        version=2,
        toolchain="core",
        sections=("model", "evaluate"),
        consumes=DATA_AND_MODELS,
        optional=MODELS,
        uses_base_model=True,
        produces=("evaluation.json", "evaluation.md"),
        purpose="base, fine-tuned and aligned model side by side on held-out data",
    ),
    Stage(
        name="export",
        version=5,
        toolchain="serving",
        sections=("model", "export", ASKED),
        # The evaluation goes into the model card, and the gate reads its figures.
        consumes=(*DATA_AND_MODELS, ("evaluation", ("evaluate",))),
        optional=(*MODELS, "evaluation"),
        carries=("deploy/triton", "pipeline/conversations"),
        uses_base_model=True,
        writes_card=True,
        uses_adapters=True,
        produces=(
            "bundle/config.json",
            "bundle/model.safetensors",
            "bundle/README.md",
            "repository",
            "parity.json",
            "probes.json",
            "export.json",
        ),
        purpose="one bundle and a Triton model repository",
    ),
    Stage(
        name="deploy",
        version=2,
        toolchain="serving",
        sections=("deploy",),
        consumes=(("export", ("export",)),),
        live=True,
        produces=("deployment.json",),
        purpose="a Triton server that answers",
    ),
)

BY_NAME = {stage.name: stage for stage in STAGES}

# The gate stands between these two: figures of the first decide whether the second may start.
GATE = ("evaluate", "export")


@dataclass(frozen=True)
class Step:
    """A stage in one recipe: ``parents`` maps input names to the stages that supply them."""

    stage: Stage
    parents: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        return self.stage.name


def unused_inputs(recipe: schema.Recipe) -> frozenset[tuple[str, str]]:
    """The optional inputs, as (stage, input), that the recipe's settings make no use of."""
    unused = set()
    if recipe.align.pairs != "sample":
        unused.add(("align", "pairs"))
    if recipe.sample.scorer != "reward":
        unused.add(("sample", "reward"))
    return frozenset(unused)


def resolve(
    names: list[str],
    has_base_model: bool,
    engines: Mapping[str, str] | None = None,
    unused: frozenset[tuple[str, str]] = frozenset(),
) -> tuple[Step, ...]:
    """The steps of a recipe that lists these stages, in the order of the graph.

    With a base model, pre-training is left out and the base takes its place.  ``engines``: by stage.  A
    step does not rest on inputs that are ``unused`` (:func:`unused_inputs`).  Raises
    :class:`UserError` for an unknown stage or one whose input no listed stage supplies.
    """
    for name in names:
        if name not in BY_NAME:
            raise UserError(f"stages: there is no stage {name!r}; the stages are {', '.join(BY_NAME)}")
    chosen = [s for s in STAGES if s.name in names and not (has_base_model and s.name == "pretrain")]
    present = {stage.name for stage in chosen}
    steps = []
    for stage in chosen:
        parents = []
        for input_name, suppliers in stage.consumes:
            if (stage.name, input_name) in unused:
                continue
            supplier = next((s for s in suppliers if s in present), None)
            if supplier is not None:
                parents.append((input_name, supplier))
            elif input_name not in stage.optional:
                raise UserError(
                    f"stages: {stage.name} needs what {' or '.join(suppliers)} makes; add it to the recipe's stages"
                )
        models = set(MODELS) & {p for _, p in parents}
        if stage.uses_base_model and stage.name != "curate" and not models and not has_base_model:
            raise UserError(
                f"stages: {stage.name} needs a model: add pretrain to the stages, or set model.base"
            )
        steps.append(Step(stage.by((engines or {}).get(stage.name, "")), tuple(parents)))
    return tuple(steps)


def descendants(steps: tuple[Step, ...], names: set[str]) -> list[str]:
    """The names of the steps that rest on any of these, directly or not, in order."""
    reached = set(names)
    for step in steps:
        if any(parent in reached for _, parent in step.parents):
            reached.add(step.name)
    return [step.name for step in steps if step.name in reached - names]


def ancestors(steps: tuple[Step, ...], target: str) -> tuple[Step, ...]:
    """The steps that ``target`` rests on, and itself, in order."""
    by_name = {step.name: step for step in steps}
    if target not in by_name:
        raise UserError(f"this recipe has no stage {target!r}; its stages are {', '.join(by_name)}")
    needed: set[str] = set()
    waiting = [target]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting.extend(parent for _, parent in by_name[name].parents)
    return tuple(step for step in steps if step.name in needed)
