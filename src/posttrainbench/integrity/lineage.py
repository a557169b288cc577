"""Which model the submitted weights come from: the base, the instruct model, a mixture, or neither.

One streaming pass over the submission S, the base B and the instruct model I; nothing is loaded whole. Statistics and
thresholds: spec/integrity.md 2.2 and 2.3, drawn there from 22 submissions of a tiny transformer and provisional until they
are calibrated on real fine-tunes.

- alpha = <S-B, I-B> / |I-B|^2, how far the submission lies on the way from base to instruct;
- cos, the angle between S-B and I-B; rho = |S-B - alpha (I-B)| / |S-B|, what a merge leaves unexplained;
- the lattice spike k_P: how many values of S equal those of P exactly, over how many are one or two representable numbers
  away. Training moves values smoothly, so k is about 1 unless S really started from P and left values untouched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from posttrainbench.integrity import safetensors
from posttrainbench.integrity.finding import Evidence, Finding, Outcome, Severity
from posttrainbench.integrity.safetensors import FLOATS, BadSafetensors, Tensor
from posttrainbench.integrity.validity import comparable

NAME = "lineage"
RULE = "other-model"

SPIKE_K, SPIKE_Z = 1.1, 6.0
INSTRUCT_ALPHA, INSTRUCT_COS = 0.5, 0.5
MERGE_COS, MERGE_RHO, MERGE_ALPHA = 0.95, 0.3, 0.05
SPLICE_COS, SPLICE_ALPHA = 0.98, (0.9, 1.1)
BASE_COS, BASE_ALPHA = 0.5, 0.3
# Honest training moved at most 0.45 |B| (800 steps at a learning rate of 1e-3); permuted neurons and unrelated weights
# are at 0.76 and more.
BASE_MOVED = 0.6
# Where base and instruct are this close, equality with one says nothing against the other.
_APART_ULP = 16
# A splice is a matrix; short vectors (norms) can align by chance.
_SPLICE_ELEMENTS = 4096

Ints = npt.NDArray[np.int64]


def _lattice(values: npt.NDArray[Any], dtype: str) -> Ints:
    """Floating-point numbers as integers whose difference counts representable numbers (ulps) between them."""
    if dtype == "BF16":
        bits = values.astype(np.int64)
        sign, mask = 0x8000, 0x7FFF
    elif dtype == "F16":
        bits = values.view(np.uint16).astype(np.int64)
        sign, mask = 0x8000, 0x7FFF
    else:
        bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
        sign, mask = 0x8000_0000, 0x7FFF_FFFF
    return np.where(bits & sign, -(bits & mask), bits)


def _on_grid(tensor: Tensor, start: int, stop: int, grid: str) -> Ints:
    """Part of a tensor on the number grid of dtype `grid` (rounded to nearest even where its own is finer)."""
    if tensor.dtype == grid:
        return _lattice(tensor.raw()[start:stop], grid)
    values = tensor.floats(start, stop)
    if grid == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return _lattice(rounded.astype(np.uint16), "BF16")
    if grid == "F16":
        return _lattice(values.astype(np.float16), "F16")
    return _lattice(values, "F32")


@dataclass
class _Spike:
    exact: int = 0
    near: int = 0

    def add(self, difference: Ints) -> None:
        distance = np.abs(difference)
        self.exact += int((distance == 0).sum())
        self.near += int(((distance == 1) | (distance == 2)).sum())

    @property
    def k(self) -> float:
        """Exact hits over the mean of the four neighbouring values; 0 with nothing near."""
        mean = self.near / 4
        return self.exact / max(mean, 1.0)

    @property
    def z(self) -> float:
        """Excess over that mean in standard deviations of a Poisson count."""
        mean = max(self.near / 4, 1.0)
        return (self.exact - mean) / math.sqrt(mean * 1.25)


@dataclass
class _Sums:
    """Sums of squares and products over elements, in double precision."""

    bb: float = 0.0
    ss: float = 0.0
    ii: float = 0.0
    si: float = 0.0

    def add(self, s: safetensors.Floats, b: safetensors.Floats, i: safetensors.Floats) -> None:
        x, y = (s - b).astype(np.float64), (i - b).astype(np.float64)
        self.bb += float(np.dot(b.astype(np.float64), b.astype(np.float64)))
        self.ss += float(np.dot(x, x))
        self.ii += float(np.dot(y, y))
        self.si += float(np.dot(x, y))

    def merge(self, other: _Sums) -> None:
        for name in ("bb", "ss", "ii", "si"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def alpha(self) -> float:
        return self.si / self.ii if self.ii > 0 else 0.0

    @property
    def cos(self) -> float:
        return self.si / math.sqrt(self.ss * self.ii) if self.ss > 0 and self.ii > 0 else 0.0

    @property
    def rho(self) -> float:
        return math.sqrt(max(0.0, 1.0 - self.cos**2)) if self.ss > 0 else 0.0

    @property
    def moved(self) -> float:
        """|S-B| / |B|."""
        return math.sqrt(self.ss / self.bb) if self.bb > 0 else 0.0

    @property
    def instruct_distance(self) -> float:
        """|I-B| / |B|."""
        return math.sqrt(self.ii / self.bb) if self.bb > 0 else 0.0


@dataclass
class Comparison:
    """Statistics of a whole submission.

    Attributes:
        matrices: sums without the vectors: norm weights near 1 would drown what happened to everything else.
        spliced: tensors that lie where the instruct model's lie.
    """

    total: _Sums = field(default_factory=_Sums)
    matrices: _Sums = field(default_factory=_Sums)
    base_spike: _Spike = field(default_factory=_Spike)
    instruct_spike: _Spike = field(default_factory=_Spike)
    spliced: list[str] = field(default_factory=list)
    tensors: int = 0

    def numbers(self) -> dict[str, Any]:
        """All statistics, rounded for the record."""
        return {
            "tensors": self.tensors,
            "moved": round(self.matrices.moved, 6),
            "instruct_distance": round(self.matrices.instruct_distance, 6),
            "alpha": round(self.total.alpha, 4),
            "cos": round(self.total.cos, 4),
            "rho": round(self.total.rho, 4),
            "k_base": round(self.base_spike.k, 3),
            "z_base": round(self.base_spike.z, 1),
            "k_instruct": round(self.instruct_spike.k, 3),
            "z_instruct": round(self.instruct_spike.z, 1),
            "spliced_tensors": len(self.spliced),
        }


def compare(submission: dict[str, Tensor], base: dict[str, Tensor], instruct: dict[str, Tensor]) -> Comparison:
    """Stream over the tensors that all three share, with one shape. Memory: a few pieces of 16 MiB."""
    result = Comparison()
    for name in sorted(submission.keys() & base.keys() & instruct.keys()):
        s, b, i = submission[name], base[name], instruct[name]
        if not s.shape == b.shape == i.shape or not {s.dtype, b.dtype, i.dtype} <= FLOATS:
            continue
        result.tensors += 1
        sums = _Sums()
        for start, stop in safetensors.chunks(s.count):
            sums.add(s.floats(start, stop), b.floats(start, stop), i.floats(start, stop))
            on_s, on_b, on_i = (_on_grid(tensor, start, stop, b.dtype) for tensor in (s, b, i))
            apart = np.abs(on_i - on_b) > _APART_ULP
            result.base_spike.add((on_s - on_b)[apart])
            result.instruct_spike.add((on_s - on_i)[apart])
        low, high = SPLICE_ALPHA
        if s.count >= _SPLICE_ELEMENTS and len(s.shape) > 1 and sums.cos >= SPLICE_COS and low <= sums.alpha <= high:
            result.spliced.append(name)
        result.total.merge(sums)
        if len(s.shape) > 1:
            result.matrices.merge(sums)
    return result


def _finding(severity: Severity, summary: str, numbers: dict[str, Any], where: tuple[str, ...] = ()) -> Finding:
    return Finding(
        detector=NAME,
        rule=RULE,
        severity=severity,
        family="weights",
        summary=summary,
        where=where[:20],
        numbers=numbers,
    )


def judge(comparison: Comparison) -> list[Finding]:
    """The rules of spec/integrity.md 2.3 on the statistics. A submission must be tied to the base to pass silently."""
    total, numbers = comparison.total, comparison.numbers()
    own, other = comparison.base_spike, comparison.instruct_spike
    if total.ss == 0.0:
        return [_finding("info", "the weights are those of the base model, unchanged", numbers)]
    if other.k >= SPIKE_K and other.z >= SPIKE_Z and other.k > own.k:
        many = (
            f"{other.exact} values equal the instruct model's exactly, {other.k:.1f} times as many as chance would have"
        )
        return [_finding("conclusive", many, numbers)]
    if comparison.spliced:
        names = tuple(comparison.spliced)
        return [_finding("conclusive", f"{len(names)} tensor(s) are the instruct model's", numbers, names)]
    if total.cos >= MERGE_COS and total.rho <= MERGE_RHO and total.alpha >= MERGE_ALPHA:
        return [_finding("conclusive", f"a merge of base and instruct model ({total.alpha:.0%} instruct)", numbers)]
    from_base = own.k >= SPIKE_K and own.z >= SPIKE_Z and own.k > other.k
    if total.alpha >= INSTRUCT_ALPHA and total.cos >= INSTRUCT_COS:
        return [_finding("strong", "the weights lie towards the instruct model more than training explains", numbers)]
    near = comparison.matrices.moved <= BASE_MOVED
    if near and (from_base or (total.cos <= BASE_COS and total.alpha <= BASE_ALPHA)):
        return []
    return [_finding("strong", "the weights can be tied neither to the base nor to the instruct model", numbers)]


def detect(evidence: Evidence) -> Outcome:
    """Compare the submission's weights with base and instruct model."""
    if evidence.submission is None:
        return Outcome()
    if evidence.instruct is None:
        return Outcome(
            problem=f"no instruct model to compare with: {evidence.instruct_problem or 'its files are gone'}"
        )
    base = safetensors.read_model(evidence.base)
    try:
        submission, _ = comparable(safetensors.read_model(evidence.submission), base)
    except BadSafetensors as error:
        return Outcome(numbers={"unreadable": str(error)})
    comparison = compare(submission, base, safetensors.read_model(evidence.instruct))
    if comparison.tensors == 0:
        return Outcome(numbers={"tensors": 0})
    return Outcome(findings=tuple(judge(comparison)), numbers=comparison.numbers())
