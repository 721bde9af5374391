"""``lifecycle``: the command line.  The verbs themselves are in :mod:`pipeline.verbs`.

lifecycle run llama-tiny
lifecycle train llama-tiny --set "train.lr=1e-4 train.peft=lora"
lifecycle plan | status | explain | report | verify | chat | rollback | stop  llama-tiny
lifecycle trace 127.0.0.1:8000
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pipeline
from pipeline import terminal, verbs
from pipeline.errors import LifecycleError
from pipeline.graph import STAGES
from pipeline.launch import muster
from pipeline.plan.scaling import commands as scaling
from pipeline.plan.serving import commands as serving
from pipeline.runner.reasons import disk_full
from pipeline.secret_text import redacted

EXAMPLES = """examples:
  lifecycle run                              the whole chain of recipes/llama-tiny.yaml
  lifecycle train llama-tiny --set "train.peft=lora train.lr=2e-3"
  lifecycle run my-recipe.yaml --set 'curate.sources="[{kind: jsonl, path: docs.jsonl}]"'
  lifecycle run llama-tiny --site slurm --dry-run   the jobs that would be submitted, word for word
  lifecycle plan llama-tiny                  what would run, why, and what it needs; writes nothing
  lifecycle scale train --flops 1e21         how large a model on how many tokens, by every law
  lifecycle explain llama-tiny train.lr      the value and who set it
  lifecycle diff llama-tiny 3fa9c1           two runs by settings, inputs and metrics
  lifecycle trace 127.0.0.1:8000             from what is serving back to the data
  lifecycle report llama-tiny                one HTML file about the chain
  lifecycle chat llama-tiny                  talk to the deployed model
  lifecycle rollback llama-tiny              serve the export before this one again
  lifecycle stop llama-tiny                  stop its server
"""
SCALE = "questions that come before a recipe: how large a model, on how many tokens, served by how many GPUs"
FULL = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status says how it went (see :mod:`pipeline.errors`)."""
    with terminal.guarded():
        return _main(arguments)


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    if getattr(options, "keep_dropped", False):
        options.set += " curate.keep_dropped=true"
    status = 1
    try:
        status = guarded(options.call, options)
    finally:
        muster.dismiss(status)
    return status


