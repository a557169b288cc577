"""Weights that are finite and overflow in the forward pass are the submission's fault, not the machine's."""

from __future__ import annotations

import pytest

from posttrainbench.errors import SubmissionError
from posttrainbench.evaluation.decoding import Decoding, Sampling


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outputs_that_are_not_finite(value: float, temperature: float) -> None:
    import torch

    from posttrainbench.evaluation.engines.sampling import choose

    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    sampling = Sampling.of(Decoding(temperature=temperature), seed=0, max_tokens=4)
    with pytest.raises(SubmissionError, match="not finite"):
        choose(logits, sampling, torch.zeros(2, dtype=torch.float64))
