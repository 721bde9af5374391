"""What each verb of the command line does: a few lines over the parts that do the work.

Parts that only one verb needs are imported in it: a no-op run should cost little more
than the interpreter.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path

from pipeline import recipe as recipes
from pipeline import strict_json
from pipeline.errors import LifecycleError, UserError
from pipeline.graph import STAGES
from pipeline.layers import Origin, leaves, locate
from pipeline.runner import inputs
from pipeline.runner.attempt import Progress
from pipeline.runner.chain import Chain
from pipeline.runner.display import duration, make_display
from pipeline.runner.identity import SHORT
from pipeline.runner.lease import attempts, holder_of, live_holder, silence_s
from pipeline.runner.store import read_artifact
from pipeline.summary import print_summary
from pipeline.surroundings import past_proxies
from pipeline.toolchains import ROOT
from pipeline.wording import counted

LIVE = next(stage.name for stage in STAGES if stage.live)


def run(options: Namespace) -> int:
    """The whole chain, or a stage and what it rests on: here, or as jobs of a cluster."""
    chain = _load(options)
    target = None if options.verb == "run" else options.verb
    if chain.loaded.settings.site.kind != "local" and not getattr(options, "here", False):
        if target == LIVE and getattr(options, "dry_run", False):
            return _rehearse_deployment(chain)
        return _submit(chain, target, options)
    if getattr(options, "dry_run", False):
        raise UserError(
            "--dry-run shows what a cluster would get; here, `lifecycle plan` says what would run"
        )
    display = make_display(options.plain)
    finished = chain.run(display, target, getattr(options, "only", False))
    print_summary(finished, display.console)
    for item in finished:
        for message in item.artifact.manifest["messages"] if item.artifact and item.step.stage.live else ():
            display.console.print(message, markup=False, soft_wrap=True)
    return 0


def _submit(chain: Chain, target: str | None, options: Namespace) -> int:
    from pipeline.launch.orders import listed
    from pipeline.launch.submit import submit

    passed = [f"--{name}" for name in ("strict", "verify") if getattr(options, name)]
    sent = submit(chain, target, options.dry_run, passed)
    say = sys.stderr if options.dry_run else sys.stdout
    for note in sent.notes:
        print(note, file=say)
    for job in sent.jobs:
        if options.dry_run:
            print(job.text.rstrip(), end="\n\n" if job.text else "")
        else:
            after = f", when {listed(job.after)} ended well" if job.after else ""
            print(f"{job.stage:<9} job {job.id}{after}")
    if not sent.jobs:
        print("nothing to submit", file=say)
    elif not options.dry_run:
        print(f"`lifecycle status {options.recipe}` shows them; {sent.folder}", file=say)
    if options.dry_run and target == "export":
        _rehearse(chain)
    return 0


def _rehearse(chain: Chain) -> None:
    """Write the repository that the export would, as far as it is text, and say what it is and is not."""
    from pipeline.serving.rehearsal import rehearse, words_of

    done = rehearse(chain.loaded.settings, chain.store.root / "dry-run" / "repository")
    print(words_of(done, chain.loaded.settings), file=sys.stderr)
    if done.faults:
        raise LifecycleError(f"the repository is not what its readers take: {done.faults[0]}")


def _rehearse_deployment(chain: Chain) -> int:
    """Write what serves the recipe on GPUs: the repository's text, and what Helm, compose and Slurm take."""
    from pipeline.serving import cluster, manifests
    from pipeline.serving.rehearsal import UNKNOWN

    published = chain.store.latest("export")
    folder = chain.store.root / "dry-run"
    if published is None:
        _rehearse(chain)
        identity, repository = UNKNOWN, chain.store.root / "export" / "latest" / "repository"
    else:
        identity, repository = published.identity, published.path / "repository"
    files = cluster.written(folder / "serving", chain.loaded.settings, identity, repository)
    on_slurm = chain.loaded.settings.site.kind == "slurm"
    found = manifests.script(folder / "serving") if on_slurm else manifests.made(folder / "serving")
    for file in files:
        print(file)
    for words in found.checked:
        print(f"checked: {words}", file=sys.stderr)
    for words in [*found.not_executed, "no GPU: nothing was started"]:
        print(f"not executed: {words}", file=sys.stderr)
    if published is None:
        print("the export has not run: the values name it by zeros (docs/deploying.md)", file=sys.stderr)
    if found.faults:
        raise LifecycleError(f"what was written is not what its readers take: {'; '.join(found.faults)}")
    return 0


def plan(options: Namespace) -> int:
    """What would run, why, what follows, what is reused; and what the training steps need."""
    from pipeline.plan.verb import plan as told

    return told(_load(options), options)


