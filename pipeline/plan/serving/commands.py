"""The verbs of serving under ``lifecycle scale``: their options; the work is in ``verbs.py``, imported when one is called.

lifecycle scale serve --quality 30B --demand 10T
lifecycle scale sampling passes.csv --target 0.9
lifecycle scale fleet llama-8b --gpu H100-80GB --precision fp8 --rate 20 --input 1000 --output 200
"""

from __future__ import annotations

import argparse
from typing import Any

from pipeline.plan.questions import question
from pipeline.plan.serving.names import CACHES, LAWS, MFU, PRECISIONS, TRAINED_IN

SERVE = """examples:
  lifecycle scale serve --quality 30B --demand 10T            as good as a compute-optimal 30B, 1e13 tokens served
  lifecycle scale serve --loss 2.0 --demand 1e12 --plot demand.svg
  lifecycle scale serve --quality 70B --input-tokens 9T --output-tokens 1T --gpu H100-80GB --serve-gpu H200
"""
SAMPLING = """the file has a line for each problem: problem,samples,correct

examples:
  lifecycle scale sampling passes.csv --target 0.9 --plot coverage.png
  lifecycle scale sampling passes.csv --ratio 9 --large-coverage 0.45
  lifecycle scale sampling --points 1:0.159,250:0.56 --at 1000
  lifecycle scale sampling --ratio 14 --inference-per-pretraining 0.16
"""
FLEET = """examples:
  lifecycle scale fleet llama-8b --gpu H100-80GB --precision fp8 --rate 20 --input 1000 --output 200 --itl-ms 30
  lifecycle scale fleet path/to/config.json --gpu H200 --precision fp8 --tensor-parallel 4 --rate 5 --input 2000 --output 500
"""


def add(subparsers: Any) -> None:
    """Register ``serve``, ``sampling`` and ``fleet`` with the subparsers of ``scale``."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="NAME",
        help="derivations: formula, inputs, source (of the numbers whose name contains NAME)",
    )
    common.add_argument("--json", action="store_true", help="for machines")
    told = "the model size and tokens that make training and serving cheapest"
    _serve(question(subparsers, "serve", serve, told, SERVE, [common]))
    told = "coverage of repeated sampling, and small against large"
    _sampling(question(subparsers, "sampling", sampling, told, SAMPLING, [common]))
    told = "replicas, GPUs, latency and money for given traffic"
    _fleet(question(subparsers, "fleet", fleet, told, FLEET, [common]))


def serve(options: argparse.Namespace) -> int:
    """``scale serve``."""
    from pipeline.plan.serving import verbs

    return verbs.serve(options)


def sampling(options: argparse.Namespace) -> int:
    """``scale sampling``."""
    from pipeline.plan.serving import verbs

    return verbs.sampling(options)


def fleet(options: argparse.Namespace) -> int:
    """``scale fleet``."""
    from pipeline.plan.serving import verbs

    return verbs.fleet(options)


def _serve(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--quality", metavar="N", help="as good as a compute-optimal model of N parameters, e.g. 7B"
    )
    target.add_argument("--loss", metavar="L", help="a loss in nats a token")
    target.add_argument("--flops", metavar="FLOP", help="the loss that this training budget reaches at best")
    parser.add_argument(
        "--demand", metavar="TOKENS", help="tokens served over the model's life, input and output"
    )
    parser.add_argument("--input-tokens", metavar="TOKENS", help="instead of --demand, with --output-tokens")
    parser.add_argument("--output-tokens", metavar="TOKENS")
    parser.add_argument(
        "--output-share",
        type=float,
        help="of --demand that is output; matters for money only (default: 0.25)",
    )
    parser.add_argument("--law", choices=LAWS, help=f"loss law (default: {LAWS[0]})")
    parser.add_argument(
        "--constants",
        metavar="E,A,B,ALPHA,BETA",
        help="instead of --law: your own fit (lifecycle scale train --runs)",
    )
    parser.add_argument(
        "--gpu", metavar="KIND", help="count money, with this GPU for training, e.g. H100-80GB"
    )
    parser.add_argument("--serve-gpu", metavar="KIND", help="GPU for serving (default: --gpu)")
    parser.add_argument("--precision", choices=TRAINED_IN, help="of training (default: bf16)")
    parser.add_argument("--serve-precision", choices=PRECISIONS, help="of serving (default: bf16)")
    parser.add_argument("--price", type=float, metavar="USD", help="of a GPU hour of training")
    parser.add_argument("--serve-price", type=float, metavar="USD", help="of a GPU hour of serving")
    for name, what in (("train", "training"), ("input", "reading prompts"), ("output", "writing answers")):
        parser.add_argument(
            f"--mfu-{name}",
            type=float,
            help=f"model FLOPs utilisation of {what} (default: {MFU[name]}, an assumption: measure yours)",
        )
    parser.add_argument(
        "--plot", metavar="FILE", help="how the optimum moves with demand, as .svg, .png or .pdf"
    )


def _sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "counts", nargs="?", metavar="FILE.csv", help="problem,samples,correct: a line for each problem"
    )
    parser.add_argument(
        "--points", metavar="K:COVERAGE,K:COVERAGE", help="instead of a file: the curve through two points"
    )
    parser.add_argument(
        "--k", metavar="K,K,...", help="numbers of samples to fit on (default: 1, 2, 4 and so on)"
    )
    parser.add_argument("--at", metavar="K,K,...", help="predict coverage at these numbers of samples")
    parser.add_argument("--target", type=float, help="how many samples reach this coverage")
    parser.add_argument(
        "--ratio", metavar="M", help="parameters of a large model / of the one that was sampled"
    )
    parser.add_argument(
        "--inference-per-pretraining",
        metavar="R",
        help="inference tokens / pre-training tokens, where training is to be paid as well (default: serving alone)",
    )
    parser.add_argument("--large-coverage", type=float, help="accuracy of the large model at one sample")
    parser.add_argument("--plot", metavar="FILE", help="coverage against samples, as .svg, .png or .pdf")


def _fleet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a recipe, or a Hugging Face config.json or its folder")
    parser.add_argument("--gpu", required=True, metavar="KIND", help="e.g. H100-80GB")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="bf16", help="of the weights (default: bf16)"
    )
    parser.add_argument(
        "--cache", choices=CACHES, help="precision of the KV cache (default: fp8 with fp8, else bf16)"
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        metavar="N",
        help="GPUs that share a replica (default: the cheapest of 1, 2, 4, 8)",
    )
    parser.add_argument("--rate", required=True, metavar="R", help="requests a second of the whole fleet")
    parser.add_argument("--input", required=True, metavar="TOKENS", help="mean input length")
    parser.add_argument("--output", required=True, metavar="TOKENS", help="mean output length")
    parser.add_argument("--ttft-ms", type=float, metavar="MS", help="mean time to first token at most")
    parser.add_argument("--itl-ms", type=float, metavar="MS", help="mean inter-token latency at most")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.8,
        help="of what a replica can take, at most: the rest is headroom for bursts (default: 0.8)",
    )
    parser.add_argument(
        "--price", type=float, metavar="USD", help="of a GPU hour (default: configs/prices.yaml)"
    )
