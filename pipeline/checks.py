"""Rules between settings that no single type or range can state.

Each rule yields the setting to mend and what is wrong with it; :mod:`pipeline.recipe`
adds the file and line.  Files on disk are checked in :mod:`pipeline.runner.inputs`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from urllib.parse import urlsplit

from pipeline import attributes, curation, schema, training_checks
from pipeline.documents import encoding_fault
from pipeline.gateway.settings import is_loopback
from pipeline.launch.checks import site_faults
from pipeline.serving.repository import BEHIND, argument_faults, owned
from pipeline.serving.targets import (
    PRECISIONS,
    REQUEST,
    TARGETS,
    TRTLLM,
    TRTLLM_ENGINE,
    precision_fault,
    width_fault,
)

MODEL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
TOLERATED = ("different", "top1_agreement", "kl", "perplexity")
LARGEST_RATIO = 1e6  # of two sources' weights


def cross_checks(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    """All broken rules of a recipe as (setting, message), the first the most basic."""
    if not recipe.stages:
        yield (
            "stages",
            f"is empty, so that nothing would be done; the stages are {', '.join(schema.ALL_STAGES)}",
        )
    for name in recipe.stages:
        if name not in schema.ALL_STAGES:
            yield "stages", f"there is no stage {name!r}; the stages are {', '.join(schema.ALL_STAGES)}"
    yield from _curation(recipe.curate)
    yield from _model(recipe.model)
    yield from _own_samples(recipe)
    yield from _tracking(recipe.tracking)
    yield from _attributes(recipe)
    yield from training_checks.faults(recipe)
    yield from _export(recipe)
    ports = (recipe.deploy.http_port, recipe.deploy.grpc_port, recipe.deploy.metrics_port)
    if len(set(ports)) < 3:
        yield "deploy.http_port", f"the three ports must differ; they are {', '.join(map(str, ports))}"
    yield from _deploy(recipe)
    if (recipe.gate.min_pairs or 0) > recipe.evaluate.max_pairs:
        yield (
            "gate.min_pairs",
            f"{recipe.gate.min_pairs} is more than evaluate.max_pairs = {recipe.evaluate.max_pairs} are looked at, so that the "
            "gate would never open",
        )
    if recipe.gate.override_reason is not None and len(recipe.gate.override_reason.strip()) < 8:
        yield "gate.override_reason", "give a reason that a reader of the record will understand"
    yield from site_faults(recipe.site)


def _deploy(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    deploy = recipe.deploy
    if not is_loopback(deploy.host) and deploy.keys_file is None and not deploy.insecure:
        yield (
            "deploy.host",
            f"{deploy.host} can be reached from elsewhere: name a file of API keys (deploy.keys_file), or set "
            f"deploy.insecure=true where something else keeps strangers out",
        )
    if (deploy.tls_certificate is None) != (deploy.tls_key is None):
        yield "deploy.tls_certificate", "deploy.tls_certificate and deploy.tls_key belong together"
    most = deploy.limits.max_tokens
    if most is not None and recipe.export.max_new_tokens > most:
        yield (
            "deploy.limits.max_tokens",
            f"{most} is less than export.max_new_tokens = {recipe.export.max_new_tokens}, which an answer has "
            f"when its request names no length",
        )


def _export(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    export, target = recipe.export, TARGETS[recipe.export.target]
    name = export.model_name
    if not MODEL_NAME.fullmatch(name):
        yield "export.model_name", f"{name!r} is part of an address: letters, digits, '-', '_' and '.' only"
    if export.parity_tokens >= recipe.model.context:
        yield "export.parity_tokens", f"leaves no room for a prompt in model.context = {recipe.model.context}"
    fault = precision_fault(export.target, export.weights, export.gpu)
    if fault:
        yield "export.gpu" if fault.startswith("no such GPU") else "export.weights", fault
    if recipe.model.base is None:
        sizes = {
            "model.hidden_size": recipe.model.hidden_size,
            "model.intermediate_size": recipe.model.intermediate_size,
        }
        wide = width_fault(export.weights, sizes)
        if wide:
            yield "export.weights", wide
    if export.kv_cache == "fp8" and not target.gpu:
        yield "export.kv_cache", f"{export.target} keeps keys and values as it computes them"
    elif export.kv_cache == "fp8" and not PRECISIONS[export.weights].modelopt:
        yield "export.kv_cache", f"fp8 needs scales, which calibration finds: {export.weights} has none"
    yield from _adapters(export)
    for key, value in export.tolerance.items():
        if key not in TOLERATED:
            yield f"export.tolerance.{key}", f"unknown; what can be tolerated: {', '.join(TOLERATED)}"
        elif isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
            yield f"export.tolerance.{key}", f"{value!r} is not a number of 0 or more"
    if export.serving.speculative and export.target != TRTLLM:
        yield "export.serving.speculative", f"is for the target {TRTLLM}"
    if export.serving.arguments.get("trust_remote_code"):
        yield "export.serving.arguments", "trust_remote_code would run code of the checkpoint; it stays off"
    if export.target == TRTLLM_ENGINE and export.serving.pipeline > 1:
        yield "export.serving.pipeline", f"{TRTLLM_ENGINE} is cut over tensors only"
    if export.kv_cache == "fp8" and export.target == TRTLLM_ENGINE:
        yield "export.kv_cache", f"is not measured on {TRTLLM_ENGINE}, and so not written for it"
    heads, tensor = recipe.model.heads, export.serving.tensor
    if recipe.model.base is None and heads % tensor:
        yield "export.serving.tensor", f"{tensor} does not divide model.heads = {heads}"
    for key in sorted(owned(export, recipe.model.context) & set(export.serving.arguments)):
        yield (
            "export.serving.arguments",
            f"{key} is what export.serving's own settings say, or the contract rests on",
        )
    yield from argument_faults(export, recipe.model.context)


def _adapters(export: schema.Export) -> Iterator[tuple[str, str]]:
    """Adapters that a target can serve, under names that are free."""
    taken = [export.model_name, *(f"{export.model_name}{end}" for end in BEHIND.values())]
    for adapter, path in export.adapters.items():
        if not isinstance(path, str) or not MODEL_NAME.fullmatch(adapter):
            yield (
                "export.adapters",
                f"{adapter!r} names a folder and a model: letters, digits, '-' and '_' only, and a path behind it",
            )
        elif adapter in taken:
            yield (
                "export.adapters",
                f"{adapter!r} is the name of one of the server's own models: {', '.join(taken)}",
            )
    if export.adapters and not TARGETS[export.target].adapters:
        can = ", ".join(name for name, each in TARGETS.items() if each.adapters == REQUEST)
        yield (
            "export.adapters",
            f"a request cannot choose an adapter on {export.target} ({can} can); export each merged model under a "
            f"model_name of its own",
        )


def _tracking(tracking: schema.Tracking) -> Iterator[tuple[str, str]]:
    if not tracking.mlflow:
        return
    address = urlsplit(tracking.mlflow)
    if address.scheme not in ("http", "https") or not address.hostname:
        yield (
            "tracking.mlflow",
            f"{tracking.mlflow!r} is not the address of a tracking server, http://HOST:PORT; one on this machine: "
            "mlflow server --backend-store-uri sqlite:///mlflow.db",
        )


def _curation(curate: schema.Curate) -> Iterator[tuple[str, str]]:
    if not curate.sources:
        yield "curate.sources", "names no source of documents; see the README, 'Your own documents'"
    for index, source in enumerate(curate.sources):
        if source.kind == "python-docs" and not source.packages:
            yield (
                f"curate.sources.{index}.packages",
                "python-docs needs at least one package, e.g. [stdlib, numpy]",
            )
        if source.kind != "python-docs" and not source.path:
            yield f"curate.sources.{index}.path", f"a {source.kind} source needs a path"
        if source.kind == "python-docs" and source.path:
            yield f"curate.sources.{index}.path", "a python-docs source has packages, not a path"
        if wrong := encoding_fault(source):
            yield f"curate.sources.{index}.encoding", wrong
    weighed = [source.weight is not None for source in curate.sources]
    if any(weighed) and not all(weighed):
        index = weighed.index(False)
        yield f"curate.sources.{index}.weight", "is missing; either every source has a weight or none has"
    weights = [source.weight for source in curate.sources if source.weight is not None]
    if weights and not max(weights) <= LARGEST_RATIO * min(weights):
        yield (
            "curate.sources",
            f"weights from {min(weights):g} to {max(weights):g} leave one source nothing to give",
        )
    packages = [package for source in curate.sources for package in source.packages]
    if len(set(packages)) < len(packages):
        yield "curate.sources", "a package is named twice"
    if curate.tokens and not any(weighed):
        yield "curate.tokens", "sets the size of a blend; give the sources weights"
    yield from curation.faults(curate)
    for name in ("near_duplicates", "prompts"):
        near = getattr(curate, name)
        if near.permutations % near.bands:
            yield (
                f"curate.{name}.bands",
                f"{near.bands} does not divide curate.{name}.permutations = {near.permutations}",
            )
    if "semantic-duplicates" in curate.stages and not (
        curate.semantic_duplicates.model or all(source.embedding_field for source in curate.sources)
    ):
        yield (
            "curate.semantic_duplicates.model",
            "semantic-duplicates needs a local encoder folder here, or embeddings with the data (embedding_field of every source)",
        )
    for index, task in enumerate(curate.synthetic.tasks):
        if task not in schema.SYNTHETIC_TASKS:
            yield (
                f"curate.synthetic.tasks.{index}",
                f"there is no task {task!r}; the tasks are {', '.join(schema.SYNTHETIC_TASKS)}",
            )
    for name in ("address", "model"):
        if curate.synthetic.tasks and not getattr(curate.synthetic, name):
            yield (
                f"curate.synthetic.{name}",
                "is missing; synthetic data need an OpenAI-compatible address and a model",
            )
    spend = curate.synthetic
    if spend.max_spend and not (
        spend.price_per_million_prompt_tokens or spend.price_per_million_completion_tokens
    ):
        yield (
            "curate.synthetic.max_spend",
            "means nothing without prices (curate.synthetic.price_per_million_...)",
        )
    for index, region in enumerate(curate.redact.phone_regions):
        if len(region) != 2 or not region.isupper():
            yield f"curate.redact.phone_regions.{index}", f"{region!r} is no region; e.g. US, GB, DE"
    if curate.validation_share + curate.test_share >= 1:
        yield "curate.test_share", "validation and test together leave no training data"


def _own_samples(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    """Between a reward model, sampling and what rests on them."""
    if recipe.align.pairs == "sample" and "align" in recipe.stages and "sample" not in recipe.stages:
        yield "align.pairs", "sample makes them, which is not among the recipe's stages: add it before align"
    if recipe.sample.scorer == "reward" and "sample" in recipe.stages and "reward" not in recipe.stages:
        yield (
            "sample.scorer",
            "reward is not among the recipe's stages: add it before sample, or choose house-style",
        )
    if "sample" in recipe.stages and recipe.sample.max_new_tokens >= recipe.model.context:
        yield (
            "sample.max_new_tokens",
            f"leaves no room for a prompt in model.context = {recipe.model.context}",
        )
    for name in ("tensor", "context"):
        if getattr(recipe.reward.parallel, name) > 1:
            yield (
                f"reward.parallel.{name}",
                "a reward model is trained data-parallel only (ddp or fsdp2): set it to 1",
            )


def _attributes(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    """Attributes that are measured, trained on, and asked for."""
    for index, name in enumerate(recipe.curate.attributes):
        if name not in attributes.MEASURED:
            known = ", ".join(attributes.MEASURED)
            yield (
                f"curate.attributes.{index}",
                f"{name!r} cannot be measured on an answer; what can be is {known}",
            )
    trained, asked = recipe.train.attributes, recipe.evaluate.attributes
    for index, name in enumerate(trained):
        if not attributes.NAME.fullmatch(name) or name in trained[:index]:
            yield (
                f"train.attributes.{index}",
                f"{name!r} is there twice, or is no name of small letters, digits and '_'",
            )
    if sorted(asked) != sorted(trained):
        yield (
            "evaluate.attributes",
            f"must give a value for each of train.attributes, which are {', '.join(trained) or 'none'}, and for no other",
        )
    elif fault := attributes.fault(asked):
        yield "evaluate.attributes", fault


def _model(model: schema.Model) -> Iterator[tuple[str, str]]:
    if model.template_date is not None:
        try:
            date.fromisoformat(model.template_date)
        except ValueError:
            yield "model.template_date", f"{model.template_date!r} is not a day such as 2026-11-30"
    if model.base is not None:
        return
    if model.template_date is not None:
        yield "model.template_date", "means nothing without model.base: the template made here reads no date"
    if model.hidden_size % model.heads:
        yield "model.heads", f"{model.heads} does not divide model.hidden_size = {model.hidden_size}"
    if (model.hidden_size // model.heads) % 2:
        yield "model.heads", "the width of a head (hidden_size / heads) must be even for rotary embeddings"
    if model.heads % model.kv_heads:
        yield "model.kv_heads", f"{model.kv_heads} does not divide model.heads = {model.heads}"
