# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The kernels of a fully-connected layer. All matrices are row-major and contiguous, a row of x is one example.

    forward       out[b, o]   = sum_i x[b, i] weight[o, i] + bias[o]          out (batch, out)     BLAS: gemm, gemv
    grad_input    out[b, i]   = sum_o grad_output[b, o] weight[o, i]          out (batch, in)      BLAS: gemm, gemv^T
    grad_weight   out[o, i]  += sum_b scale grad_output[b, o] x[b, i]         out (out, in)        BLAS: gemm, ger
    grad_bias     out[o]     += sum_b scale grad_output[b, o]                 out (out,)
    update        grad_input, then grad_weight and grad_bias with scale = -lr into weight and bias
    step          parameter  -= lr gradient                                                       BLAS: axpy

b runs over the batch (BLAS's m), o over out_features (n), i over in_features (k). The register tiles are in _tile.h;
here are the loops around them, which choose what stays in which cache and what each thread does. They divide the
outputs among tiles, blocks and threads in any way that is fast, but the order in which one output's terms are added
is fixed by K_BLOCK, O_BLOCK and the tiles alone, so no result depends on the batch, the threads or the vector width.

setup.py compiles this file once for each instruction set, with nothing but flags and the module's name differing.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange

from fastlinear._table cimport KernelTable

ctypedef fused real:
    float
    double

cdef extern from "_tile.h" nogil:
    const int DOT_ROWS, AXPY_ROWS, UPDATE_ROWS, PACKED_ROWS, NARROW, VECTOR_BYTES
    const int DOT_COLS[]
    const int AXPY_COLS[]
    ctypedef enum axpy_mode "enum axpy_mode":
        AXPY_CONTINUE, AXPY_START, AXPY_ADD
    void dot_f32(int, int, const float*, Py_ssize_t, const float*, Py_ssize_t, Py_ssize_t,
                 float*, Py_ssize_t, const float*, bint, Py_ssize_t)
    void dot_f64(int, int, const double*, Py_ssize_t, const double*, Py_ssize_t, Py_ssize_t,
                 double*, Py_ssize_t, const double*, bint, Py_ssize_t)
    void axpy_f32(int, Py_ssize_t, Py_ssize_t, const float*, Py_ssize_t, Py_ssize_t, const float*, Py_ssize_t,
                  float*, Py_ssize_t, axpy_mode)
    void axpy_f64(int, Py_ssize_t, Py_ssize_t, const double*, Py_ssize_t, Py_ssize_t, const double*, Py_ssize_t,
                  double*, Py_ssize_t, axpy_mode)
    void pack_f32(const float*, Py_ssize_t, int, Py_ssize_t, float*)
    void pack_f64(const double*, Py_ssize_t, int, Py_ssize_t, double*)
    void packed_f32(int, int, const float*, Py_ssize_t, const float*, Py_ssize_t, float*, Py_ssize_t, const float*,
                    bint, Py_ssize_t)
    void packed_f64(int, int, const double*, Py_ssize_t, const double*, Py_ssize_t, double*, Py_ssize_t, const double*,
                    bint, Py_ssize_t)
    void narrow_f32(int, Py_ssize_t, Py_ssize_t, const float*, const float*, float*, Py_ssize_t, const float*)
    void narrow_f64(int, Py_ssize_t, Py_ssize_t, const double*, const double*, double*, Py_ssize_t, const double*)
    void turned_f32(const float*, int, int, float*, Py_ssize_t, const float*, bint)
    void turned_f64(const double*, int, int, double*, Py_ssize_t, const double*, bint)
    void scaled_f32(Py_ssize_t, int, float, const float*, Py_ssize_t, float*)
    void scaled_f64(Py_ssize_t, int, double, const double*, Py_ssize_t, double*)
    void update_f32(int, Py_ssize_t, const float*, const float*, float, float*, Py_ssize_t, float*, bint, Py_ssize_t)
    void update_f64(int, Py_ssize_t, const double*, const double*, double, double*, Py_ssize_t, double*, bint,
                    Py_ssize_t)

cdef enum:
    # These are part of the contract on bits: they say where a sum is cut.
    K_BLOCK_BYTES = 4096   # forward: a block of k. 6 rows of W fill 24 KiB of L1; blocks of 1 KiB cost 25 %, for each
                           # block ends in a sum over lanes
    LONG_BLOCKS = 32       # forward: so many blocks of k make a long one. The sums of long blocks are added up in turn:
                           # a million terms of one sign would lose three times as much to a single chain of blocks
    O_BLOCK = 384          # grad_input: a block of o, which bounds the error of a long one-signed sum like a BLAS does

    # These may be anything.
    X_BLOCK = 256          # forward: rows of x whose K_BLOCK_BYTES lie in L2 (1 MiB) while W passes by; 128: 4 % slower
    B_BLOCK = 256          # grad_weight: rows of x that a tile adds up before it goes back to memory
    COPY_BYTES = 1 << 16   # grad_weight: the copy of columns of grad_output
    PANEL_BYTES = 1 << 18  # grad_weight, grad_input: a panel of x or W that stays in L2
    CHUNK = 2048           # grad_input: columns of the output that stay in L1 while rows of W pass a small batch;
                           # twice that for a vector
    STREAMS = 8            # grad_input: rows of W that stream together past a small batch
    FAR_BYTES = 1 << 24    # a W of that size comes from memory: prefetching the next rows into L2 gains a third there,
                           # for a vector; where W lies in L3 it costs a tenth
    MOST_ROWS = 6          # no axpy tile is higher
    MOST_LANES = 16        # no vector is longer
    COPIED_BATCH = 4       # forward: for less rows than that no copy pays, and to weigh it up costs 15 ns
    LONG_ROWS = 32         # forward: rows of x and outputs that go through all long blocks of k together
    LONG_OUTS = 128
    TURNED_ROWS = 32       # forward: rows of x whose transposed K_BLOCK_BYTES lie in L2 while W passes by
    TURNED_OUTS = 48       # forward: sums that wait to be transposed; whole tiles of 6 and of 3, whole vectors

cdef extern from "_machine.h" nogil:
    ctypedef char scratch "SCRATCH char"    # where copies and waiting sums are kept: see there

# ---- the tiles, by dtype

cdef inline void dot(int rows, int cols, const real* x, Py_ssize_t x_row, const real* w, Py_ssize_t w_row, Py_ssize_t k,
                     real* y, Py_ssize_t y_row, const real* bias, bint first, Py_ssize_t ahead) noexcept nogil:
    if real is float:
        dot_f32(rows, cols, x, x_row, w, w_row, k, y, y_row, bias, first, ahead)
    else:
        dot_f64(rows, cols, x, x_row, w, w_row, k, y, y_row, bias, first, ahead)


cdef inline void axpy(int rows, Py_ssize_t width, Py_ssize_t steps, const real* a, Py_ssize_t a_row, Py_ssize_t a_step,
                      const real* v, Py_ssize_t v_row, real* y, Py_ssize_t y_row, axpy_mode mode) noexcept nogil:
    if real is float:
        axpy_f32(rows, width, steps, a, a_row, a_step, v, v_row, y, y_row, mode)
    else:
        axpy_f64(rows, width, steps, a, a_row, a_step, v, v_row, y, y_row, mode)


cdef inline void pack(const real* w, Py_ssize_t w_row, int outs, Py_ssize_t k, real* copy) noexcept nogil:
    if real is float:
        pack_f32(w, w_row, outs, k, copy)
    else:
        pack_f64(w, w_row, outs, k, copy)


cdef inline void packed(int rows, int outs, const real* x, Py_ssize_t x_row, const real* copy, Py_ssize_t k,
                        real* y, Py_ssize_t y_row, const real* bias, bint first, Py_ssize_t ahead) noexcept nogil:
    if real is float:
        packed_f32(rows, outs, x, x_row, copy, k, y, y_row, bias, first, ahead)
    else:
        packed_f64(rows, outs, x, x_row, copy, k, y, y_row, bias, first, ahead)


cdef inline void narrow(int outs, Py_ssize_t k, Py_ssize_t rows, const real* x, const real* w, real* y,
                        Py_ssize_t y_row, const real* bias) noexcept nogil:
    if real is float:
        narrow_f32(outs, k, rows, x, w, y, y_row, bias)
    else:
        narrow_f64(outs, k, rows, x, w, y, y_row, bias)


cdef inline void turned(const real* sums, int rows, int outs, real* y, Py_ssize_t y_row, const real* bias,
                        bint first) noexcept nogil:
    if real is float:
        turned_f32(sums, rows, outs, y, y_row, bias, first)
    else:
        turned_f64(sums, rows, outs, y, y_row, bias, first)


cdef inline void scaled(Py_ssize_t steps, int rows, real scale, const real* a, Py_ssize_t a_step,
                        real* copy) noexcept nogil:
    if real is float:
        scaled_f32(steps, rows, scale, a, a_step, copy)
    else:
        scaled_f64(steps, rows, scale, a, a_step, copy)


cdef inline void update_one(int rows, Py_ssize_t width, const real* x, const real* g, real scale,
                            real* w, Py_ssize_t w_row, real* y, bint first, Py_ssize_t ahead) noexcept nogil:
    if real is float:
        update_f32(rows, width, x, g, scale, w, w_row, y, first, ahead)
    else:
        update_f64(rows, width, x, g, scale, w, w_row, y, first, ahead)


cdef inline Py_ssize_t axpy_width(int rows, real* dtype) noexcept nogil:
    """How many columns a tile of that many rows has."""
    return AXPY_COLS[rows] * (VECTOR_BYTES // <Py_ssize_t> sizeof(real))


# ---- dividing a range into tiles, blocks and threads

cdef inline Py_ssize_t count(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """How many pieces of at most `size` make up n."""
    return (n + size - 1) // size


cdef inline int even(Py_ssize_t n, int most) noexcept nogil:
    """The size of pieces, at most `most`, that divides n as evenly as can be."""
    return <int> count(n, count(n, most)) if n > most else <int> n


cdef inline Py_ssize_t share(Py_ssize_t n, int grain, int thread, int threads) noexcept nogil:
    """Where the share of a thread begins: n in equal parts, in whole grains."""
    return min(n, count(n, grain) * thread // threads * grain)


cdef inline bint comes_from_memory(Py_ssize_t in_features, Py_ssize_t out_features, real* dtype) noexcept nogil:
    return in_features * out_features * <Py_ssize_t> sizeof(real) >= FAR_BYTES


# ---- forward
# Each part multiplies `batch` rows of x by `outs` rows of W. The rows of both are `row` apart, those of out out_row; W
# comes from afar or not.

cdef void forward_dots(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                       Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                       bint far) noexcept nogil:
    """A small batch: each few rows of W pass by once, and serve every tile of rows of x while they are in L1."""
    cdef Py_ssize_t k_block = K_BLOCK_BYTES // sizeof(real), n, k0, k, o, b
    cdef int rows = even(batch, DOT_ROWS), cols = DOT_COLS[rows]
    o = 0
    while o < outs:
        for n in range(max(count(in_features, k_block), 1)):
            k0 = n * k_block
            k = min(k_block, in_features - k0)
            b = 0
            while b < batch:
                dot(<int> min(rows, batch - b), <int> min(cols, outs - o), x + b * row + k0, row,
                    weight + o * row + k0, row, k, out + b * out_row + o, out_row,
                    bias + o if bias != NULL and k0 + k == in_features else NULL, n == 0,
                    cols * row if far and b == 0 else 0)
                b += rows
        o += cols


cdef void forward_narrow(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t out_row) noexcept nogil:
    """Few features: 64 bytes of outputs after another, each with all of its W in registers, if there are enough."""
    cdef int width = 64 // <int> sizeof(real)
    cdef Py_ssize_t o = 0
    while o < outs:
        narrow(<int> min(width, outs - o), in_features, batch, x, weight + o * in_features, out + o, out_row,
               bias + o if bias != NULL else NULL)
        o += width


cdef void forward_packed(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row) noexcept nogil:
    """A large batch: the same sums from a transposed copy of a block of W, 64 bytes of outputs wide."""
    cdef scratch memory[K_BLOCK_BYTES * 16 + 64]
    cdef real* copy = <real*> (memory + 64 - <size_t> memory % 64)
    cdef Py_ssize_t k_block = K_BLOCK_BYTES // sizeof(real), n, k0, k, o, b0, b1, b
    cdef int width = 64 // <int> sizeof(real), some
    b0 = 0
    while b0 < batch:
        b1 = min(b0 + X_BLOCK, batch)
        for n in range(max(count(in_features, k_block), 1)):
            k0 = n * k_block
            k = min(k_block, in_features - k0)
            o = 0
            while o < outs:
                some = <int> min(width, outs - o)
                pack(weight + o * row + k0, row, some, k, copy)
                b = b0
                while b < b1:
                    packed(<int> min(PACKED_ROWS, b1 - b), some, x + b * row + k0, row, <const real*> copy, k,
                           out + b * out_row + o, out_row,
                           bias + o if bias != NULL and k0 + k == in_features else NULL, n == 0, 0)
                    b += PACKED_ROWS
                o += width
        b0 = b1


cdef void forward_turned(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                         bint far) noexcept nogil:
    """A middling batch: the same sums with the operands exchanged, from a transposed copy of rows of x."""
    cdef scratch memory[TURNED_ROWS * K_BLOCK_BYTES + 64]
    cdef real sums[TURNED_OUTS * MOST_LANES]
    cdef real* copy = <real*> (memory + 64 - <size_t> memory % 64)
    cdef Py_ssize_t k_block = K_BLOCK_BYTES // sizeof(real), n, k0, k, o, b0, b1, b, panel
    cdef int width = 64 // <int> sizeof(real), some, rows, r
    b0 = 0
    while b0 < batch:
        b1 = min(b0 + TURNED_ROWS, batch)
        for n in range(max(count(in_features, k_block), 1)):
            k0 = n * k_block
            k = min(k_block, in_features - k0)
            panel = count(k, width) * width
            b = b0
            while b < b1:
                pack(x + b * row + k0, row, <int> min(width, b1 - b), k, copy + (b - b0) * panel)
                b += width
            o = 0
            while o < outs:
                some = <int> min(TURNED_OUTS, outs - o)
                b = b0
                while b < b1:
                    rows = <int> min(width, b1 - b)
                    r = 0
                    while r < some:
                        packed(min(PACKED_ROWS, some - r), width, weight + (o + r) * row + k0, row,
                               <const real*> copy + (b - b0) * panel, k, <real*> sums + r * width, width,
                               <const real*> NULL, True, PACKED_ROWS * row if far and b == b0 else 0)
                        r += PACKED_ROWS
                    turned(<const real*> sums, rows, some, out + b * out_row + o, out_row,
                           bias + o if bias != NULL and k0 + k == in_features else NULL, n == 0)
                    b += width
                o += TURNED_OUTS
        b0 = b1


cdef inline double waste(Py_ssize_t n, Py_ssize_t lanes) noexcept nogil:
    """The lanes without work when n is a whole number of vectors, as a part of n."""
    return <double> (count(n, lanes) * lanes) / n - 1


cdef void forward_block(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                        Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                        bint far) noexcept nogil:
    """A long block of k, the way with the least to lose."""
    cdef Py_ssize_t lanes = 64 // sizeof(real)
    cdef double dots_lose, packed_loses, turned_loses
    if 0 < in_features <= NARROW and in_features == row and in_features <= 8 * batch and batch * outs >= 16:
        forward_narrow(x, weight, bias, out, batch, in_features, outs, out_row)
        return
    if batch < COPIED_BATCH:
        forward_dots(x, weight, bias, out, batch, in_features, outs, row, out_row, far)
        return
    # What each loses, in parts of the time of the multiply-adds: to sums over lanes; to transposing W, sums, x; to
    # lanes without work; to a larger batch, which drives W out of the cache. Fitted to 180 measured points (in x out
    # from 24x48 to 1024x1024, 12 to 256 rows, both dtypes), where it costs 0.1 % against the best choice.
    dots_lose = 2.7 * lanes / max(in_features, 1) + min(batch, 64) / 1800.0
    packed_loses = 11.5 / batch + waste(outs, lanes)
    turned_loses = 16.0 / outs + 0.9 * lanes / max(in_features, 1) + waste(batch, lanes) + batch / 3000.0
    if dots_lose <= packed_loses and dots_lose <= turned_loses:
        forward_dots(x, weight, bias, out, batch, in_features, outs, row, out_row, far)
    elif packed_loses <= turned_loses:
        forward_packed(x, weight, bias, out, batch, in_features, outs, row, out_row)
    else:
        forward_turned(x, weight, bias, out, batch, in_features, outs, row, out_row, far)


cdef void forward_long(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                       Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                       bint far) noexcept nogil:
    """Long block after long block, a few outputs at a time: the first into out, the others apart and then added."""
    cdef scratch memory[LONG_ROWS * LONG_OUTS * 8]
    cdef real* waiting = <real*> memory
    cdef Py_ssize_t long_block = LONG_BLOCKS * (K_BLOCK_BYTES // sizeof(real)), k0, o0, b0, o, b, some, rows
    o0 = 0
    while o0 < outs:
        some = min(LONG_OUTS, outs - o0)
        b0 = 0
        while b0 < batch:
            rows = min(LONG_ROWS, batch - b0)
            k0 = 0
            while k0 < in_features:
                forward_block(x + b0 * row + k0, weight + o0 * row + k0, <const real*> NULL,
                              waiting if k0 else out + b0 * out_row + o0, rows,
                              min(long_block, in_features - k0), some, row, LONG_OUTS if k0 else out_row, far)
                for b in range(rows if k0 else 0):
                    for o in range(some):
                        out[(b0 + b) * out_row + o0 + o] += waiting[b * LONG_OUTS + o]
                k0 += long_block
            for b in range(rows if bias != NULL else 0):
                for o in range(some):
                    out[(b0 + b) * out_row + o0 + o] += bias[o0 + o]
            b0 += LONG_ROWS
        o0 += LONG_OUTS


cdef void forward_part(const real* x, const real* weight, const real* bias, real* out,
                       Py_ssize_t b_begin, Py_ssize_t b_end, Py_ssize_t o_begin, Py_ssize_t o_end,
                       Py_ssize_t in_features, Py_ssize_t out_features) noexcept nogil:
    cdef Py_ssize_t batch = b_end - b_begin, outs = o_end - o_begin
    cdef bint far = comes_from_memory(in_features, out_features, out)
    if batch == 0 or outs == 0:
        return
    x += b_begin * in_features
    weight += o_begin * in_features
    out += b_begin * out_features + o_begin
    if bias != NULL:
        bias += o_begin
    if in_features <= LONG_BLOCKS * (K_BLOCK_BYTES // <Py_ssize_t> sizeof(real)):
        forward_block(x, weight, bias, out, batch, in_features, outs, in_features, out_features, far)
    else:
        forward_long(x, weight, bias, out, batch, in_features, outs, in_features, out_features, far)


cdef void forward_loops(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                        Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    cdef int thread
    if threads == 1:
        forward_part(x, weight, bias, out, 0, batch, 0, out_features, in_features, out_features)
    elif out_features >= batch:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            forward_part(x, weight, bias, out, 0, batch, share(out_features, 8, thread, threads),
                         share(out_features, 8, thread + 1, threads), in_features, out_features)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            forward_part(x, weight, bias, out, share(batch, DOT_ROWS, thread, threads),
                         share(batch, DOT_ROWS, thread + 1, threads), 0, out_features, in_features, out_features)


# ---- grad_weight

cdef void grad_weight_part(const real* x, const real* grad_output, real scale, real* out, Py_ssize_t batch,
                           Py_ssize_t o_begin, Py_ssize_t o_end, Py_ssize_t i_begin, Py_ssize_t i_end,
                           Py_ssize_t in_features, Py_ssize_t out_features) noexcept nogil:
    # An exact left fold over the batch: each tile goes on from what is stored. A block of rows of x meets group after
    # group of columns of grad_output: these are copied, with the scale applied, so that each tile's lie together; there
    # is no copy where neither matters. Then a panel of x stays in L2 while all tiles of the group pass.
    cdef scratch memory[COPY_BYTES + 128]
    cdef real* copy = <real*> (memory + 64 - <size_t> memory % 64)
    cdef int rows = even(o_end - o_begin, AXPY_ROWS), high
    cdef bint direct = scale == 1 and i_end - i_begin <= axpy_width(rows, out)
    cdef Py_ssize_t b0, n, o0, o1, o, group, i, panel
    if o_begin == o_end:
        return
    b0 = 0
    while b0 < batch:
        n = min(B_BLOCK, batch - b0)
        group = COPY_BYTES // (n * <Py_ssize_t> sizeof(real)) // rows * rows
        panel = PANEL_BYTES // (n * <Py_ssize_t> sizeof(real)) // 64 * 64
        o0 = o_begin
        while o0 < o_end:
            o1 = min(o0 + group, o_end)
            o = o0
            while o < o1 and not direct:
                scaled(n, <int> min(rows, o1 - o), scale, grad_output + b0 * out_features + o, out_features,
                       copy + (o - o0) * n)
                o += rows
            i = i_begin
            while i < i_end:
                o = o0
                while o < o1:
                    high = <int> min(rows, o1 - o)
                    axpy(high, min(panel, i_end - i), n,
                         grad_output + b0 * out_features + o if direct else <const real*> copy + (o - o0) * n,
                         1, out_features if direct else high, x + b0 * in_features + i, in_features,
                         out + o * in_features + i, in_features, AXPY_CONTINUE)
                    o += rows
                i += panel
            o0 = o1
        b0 += n


cdef void grad_weight_loops(const real* x, const real* grad_output, real scale, real* out, Py_ssize_t batch,
                            Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    cdef int thread, grain = 64
    if threads == 1:
        grad_weight_part(x, grad_output, scale, out, batch, 0, out_features, 0, in_features, in_features, out_features)
    elif out_features >= in_features // 8:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            grad_weight_part(x, grad_output, scale, out, batch, share(out_features, AXPY_ROWS, thread, threads),
                             share(out_features, AXPY_ROWS, thread + 1, threads), 0, in_features,
                             in_features, out_features)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            grad_weight_part(x, grad_output, scale, out, batch, 0, out_features,
                             share(in_features, grain, thread, threads), share(in_features, grain, thread + 1, threads),
                             in_features, out_features)


# ---- grad_bias

cdef void grad_bias_loops(const real* grad_output, real scale, real* out, Py_ssize_t batch,
                          Py_ssize_t out_features) noexcept nogil:
    cdef Py_ssize_t b, o
    for b in range(batch):
        for o in range(out_features):
            out[o] += scale * grad_output[b * out_features + o]


# ---- grad_input and update: one sweep over W

cdef void sweep(const real* x, const real* grad_output, real scale, real* weight, real* out,
                Py_ssize_t b_begin, Py_ssize_t b_end, Py_ssize_t i_begin, Py_ssize_t i_end,
                Py_ssize_t in_features, Py_ssize_t out_features) noexcept nogil:
    """grad_input into out, unless that is NULL; and weight += scale grad_output^T x, unless x is NULL: each group of
    W's rows serves grad_input before it changes."""
    # A batch of one tile of rows streams W: a few rows at a time, the sums of a chunk of columns waiting in L1. A
    # larger batch takes a whole block of rows at a time, so that the sums stay in registers.
    cdef scratch memory[MOST_ROWS * CHUNK * 8]
    cdef real* waiting = <real*> memory
    cdef int rows = even(b_end - b_begin, AXPY_ROWS)
    cdef bint stream = b_end - b_begin == rows
    cdef bint one = rows == 1 and stream and out != NULL
    cdef bint far = comes_from_memory(in_features, out_features, weight)
    cdef Py_ssize_t chunk = 2 * CHUNK if one else CHUNK
    cdef Py_ssize_t group = UPDATE_ROWS if one else STREAMS if stream else O_BLOCK
    cdef Py_ssize_t width = CHUNK if stream else PANEL_BYTES // (O_BLOCK * <Py_ssize_t> sizeof(real)) // 64 * 64
    cdef Py_ssize_t i0, i1, o0, o1, o, b, i, n, steps, y_row
    cdef axpy_mode mode
    cdef real* y
    i0 = i_begin
    while i0 < i_end:
        i1 = min(i0 + chunk, i_end)
        for n in range(max(count(out_features, O_BLOCK), 1)):
            o0 = n * O_BLOCK
            o1 = min(o0 + O_BLOCK, out_features)
            y = NULL if out == NULL else waiting if stream and o0 else out + b_begin * in_features + i0
            y_row = chunk if stream and o0 else in_features
            mode = AXPY_ADD if o0 and not stream else AXPY_START
            o = o0
            while True:
                steps = min(group, o1 - o)
                if one and steps > 0:
                    update_one(<int> steps, i1 - i0, x + i0 if x != NULL else NULL, grad_output + o, scale,
                               weight + o * in_features + i0, in_features, y, mode == AXPY_START,
                               steps * in_features if far else 0)
                else:
                    if out != NULL:
                        i = i0
                        while i < i1:
                            b = b_begin
                            while b < b_end:
                                axpy(<int> min(rows, b_end - b), min(width, i1 - i), steps,
                                     grad_output + b * out_features + o, out_features, 1,
                                     weight + o * in_features + i, in_features,
                                     y + (b - b_begin) * y_row + i - i0, y_row, mode)
                                b += rows
                            i += width
                    if x != NULL:
                        grad_weight_part(x, grad_output, scale, weight, b_end, o, o + steps, i0, i1,
                                         in_features, out_features)
                mode = AXPY_CONTINUE
                o += group
                if o >= o1:
                    break
            if stream and o0 and out != NULL:
                for b in range(rows):
                    for i in range(i1 - i0):
                        out[(b_begin + b) * in_features + i0 + i] += waiting[b * chunk + i]
        i0 = i1


cdef void grad_input_loops(const real* grad_output, const real* weight, real* out, Py_ssize_t batch,
                           Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    cdef int thread, grain = 64
    if threads == 1:
        sweep(<const real*> NULL, grad_output, <real> 0, <real*> weight, out, 0, batch, 0, in_features,
              in_features, out_features)
    elif in_features >= batch:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            sweep(<const real*> NULL, grad_output, <real> 0, <real*> weight, out, 0, batch,
                  share(in_features, grain, thread, threads), share(in_features, grain, thread + 1, threads),
                  in_features, out_features)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            sweep(<const real*> NULL, grad_output, <real> 0, <real*> weight, out,
                  share(batch, AXPY_ROWS, thread, threads), share(batch, AXPY_ROWS, thread + 1, threads),
                  0, in_features, in_features, out_features)


cdef void update_loops(const real* x, const real* grad_output, real lr, real* weight, real* bias, real* out,
                       Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    # Threads share out columns only: those of W change for no other thread's columns of grad_input.
    cdef int thread, grain = 64
    if threads == 1:
        sweep(x, grad_output, -lr, weight, out, 0, batch, 0, in_features, in_features, out_features)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            sweep(x, grad_output, -lr, weight, out, 0, batch, share(in_features, grain, thread, threads),
                  share(in_features, grain, thread + 1, threads), in_features, out_features)
    if bias != NULL:
        grad_bias_loops(grad_output, -lr, bias, batch, out_features)


# ---- step

cdef void step_loops(const real* gradient, real lr, real* parameter, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        parameter[j] -= lr * gradient[j]


# ---- for Python: typed memoryviews, the same names and signatures as in reference.py

cdef int same(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name} has length {got} where {expected} was expected")
    return 0


cdef int sensible(int threads) except -1:
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    return 0


def forward(const real[:, ::1] x, const real[:, ::1] weight, const real[::1] bias, real[:, ::1] out, int threads=1):
    """out[b, o] = sum_i x[b, i] weight[o, i] + bias[o]. out is overwritten; bias may be None."""
    sensible(threads)
    same("x's axis 1", x.shape[1], weight.shape[1])
    same("out's axis 0", out.shape[0], x.shape[0])
    same("out's axis 1", out.shape[1], weight.shape[0])
    if bias is not None:
        same("bias", bias.shape[0], weight.shape[0])
    with nogil:
        forward_loops(&x[0, 0], &weight[0, 0], &bias[0] if bias is not None else NULL, &out[0, 0],
                      x.shape[0], x.shape[1], weight.shape[0], threads)


def grad_input(const real[:, ::1] grad_output, const real[:, ::1] weight, real[:, ::1] out, int threads=1):
    """out[b, i] = sum_o grad_output[b, o] weight[o, i]. out is overwritten."""
    sensible(threads)
    same("grad_output's axis 1", grad_output.shape[1], weight.shape[0])
    same("out's axis 0", out.shape[0], grad_output.shape[0])
    same("out's axis 1", out.shape[1], weight.shape[1])
    with nogil:
        grad_input_loops(&grad_output[0, 0], &weight[0, 0], &out[0, 0],
                         grad_output.shape[0], weight.shape[1], weight.shape[0], threads)


def grad_weight(const real[:, ::1] x, const real[:, ::1] grad_output, double scale, real[:, ::1] out, int threads=1):
    """out[o, i] += sum_b scale grad_output[b, o] x[b, i]. out is accumulated."""
    sensible(threads)
    same("grad_output's axis 0", grad_output.shape[0], x.shape[0])
    same("out's axis 0", out.shape[0], grad_output.shape[1])
    same("out's axis 1", out.shape[1], x.shape[1])
    with nogil:
        grad_weight_loops(&x[0, 0], &grad_output[0, 0], <real> scale, &out[0, 0],
                          x.shape[0], x.shape[1], grad_output.shape[1], threads)


def grad_bias(const real[:, ::1] grad_output, double scale, real[::1] out):
    """out[o] += sum_b scale grad_output[b, o]. out is accumulated."""
    same("out", out.shape[0], grad_output.shape[1])
    with nogil:
        grad_bias_loops(&grad_output[0, 0], <real> scale, &out[0], grad_output.shape[0], grad_output.shape[1])


def update(const real[:, ::1] x, const real[:, ::1] grad_output, double lr, real[:, ::1] weight, real[::1] bias,
           real[:, ::1] out, int threads=1):
    """grad_input into out (overwritten; may be None), then weight -= lr grad_output^T x and bias -= lr sum_b
    grad_output in place; bias may be None. out comes from the weights as they were."""
    sensible(threads)
    same("grad_output's axis 0", grad_output.shape[0], x.shape[0])
    same("weight's axis 0", weight.shape[0], grad_output.shape[1])
    same("weight's axis 1", weight.shape[1], x.shape[1])
    if bias is not None:
        same("bias", bias.shape[0], weight.shape[0])
    if out is not None:
        same("out's axis 0", out.shape[0], x.shape[0])
        same("out's axis 1", out.shape[1], x.shape[1])
    with nogil:
        update_loops(&x[0, 0], &grad_output[0, 0], <real> lr, &weight[0, 0], &bias[0] if bias is not None else NULL,
                     &out[0, 0] if out is not None else NULL, x.shape[0], x.shape[1], weight.shape[0], threads)


def step(const real[::1] gradient, double lr, real[::1] parameter):
    """parameter[j] -= lr gradient[j], in place."""
    same("gradient", gradient.shape[0], parameter.shape[0])
    with nogil:
        step_loops(&gradient[0], <real> lr, &parameter[0], parameter.shape[0])


# ---- for Layer: plain pointers, in a table of C functions

cdef void forward_any(bint wide, const void* x, const void* weight, const void* bias, void* out, Py_ssize_t batch,
                      Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    if wide:
        forward_loops(<const double*> x, <const double*> weight, <const double*> bias, <double*> out,
                      batch, in_features, out_features, threads)
    else:
        forward_loops(<const float*> x, <const float*> weight, <const float*> bias, <float*> out,
                      batch, in_features, out_features, threads)


cdef void grad_input_any(bint wide, const void* grad_output, const void* weight, void* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    if wide:
        grad_input_loops(<const double*> grad_output, <const double*> weight, <double*> out,
                         batch, in_features, out_features, threads)
    else:
        grad_input_loops(<const float*> grad_output, <const float*> weight, <float*> out,
                         batch, in_features, out_features, threads)


cdef void grad_weight_any(bint wide, const void* x, const void* grad_output, double scale, void* out, Py_ssize_t batch,
                          Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    if wide:
        grad_weight_loops(<const double*> x, <const double*> grad_output, scale, <double*> out,
                          batch, in_features, out_features, threads)
    else:
        grad_weight_loops(<const float*> x, <const float*> grad_output, <float> scale, <float*> out,
                          batch, in_features, out_features, threads)


cdef void grad_bias_any(bint wide, const void* grad_output, double scale, void* out, Py_ssize_t batch,
                        Py_ssize_t out_features) noexcept nogil:
    if wide:
        grad_bias_loops(<const double*> grad_output, scale, <double*> out, batch, out_features)
    else:
        grad_bias_loops(<const float*> grad_output, <float> scale, <float*> out, batch, out_features)


cdef void update_any(bint wide, const void* x, const void* grad_output, double lr, void* weight, void* bias, void* out,
                     Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads) noexcept nogil:
    if wide:
        update_loops(<const double*> x, <const double*> grad_output, lr, <double*> weight, <double*> bias,
                     <double*> out, batch, in_features, out_features, threads)
    else:
        update_loops(<const float*> x, <const float*> grad_output, <float> lr, <float*> weight, <float*> bias,
                     <float*> out, batch, in_features, out_features, threads)


cdef void step_any(bint wide, const void* gradient, double lr, void* parameter, Py_ssize_t size) noexcept nogil:
    if wide:
        step_loops(<const double*> gradient, lr, <double*> parameter, size)
    else:
        step_loops(<const float*> gradient, <float> lr, <float*> parameter, size)


cdef KernelTable kernel_table = KernelTable(
    forward_any, grad_input_any, grad_weight_any, grad_bias_any, update_any, step_any)
table = PyCapsule_New(&kernel_table, "fastlinear.KernelTable", NULL)
