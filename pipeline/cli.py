"""``lifecycle``: the verbs, each a few lines over the parts that do the work.

lifecycle run llama-tiny
lifecycle train llama-tiny --set "train.lr=1e-4 train.peft=lora"
lifecycle plan | status | explain | chat | stop  llama-tiny
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.text import Text

import pipeline
from pipeline import recipe as recipes
from pipeline.errors import LifecycleError, UserError
from pipeline.graph import STAGES
from pipeline.layers import Origin, leaves, locate
from pipeline.runner import inputs
from pipeline.runner.chain import Chain
from pipeline.runner.display import make_display
from pipeline.summary import print_summary
from pipeline.toolchains import ROOT

EXAMPLES = """examples:
  lifecycle run                              the whole chain of recipes/llama-tiny.yaml
  lifecycle train llama-tiny --set "train.peft=lora train.lr=2e-3"
  lifecycle run my-recipe.yaml --set 'curate.sources="[{kind: jsonl, path: docs.jsonl}]"'
  lifecycle plan llama-tiny                  what would run, and why; writes nothing
  lifecycle explain llama-tiny train.lr      the value and who set it
  lifecycle chat llama-tiny                  talk to the deployed model
  lifecycle stop llama-tiny                  stop its server
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status says how it went (see :mod:`pipeline.errors`)."""
    options = _parser().parse_args(arguments)
    # Also where a shell started this in the background and SIGINT is ignored.
    signal.signal(signal.SIGINT, _as_interrupt)
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        return int(options.call(options))
    except LifecycleError as error:
        Console(stderr=True, soft_wrap=True).print(Text.from_markup("[red]error:[/red] ").append(str(error)))
        return error.exit_status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lifecycle",
        description="One recipe from raw documents to a model answering on NVIDIA Triton.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nemo-lifecycle {pipeline.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("recipe", nargs="?", default="llama-tiny", help="a name in recipes/, or a YAML file")
    common.add_argument("--set", default="", metavar="'KEY=VALUE ...'", help="settings for this call only")
    common.add_argument("--site", default="local", help="a name in configs/sites/")
    common.add_argument(
        "--runs", default=os.environ.get("LIFECYCLE_RUNS", "runs"), help="where artifacts are kept"
    )
    common.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, call: object, help: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, parents=[common], help=help, description=help)
        added.set_defaults(call=call)
        return added

    verb("run", _run, "bring the whole chain up to date")
    for stage in STAGES:
        verb(stage.name, _run, f"{stage.purpose} (and what it rests on)")
    verb("plan", _plan, "what a run would do, and why; writes nothing")
    verb("status", _status, "stage, time, key figures and artifact of the chain as it stands")
    verb("explain", _explain, "the value of a setting and the layers that set it").add_argument(
        "key", nargs="?", help="e.g. train.lr; without it, everything that differs from the defaults"
    )
    verb("chat", _chat, "talk to the deployed model").add_argument(
        "--once", metavar="QUESTION", help="ask one question, print the answer and leave"
    )
    verb("stop", _stop, "stop the recipe's server")
    return parser


def _load(options: argparse.Namespace) -> Chain:
    loaded = recipes.load(options.recipe, ROOT, options.set, options.site)
    return Chain(loaded, Path(options.runs))


def _run(options: argparse.Namespace) -> int:
    chain = _load(options)
    target = None if options.verb == "run" else options.verb
    display = make_display(options.plain)
    finished = chain.run(display, target)
    print_summary(finished, display.console)
    for item in finished:
        for message in item.artifact.manifest["messages"] if item.artifact and item.step.stage.live else ():
            display.console.print(message, markup=False, soft_wrap=True)
    return 0


def _plan(options: argparse.Namespace) -> int:
    chain = _load(options)
    inputs.check_inputs(chain.loaded)
    for item in chain.plan():
        print(f"{item.step.name:<9} {item.state:<8} {item.why}")
    return 0


def _status(options: argparse.Namespace) -> int:
    chain = _load(options)
    inputs.check_inputs(chain.loaded)
    print_summary(chain.plan())
    return 0


def _explain(options: argparse.Namespace) -> int:
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
    return 0


def _chat(options: argparse.Namespace) -> int:
    from pipeline.serving.chat import chat_loop
    from pipeline.serving.server import is_running, read

    record = read(_load(options).store.server_record())
    if record is None or not is_running(record):
        raise UserError(
            f"no server of {options.recipe} is running; `make deploy RECIPE={options.recipe}` starts it"
        )
    return chat_loop(record, sys.stdin, sys.stdout, options.once)


def _stop(options: argparse.Namespace) -> int:
    from pipeline.serving.server import read, stop

    path = _load(options).store.server_record()
    record = read(path)
    print(f"no server of {options.recipe} was started here" if record is None else stop(record))
    path.unlink(missing_ok=True)
    return 0


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    stop = KeyboardInterrupt()
    stop.signal_number = number  # type: ignore[attr-defined]
    raise stop


if __name__ == "__main__":
    sys.exit(main())