def status(options: Namespace) -> int:
    """The chain as it stands, the steps at work, and the jobs of the last submission."""
    chain = _load(options)
    if chain.loaded.settings.site.kind != "kubernetes":  # whose volume is not to be seen from here
        inputs.check_inputs(chain.loaded)
        print_summary(chain.plan())
        _print_work(chain)
    from pipeline.launch.orders import submissions

    sent = submissions(chain.store.root)
    if sent:
        from pipeline.launch.show import print_jobs

        print_jobs(sent[-1])
    return 0


def _print_work(chain: Chain) -> None:
    for stage in STAGES:
        for work in attempts(chain.store.stage_folder(stage.name)):
            if live_holder(work):
                far = Progress.of(work)
                words = ", ".join(part for part in (far.words, far.left) if part) or "starting"
                silent = silence_s(work)
                if silent > chain.loaded.settings.site.lease_s:
                    words += f"; no sign of life for {duration(silent)}"
                print(f"\n{stage.name} is at work: {holder_of(work)}; {words}")


def explain(options: Namespace) -> int:
    """The value of a setting, who set it, and what it overrode."""
    loaded = recipes.load(options.recipe, ROOT, options.set, options.site)
    values = {path: (value, meta) for path, value, meta in leaves(loaded.settings)}
    if options.key is None:
        for path, layers in loaded.history.items():
            if path in values:
                print(f"{path} = {values[path][0]!r}  ({layers[-1][0]})")
        return 0
    if options.key not in values:
        near = [path for path in values if path.startswith(f"{options.key}.")]
        if not near:
            locate(options.key, Origin("command line"))
        for path in near:
            print(f"{path} = {values[path][0]!r}  ({loaded.origin(path)})")
        return 0
    value, metadata = values[options.key]
    print(f"{options.key} = {value!r}: {metadata['help']}")
    layers = loaded.history.get(options.key, [])
    print(f"  set by {layers[-1][0].layer}: {layers[-1][0]}" if layers else "  the default")
    for origin, old in reversed(layers[:-1]):
        print(f"  over {old!r} from {origin.layer}: {origin}")
    if layers:
        defaults = {path: default for path, default, _ in leaves(type(loaded.settings)())}
        print(f"  over the default {defaults.get(options.key)!r}")
    if not metadata.get("identity", True):
        print("  bears no identity: changing it makes no step run again")
    return 0


def diff(options: Namespace) -> int:
    """Two runs, stage by stage."""
    from pipeline.record.compare import compare, words_of
    from pipeline.record.history import find_run

    runs = Path(options.runs)
    compared = compare(find_run(options.a, runs), find_run(options.b, runs))
    print(strict_json.dumps(compared, indent=2) if options.json else words_of(compared))
    return 0


def trace(options: Namespace) -> int:
    """From what is serving back to the data."""
    from pipeline.record.trace import trace as traced
    from pipeline.record.trace import words_of

    found = traced(options.what, Path(options.runs), options.certificate)
    print(strict_json.dumps(found, indent=2, ensure_ascii=False) if options.json else words_of(found))
    return 0


def report(options: Namespace) -> int:
    """The chain as one HTML file."""
    from pipeline.record.history import latest_chain
    from pipeline.report.html import render
    from pipeline.schema import Recipe, flat, identity_values

    chain = _load(options)
    found = latest_chain(chain.store)
    if not found.artifacts:
        raise UserError(f"{chain.loaded.name} has published nothing in {options.runs} yet: `make run` first")
    target = Path(options.output) if options.output else chain.store.root / "report.html"
    html = render([each.manifest for each in found.artifacts], flat(identity_values(Recipe())))
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(html, encoding="utf-8")
    print(target)
    return 0


def verify(options: Namespace) -> int:
    """Every byte of every artifact, again; exit status 1 when something rotted."""
    from pipeline.record.check import Checked, check, set_aside

    store = _load(options).store
    if not store.root.is_dir():
        raise UserError(f"{store.recipe} has published nothing in {options.runs} yet")

    def tell(checked: Checked) -> None:
        print(f"{'damaged' if checked.faults else 'sound':<8} {checked.path}")
        for fault in checked.faults:
            print(f"           {fault}")

    found = check(store, tell)
    damaged = [each for each in found if each.faults]
    if not damaged:
        print(
            f"{counted(len(found), 'artifact')}, {'all of them as they were' if len(found) != 1 else 'as it was'} published"
        )
        return 0
    if options.quarantine:
        for moved in set_aside(store, damaged):
            print(f"moved to {moved}")
        print("the next run makes anew what it needs of them")
    else:
        print(
            f"{len(damaged)} of {counted(len(found), 'artifact')} {'is' if len(damaged) == 1 else 'are'} damaged; --quarantine moves them aside"
        )
    return 1


