"""Every setting that a recipe can have: name, type, default, range and meaning.

One dataclass per section, in ``curation``, ``training`` and ``delivery``; the recipe as a
whole and the site are here, how a setting is declared in ``declare``.  The controller loads
recipes into these through OmegaConf's structured configs (:mod:`pipeline.recipe`); a step
gets the same dataclasses back from the JSON it is handed (:func:`from_plain`).  Nothing is
imported but the standard library, because the controller and every toolchain import this.

The dividing line: a field bears identity (changing it makes the step run again) unless
it is declared with ``identity=False``, which is for what never changes a result: ports,
worker counts, time-outs, how often something is logged or saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.schema.curation import (
    ACTIONS,
    SYNTHETIC_TASKS,
    Curate,
    Decontaminate,
    ExactDuplicates,
    Language,
    NearDuplicates,
    Prompts,
    Redact,
    Scored,
    SemanticDuplicates,
    Source,
    Synthetic,
)
from pipeline.schema.declare import (
    flat,
    from_plain,
    hints,
    identity_values,
    is_open,
    is_section,
    item_type,
    setting,
)
from pipeline.schema.delivery import (
    Deploy,
    Evaluate,
    Export,
    Gate,
)
from pipeline.schema.training import (
    Align,
    Launch,
    Lora,
    Model,
    Optimisation,
    Parallel,
    Pretrain,
    Train,
)

__all__ = [
    "ACTIONS",
    "ALL_STAGES",
    "SYNTHETIC_TASKS",
    "Align",
    "Curate",
    "Decontaminate",
    "Deploy",
    "Evaluate",
    "ExactDuplicates",
    "Export",
    "Gate",
    "Language",
    "Launch",
    "Lora",
    "Model",
    "NearDuplicates",
    "Optimisation",
    "Parallel",
    "Pretrain",
    "Prompts",
    "Recipe",
    "Redact",
    "Scored",
    "SemanticDuplicates",
    "Site",
    "Source",
    "Synthetic",
    "Train",
    "flat",
    "from_plain",
    "hints",
    "identity_values",
    "is_open",
    "is_section",
    "item_type",
    "setting",
]


@dataclass
class Site:
    """Where a recipe runs. Never bears identity."""

    name: str = setting("local", "the site's name", identity=False)
    threads: int = setting(
        0, "threads of a training or evaluation process (0: one per core)", ge=0, identity=False
    )
    min_free_gb: float = setting(
        2.0, "free disk that must be there before anything starts", ge=0, identity=False
    )
    lease_s: float = setting(
        60.0,
        "seconds without a sign of life after which a step's holder on another machine counts as dead",
        gt=0,
        identity=False,
    )
    ray: str | None = setting(
        None,
        "curate with Curator's executor on a Ray cluster: its address, or 'local' to start one",
        identity=False,
    )
    grace_s: float = setting(
        20.0, "seconds that an interrupted step may take to write a checkpoint", ge=0, identity=False
    )


ALL_STAGES = ["curate", "pretrain", "train", "align", "evaluate", "export", "deploy"]


@dataclass
class Recipe:
    """A whole recipe: what to build."""

    description: str = setting("", "what the recipe builds", identity=False)
    stages: list[str] = setting(ALL_STAGES, "the stages of this recipe, in order")
    curate: Curate = field(default_factory=Curate)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    train: Train = field(default_factory=Train)
    align: Align = field(default_factory=Align)
    evaluate: Evaluate = field(default_factory=Evaluate)
    gate: Gate = field(default_factory=Gate)
    export: Export = field(default_factory=Export)
    deploy: Deploy = field(default_factory=Deploy)
    launch: Launch = field(default_factory=Launch)
    site: Site = field(default_factory=Site)
