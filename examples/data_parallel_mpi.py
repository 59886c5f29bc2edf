"""Train on several processes, or machines, at once: each computes the gradients of its rows, and MPI adds them up.

    pip install '.[examples,mpi]' mpich && mpiexec -n 2 python examples/data_parallel_mpi.py

Every rank holds the whole layer and a part of each batch. `grad_weight` and `grad_bias` are plain contiguous memory, so
Allreduce sums them in place. Then every rank takes the same step, and the program checks after each step that all ranks
hold the same bits. One process adds in another order, so its weights differ in the last bits. They do not differ with

    mpiexec -n 2 python examples/data_parallel_mpi.py --exact

There the gradient goes from rank to rank, and each rank adds its rows to it. These are the additions that one process
makes, in the same order, so the bits are the same; but the ranks wait for one another. `--measure` times single layers.
"""

import argparse
import sys
from hashlib import sha256
from time import perf_counter

import numpy as np
from mpi4py import MPI
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import trange

from fastlinear import Linear, set_num_threads

WANTED = 0.93
CLOSE = 1e-5  # how far a weight may be from that of one process; 900 steps gave 7e-7
MEASURED = [(64, 10), (1024, 1024), (4096, 1024)]


def part(count, comm):
    """The rows of this rank: consecutive ones, as nearly the same number for each as can be."""
    return slice(count * comm.rank // comm.size, count * (comm.rank + 1) // comm.size)


def reduce_sum(comm, layer, x, grad_output):
    """All ranks at once; then the sum over the ranks, in place."""
    layer.backward_params(x, grad_output)
    for gradient in (layer.grad_weight, layer.grad_bias):
        comm.Allreduce(MPI.IN_PLACE, gradient)


def reduce_in_order(comm, layer, x, grad_output):
    """One rank after another: each continues the sums of the one before it, and the last tells all."""
    gradients = layer.grad_weight, layer.grad_bias
    if comm.rank > 0:
        for gradient in gradients:
            comm.Recv(gradient, comm.rank - 1)
    layer.backward_params(x, grad_output)
    if comm.rank < comm.size - 1:
        for gradient in gradients:
            comm.Send(gradient, comm.rank + 1)
    for gradient in gradients:
        comm.Bcast(gradient, comm.size - 1)


def check_same_bits(comm, layer):
    hashes = comm.allgather(sha256(layer.weight.tobytes() + layer.bias.tobytes()).digest())
    if len(set(hashes)) > 1:
        sys.exit(f"rank {comm.rank}: the ranks hold different weights")


def train(comm, reduce, x, digits, options):
    """A layer trained on all the ranks of `comm`. All draw the same order of rows, from the same seed."""
    rng = np.random.default_rng(0)
    layer = Linear(x.shape[1], 10, rng=rng)
    for _ in trange(options.epochs, desc=f"{comm.size} rank(s)", unit="epoch", disable=comm.rank > 0):
        order = rng.permutation(len(x))
        for start in range(0, len(x), options.batch_size):
            batch = order[start : start + options.batch_size]
            rows = batch[part(len(batch), comm)]

            grad_output = softmax(layer(x[rows]), axis=1)
            grad_output[np.arange(len(rows)), digits[rows]] -= 1
            grad_output /= len(batch)  # the mean over the whole batch, not over the rows of this rank

            layer.zero_grad()
            reduce(comm, layer, x[rows], grad_output)
            layer.step(options.lr)
            check_same_bits(comm, layer)
    return layer


def train_digits(comm, options):
    """Train on all ranks, and again in one process, rank 0; compare."""
    images, digits = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32)
    x, x_test, digits, digits_test = train_test_split(x, digits, test_size=0.2, stratify=digits, random_state=0)
    layer = train(comm, reduce_in_order if options.exact else reduce_sum, x, digits, options)
    if comm.rank > 0:
        return
    print(f"{comm.size} rank(s): the same bits on each after every step")

    alone = train(MPI.COMM_SELF, reduce_sum, x, digits, options)
    here, there = (np.mean(each(x_test).argmax(axis=1) == digits_test) for each in (layer, alone))
    difference = max(np.max(abs(layer.weight - alone.weight)), np.max(abs(layer.bias - alone.bias)))
    print(f"test accuracy {here:.4f}, one process {there:.4f}; the largest difference of a weight is {difference:.2g}")
    if here < WANTED or difference > (0 if options.exact else CLOSE):
        sys.exit("that is not what one process learns")


def measure(comm, options):
    """For each layer, the median time of a step, and what it was spent on. The batch is divided among the ranks."""
    rng = np.random.default_rng(comm.rank)
    for in_features, out_features in MEASURED:
        rows = len(range(options.batch_size)[part(options.batch_size, comm)])
        layer = Linear(in_features, out_features, rng=0)
        x, grad_output = (rng.standard_normal((rows, n), np.float32) for n in (in_features, out_features))
        y, grad_input = np.empty_like(grad_output), np.empty_like(x)
        times = []
        for _ in range(options.steps + 2):
            comm.Barrier()
            begin = perf_counter()
            layer.zero_grad()
            layer(x, out=y)
            layer.backward(x, grad_output, out=grad_input)
            computed = perf_counter()
            comm.Barrier()  # so that waiting for the slowest rank does not count as communication
            together = perf_counter()
            for gradient in (layer.grad_weight, layer.grad_bias):
                comm.Allreduce(MPI.IN_PLACE, gradient)
            communicated = perf_counter()
            layer.step(1e-6)
            times.append((computed - begin, communicated - together, perf_counter() - begin))
        compute, communicate, whole = 1e3 * np.median(times[2:], axis=0)
        if comm.rank == 0:
            print(
                f"{in_features:5} → {out_features:5} {comm.size:2} rank(s), {options.batch_size} rows: compute "
                f"{compute:8.3f} ms, communicate {communicate:8.3f} ms, step in all {whole:8.3f} ms"
            )


def main():
    parser = argparse.ArgumentParser(description="Data-parallel training on MPI.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, help="rows of all ranks together (default: 32; with --measure 256)")
    parser.add_argument("--lr", type=float, default=0.5, help="learning rate")
    parser.add_argument("--exact", action="store_true", help="the very bits of one process")
    parser.add_argument("--measure", action="store_true", help="time steps of single layers instead of training")
    parser.add_argument("--steps", type=int, default=30, help="of each layer with --measure")
    options = parser.parse_args()
    options.batch_size = options.batch_size or (256 if options.measure else 32)
    comm = MPI.COMM_WORLD
    if options.batch_size < comm.size:
        parser.error(f"--batch-size must give each of {comm.size} ranks a row, got {options.batch_size}")
    set_num_threads(1)  # the ranks are the threads
    if options.measure:
        measure(comm, options)
    else:
        train_digits(comm, options)


if __name__ == "__main__":
    main()