def fetch(options: Namespace) -> int:
    """Bring the recipe's base model from the Hugging Face hub into the local cache."""
    import subprocess

    from pipeline.runner.base import is_hub_id
    from pipeline.toolchains import Toolchain

    model = _load(options).loaded.settings.model
    if model.base is None or not is_hub_id(model.base):
        what = "starts from scratch" if model.base is None else f"has its base in {model.base}"
        print(f"nothing to fetch: {options.recipe} {what}")
        return 0
    toolchain = Toolchain("core")
    toolchain.require()
    command = [str(toolchain.python), "-m", "pipeline.stages.fetch_base", model.base, model.revision]
    environment = {**os.environ, **past_proxies(os.environ)}
    done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise UserError(said[-1] if said else f"{model.base} could not be fetched")
    return 0


def gc(options: Namespace) -> int:
    """What nothing needs any more: list it, ask, remove it."""
    from pipeline.record.gc import remove, unneeded

    runs = Path(options.runs)
    items = unneeded(runs, options.interrupted, options.quarantined)
    for item in items:
        print(f"{item.bytes / 1e6:10.1f} MB  {item.what:<24} {item.path}")
    if not items:
        print("nothing to remove: everything is needed by some recipe's latest chain")
        return 0
    total = sum(item.bytes for item in items)
    if not options.yes:
        if not sys.stdin.isatty():
            print(
                f"{counted(len(items), 'folder')}, {total / 1e6:.1f} MB; nothing was removed: --yes removes them"
            )
            return 0
        if (
            input(f"Remove {counted(len(items), 'folder')} ({total / 1e6:.1f} MB)? [y/N] ").strip().lower()
            != "y"
        ):
            print("nothing was removed")
            return 0
    print(f"removed {remove(items, runs) / 1e6:.1f} MB")
    return 0


def chat(options: Namespace) -> int:
    """Talk to the deployed model."""
    from pipeline.serving.chat import chat_loop
    from pipeline.serving.service import gateway_runs, read

    record = read(_load(options).store.server_record())
    if record is None or not gateway_runs(record.gateway):
        raise UserError(
            f"no server of {options.recipe} is running; `make deploy RECIPE={options.recipe}` starts it"
        )
    return chat_loop(record.endpoint, sys.stdin, sys.stdout, options.once)


def rollback(options: Namespace) -> int:
    """Serve an export again that was served before."""
    from pipeline.serving import service

    chain = _load(options)
    record = service.read(chain.store.server_record())
    if record is None:
        raise UserError(
            f"nothing of {options.recipe} is served; `make deploy RECIPE={options.recipe}` deploys it"
        )
    earlier = [each for each in record.previous if options.to is None or each.identity.startswith(options.to)]
    if not earlier:
        known = ", ".join(each.identity[:SHORT] for each in record.previous) or "none"
        raise UserError(
            f"there is no export to go back to{f' that begins with {options.to}' if options.to else ''}; served before "
            f"the present one: {known}"
        )
    artifact = read_artifact(Path(earlier[0].export))
    if artifact is None:
        raise UserError(f"the export {earlier[0].identity[:SHORT]} is no longer at {earlier[0].export}")
    display = make_display(options.plain)
    done = chain.serve(display, artifact, f"back to export {artifact.identity[:SHORT]}")
    for message in done.artifact.manifest["messages"] if done.artifact else ():
        display.console.print(message, markup=False, soft_wrap=True)
    return 0


def stop(options: Namespace) -> int:
    """Stop what serves the recipe."""
    from pipeline.serving import service

    path = _load(options).store.server_record().resolve()
    service.stop_keeper(path)  # it may be at work, and holds what we wait for
    with service.changing(path):
        record = service.read(path)
        path.unlink(missing_ok=True)
        said = [*(service.stop(record) if record else []), *service.stop_strays(path, None)]
    for line in said or [f"no server of {options.recipe} was started here"]:
        print(line)
    return 0


def cancel(options: Namespace) -> int:
    """Take back the jobs of the recipe's last submission."""
    from pipeline.launch.cancel import cancel as take_back

    for line in take_back(_load(options).store.root):
        print(line)
    return 0


def _load(options: Namespace) -> Chain:
    loaded = recipes.load(options.recipe, ROOT, options.set, options.site)
    return Chain(
        loaded,
        Path(options.runs),
        strict=getattr(options, "strict", False),
        verify=getattr(options, "verify", False),
        wait=getattr(options, "wait", False),
    )
