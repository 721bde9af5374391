"""Every setting that a recipe can have: name, type, default, range and meaning.

One dataclass per section, in ``curation``, ``training``, ``delivery``, ``tracking`` and ``site``; the recipe
as a whole is here, how a setting is declared in ``declare``.  The controller loads
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
    Serving,
)
from pipeline.schema.site import KINDS, Kubernetes, Plan, Site, Slurm, for_stage
from pipeline.schema.tracking import Tracking
from pipeline.schema.training import (
    Align,
    Launch,
    Lora,
    Model,
    Nemo,
    Optimisation,
    Parallel,
    Pretrain,
    Reward,
    Sample,
    Train,
)

__all__ = [
    "ACTIONS",
    "ALL_STAGES",
    "DEFAULT_STAGES",
    "KINDS",
    "SYNTHETIC_TASKS",
    "Align",
    "Curate",
    "Decontaminate",
    "Deploy",
    "Evaluate",
    "ExactDuplicates",
    "Export",
    "Gate",
    "Kubernetes",
    "Language",
    "Launch",
    "Lora",
    "Model",
    "NearDuplicates",
    "Nemo",
    "Optimisation",
    "Parallel",
    "Plan",
    "Pretrain",
    "Prompts",
    "Recipe",
    "Redact",
    "Reward",
    "Sample",
    "Scored",
    "SemanticDuplicates",
    "Serving",
    "Site",
    "Slurm",
    "Source",
    "Synthetic",
    "Tracking",
    "Train",
    "flat",
    "for_stage",
    "from_plain",
    "hints",
    "identity_values",
    "is_open",
    "is_section",
    "item_type",
    "setting",
]


ALL_STAGES = ["curate", "pretrain", "train", "reward", "sample", "align", "evaluate", "export", "deploy"]
ON_REQUEST = ("reward", "sample")  # only in recipes that list them
DEFAULT_STAGES = [stage for stage in ALL_STAGES if stage not in ON_REQUEST]


@dataclass
class Recipe:
    """A whole recipe: what to build."""

    description: str = setting("", "what the recipe builds", identity=False)
    stages: list[str] = setting(DEFAULT_STAGES, "the stages of this recipe, in order")
    curate: Curate = field(default_factory=Curate)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    train: Train = field(default_factory=Train)
    reward: Reward = field(default_factory=Reward)
    sample: Sample = field(default_factory=Sample)
    align: Align = field(default_factory=Align)
    evaluate: Evaluate = field(default_factory=Evaluate)
    gate: Gate = field(default_factory=Gate)
    export: Export = field(default_factory=Export)
    deploy: Deploy = field(default_factory=Deploy)
    launch: Launch = field(default_factory=Launch)
    plan: Plan = field(default_factory=Plan)
    tracking: Tracking = field(default_factory=Tracking)
    site: Site = field(default_factory=Site)
