"""The answer of ``scale sampling``: numbers and their derivations, from a file of pass counts or from two points."""

from __future__ import annotations

import argparse
import math

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.serving import plots, samples, sampling
from pipeline.plan.serving.amounts import amount, within
from pipeline.plan.serving.show import Answer, Table

BROWN = "Brown et al. 2024, coverage = exp(a k^b)"
SNELL = "Snell et al. 2024, section 7"
CHEN = "Chen et al. 2021, equation 1"
ASKED = "asked for"
MOST_SAMPLES, MOST_RATIO = 1e12, 1e9
Line = tuple[Quantity, str]


def answer(options: argparse.Namespace) -> Answer:
    """What the options of ``scale sampling`` ask for; raises :class:`UserError` for what makes no sense."""
    if options.counts and options.points:
        raise UserError("give a file or --points, not both")
    for name, value in (("--target", options.target), ("--large-coverage", options.large_coverage)):
        if value is not None and not 0 < value < 1:
            raise UserError(f"{name} {value:g}: must be above 0 and below 1")
    lines: list[Line] = []
    tables: list[Table] = []
    remarks: list[str] = []
    curve, title = None, "Sampling often from a small model against once from a large one"
    error = ""
    if options.counts:
        found = sampling.fit(samples.read(options.counts), _numbers(options.k, "--k"))
        curve = found.curve
        title = f"Coverage of {found.problems} problems in {options.counts}"
        error = _measured(found, lines, tables)
        remarks += found.warnings
        if options.plot:
            plots.coverage(options.plot, found, title, options.large_coverage)
    elif options.plot or options.k:
        raise UserError("--plot and --k need a file of pass counts")
    if options.points:
        curve, title = _through(options.points), f"Coverage through {options.points}"
        lines += [(_constant("a", curve.a, ""), ""), (_constant("b", curve.b, ""), "")]
        error = "untested: two points and two constants"
    if options.large_coverage is not None and options.ratio is None and not options.plot:
        raise UserError(
            "--large-coverage needs --ratio, the size of the large model beside the small one (or --plot, where it is a line)"
        )
    if curve is None and options.ratio is None:
        raise UserError("give a file of pass counts, --points, or --ratio")
    if curve is None and (options.at or options.target is not None or options.large_coverage is not None):
        raise UserError("--at, --target and --large-coverage need a file of pass counts, or --points")
    if curve is not None:
        lines += _asked(options, curve, error)
        remarks.append(
            "Coverage is what a perfect verifier would make of the samples; voting or a judge gives less."
        )
    if options.ratio is not None:
        lines += _trade(options, curve, error)
    elif options.inference_per_pretraining is not None:
        raise UserError("--inference-per-pretraining needs --ratio")
    return Answer(title, tuple(lines), tuple(tables), tuple(remarks))


def _measured(found: sampling.Fit, lines: list[Line], tables: list[Table]) -> str:
    """Constants with their intervals, the points beside the curve, and the error of what was left out."""
    problems = given("problems", found.problems, "", "the file")
    for name, value, (low, high) in (
        ("a", found.curve.a, found.a_interval),
        ("b", found.curve.b, found.b_interval),
    ):
        said = f"95%: {low:.4g} to {high:.4g} (problems resampled {sampling.BOOTSTRAPS} times)"
        lines.append(
            (_constant(name, value, "weighted least squares of log(-log coverage) on log k", problems), said)
        )
    rows = []
    for k, coverage, spread in found.points:
        count = given("k", k, "", "numbers of samples")
        measured = Quantity(
            f"coverage at {k}",
            coverage,
            "",
            "mean over problems of 1 - C(n-c, k)/C(n, k)",
            (count, problems),
            CHEN,
        )
        error = Quantity(
            f"standard error at {k}", spread, "", "spread over problems / sqrt(problems)", (problems,)
        )
        rows.append((count, measured, error, _coverage(found.curve, k)))
    tables.append(Table("Measured and fitted", ("k", "coverage", "± error", "fitted"), tuple(rows)))
    if found.left_out is None:
        return "extrapolation untested"
    k, measured_there, predicted = found.left_out
    most = given(f"measured coverage at {k}", measured_there, "", CHEN)
    least = given(f"coverage at {k} predicted from at most {k // 4} samples", predicted, "", BROWN)
    off = Quantity("error left out", predicted - measured_there, "", "predicted - measured", (most, least))
    lines.append((off, f"of coverage at k = {k}, from a fit to k up to {k // 4}"))
    return f"± {abs(off.value):.3f} when k = {k} was left out"


