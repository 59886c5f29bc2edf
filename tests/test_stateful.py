"""Random sequences of every method on one layer, beside a model of plain NumPy formulas, compared after each step.

All values are small integers over powers of two, so both sides are exact, in any order of additions: they must be
equal. A weight that has been updated some times is replaced before its digits outgrow float32.
"""

import copy
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import fastlinear
from fastlinear import Linear, _dispatch, verify

from .helpers import DTYPES, ISAS

pytestmark = pytest.mark.thread_unsafe(reason="changes the instruction set on its way")

FEATURES = st.integers(0, 40) | st.sampled_from([64, 65, 129])
BATCH = st.sampled_from([(), (1,), (2,), (7,), (16,), (33,), (70,), (2, 3), (0,), (3, 0)])
FACTORS = st.sampled_from([1.0, -1.0, 0.5, -0.5])
SEEDS = st.integers(0, 2**32 - 1)
LAYOUTS = st.sampled_from(
    [
        lambda a: a,
        np.asfortranarray,
        lambda a: np.repeat(a, 2, -1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape) if a.size else a,
        lambda a: a.tolist(),
        lambda a: a.astype(np.int8),
    ]
)
MOST_CHANGES = 4


class LayerAndModel(RuleBasedStateMachine):
    """layer is what is tested; model holds what its memory must be, in float64; changes counts the digits used up."""

    @initialize(
        isa=st.sampled_from(ISAS),
        sizes=st.tuples(FEATURES, FEATURES),
        bias=st.booleans(),
        dtype=st.sampled_from(DTYPES),
        seed=SEEDS,
    )
    def begin(self, isa, sizes, bias, dtype, seed):
        _dispatch.use(isa)
        self.layer = Linear(*sizes, bias=bias, dtype=dtype, rng=seed)
        self.model = {name: np.zeros(shape) for name, shape in self.shapes().items()}
        self.replace(seed, "assign")

    def teardown(self):
        _dispatch.use(fastlinear.isa)
        fastlinear.set_num_threads(self.threads_before)

    def __init__(self):
        super().__init__()
        self.threads_before = fastlinear.get_num_threads()
        self.changes = 0

    def shapes(self):
        shapes = {"weight": (self.layer.out_features, self.layer.in_features), "bias": (self.layer.out_features,)}
        names = ("weight",) if self.layer.bias is None else ("weight", "bias")
        return {f"{kind}{name}": shapes[name] for kind in ("", "grad_") for name in names}

    def draw(self, seed, *shapes, most=2):
        rng = np.random.default_rng(seed)
        arrays = [rng.integers(-most, most, shape, endpoint=True).astype(self.layer.dtype) for shape in shapes]
        return arrays if len(arrays) > 1 else arrays[0]

    def rows(self, seed, batch):
        """x and grad_output, and both as float64 matrices."""
        x, g = self.draw(seed, (*batch, self.layer.in_features), (*batch, self.layer.out_features))
        n = int(np.prod(batch))
        return x, g, x.reshape(n, self.layer.in_features).astype(float), g.reshape(n, self.layer.out_features) * 1.0

    def check(self, got, expected, shape):
        assert isinstance(got, np.ndarray)
        assert got.dtype == self.layer.dtype
        assert got.shape == shape
        assert np.array_equal(got, expected.reshape(shape))

    def out(self, given, layout, shape):
        return np.asarray(layout(np.full(shape, 42, self.layer.dtype)), self.layer.dtype) if given else None

    def accumulate(self, kind, x, g, factor):
        self.model[kind + "weight"] += factor * (g.T @ x)
        if self.layer.bias is not None:
            self.model[kind + "bias"] += factor * g.sum(0)

    # ---- passes

    @rule(batch=BATCH, seed=SEEDS, layout=LAYOUTS, given=st.booleans(), call=st.booleans())
    def forward(self, batch, seed, layout, given, call):
        x, _, rows, _ = self.rows(seed, batch)
        shape = (*batch, self.layer.out_features)
        out = self.out(given, np.asfortranarray, shape)
        got = (self.layer if call else self.layer.forward)(layout(x) if x.size else x, out=out)
        assert out is None or got is out
        self.check(got, rows @ self.model["weight"].T + self.model.get("bias", 0), shape)

    @precondition(lambda self: self.changes < MOST_CHANGES)
    @rule(batch=BATCH, seed=SEEDS, layout=LAYOUTS, given=st.booleans(), scale=FACTORS, input_grad=st.booleans())
    def backward(self, batch, seed, layout, given, scale, input_grad):
        x, g, rows, grads = self.rows(seed, batch)
        out = self.out(given and input_grad, np.asfortranarray, x.shape)
        x, shape = (layout(x) if x.size else x), x.shape
        got = self.layer.backward(x, g, out=out, scale=scale, input_grad=input_grad)
        self.accumulate("grad_", rows, grads, scale)
        self.changes += 1
        if input_grad:
            self.check(got, grads @ self.model["weight"], shape)
        else:
            assert got is None

    @rule(batch=BATCH, seed=SEEDS, layout=LAYOUTS, given=st.booleans())
    def backward_input(self, batch, seed, layout, given):
        x, g, _, grads = self.rows(seed, batch)
        got = self.layer.backward_input(layout(g) if g.size else g, out=self.out(given, np.asfortranarray, x.shape))
        self.check(got, grads @ self.model["weight"], x.shape)

    @precondition(lambda self: self.changes < MOST_CHANGES)
    @rule(batch=BATCH, seed=SEEDS, layout=LAYOUTS, scale=FACTORS)
    def backward_params(self, batch, seed, layout, scale):
        x, g, rows, grads = self.rows(seed, batch)
        assert self.layer.backward_params(layout(x) if x.size else x, g, scale=scale) is None
        self.accumulate("grad_", rows, grads, scale)
        self.changes += 1

    @precondition(lambda self: self.changes < MOST_CHANGES)
    @rule(batch=BATCH, seed=SEEDS, layout=LAYOUTS, given=st.booleans(), lr=FACTORS, input_grad=st.booleans())
    def backward_update(self, batch, seed, layout, given, lr, input_grad):
        x, g, rows, grads = self.rows(seed, batch)
        out = self.out(given and input_grad, np.asfortranarray, x.shape)
        got = self.layer.backward_update(x, layout(g) if g.size else g, lr, out=out, input_grad=input_grad)
        if input_grad:
            self.check(got, grads @ self.model["weight"], x.shape)
        else:
            assert got is None
        self.accumulate("", rows, grads, -lr)
        self.changes += 1

    @precondition(lambda self: self.changes < MOST_CHANGES)
    @rule(lr=FACTORS)
    def step(self, lr):
        self.layer.step(lr)
        for name in ("weight", "bias") if self.layer.bias is not None else ("weight",):
            self.model[name] -= lr * self.model[f"grad_{name}"]
        self.changes += 1

    # ---- parameters

    @rule()
    def zero_grad(self):
        self.layer.zero_grad()
        for name in self.model:
            if name.startswith("grad_"):
                self.model[name][...] = 0

    @rule(seed=SEEDS, how=st.sampled_from(["assign", "write", "load_state_dict", "reset"]))
    def replace(self, seed, how):
        """New values everywhere, in each of the ways there are, and the count begins anew."""
        names, shapes = list(self.model), list(self.shapes().values())
        values = dict(zip(names, self.draw([seed], *shapes, np.int8(0)), strict=False))
        parameters = {name: value for name, value in values.items() if not name.startswith("grad_")}
        if how == "reset":
            self.layer.reset(seed)
            bound = self.layer.in_features**-0.5 if self.layer.in_features else 0
            assert np.all(np.abs(self.layer.weight) <= bound)
        if how == "load_state_dict":
            self.layer.load_state_dict(parameters)
        for name, value in values.items():
            if how == "write":
                getattr(self.layer, name)[...] = value
            else:
                setattr(self.layer, name, value)
            self.model[name] = value.astype(float)
        self.changes = 0

    @rule(seed=SEEDS)
    def state_dict(self, seed):
        """A copy: what is done to it does not reach the layer."""
        for name, value in self.layer.state_dict().items():
            assert np.array_equal(value, self.model[name])
            value[...] = 42

    @rule(how=st.sampled_from(["pickle", "deepcopy", "from_weights", "share", "astype"]), other=st.sampled_from(DTYPES))
    def become_a_copy(self, how, other):
        """Go on with a copy; the layer that was, changed, does not change it."""
        before = self.layer
        if how == "pickle":
            self.layer = pickle.loads(pickle.dumps(before))
        elif how == "deepcopy":
            self.layer = copy.deepcopy(before)
        elif how == "astype":
            self.layer = before.astype(other)
        elif how == "from_weights":
            self.layer = Linear.from_weights(before.weight, before.bias)
        else:
            self.layer = copy.copy(before)
        if how == "from_weights":
            self.zero_model_gradients()
        if how != "share":
            for name in self.shapes():
                getattr(before, name)[...] = 42

    def zero_model_gradients(self):
        for name in self.model:
            if name.startswith("grad_"):
                self.model[name] = np.zeros_like(self.model[name])

    @rule(n=st.integers(1, 4), isa=st.sampled_from(ISAS))
    def other_threads_and_instruction_set(self, n, isa):
        fastlinear.set_num_threads(n)
        _dispatch.use(isa)

    # ---- what must change nothing

    @rule(seed=SEEDS, batch=BATCH)
    def verify(self, seed, batch):
        x, g, *_ = self.rows(seed, batch)
        assert max(verify(self.layer, x, g).values()) == 0

    @rule(
        method=st.sampled_from(["forward", "backward", "backward_update", "backward_params", "load_state_dict"]),
        spoil=st.sampled_from(
            [lambda a: np.repeat(a[..., None], 99, -1), lambda a: a.astype(complex), lambda a: "x", lambda a: None]
        ),
    )
    def bad_call(self, method, spoil):
        x, g, *_ = self.rows(0, (2,))
        arguments = {
            "forward": (spoil(x),),
            "backward": (x, spoil(g)),
            "backward_update": (x, spoil(g), 0.5),
            "backward_params": (spoil(x), g),
            "load_state_dict": ({"weight": self.layer.weight, "bias": spoil(x)},),
        }
        with pytest.raises((TypeError, ValueError)):
            getattr(self.layer, method)(*arguments[method])

    @invariant()
    def memory_is_the_models(self):
        if hasattr(self, "layer"):
            for name, value in self.model.items():
                if not name.startswith("grad_") or self.layer._memory()[2] is not None:
                    assert np.array_equal(getattr(self.layer, name), value), name


TestLayerAndModel = LayerAndModel.TestCase
TestLayerAndModel.settings = settings(stateful_step_count=30, max_examples=50)
