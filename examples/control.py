"""Teach a small net to swing up a pendulum and hold it there, with Adam, then time the net for each call.

    pip install '.[examples]' && python examples/control.py

The motor is too weak to lift the pendulum, so it must first swing it to and fro. The equations of motion are known.
The gradient of the cost flows back through them and through the net, from the end of the swing to its start: each step
in time has a tape of its own, which is overwritten in the next swing. The net and a picture of the pendulum before and
after training are written to the output folder.

The pendulum is a uniform rod on a frictionless hinge, at `angle` from upright, driven by a torque: by the law of
angular momentum, (m l² / 3) angle'' = (m g l / 2) sin(angle) + torque. (The moment of inertia of a rod about its end is
in any textbook of mechanics, for example Landau and Lifshitz, Mechanics, §32.)
"""

import argparse
import sys
from pathlib import Path
from timeit import timeit

import numpy as np
from matplotlib.figure import Figure
from tqdm import trange

from fastlinear import Adam, Linear, Sequential, clip_grad_norm, set_num_threads

try:
    import torch
except ImportError:
    torch = None

GRAVITY, LENGTH, MASS = 9.81, 1.0, 1.0  # m/s², m, kg
TORQUE = 2.0  # N·m at most; holding the rod level takes m g l / 2 = 4.9
SECONDS = 0.05  # of one step in time
LIFT = 1.5 * GRAVITY / LENGTH  # angle'' = LIFT sin(angle) + PUSH action, with the action in [-1, 1]
PUSH = 3 * TORQUE / (MASS * LENGTH**2)

STEPS = 80  # of a swing in training: 4 s
SWING = 0.005  # what the square of the velocity costs, beside 1 - cos(angle); with 0.02 few learn to swing
DISCOUNT = 0.98  # how much less a cost counts for each step that it lies in the future
WANTED = 0.95


def move(angle, velocity, action):
    """The state one step later: semi-implicit Euler, the new velocity moves the angle."""
    velocity = velocity + SECONDS * (LIFT * np.sin(angle) + PUSH * action)
    return angle + SECONDS * velocity, velocity


def make_policy(hidden, rng):
    """cos, sin of the angle and the velocity / 4 → `hidden` tanh units → one action in [-1, 1]."""
    return Sequential(Linear(3, hidden, rng=rng), "tanh", Linear(hidden, 1, rng=rng), "tanh")


def see(angle, velocity):
    """What the policy sees of a state."""
    return np.stack([np.cos(angle), np.sin(angle), velocity / 4], axis=1)


def see_backward(seen, grad_seen):
    """The gradients of the angle and the velocity."""
    grad_cos, grad_sin, grad_velocity = grad_seen.T
    return grad_sin * seen[:, 0] - grad_cos * seen[:, 1], grad_velocity / 4


def starts(count, rng):
    """Any angle, a small velocity."""
    return rng.uniform(-np.pi, np.pi, count).astype(np.float32), rng.uniform(-1, 1, count).astype(np.float32)


def improve(policy, optimiser, tapes, angle, velocity):
    """One step of learning, on a swing from each of these states. The mean cost of a step in time."""
    swing, cost = [], 0.0
    for step in range(STEPS):
        seen = see(angle, velocity)
        tapes[step] = policy.record(seen, tapes[step])
        swing.append((seen, angle, velocity))
        angle, velocity = move(angle, velocity, tapes[step].output[:, 0])
        cost += np.mean(1 - np.cos(angle) + SWING * velocity**2) / STEPS

    # Backward in time. Before each line, grad_* is the gradient by the state after the step; it ends as that before it.
    optimiser.zero_grad()
    grad_angle, grad_velocity = np.zeros_like(angle), np.zeros_like(velocity)
    for tape, (seen, angle_before, velocity_before) in zip(reversed(tapes), reversed(swing), strict=True):
        grad_angle = DISCOUNT * grad_angle + np.sin(angle)
        grad_velocity = DISCOUNT * grad_velocity + 2 * SWING * velocity + SECONDS * grad_angle
        grad_seen = policy.backward(tape, SECONDS * PUSH * grad_velocity[:, None])
        through_policy = see_backward(seen, grad_seen)
        grad_angle = grad_angle + SECONDS * LIFT * np.cos(angle_before) * grad_velocity + through_policy[0]
        grad_velocity = grad_velocity + through_policy[1]
        angle, velocity = angle_before, velocity_before
    clip_grad_norm(policy, 1.0)  # the gradients of swings differ a thousandfold in size
    optimiser.step()
    return cost


def watch(policy, angle, velocity, steps):
    """The angles over time, (steps + 1, pendulums)."""
    angles = [angle]
    for _ in range(steps):
        angle, velocity = move(angle, velocity, policy(see(angle, velocity))[:, 0])
        angles.append(angle)
    return np.array(angles)


def standing(policy):
    """The share of 500 pendulums that stay within 18° of upright through the last 2 of 15 seconds."""
    angles = watch(policy, *starts(500, np.random.default_rng(1000)), steps=round(15 / SECONDS))
    return np.mean((np.cos(angles[-round(2 / SECONDS) :]) > 0.95).all(axis=0))


