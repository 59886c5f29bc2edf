"""The contract on bits: what a result depends on, to the last bit, and what it does not depend on."""

from itertools import pairwise

import numpy as np
import pytest

from fastlinear import Linear, _dispatch

from .bits import FUSED, digests, is_fused, recorded
from .helpers import Problem, assert_same_bits, layer_of, memory_of, placed, run, sampled, wild

# (batch, in, out): sizes with tails and without, of one tile and of many, past the edges of blocks, and with few
# columns and more blocks of out than go side by side.
SHAPES = [
    (1, 1, 1),
    (3, 5, 4),
    (7, 33, 17),
    (6, 64, 64),
    (13, 100, 1),
    (9, 1, 40),
    (9, 2, 3900),
    (2, 1100, 9),
    (5, 530, 300),
    (17, 70, 515),
    (130, 129, 21),
    (260, 40, 10),
    (257, 513, 66),
    (64, 1030, 70),
    (8, 2060, 270),
    (33, 13, 70),
    (32, 520, 1000),
    (63, 1030, 1000),
    (256, 1030, 63),
    (256, 520, 64),
    (35, 34000, 9),
    (2, 66000, 3),
    (2, 33000, 130),
]
PER_ROW = ("output", "grad_input", "update_input")
SCALES = [0.3, 1.0, -1.0]
MOST = 5 * 10**6
"""Products of a shape that each run takes."""
shapes = pytest.mark.parametrize("shape", sampled(SHAPES, most=MOST), ids=lambda s: "x".join(map(str, s)))


def assert_all_same(got, expected, what=""):
    for name, value in expected.items():
        assert_same_bits(got[name], value, f"{name} {what}")


def test_the_data_tells_orders_apart(compiled, dtype):
    """The tests below can fail: on their data, another order of a sum does give other bits."""
    p = wild(40, 300, 70, dtype)
    turned = p.map(lambda a: np.flip(a).copy())
    got, other = run(compiled, p), run(compiled, turned)
    for name in ("output", "grad_input", "grad_weight", "grad_bias", "update_input", "updated_weight", "updated_bias"):
        assert np.mean(np.flip(other[name]) != got[name]) > 0.1, name


@shapes
def test_run_to_run(compiled, dtype, shape):
    """Point 1: the same call twice gives the same bits."""
    problem = wild(*shape, dtype)
    assert_all_same(run(compiled, problem), run(compiled, problem))


@shapes
def test_rows_do_not_depend_on_their_batch(compiled, dtype, shape):
    """Point 2: each row alone, in every batch that begins or ends anywhere, in the update: the same bits."""
    batch, *_ = shape
    problem = wild(*shape, dtype)
    x, grad_output, weight, bias = problem

    def rows(begin, end):
        part = Problem(x[begin:end], grad_output[begin:end], weight, bias)
        return {name: value for name, value in run(compiled, part).items() if name in PER_ROW}

    alone = [rows(b, b + 1) for b in range(batch)]
    alone = {name: np.concatenate([row[name] for row in alone]) for name in PER_ROW}
    cuts = sorted({*range(min(batch, 20)), *range(max(batch - 8, 0), batch), *range(0, batch, 13)})
    for cut in cuts:
        for begin, end in ((cut, batch), (0, batch - cut)):
            assert_all_same(rows(begin, end), {name: a[begin:end] for name, a in alone.items()}, f"of {begin}:{end}")


@pytest.mark.parametrize("sizes", [(5, 4), (37, 29), (130, 66), (1100, 9)], ids=str)
def test_every_batch_size(compiled, dtype, sizes):
    """Point 2: in a batch of any size, from 1 to past the largest block, each row has the bits that it has alone."""
    most = 270
    x, grad_output, weight, _ = wild(most, *sizes, dtype)
    output, grad_input = np.empty_like(grad_output), np.empty_like(x)
    for b in range(most):
        compiled.forward(x[b : b + 1], weight, None, output[b : b + 1])
        compiled.grad_input(grad_output[b : b + 1], weight, grad_input[b : b + 1])
    for n in range(1, most + 1):
        got, got_input = np.empty_like(output[:n]), np.empty_like(x[:n])
        compiled.forward(x[:n], weight, None, got)
        compiled.grad_input(grad_output[:n], weight, got_input)
        assert_same_bits(got, output[:n], f"output of {n}")
        assert_same_bits(got_input, grad_input[:n], f"grad_input of {n}")