def guarded(call: Callable[[argparse.Namespace], int], options: argparse.Namespace) -> int:
    """Call a verb; what goes wrong becomes words and an exit status, never a traceback."""
    # Also where a shell started this in the background and SIGINT is ignored.
    signal.signal(signal.SIGINT, _as_interrupt)
    signal.signal(signal.SIGTERM, _as_interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup asked to be left alone
        signal.signal(signal.SIGHUP, _as_interrupt)
    try:
        return call(options)
    except LifecycleError as error:
        # Settings with secrets are refused; what others say of an address may still hold one.
        return _say(redacted(str(error)), error.exit_status)
    except KeyboardInterrupt as stop:
        print("interrupted; the same command goes on from where it was", file=sys.stderr)
        return 128 + int(getattr(stop, "signal_number", signal.SIGINT))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _say(*_disk_trouble(error))


def _say(text: str, status: int) -> int:
    said = terminal.text("error:", "red").append_text(terminal.text(f" {text}", "none"))
    terminal.console(stderr=True, soft_wrap=True).print(said)
    return status


def _disk_trouble(error: OSError) -> tuple[str, int]:
    """What to tell of an operation that the system refused, and the exit status."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in FULL:
        full = disk_full(Path(error.filename)) if isinstance(error.filename, str) else None
        return (
            f"{full or f'the disk is full{where}'}; nothing was lost: free some space and run the same command again",
            2,
        )
    if error.errno in UNUSABLE:
        return (
            f"this place cannot be used{where}: {error.strerror}; mend that, or keep the runs elsewhere "
            "(--runs FOLDER, or LIFECYCLE_RUNS)"
        ), 2
    return (
        f"the system refused an operation on the disk{where}: {error.strerror or error}; nothing was lost: "
        "run the same command again, and `lifecycle verify` to see whether anything rotted"
    ), 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lifecycle",
        description="One recipe from raw documents to a model answering on NVIDIA Triton.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"nemo-lifecycle {pipeline.__version__}")
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--runs", default=os.environ.get("LIFECYCLE_RUNS", "runs"), help="where artifacts are kept"
    )
    common = argparse.ArgumentParser(add_help=False, parents=[place])
    common.add_argument("recipe", nargs="?", default="llama-tiny", help="a name in recipes/, or a YAML file")
    common.add_argument("--set", default="", metavar="'KEY=VALUE ...'", help="settings for this call only")
    common.add_argument("--site", default="local", help="a name in configs/sites/, or a YAML file")
    common.add_argument("--plain", action="store_true", help="plain lines even on a terminal")
    checks = argparse.ArgumentParser(add_help=False)
    checks.add_argument(
        "--strict", action="store_true", help="what other code or another toolchain lock made does not count"
    )
    checks.add_argument(
        "--verify", action="store_true", help="read every input and artifact again, trusting no size or time"
    )
    added = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(
        name: str, call: Callable[[argparse.Namespace], int], help: str, *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        made = added.add_parser(name, parents=list(parents) or [common], help=help, description=help)
        made.set_defaults(call=call)
        return made

    for name, help in [("run", "bring the whole chain up to date")] + [
        (stage.name, f"{stage.purpose} (and what it rests on)") for stage in STAGES
    ]:
        runs = verb(name, verbs.run, help, common, checks)
        runs.add_argument("--wait", action="store_true", help="wait for a step that another controller runs")
        runs.add_argument(
            "--keep-dropped",
            action="store_true",
            help="curation writes the documents that it drops, with stage and reason (curate.keep_dropped=true)",
        )
        runs.add_argument(
            "--dry-run", action="store_true", help="print the exact scripts or manifests of a cluster's site"
        )
        runs.add_argument(
            "--here", action="store_true", help="run on this machine, whatever kind the site is (jobs do)"
        )
        if name != "run":
            runs.add_argument("--only", action="store_true", help="run nothing that the stage rests on")
    plan = verb(
        "plan", verbs.plan, "what a run would do, why, and what it needs; writes nothing", common, checks
    )
    plan.add_argument("--gpus", metavar="8xH100-80GB", help="plan for these GPUs (2x8xH200: 2 machines of 8)")
    plan.add_argument("--explain", action="store_true", help="the derivation of every number")
    plan.add_argument("--json", action="store_true", help="for machines")
    plan.add_argument(
        "--calibrate",
        action="store_true",
        help="time two real steps of each training stage here, and plan by them",
    )
    scale = added.add_parser("scale", help=SCALE, description=SCALE)
    questions = scale.add_subparsers(dest="question", required=True, metavar="QUESTION")
    scaling.add(questions)
    serving.add(questions)
    verb("status", verbs.status, "the chain as it stands, and who is at work on it", common, checks)
    verb("explain", verbs.explain, "the value of a setting and the layers that set it").add_argument(
        "key", nargs="?", help="e.g. train.lr; without it, everything that differs from the defaults"
    )
    diff = verb("diff", verbs.diff, "two runs by settings, inputs and metrics", place)
    for which in ("a", "b"):
        diff.add_argument(which, help="a recipe (its latest chain), an artifact's path, or an identity")
    diff.add_argument("--json", action="store_true", help="for machines")
    trace = verb("trace", verbs.trace, "from what is serving, or any published file, back to the data", place)
    trace.add_argument("what", help="a server's address, a recipe, an artifact's path or identity, or a file")
    trace.add_argument(
        "--certificate",
        metavar="FILE",
        help="the certificate of a server that speaks TLS, where no authority signed it",
    )
    trace.add_argument("--json", action="store_true", help="for machines")
    verb("report", verbs.report, "one self-contained HTML file about the chain").add_argument(
        "--output", metavar="FILE", help="default: RUNS/RECIPE/report.html"
    )
    verb("verify", verbs.verify, "read every artifact again and report what rotted, by file").add_argument(
        "--quarantine", action="store_true", help="move what is damaged aside, to be made anew"
    )
    verb(
        "fetch", verbs.fetch, "bring the base model of a recipe from the hub (HF_TOKEN) into the local cache"
    )
    gc = verb("gc", verbs.gc, "list and remove what no recipe's latest chain needs", place)
    gc.add_argument("--yes", action="store_true", help="remove without asking")
    gc.add_argument("--interrupted", action="store_true", help="interrupted work as well")
    gc.add_argument("--quarantined", action="store_true", help="what is in quarantine as well")
    verb("chat", verbs.chat, "talk to the deployed model").add_argument(
        "--once", metavar="QUESTION", help="ask one question, print the answer and leave"
    )
    rollback = verb("rollback", verbs.rollback, "serve the export that was served before")
    rollback.add_argument("--to", metavar="IDENTITY", help="the beginning of an export's identity")
    verb("stop", verbs.stop, "stop what serves the recipe")
    verb("cancel", verbs.cancel, "take the recipe's jobs back from a cluster; what they sealed stays")
    return parser


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    stop = KeyboardInterrupt()
    stop.signal_number = number  # type: ignore[attr-defined]
    raise stop


if __name__ == "__main__":
    sys.exit(main())
