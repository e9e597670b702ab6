"""Every operation against its reference: values and all gradients.

In bf16, the error against fp64 may be at most twice that of plain torch on the same inputs.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from pythia_core import kernels
from pythia_core.errors import DataError
from pythia_core.kernels import native
from pythia_core.kernels.attention import MAX_NATIVE_SEQ, attention_reference, tree_attention
from pythia_core.kernels.cross_entropy import (
    linear_cross_entropy_reference,
    target_log_probabilities,
)
from pythia_core.kernels.gelu import bias_gelu_reference, gelu_reference
from pythia_core.kernels.layer_norm import layer_norm_pair_reference, layer_norm_reference
from pythia_core.kernels.linear import linear_reference
from pythia_core.kernels.rotary import rotary_reference

linear = importlib.import_module("pythia_core.kernels.linear")  # the name is a function's, too


@pytest.fixture(params=[True, False], ids=["compiled", "torch"], autouse=True)
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Every test runs with the C functions and with the torch code that replaces them."""
    if not request.param:
        monkeypatch.setattr(native, "library", lambda: None)
    elif native.library() is None:
        pytest.skip("no C compiler on this machine")
    return request.param


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def results(
    function: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Output and gradients, in fp64, of `function` on inputs of `dtype`."""
    leaves = [x.to(dtype).requires_grad_() for x in inputs]
    out = function(*leaves)
    out.backward(normal(*out.shape, seed=99).to(out.dtype))
    return [out.detach().double(), *(leaf.grad.double() for leaf in leaves)]


def error(actual: Tensor, exact: Tensor) -> float:
    return ((actual - exact).norm() / exact.norm().clamp_min(1e-30)).item()


def check(
    fast: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    inputs: list[Tensor],
    dtype: torch.dtype,
) -> None:
    """fp32: within 1e-6 of fp64. bf16: at most twice the error of the reference in bf16."""
    exact = results(reference, [x.to(dtype).double() for x in inputs], torch.float64)
    plain, ours = results(reference, inputs, dtype), results(fast, inputs, dtype)
    for e, p, o in zip(exact, plain, ours, strict=True):
        bound = 1e-6 if dtype == torch.float32 else max(2 * error(p, e), 4e-3)
        assert error(o, e) <= bound
    again = results(fast, inputs, dtype)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)), "not deterministic"


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@DTYPES
@pytest.mark.parametrize("seq", [1, 2, 37, 128])
@pytest.mark.parametrize("head_dim", [8, 16, 20, 32, 64, 80, 128])
def test_attention(dtype: torch.dtype, seq: int, head_dim: int) -> None:
    cos, sin = kernels.rotary_tables(seq, int(0.25 * head_dim) // 2 * 2, 10_000.0)

    def fast(qkv: Tensor) -> Tensor:
        return kernels.attention(qkv, cos, sin)

    def reference(qkv: Tensor) -> Tensor:
        return attention_reference(qkv, cos.to(qkv.dtype), sin.to(qkv.dtype))

    check(fast, reference, [normal(2, seq, 3, 3, head_dim)], dtype)


@pytest.mark.parametrize("seq", [1, 15, 16, 37, MAX_NATIVE_SEQ + 1])
@pytest.mark.parametrize("head_dim", [6, 8, 16, 20])
def test_attention_without_gradients(seq: int, head_dim: int) -> None:
    qkv = normal(2, seq, 3, 3, head_dim)
    tables = kernels.rotary_tables(seq, head_dim // 4 // 2 * 2, 10_000.0)
    exact = attention_reference(qkv, *(table.double() for table in tables))
    with torch.no_grad():
        assert error(kernels.attention(qkv.float(), *tables).double(), exact) < 1e-6


def test_attention_in_trees_equals_attention_in_texts() -> None:
    """Texts a b c d, a b e f g and a h share a and b; the row ends in padding."""
    texts = [[0, 1, 2, 3], [0, 1, 4, 5, 6], [0, 7]]  # indices of the tokens in the row
    positions = torch.tensor([[0, 1, 2, 3, 2, 3, 4, 1, 8, 9]])
    ends = torch.tensor([[8, 7, 4, 4, 7, 7, 7, 8, 10, 10]])
    qkv, (cos, sin) = normal(2, 10, 2, 3, 16), kernels.rotary_tables(10, 4, 10_000.0)
    both = torch.cat([positions, positions]), torch.cat([ends, ends])
    with torch.no_grad():
        found = tree_attention(qkv.float(), cos[both[0]], sin[both[0]], both[1]).double()
    for text in texts:
        size = len(text)
        exact = attention_reference(qkv[:, text], cos[:size].double(), sin[:size].double())
        assert error(found[:, text], exact) < 1e-6


@pytest.mark.parametrize(("rows", "vocab", "d"), [(3, 97, 16), (1, 5, 7), (200, 1000, 40)])
def test_target_log_probabilities(compiled: bool, rows: int, vocab: int, d: int) -> None:
    if not compiled:
        pytest.skip("there is no torch version: scoring computes logits instead")
    hidden, weight = normal(rows, d).float(), normal(vocab, d).float()
    index = torch.arange(rows).repeat_interleave(vocab)  # every token is a target of every row
    targets = torch.arange(vocab).repeat(rows)
    logp, best = target_log_probabilities(hidden, weight, index, targets)
    logits = hidden.double() @ weight.double().T
    assert error(logp.double().view(rows, vocab), logits.log_softmax(-1)) < 1e-6
    assert torch.equal(best.view(rows, vocab).nonzero()[:, 1], logits.argmax(-1))
    some = torch.randperm(len(index), generator=torch.Generator().manual_seed(0))[:9]
    alone, _ = target_log_probabilities(
        hidden[index[some]], weight, torch.arange(len(some)), targets[some]
    )
    assert torch.equal(alone, logp[some]), "a target's result does not depend on the others"
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        assert torch.equal(target_log_probabilities(hidden, weight, index, targets)[0], logp)
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(DataError, match=rf"in 0..{vocab - 1}, got 0 to {vocab}"):
        target_log_probabilities(hidden, weight, index[:2], torch.tensor([0, vocab]))
    hidden[0, 0] = torch.nan
    logp, best = target_log_probabilities(hidden, weight, index, targets)
    assert torch.equal(logp.isnan(), index == 0) and not best[index == 0].any()
    weight[1] = torch.nan
    logp, best = target_log_probabilities(hidden, weight, index, targets)
    assert logp.isnan().all() and not best.any()


def test_long_rows_use_torchs_attention() -> None:
    qkv = normal(1, MAX_NATIVE_SEQ + 1, 1, 3, 8)
    cos, sin = kernels.rotary_tables(MAX_NATIVE_SEQ + 1, 2, 10_000.0)
    out = kernels.attention(qkv.bfloat16(), cos, sin).double()
    assert error(out, attention_reference(qkv, cos, sin)) < 2e-2


@pytest.mark.parametrize("head_dim", [32, 64, 80, 128, 256])
def test_rotary_equals_complex_multiplication(head_dim: int) -> None:
    dims, base, seq = head_dim // 4, 10_000.0, 50
    x = normal(seq, head_dim)
    cos, sin = kernels.rotary_tables(seq, dims, base)
    rotated = rotary_reference(x, cos, sin)
    assert torch.equal(rotated[:, dims:], x[:, dims:])
    for position in (0, 1, 49):
        for i in range(dims // 2):
            rotation = torch.polar(
                torch.tensor(1.0), torch.tensor(position * base ** (-2 * i / dims))
            )
            z = torch.complex(x[position, i], x[position, i + dims // 2]) * rotation
            expected = torch.stack((z.real, z.imag))
            actual = rotated[position, [i, i + dims // 2]]
            torch.testing.assert_close(actual, expected.double(), atol=2e-5, rtol=0)


def test_rotary_scores_depend_on_the_distance_only() -> None:
    q, k = normal(1, 16).expand(40, 16), normal(1, 16, seed=1).expand(40, 16)
    cos, sin = (t.double() for t in kernels.rotary_tables(40, 16, 10_000.0))
    scores = rotary_reference(q, cos, sin) @ rotary_reference(k, cos, sin).T
    for distance in (0, 3, 17):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=0)


@DTYPES
@pytest.mark.parametrize("rows", [1, 37, 600])
@pytest.mark.parametrize("vocab", [97, 4096])
def test_linear_cross_entropy(dtype: torch.dtype, rows: int, vocab: int) -> None:
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(2))

    def fast(hidden: Tensor, weight: Tensor) -> Tensor:
        return kernels.linear_cross_entropy(hidden, weight, targets, weight.detach())

    def reference(hidden: Tensor, weight: Tensor) -> Tensor:
        if hidden.dtype == torch.float64:  # the reference's loss is fp32 by definition
            return torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
        return linear_cross_entropy_reference(hidden, weight, targets)

    check(fast, reference, [normal(rows, 24), normal(vocab, 24, seed=1)], dtype)


def test_the_gradient_of_a_certain_target_is_accurate() -> None:
    """It is its probability minus 1, times the hidden state; rounding may not cancel it."""
    weight = torch.tensor([[8.0], [0.0]], dtype=torch.bfloat16)
    hidden = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    parameter = weight.float().requires_grad_()
    kernels.linear_cross_entropy(hidden, parameter, torch.tensor([0]), weight).backward()
    assert parameter.grad[0].item() == pytest.approx(-1 / (1 + math.exp(8)), rel=4e-3)


def test_a_very_unlikely_target_has_the_right_loss() -> None:
    weight = torch.tensor([[500.0], [-500.0]])
    loss = kernels.linear_cross_entropy(torch.ones(1, 1), weight, torch.tensor([1]), weight)
    assert loss.item() == 1000


@DTYPES
def test_linear(dtype: torch.dtype) -> None:
    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.linear(x, weight, bias, weight.detach(), bias.detach())

    check(fast, linear_reference, [normal(37, 24), normal(40, 24, seed=1), normal(40)], dtype)


def forgets_the_total_(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.copy_(a.t() @ b)


def rounds_the_sum_(total: Tensor, a: Tensor, b: Tensor) -> None:
    total.copy_(total.to(a.dtype) + a.t() @ b)


def does_not_exist_(total: Tensor, a: Tensor, b: Tensor) -> None:
    raise NotImplementedError("out_dtype")


def adds_in_fp32_(total: Tensor, a: Tensor, b: Tensor) -> None:
    total += a.t().float() @ b.float()


def test_a_sum_of_products_must_be_exact() -> None:
    cpu = torch.device("cpu")
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert linear.adds_exactly(adds_in_fp32_, cpu, dtype)
        assert not linear.adds_exactly(forgets_the_total_, cpu, dtype)
        assert not linear.adds_exactly(does_not_exist_, cpu, dtype)
    assert not linear.adds_exactly(rounds_the_sum_, cpu, torch.bfloat16)


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_sum_of_products_is_not_used(broken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first `broken` of three ways fail, as if torch lacked them on this GPU."""
    names = ["add_in_product_", "add_fp32_product_", "add_product_"]
    for index, name in enumerate(names[:2]):
        way = does_not_exist_ if index < broken else adds_in_fp32_
        monkeypatch.setattr(linear, name, way)
    on_cpu = partial(linear.adds_exactly, device=torch.device("cpu"))
    monkeypatch.setattr(linear, "adds_exactly", lambda add, _, dtype: on_cpu(add, dtype=dtype))
    chosen = linear.accumulator.__wrapped__(torch.device("cuda"), torch.bfloat16)
    assert chosen is getattr(linear, names[broken])


@DTYPES
@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_gelu(dtype: torch.dtype, form: str) -> None:
    inputs = [4 * normal(37, 24)]
    check(lambda x: kernels.gelu(x, form), lambda x: gelu_reference(x, form), inputs, dtype)


@DTYPES
@pytest.mark.parametrize("form", ["tanh", "erf"])
def test_bias_gelu(dtype: torch.dtype, form: str) -> None:
    def fast(x: Tensor, bias: Tensor) -> Tensor:
        return kernels.bias_gelu(x, bias, form, bias.detach())

    def reference(x: Tensor, bias: Tensor) -> Tensor:
        return bias_gelu_reference(x, bias, form)

    check(fast, reference, [4 * normal(37, 24), normal(24, seed=1)], dtype)


def test_the_two_gelus_differ_by_less_than_5e_4() -> None:
    x = torch.linspace(-6, 6, 10_001, dtype=torch.float64)
    difference = (gelu_reference(x, "tanh") - gelu_reference(x, "erf")).abs().max().item()
    assert 4e-4 < difference < 5e-4


@DTYPES
def test_layer_norm(dtype: torch.dtype) -> None:
    inputs = [3 + normal(37, 24), normal(24, seed=1), normal(24, seed=2)]  # fp32 in any case

    def fast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.layer_norm(x, weight, bias, 1e-5, dtype)

    def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm_reference(x, weight, bias, 1e-5, dtype)

    def exact(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return layer_norm_reference(x, weight, bias, 1e-5, torch.float64)

    expected = results(exact, [x.float().double() for x in inputs], torch.float64)
    plain = results(reference, inputs, torch.float32)
    ours = results(fast, inputs, torch.float32)
    for e, p, o in zip(expected, plain, ours, strict=True):
        assert error(o, e) <= (1e-6 if dtype == torch.float32 else 2 * error(p, e))


@DTYPES
@pytest.mark.parametrize("branched", [True, False], ids=["branches", "alone"])
def test_layer_norm_pair(dtype: torch.dtype, branched: bool) -> None:
    """The sum and both norms, with all gradients, one of which comes through the sum."""
    shapes = [(37, 24), *[(37, 24)] * 2 * branched, *[(24,)] * 4]
    tensors = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    branches = range(1, 3) if branched else ()
    tensors = [x.to(dtype if i in branches else torch.float32) for i, x in enumerate(tensors)]

    def run(function: Callable[..., tuple[Tensor, ...]], exact: bool) -> list[Tensor]:
        leaves = [(x.double() if exact else x.clone()).requires_grad_() for x in tensors]
        x, *rest = leaves
        out = function(x, rest[:-4], rest[-4:], 1e-5, torch.float64 if exact else dtype)
        sum((o.double() * normal(37, 24, seed=50 + i)).sum() for i, o in enumerate(out)).backward()
        return [t.detach().double() for t in (*out, *(leaf.grad for leaf in leaves))]

    expected = run(layer_norm_pair_reference, True)
    plain = run(layer_norm_pair_reference, False)
    ours = run(kernels.layer_norm_pair, False)
    for e, p, o in zip(expected, plain, ours, strict=True):
        assert error(o, e) <= (1e-6 if dtype == torch.float32 else max(2 * error(p, e), 1e-6))
    again = run(kernels.layer_norm_pair, False)
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True)), "not deterministic"