def calls(policy, seen):
    """The net on one state, into arrays that are there already: name → a function that returns the action."""
    first, second = policy.layers
    hidden, action = np.empty(first.out_features, np.float32), np.empty(1, np.float32)

    def fastlinear():
        return policy(seen, action)

    w1, b1, w2, b2 = first.weight, first.bias, second.weight, second.bias
    np_hidden, np_action = hidden.copy(), action.copy()

    def numpy():
        np.tanh(np.add(np.dot(w1, seen, out=np_hidden), b1, out=np_hidden), out=np_hidden)
        return np.tanh(np.add(np.dot(w2, np_hidden, out=np_action), b2, out=np_action), out=np_action)

    if torch is None:
        print("PyTorch is not installed and is left out")
        return {"fastlinear": fastlinear, "NumPy": numpy}

    v1, c1, v2, c2, t_seen, t_hidden, t_action = map(
        torch.from_numpy, (w1, b1, w2, b2, seen, hidden.copy(), action.copy())
    )
    network = policy.to_torch()

    def torch_modules():
        with torch.inference_mode():
            return network(t_seen).numpy()

    def torch_out():
        torch.addmv(c1, v1, t_seen, out=t_hidden).tanh_()
        return torch.addmv(c2, v2, t_hidden, out=t_action).tanh_().numpy()

    return {"fastlinear": fastlinear, "NumPy": numpy, "PyTorch, addmv": torch_out, "PyTorch, modules": torch_modules}


def time_calls(policy, rounds=15, number=1000):
    """µs of a call: the medians of rounds in which the contestants take turns."""
    functions = calls(policy, np.array([-0.5, 0.75, 0.25], np.float32))
    expected = functions["NumPy"]()
    times = {name: [] for name in functions}
    for name, function in functions.items():
        if not np.allclose(function(), expected, atol=1e-5):
            sys.exit(f"{name} gives the action {function()}, NumPy {expected}")
    for _ in range(rounds):
        for name, function in functions.items():
            times[name].append(1e6 * timeit(function, number=number) / number)
    return {name: np.median(of_rounds) for name, of_rounds in times.items()}


def picture(before, after):
    """The same pendulums before and after. A whole turn brings a pendulum upright again."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    seconds = SECONDS * np.arange(len(before))
    for axes, angles, title in zip(
        figure.subplots(1, 2, sharey=True), (before, after), ("before", "after"), strict=True
    ):
        axes.plot(seconds, angles / (2 * np.pi), linewidth=1.3)
        axes.set(xlabel="seconds", title=f"{title} training")
        axes.grid(axis="x", alpha=0.3)
    turns = np.arange(-2, 2)
    for axes in figure.axes:
        axes.hlines(turns, 0, seconds[-1], color="0.6", linewidth=0.8, linestyle="--", zorder=0)
    figure.axes[0].set(ylim=(-2.4, 1.4), yticks=turns)
    figure.axes[0].set_ylabel("turns from upright (dashed: upright)")
    return figure


def main():
    parser = argparse.ArgumentParser(description="Teach a small net to swing up a pendulum.")
    parser.add_argument("--hidden", type=int, default=32, help="units between the two layers")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--pendulums", type=int, default=128, help="swings of one iteration, side by side")
    parser.add_argument("--lr", type=float, default=0.01, help="Adam's learning rate at first; in the end it is 0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("control-output"), help="folder for weights and picture")
    options = parser.parse_args()
    if min(options.hidden, options.iterations, options.pendulums) < 1:
        parser.error("--hidden, --iterations and --pendulums must be at least 1")
    options.output.mkdir(parents=True, exist_ok=True)
    set_num_threads(1)
    if torch is not None:
        torch.set_num_threads(1)

    rng = np.random.default_rng(options.seed)
    policy = make_policy(options.hidden, rng)
    optimiser, tapes = Adam(policy, lr=options.lr), [None] * STEPS
    shown = np.array([np.pi, 2.5, 1.5, -0.5, -2.0], np.float32), np.zeros(5, np.float32)
    before, stood = watch(policy, *shown, steps=200), standing(policy)
    with trange(options.iterations, desc="swing") as progress:
        for iteration in progress:
            optimiser.lr = options.lr * (1 - iteration / options.iterations)
            cost = improve(policy, optimiser, tapes, *starts(options.pendulums, rng))
            progress.set_postfix(cost=f"{cost:.3f}")
    after, stand = watch(policy, *shown, steps=200), standing(policy)
    print(f"upright in the end: {stood:.1%} of the pendulums before training, {stand:.1%} after")
    if stand < WANTED:
        sys.exit(
            f"{stand:.1%} of the pendulums stand, fewer than {WANTED:.0%}: try another --seed or more --iterations"
        )

    for name, microseconds in time_calls(policy).items():
        print(f"{name:16} {microseconds:6.2f} µs a call")

    policy.save(options.output / "policy.safetensors")
    picture(before, after).savefig(options.output / "control.png", dpi=100)
    print(f"{options.output / 'control.png'}: the angles over time, before and after")


if __name__ == "__main__":
    main()