@pytest.mark.parametrize("in_features", [*range(1, 19), 33])
def test_signs_of_zeros_do_not_depend_on_the_batch(compiled, dtype, in_features):
    """Point 2 where every sum is 0: of zeros of both signs, and of products that underflow."""
    tiny = np.finfo(dtype).tiny
    values = np.array([0.0, -0.0, tiny, -tiny], dtype)
    x = np.array([[a] * (in_features - in_features // 2) + [b] * (in_features // 2) for a in values for b in values])
    weight, outs = np.repeat(values, 5)[:, None] * np.ones(in_features, dtype), 20
    for bias in (None, np.full(outs, 0.0, dtype), np.full(outs, -0.0, dtype)):
        whole, row = np.empty((len(x), outs), dtype), np.empty((1, outs), dtype)
        compiled.forward(x, weight, bias, whole)
        assert not whole.any()
        for b in range(len(x)):
            compiled.forward(x[b : b + 1], weight, bias, row)
            assert_same_bits(whole[b : b + 1], row, f"row {b}")


@shapes
def test_rows_vectors_and_batches(compiled_isa, dtype, shape):
    """Point 2 through the layer: as a vector, as (1, in), with more leading axes, in the batch."""
    batch, in_features, out_features = shape
    problem = wild(*shape, dtype)
    x, grad_output, *_ = problem
    layer = layer_of(problem)
    output, grad_input = layer(x), layer.backward_input(grad_output)
    for b in range(0, batch, max(batch // 8, 1)):
        assert_same_bits(layer(x[b]), output[b])
        assert_same_bits(layer(x[b : b + 1]), output[b : b + 1])
        assert_same_bits(layer.backward_input(grad_output[b]), grad_input[b])
        assert_same_bits(layer_of(problem).backward_update(x[b], grad_output[b], 0.1), grad_input[b])
    assert_same_bits(layer(x.reshape(1, batch, 1, in_features)), output.reshape(1, batch, 1, out_features))


@pytest.mark.parametrize(
    "shape",
    sampled([*SHAPES, (0, 5, 3), (3, 0, 4), (3, 4, 0), (1, 700, 300), (300, 20, 5), (20, 7, 400)], most=MOST),
    ids=str,
)
def test_threads(compiled, dtype, shape):
    """Point 3: 1 to 8 threads, more than there are rows, columns or cores, give the same bits."""
    problem = wild(*shape, dtype)
    for scale in SCALES if problem.weight.size < 10**6 else SCALES[:1]:
        expected = run(compiled, problem, scale=scale, lr=scale, threads=1)
        for threads in range(2, 9):
            got = run(compiled, problem, scale=scale, lr=scale, threads=threads)
            assert_all_same(got, expected, f"on {threads} threads with scale {scale}")


@pytest.mark.parametrize("shape", [(64, 300, 200), (1, 2000, 1100), (2000, 40, 30)], ids=str)
def test_set_num_threads(compiled_isa, dtype, shape, threads):
    """Point 3 through the layer, on sizes that are worth threads."""
    problem = wild(*shape, dtype)
    results = []
    for n in range(1, 9):
        threads(n)
        layer = layer_of(problem)
        output, grad_input = layer(problem.x), layer.backward(problem.x, problem.grad_output)
        update_input = layer.backward_update(problem.x, problem.grad_output, 0.1)
        layer.step(0.1)
        results.append({"output": output, "grad_input": grad_input, "update_input": update_input} | memory_of(layer))
    for n, result in enumerate(results[1:], 2):
        assert_all_same(result, results[0], f"on {n} threads")


@pytest.mark.parametrize("shape", [(7, 33, 17), (3, 70, 20), (1, 130, 9)], ids=str)
def test_alignment_of_kernels(compiled, dtype, shape):
    """Point 4: every offset from a cache line, of inputs and outputs, gives the same bits."""
    problem = wild(*shape, dtype)
    expected = run(compiled, problem)
    for offset in range(64 // problem.x.itemsize):
        assert_all_same(run(compiled, problem.map(lambda a, at=offset: placed(a, at))), expected, f"at {offset}")


@pytest.mark.parametrize("shape", [(7, 33, 17), (130, 20, 9)], ids=str)
def test_alignment_of_layers(compiled_isa, dtype, shape):
    """Point 4 through the layer: every byte offset 0 to 63 of x, grad_output, out and shared parameters."""
    problem = wild(*shape, dtype)
    x, grad_output, weight, bias = problem
    plain = layer_of(problem)
    output, grad_input = plain(x), plain.backward(x, grad_output)
    plain.backward_update(x, grad_output, 0.1)

    def at(array, offset):
        memory = np.empty(array.nbytes + 128, np.uint8)
        start = -memory.ctypes.data % 64 + offset
        view = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        view[...] = array
        return view

    for offset in range(64):
        aligned = offset % x.itemsize == 0
        parameters = (at(a, offset) if aligned else a.copy() for a in (weight, bias))
        layer = Linear.from_weights(*parameters, copy=False)
        out, out_input = at(np.full_like(output, np.nan), offset), at(np.full_like(x, np.nan), offset)
        assert_same_bits(layer.forward(at(x, offset), out=out), output)
        assert_same_bits(layer.backward(at(x, offset), at(grad_output, offset), out=out_input), grad_input)
        assert_same_bits(layer.backward_update(at(x, offset), at(grad_output, offset), 0.1, out=out_input), grad_input)
        for name, value in memory_of(plain).items():
            assert_same_bits(memory_of(layer)[name], value, name)


LAYOUTS = {
    "fortran": np.asfortranarray,
    "strided": lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
    "reversed": lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
    "columns of a wider array": lambda a: np.hstack([a, a])[:, : a.shape[1]],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@shapes
def test_strides_and_out(compiled_isa, dtype, shape, layout):
    """Point 4: the layout of an input or an out is of no matter."""
    problem = wild(*shape, dtype)
    x, grad_output, *_ = problem
    plain, layer = layer_of(problem), layer_of(problem)
    output, grad_input = plain(x), plain.backward(x, grad_output)
    assert_same_bits(layer(layout(x)), output)
    assert_same_bits(layer.backward(layout(x), layout(grad_output)), grad_input)
    assert_same_bits(np.ascontiguousarray(layer(x, out=layout(output) * 0)), output)
    assert_same_bits(layer.grad_weight, plain.grad_weight)
    assert_same_bits(layer.grad_bias, plain.grad_bias)


@pytest.mark.parametrize("scale", SCALES)
@shapes
def test_splitting_a_batch(compiled, dtype, shape, scale):
    """Point 5: a batch in two parts, cut anywhere, or row after row, accumulates the bits of the whole."""
    batch, *_ = shape
    problem = wild(*shape, dtype)
    whole = run(compiled, problem, scale=scale, lr=scale)
    cuts = sorted({*range(min(batch, 15)), *range(max(batch - 5, 0), batch + 1), *range(0, batch, 11)})
    for parts in [(0, cut, batch) for cut in cuts] + [tuple(range(batch + 1))]:
        x, grad_output, weight, bias = problem
        grad_weight, grad_bias, new_weight, new_bias = (a.copy() for a in (weight, bias, weight, bias))
        for begin, end in pairwise(parts):
            rows = x[begin:end], grad_output[begin:end]
            compiled.grad_weight(*rows, scale, grad_weight)
            compiled.grad_bias(rows[1], scale, grad_bias)
            compiled.update(*rows, scale, new_weight, new_bias, None)
        got = {
            "grad_weight": grad_weight,
            "grad_bias": grad_bias,
            "updated_weight": new_weight,
            "updated_bias": new_bias,
        }
        for name, value in got.items():
            assert_same_bits(value, whole[name], f"{name} in parts {parts[:4]}")


@pytest.mark.parametrize("scale", SCALES)
@shapes
def test_update_is_grad_input_and_grad_weight(compiled, dtype, shape, scale):
    """The one pass gives the bits of its parts: grad_input from the old weights, grad_weight into them with -lr."""
    problem = wild(*shape, dtype)
    got = run(compiled, problem, scale=-scale, lr=scale)
    assert_same_bits(got["update_input"], got["grad_input"])
    assert_same_bits(got["updated_weight"], got["grad_weight"])
    assert_same_bits(got["updated_bias"], got["grad_bias"])


@pytest.mark.skipif(len(FUSED) < 2, reason="needs two instruction sets with a fused multiply-add")
@pytest.mark.parametrize(
    "shape",
    sampled([*SHAPES, *((b, i, o) for b in (1, 5, 7) for i in (15, 40, 1500) for o in (3, 8, 270))], most=MOST),
)
def test_instruction_sets_agree(dtype, shape):
    """Point 6: AVX2 and AVX-512 give the same bits."""
    problem = wild(*shape, dtype)
    for scale in SCALES:
        first, *others = (run(_dispatch.load(name), problem, scale=scale, lr=scale) for name in FUSED)
        for other in others:
            assert_all_same(other, first, f"with scale {scale}")


def test_recorded_bits(compiled):
    """Point 6 between machines: AVX2, AVX-512 and NEON compute what was recorded of all three, to the bit. So do the
    instruction sets without a fused multiply-add, of which there is another recording."""
    got = [*digests(compiled)]
    expected = recorded("fused" if is_fused(compiled) else "unfused")
    assert len(got) == len(expected)
    assert not {*got} - {*expected}