def _asked(options: argparse.Namespace, curve: sampling.Curve, error: str) -> list[Line]:
    found: list[Line] = [(_coverage(curve, k), error) for k in _numbers(options.at, "--at") or ()]
    if options.target is not None:
        wanted = given("target", options.target, "", ASKED)
        constants = (_constant("a", curve.a, ""), _constant("b", curve.b, ""))
        needed = curve.samples_for(options.target)
        name = f"samples for {options.target:.0%}"
        found.append(
            (Quantity(name, needed, "", "(ln(target) / a)^(1/b)", (wanted, *constants), BROWN), error)
        )
    return found


def _trade(options: argparse.Namespace, curve: sampling.Curve | None, error: str) -> list[Line]:
    ratio = within(amount(options.ratio, "--ratio"), "--ratio", 0, MOST_RATIO)
    if ratio <= 1:
        raise UserError(
            f"--ratio {options.ratio}: the large model must be larger than the small one (above 1)"
        )
    share = math.inf
    if options.inference_per_pretraining is not None:
        option = "--inference-per-pretraining"
        share = within(amount(options.inference_per_pretraining, option), option, 1 / MOST_RATIO, MOST_RATIO)
    size = given("M, large / small parameters", ratio, "", ASKED)
    inference = given(
        "R, inference / pre-training tokens", share, "", ASKED if share < math.inf else "serving alone"
    )
    matched = Quantity(
        "FLOP-matched samples",
        sampling.flop_matched(ratio, 1 / share),
        "",
        "M + 3 (M - 1) / R",
        (size, inference),
        SNELL,
    )
    found: list[Line] = [(matched, "of the small model for the FLOP of one of the large")]
    if curve is None:
        return found
    small = _coverage(curve, matched.value)
    found.append((small, error))
    if options.large_coverage is not None:
        large = given("large model, one sample", options.large_coverage, "", ASKED)
        even = Quantity(
            "samples that equal it",
            curve.samples_for(options.large_coverage),
            "",
            "(ln(large) / a)^(1/b)",
            (large, _constant("a", curve.a, ""), _constant("b", curve.b, "")),
            BROWN,
        )
        better = "small, sampled often" if small.value > large.value else "large, sampled once"
        lead = Quantity(
            "lead of the small model", small.value - large.value, "", "small - large", (small, large)
        )
        found += [(large, ""), (even, error), (lead, f"better for the same FLOP: {better}")]
    return found


def _constant(name: str, value: float, formula: str, *inputs: Quantity) -> Quantity:
    return Quantity(name, value, "", formula, inputs, BROWN)


def _coverage(curve: sampling.Curve, k: float) -> Quantity:
    inputs = (_constant("a", curve.a, ""), _constant("b", curve.b, ""), given("k", k))
    return Quantity(f"coverage at {k:.6g} samples", curve.coverage(k), "", "exp(a k^b)", inputs, BROWN)


def _through(text: str) -> sampling.Curve:
    points = []
    for point in text.split(","):
        k, colon, coverage = point.partition(":")
        if not colon:
            raise UserError(
                f"--points {text}: write two points as K:COVERAGE,K:COVERAGE, e.g. 1:0.159,250:0.56"
            )
        points.append((amount(k, "--points"), amount(coverage, "--points")))
    if len(points) != 2 or points[0][0] == points[1][0]:
        raise UserError(f"--points {text}: give two points at different k")
    if not all(0 < coverage < 1 and k >= 1 for k, coverage in points):
        raise UserError(f"--points {text}: k must be 1 or more, and coverage above 0 and below 1")
    (fewer, low), (more, high) = sorted(points)
    within(more, "--points, k", 1, MOST_SAMPLES)
    if high <= low:
        raise UserError(
            f"--points {text}: coverage at {more:g} samples ({high:g}) must be above that at {fewer:g} ({low:g}): more samples solve more"
        )
    try:
        return sampling.through(points[0], points[1])
    except ArithmeticError:
        raise UserError(
            f"--points {text}: no curve exp(a k^b) can be computed through points this steep"
        ) from None


def _numbers(text: str | None, option: str) -> list[int] | None:
    if text is None:
        return None
    found = []
    for word in text.split(","):
        value = amount(word, option)
        if value != int(value):
            raise UserError(f"{option} {word}: must be a whole number of samples")
        found.append(int(within(value, option, 1, MOST_SAMPLES, "samples")))
    return found
