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
here are the loops around them, which choose what stays in which cache and what each thread does:

    few rows      W streams past them once, and is read where it lies      forward_dots, stream
    many rows     W is packed, or both operands, as in BLIS                forward_packed, product
    few features  W stays in registers, or is taken as one line, or the    forward_narrow, thin, column,
                  lanes run along its rows                                 grad_weight_turned

They divide the outputs among tiles, blocks and threads in any way that is fast, but the order in which one output's
terms are added is fixed by K_BLOCK_BYTES, LONG_BLOCKS, O_BLOCK and the tiles alone, so no result depends on the batch,
the threads or the vector width.

setup.py compiles this file once for each instruction set, with nothing but flags and the module's name differing.
"""
from cpython.pycapsule cimport PyCapsule_New
from cython.parallel cimport prange

from fastlinear._table cimport (
    SCRATCH_BYTES, Kernels, KernelTable, forward_kernel, grad_bias_kernel, grad_input_kernel, grad_weight_kernel,
    step_kernel, update_kernel)

ctypedef fused real:
    float
    double

cdef extern from "_scratch.h" nogil:
    char* thread_scratch(size_t)

cdef extern from "_tile.h" nogil:
    # Macros that choose the tile for the dtype of their pointers, which are float* or double*, not void*.
    const int DOT_ROWS, FAR_COLS, MOST_ROWS, LOWER_ROWS, MOST_COLS
    const int UPDATE_ROWS, LANES_ROWS, NARROW, PANELS, PANEL_VECTORS
    const int VECTOR_BYTES, LANE_BYTES
    const int DOT_COLS[]
    const int AXPY_COLS[]
    ctypedef enum axpy_mode "enum axpy_mode":
        AXPY_CONTINUE, AXPY_START, AXPY_ADD
    ctypedef struct Ending "struct ending":
        void* y
        Py_ssize_t row
        const void* bias
        bint first
    void dot(int rows, int cols, const void* x, Py_ssize_t x_row, const void* w, Py_ssize_t w_row, Py_ssize_t k,
             const Ending* end, Py_ssize_t ahead)
    void narrow(Py_ssize_t k, Py_ssize_t outs, Py_ssize_t rows, const void* x, const void* w, const Ending* end)
    void lanes(int rows, int cols, const void* x, Py_ssize_t x_row, const void* w, Py_ssize_t k, const Ending* end)
    void axpy(int rows, Py_ssize_t width, Py_ssize_t steps, const void* a, Py_ssize_t a_row, Py_ssize_t a_step,
              const void* v, Py_ssize_t v_row, void* y, Py_ssize_t y_row, Py_ssize_t next, axpy_mode mode)
    void chains(int n, int width, Py_ssize_t steps, const void* a, const void* v, Py_ssize_t v_row, void* y, bint first)
    void column(Py_ssize_t outs, Py_ssize_t steps, const void* x, const void* g, Py_ssize_t g_row, double scale,
                void* y)
    void thin(int cols, Py_ssize_t outs, Py_ssize_t steps, const void* x, Py_ssize_t x_row, const void* g,
              Py_ssize_t g_row, double scale, void* y, void* room)
    void update_rows(int rows, Py_ssize_t width, const void* x, const void* g, double scale, void* w, Py_ssize_t w_row,
                     void* y, bint first, Py_ssize_t ahead)
    void transpose_rows(int rows, Py_ssize_t k, const void* a, Py_ssize_t row, void* to)
    void pack_lanes(int rows, Py_ssize_t k, const void* a, Py_ssize_t row, void* to)
    void copy_scaled(Py_ssize_t steps, Py_ssize_t width, int high, const void* a, Py_ssize_t a_step, double scale,
                     void* to)
    Py_ssize_t lane_stride(const void* x, Py_ssize_t k)

cdef enum:
    # These are part of the contract on bits: they say where a sum is cut.
    K_BLOCK_BYTES = 4096   # forward: a block of k. 6 rows of W fill 24 KiB of L1; blocks of 1 KiB cost 25 %, because
                           # each block ends in a sum over lanes
    LONG_BLOCKS = 32       # forward: so many blocks of k make a long one. The sums of long blocks are added up in turn:
                           # a million terms of one sign would lose three times as much to a single chain of blocks
    O_BLOCK = 256          # grad_input: a block of o, which bounds the error of a long one-signed sum as a BLAS does.
                           # With 384, a panel and the rows that pass it left L1 in float64: up to 12 % slower

    # Free to tune: no result depends on them.
    B_BLOCK = 256          # grad_weight: rows of x that a tile adds up before it goes back to memory
    A_BYTES = 5 << 17      # product: packed columns of grad_output, which serve every panel of the other operand. For
                           # each so many the other is packed anew
    PANEL_BYTES = 1 << 18  # product: a panel of the other operand, packed or where it lies
    RUN_BYTES = 1 << 16    # product: packed panels that a tile of rows passes before the next tile does, so that y is
                           # written in long pieces. One panel at a time (BLIS's order) costs 5 % at 1024 squared and
                           # 256 rows, half with 32 rows: there y is most of what moves. Twice as much is no better
    PACKED_STEPS = 16      # product: for sums of fewer terms than that the other operand is not packed, because a copy
                           # costs more than rows that lie far apart (half, with 100 rows and 10 outputs). Sums of 16
                           # to 40 terms lose a third unpacked if the rows are a power of two apart; the others lose a
                           # tenth packed
    WORTH_A_COPY = 2048    # grad_weight: for fewer multiply-adds than that it costs more to decide than to do
    FOLDED = 3             # product: a sum of fewer terms than that goes row by row, because memory is one stream
    FOLDED_BYTES = 1024    # then, if rows are that long; 8 terms are slower
    PACKED_ROWS = 24       # product: from so many rows on the other operand is packed,
    FAR_ROWS = 12          # and from so many if it lies past L2. For fewer, grad_input streams such a W past them
    PAST_L2_BYTES = 1 << 20
    THIN_ROWS = 5          # grad_weight: up to so many rows of x a W narrower than a vector is taken as one line
    THIN_BYTES = 64        # grad_weight: with fewer bytes of columns than that, and more rows of x than their cube
    TURNED = 700           # divided by so much, the lanes run along the outputs. For grad_input that pays at no batch
    CHUNK_BYTES = 16384    # stream: columns of the output that stay in L1 while rows of W pass
    PACKED_COLS = 5        # product: for more columns than so many panels, rows that lie side by side are packed,
                           # namely columns of grad_output, and if they are spread over
    SPREAD_BYTES = 5 << 19  # so many bytes, a page a step. Rows of it lie as a tile reads them, and a copy cost
                           # grad_input 7 to 60 %
    STREAMS = 8            # stream: rows of W that pass together; product: and rows of an x past L2 for few outputs,
                           # which otherwise comes in pieces of a line: up to four times slower. With 16, 0.65 to 1.15
                           # times as fast; a grad_output past L2 for few columns is no faster so
    FAR_BYTES = 1 << 24    # a W of that size comes from memory: prefetching the next rows into L2 gains a third there,
                           # for a vector; where W lies in L3 it costs a tenth
    GRAIN = 16             # threads: columns come in so many, 64 bytes of float32
    L1_BYTES = 24576       # forward: panels of W that stay in L1, if they are short enough for so many: from L2 they
    PANELS_IN_L1 = 4       # cost up to 45 % more. With fewer, rows of the output would be written in too short pieces
    L2_BYTES = 9 << 15     # then: two of AVX-512's longest, with what lies between lanes
    ENOUGH_CHAINS = 12     # grad_input: with more vectors of sums than that, none waits for itself
    NARROW_ROWS = 8        # forward: up to so many features for each row, up to NARROW, W is transposed into registers,
    NARROW_OUTPUTS = 16    # if there are so many numbers to compute. bench/fit.py does not fit these
    NARROW_BATCH = 48      # forward: rows that pass them. Each is written on a page of its own, and of more than 64 the
                           # processor forgets the first: that took up to 2.3 times as long
    COPIED_BATCH = 4       # forward, grad_input: for fewer rows than that no copy pays, and to weigh it up costs 15 ns
    LONG_ROWS = 64         # forward: rows of x and outputs that go through all long blocks of k together
    LONG_OUTS = 256

cdef enum:
    # Where each part of a thread's scratch begins.
    A_AT = 0
    PANEL_AT = A_AT + A_BYTES
    WAITING_AT = PANEL_AT + PANEL_BYTES
    SCRATCH_END = WAITING_AT + LONG_ROWS * LONG_OUTS * 8    # and CHUNK_BYTES
    IT_FITS = 1 // (SCRATCH_END <= SCRATCH_BYTES)           # or this divides by zero and does not compile

# ---- dividing a range into tiles, blocks and threads

cdef inline Py_ssize_t pieces(Py_ssize_t n, Py_ssize_t size) noexcept nogil:
    """How many pieces of at most `size` make up n."""
    return (n + size - 1) // size


cdef inline int even_piece(Py_ssize_t n, int most) noexcept nogil:
    """The size of pieces, at most `most`, that divides n as evenly as can be."""
    return <int> pieces(n, pieces(n, most)) if n > most else <int> n


cdef inline Py_ssize_t share(Py_ssize_t n, int grain, int thread, int threads) noexcept nogil:
    """Where the share of a thread begins: n in equal parts, in whole grains."""
    if threads == 1:        # two divisions, a hundredth of a small call
        return n if thread else 0
    return min(n, pieces(n, grain) * thread // threads * grain)


cdef inline bint is_past_l2(Py_ssize_t n, const real* dtype) noexcept nogil:
    return n * <Py_ssize_t> sizeof(real) > PAST_L2_BYTES


cdef inline bint comes_from_memory(Py_ssize_t in_features, Py_ssize_t out_features, const real* dtype) noexcept nogil:
    return in_features * out_features * <Py_ssize_t> sizeof(real) >= FAR_BYTES


cdef inline void add_rows(const real* terms, Py_ssize_t terms_row, real* out, Py_ssize_t out_row, Py_ssize_t rows,
                          Py_ssize_t cols) noexcept nogil:
    """out += terms, whose rows are so far apart: 0 if it is one row for all."""
    cdef Py_ssize_t r, c
    for r in range(rows):
        for c in range(cols):
            out[r * out_row + c] += terms[r * terms_row + c]


# ---- many rows: one product of matrices for grad_input and grad_weight

cdef void product(bint running, real a_scale, const real* a, Py_ssize_t a_row, Py_ssize_t a_k, real b_scale,
                  const real* b, Py_ssize_t b_k, real* y, Py_ssize_t y_row, Py_ssize_t rows, Py_ssize_t cols,
                  Py_ssize_t k, char* scratch) noexcept nogil:
    """y (rows, cols) from a_scale a (rows, k), whose elements are a_row and a_k apart, and b_scale b (k, cols). One of
    these is 1, namely a_row if there is a scale.
    `running`: a left fold over k, which goes on from y; else a fresh sum, block of k after block.

    BLIS's loops: a block of k after another (4), of rows of a (3), some panels of b after others (2), and then tiles
    (1). a and b are packed where that pays.
    """
    cdef Py_ssize_t size = sizeof(real), n, r0, r1, c0, c, width, most, wide, run, block, k0 = 0
    cdef bint far = is_past_l2(k * cols, b), few = rows == 1 or far and rows < FAR_ROWS and b_scale == 1
    cdef Py_ssize_t k_block = O_BLOCK if not running else STREAMS if few else B_BLOCK
    cdef Py_ssize_t vectors = pieces(cols, VECTOR_BYTES // size)
    cdef int high, tallest = MOST_ROWS
    cdef bint pack_a, pack_b
    cdef axpy_mode mode
    cdef real* packed_a = <real*> (scratch + A_AT)
    cdef real* packed_b = <real*> (scratch + PANEL_AT)
    # Lower and wider tiles where the tallest would leave a last vector by itself, whose few sums wait for each other.
    if 1 < vectors < 2 * AXPY_COLS[LOWER_ROWS] and vectors % AXPY_COLS[MOST_ROWS] == 1:
        tallest = LOWER_ROWS
    high = 1 if k < FOLDED and cols * size >= FOLDED_BYTES else even_piece(rows, tallest)
    while k0 < k:
        n = min(k_block, k - k0)
        mode = AXPY_CONTINUE if running else AXPY_ADD if k0 else AXPY_START
        wide = AXPY_COLS[high] * (VECTOR_BYTES // size)
        pack_a = a_scale != 1 or (
            a_row == 1 and rows > 1 and (cols > PACKED_COLS * wide or n * a_k * size > SPREAD_BYTES))
        pack_b = b_scale != 1 or (rows >= (FAR_ROWS if far else PACKED_ROWS) and n >= PACKED_STEPS)
        block = max(A_BYTES // (n * high * size), 1) * high if pack_a else rows
        # How much of b is prepared at once: some panels that share cache lines, or what stays in L2 as it is.
        most = PANEL_BYTES // (n * size) // 64 * 64
        if pack_b:
            run = max(RUN_BYTES // (n * wide * size), 1) * wide
            most = max(run, min(PANELS * wide, most // wide * wide))
        else:
            run = wide = most
        r0 = 0
        while r0 < rows:
            r1 = min(r0 + block, rows)
            if pack_a:
                copy_scaled(n, r1 - r0, high, a + k0 * a_k + r0, a_k, a_scale, packed_a)
            c0 = 0
            while c0 < cols:
                width = min(most, cols - c0)
                if pack_b:
                    copy_scaled(n, width, <int> wide, b + k0 * b_k + c0, b_k, b_scale, packed_b)
                c = c0
                while c < c0 + width:
                    tiles(<const real*> packed_a if pack_a else a + r0 * a_row + k0 * a_k, 0 if pack_a else a_row, a_k,
                          high, <const real*> packed_b + (c - c0) * n if pack_b else b + k0 * b_k + c,
                          0 if pack_b else b_k, wide, y + r0 * y_row + c, y_row, r1 - r0, min(run, c0 + width - c), n,
                          mode)
                    c += run
                c0 += width
            r0 = r1
        k0 += n


cdef void tiles(const real* a, Py_ssize_t a_row, Py_ssize_t a_k, int high, const real* b, Py_ssize_t b_k,
                Py_ssize_t wide, real* y, Py_ssize_t y_row, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t n,
                axpy_mode mode) noexcept nogil:
    """The tiles of a run of panels of b, each `wide`, one row of tiles under another. a_row, b_k are 0: packed. A b
    that is not packed is one panel."""
    cdef Py_ssize_t r = 0, c, some, across
    cdef int tall
    while r < rows:
        tall = <int> min(high, rows - r)
        across = min(wide, AXPY_COLS[tall] * (VECTOR_BYTES // <Py_ssize_t> sizeof(real)))
        c = 0
        while c < width:
            some = min(wide, width - c)
            axpy(tall, some, n, a + r * (a_row if a_row else n), a_row if a_row else 1, a_k if a_row else tall,
                 b + c * n, b_k if b_k else some, y + r * y_row + c, y_row,
                 across if width - c > across else tall * y_row, mode)
            c += wide
        r += tall


# ---- forward
# Each way multiplies `batch` rows of x by `outs` rows of W. The rows of both are `row` apart, those of out out_row; W
# comes from afar or not.

cdef void forward_dots(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                       Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                       bint far) noexcept nogil:
    """A small batch: each few rows of W pass by once, and serve every tile of rows of x while they are in L1."""
    cdef Py_ssize_t k_block = K_BLOCK_BYTES // sizeof(real), k0, k, o, b
    cdef int rows = even_piece(batch, DOT_ROWS), cols = min(DOT_COLS[rows], FAR_COLS if far else MOST_COLS)
    cdef Ending end
    end.row = out_row
    o = 0
    while o < outs:
        k0 = 0
        while k0 < in_features:
            k = min(k_block, in_features - k0)
            end.bias = bias + o if bias != NULL and k0 + k == in_features else NULL
            end.first = k0 == 0
            b = 0
            while b < batch:
                end.y = out + b * out_row + o
                dot(<int> min(rows, batch - b), <int> min(cols, outs - o), x + b * row + k0, row,
                    weight + o * row + k0, row, k, &end, cols * row if far and b == 0 else 0)
                b += rows
            k0 += k
        o += cols


cdef void forward_packed(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                         char* scratch) noexcept nogil:
    """Many rows: some panels of W at a time are transposed, stay in L1 or L2, and serve all rows of x."""
    cdef Py_ssize_t size = sizeof(real), wide = PANEL_VECTORS * (VECTOR_BYTES // size), k0 = 0, k, o, o0, o1, b, panel
    cdef Py_ssize_t most
    cdef int high = even_piece(batch, LANES_ROWS)
    cdef real* packed = <real*> (scratch + A_AT)
    cdef Ending end
    end.row = out_row
    while k0 < in_features:
        k = min(K_BLOCK_BYTES // size, in_features - k0)
        end.first = k0 == 0
        panel = LANE_BYTES // size * lane_stride(x, k)
        most = L1_BYTES // (panel * size)
        if most < PANELS_IN_L1:
            most = L2_BYTES // (panel * size)
        o0 = 0
        while o0 < outs:
            o1 = min(o0 + most * wide, outs)
            o = o0
            while o < o1:
                pack_lanes(<int> min(wide, o1 - o), k, weight + o * row + k0, row, packed + (o - o0) // wide * panel)
                o += wide
            b = 0
            while b < batch:
                o = o0
                while o < o1:
                    end.y = out + b * out_row + o
                    end.bias = bias + o if bias != NULL and k0 + k == in_features else NULL
                    lanes(<int> min(high, batch - b), <int> min(wide, o1 - o), x + b * row + k0, row,
                          <const real*> packed + (o - o0) // wide * panel, k, &end)
                    o += wide
                b += high
            o0 = o1
        k0 += k


cdef void forward_narrow(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                         Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t out_row) noexcept nogil:
    """Few features: a vector of outputs at a time, with all of their W in registers, if there are enough."""
    cdef Py_ssize_t b = 0
    cdef Ending end
    end.row, end.bias, end.first = out_row, bias, True
    while b < batch:
        end.y = out + b * out_row
        narrow(in_features, outs, min(NARROW_BATCH, batch - b), x + b * in_features, weight, &end)
        b += NARROW_BATCH


cdef enum Way:
    DOTS, NARROW_W, PACKED_W


cdef Way cheapest_way(Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row,
                      const real* dtype) noexcept nogil:
    """The way that costs least. Dots have a sum over lanes for each of their sums, and packed a copy of W, which more
    rows share, and the columns of its last panel that are not there. bench/fit.py fits the constants."""
    cdef Py_ssize_t lanes = LANE_BYTES // <Py_ssize_t> sizeof(real)
    cdef Py_ssize_t wide = PANEL_VECTORS * (VECTOR_BYTES // <Py_ssize_t> sizeof(real))
    if (in_features <= NARROW and row == in_features and in_features <= NARROW_ROWS * batch
            and batch * outs >= NARROW_OUTPUTS):
        return NARROW_W
    if batch < COPIED_BATCH:
        return DOTS
    return PACKED_W if (0.0175 + 0.58 * lanes / in_features
                        > 1. / batch + 0.08 * (pieces(outs, wide) * wide - outs) / outs) else DOTS


cdef void forward_block(Way way, const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                        Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row, bint far,
                        char* scratch) noexcept nogil:
    """A long block of k, or less."""
    if way == DOTS:
        forward_dots(x, weight, bias, out, batch, in_features, outs, row, out_row, far)
    elif way == NARROW_W:
        forward_narrow(x, weight, bias, out, batch, in_features, outs, out_row)
    else:
        forward_packed(x, weight, bias, out, batch, in_features, outs, row, out_row, scratch)


cdef void forward_long(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                       Py_ssize_t in_features, Py_ssize_t outs, Py_ssize_t row, Py_ssize_t out_row,
                       bint far, char* scratch) noexcept nogil:
    """Long block after long block, a few outputs at a time: the first into out, the others apart and then added."""
    cdef real* waiting = <real*> (scratch + WAITING_AT)
    cdef Py_ssize_t long_block = LONG_BLOCKS * (K_BLOCK_BYTES // sizeof(real)), k0, k, o0 = 0, b0, some, rows
    while o0 < outs:
        some = min(LONG_OUTS, outs - o0)
        b0 = 0
        while b0 < batch:
            rows = min(LONG_ROWS, batch - b0)
            k0 = 0
            while k0 < in_features:
                k = min(long_block, in_features - k0)
                forward_block(cheapest_way(rows, k, some, row, x), x + b0 * row + k0, weight + o0 * row + k0,
                              <const real*> NULL, waiting if k0 else out + b0 * out_row + o0, rows, k, some, row,
                              LONG_OUTS if k0 else out_row, far, scratch)
                if k0:
                    add_rows(<const real*> waiting, LONG_OUTS, out + b0 * out_row + o0, out_row, rows, some)
                k0 += long_block
            if bias != NULL:
                add_rows(bias + o0, 0, out + b0 * out_row + o0, out_row, rows, some)
            b0 += LONG_ROWS
        o0 += LONG_OUTS


cdef void forward_part(const real* x, const real* weight, const real* bias, real* out,
                       Py_ssize_t b_begin, Py_ssize_t b_end, Py_ssize_t o_begin, Py_ssize_t o_end,
                       Py_ssize_t in_features, Py_ssize_t out_features, char* scratch) noexcept nogil:
    cdef Py_ssize_t batch = b_end - b_begin, outs = o_end - o_begin, b, o
    cdef bint far = comes_from_memory(in_features, out_features, x)
    if batch == 0 or outs == 0:
        return
    if out_features == 1 and batch > 1:
        # The rows of x pass the only row of W as those of W do a vector, and the output is as contiguous.
        forward_part(weight, x, <const real*> NULL, out, 0, 1, b_begin, b_end, in_features, b_end, scratch)
        if bias != NULL:
            for b in range(b_begin, b_end):
                out[b] += bias[0]
        return
    x += b_begin * in_features
    weight += o_begin * in_features
    out += b_begin * out_features + o_begin
    if bias != NULL:
        bias += o_begin
    if in_features == 0:
        for b in range(batch):
            for o in range(outs):
                out[b * out_features + o] = 0 + bias[o] if bias != NULL else 0
    elif in_features <= LONG_BLOCKS * (K_BLOCK_BYTES // <Py_ssize_t> sizeof(real)):
        forward_block(cheapest_way(batch, in_features, outs, in_features, x), x, weight, bias, out, batch, in_features,
                      outs, in_features, out_features, far, scratch)
    else:
        forward_long(x, weight, bias, out, batch, in_features, outs, in_features, out_features, far, scratch)


cdef void forward_share(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                        Py_ssize_t in_features, Py_ssize_t out_features, int thread, int threads,
                        char* scratch) noexcept nogil:
    """What one of `threads` does: some of the outputs, or of the rows."""
    scratch += thread * <size_t> SCRATCH_BYTES
    if out_features >= batch:
        forward_part(x, weight, bias, out, 0, batch, share(out_features, GRAIN, thread, threads),
                     share(out_features, GRAIN, thread + 1, threads), in_features, out_features, scratch)
    else:
        forward_part(x, weight, bias, out, share(batch, LANES_ROWS, thread, threads),
                     share(batch, LANES_ROWS, thread + 1, threads), 0, out_features, in_features, out_features, scratch)


cdef void forward_loops(const real* x, const real* weight, const real* bias, real* out, Py_ssize_t batch,
                        Py_ssize_t in_features, Py_ssize_t out_features, int threads, char* scratch) noexcept nogil:
    cdef int thread
    if threads == 1:
        forward_share(x, weight, bias, out, batch, in_features, out_features, 0, 1, scratch)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            forward_share(x, weight, bias, out, batch, in_features, out_features, thread, threads, scratch)


# ---- grad_weight

cdef void grad_weight_turned(const real* x, const real* grad_output, real scale, real* out, Py_ssize_t batch,
                             Py_ssize_t outs, Py_ssize_t in_features, Py_ssize_t out_features,
                             char* scratch) noexcept nogil:
    """Few columns and many rows of x: the lanes run along the outputs, in a transposed copy of some rows of out."""
    cdef real* turned = <real*> (scratch + WAITING_AT)
    cdef Py_ssize_t most = LONG_ROWS * LONG_OUTS // in_features, o = 0, some
    while o < outs:
        some = min(most, outs - o)
        transpose_rows(<int> some, in_features, <const real*> out + o * in_features, in_features, turned)
        product(True, <real> 1, x, 1, in_features, scale, grad_output + o, out_features, turned, some, in_features,
                some, batch, scratch)
        transpose_rows(<int> in_features, some, <const real*> turned, some, out + o * in_features)
        o += most


cdef void grad_weight_part(const real* x, const real* grad_output, real scale, real* out, Py_ssize_t batch,
                           Py_ssize_t o_begin, Py_ssize_t o_end, Py_ssize_t i_begin, Py_ssize_t i_end,
                           Py_ssize_t in_features, Py_ssize_t out_features, char* scratch) noexcept nogil:
    cdef Py_ssize_t outs = o_end - o_begin, ins = i_end - i_begin, size = sizeof(real), o, b
    cdef int high
    if outs == 0 or ins == 0 or batch == 0:
        return
    x += i_begin
    grad_output += o_begin
    out += o_begin * in_features + i_begin
    if in_features == 1:
        # One column, which is as contiguous as a row: a few rows of grad_output pass it at once, as in stream.
        b = 0
        while b < batch:
            column(outs, min(STREAMS, batch - b), x + b, grad_output + b * out_features, out_features, scale, out)
            b += STREAMS
    elif scale == 1 and outs * ins * batch < WORTH_A_COPY:
        high = even_piece(outs, MOST_ROWS)
        o = 0
        while o < outs:
            axpy(<int> min(high, outs - o), ins, batch, grad_output + o, 1, out_features, x, in_features,
                 out + o * in_features, in_features, 0, AXPY_CONTINUE)
            o += high
    elif ins == in_features and ins * size < VECTOR_BYTES and ins <= MOST_COLS and batch <= THIN_ROWS:
        thin(<int> ins, outs, batch, x, in_features, grad_output, out_features, scale, out, <real*> (scratch + A_AT))
    elif ins == in_features and ins * size < THIN_BYTES and outs > ins and batch * TURNED > (ins * size) ** 3:
        grad_weight_turned(x, grad_output, scale, out, batch, outs, in_features, out_features, scratch)
    else:
        product(True, scale, grad_output, 1, out_features, <real> 1, x, in_features, out, in_features, outs, ins, batch,
                scratch)


cdef void grad_weight_share(const real* x, const real* grad_output, real scale, real* out, Py_ssize_t batch,
                            Py_ssize_t in_features, Py_ssize_t out_features, int thread, int threads,
                            char* scratch) noexcept nogil:
    """What one of `threads` does: some of the rows of W, or of the columns."""
    scratch += thread * <size_t> SCRATCH_BYTES
    if out_features >= in_features // 8:
        grad_weight_part(x, grad_output, scale, out, batch, share(out_features, MOST_ROWS, thread, threads),
                         share(out_features, MOST_ROWS, thread + 1, threads), 0, in_features, in_features, out_features,
                         scratch)
    else:
        grad_weight_part(x, grad_output, scale, out, batch, 0, out_features, share(in_features, GRAIN, thread, threads),
                         share(in_features, GRAIN, thread + 1, threads), in_features, out_features, scratch)


cdef void grad_weight_loops(const real* x, const real* grad_output, double scale, real* out, Py_ssize_t batch,
                            Py_ssize_t in_features, Py_ssize_t out_features, int threads, char* scratch) noexcept nogil:
    cdef int thread
    if threads == 1:
        grad_weight_share(x, grad_output, scale, out, batch, in_features, out_features, 0, 1, scratch)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            grad_weight_share(x, grad_output, scale, out, batch, in_features, out_features, thread, threads, scratch)


# ---- grad_bias

cdef void grad_bias_loops(const real* grad_output, double scale, real* out, Py_ssize_t batch,
                          Py_ssize_t out_features) noexcept nogil:
    cdef real s = <real> scale
    cdef const real* g
    cdef Py_ssize_t b, o, n = out_features, fours = batch // 4 * 4
    # Four rows for each time that out is loaded and stored: one at a time takes up to twice as long.
    for b in range(0, fours, 4):
        g = grad_output + b * n
        for o in range(n):
            out[o] = out[o] + s * g[o] + s * g[n + o] + s * g[2 * n + o] + s * g[3 * n + o]
    for b in range(fours, batch):
        g = grad_output + b * n
        for o in range(n):
            out[o] += s * g[o]


# ---- grad_input and update

cdef void stream(const real* x, const real* grad_output, real scale, real* weight, real* out, Py_ssize_t rows,
                 Py_ssize_t i_begin, Py_ssize_t i_end, Py_ssize_t in_features, Py_ssize_t out_features,
                 char* scratch) noexcept nogil:
    """For few rows, in one pass over W: grad_input into out, and weight += scale grad_output^T x,
    unless x is NULL. Each few rows of W serve grad_input before they change."""
    # The sums of a block of o wait in L1 for the rest of it; those of the first block do that in out.
    cdef real* waiting = <real*> (scratch + WAITING_AT)
    cdef Py_ssize_t chunk = max(CHUNK_BYTES // (rows * <Py_ssize_t> sizeof(real)) // 64 * 64, 64)
    cdef int group = UPDATE_ROWS if rows == 1 else STREAMS, high = even_piece(rows, MOST_ROWS), some
    cdef bint far = comes_from_memory(in_features, out_features, x)
    cdef Py_ssize_t i0, width, o0, o1, o, b, y_row
    cdef axpy_mode mode
    cdef real* y
    i0 = i_begin
    while i0 < i_end:
        width = min(chunk, i_end - i0)
        o0 = 0
        while o0 < out_features:
            o1 = min(o0 + O_BLOCK, out_features)
            y, y_row = (waiting, chunk) if o0 else (out + i0, in_features)
            mode = AXPY_START
            o = o0
            while o < o1:
                some = <int> min(group, o1 - o)
                if rows == 1:
                    update_rows(some, width, x + i0 if x != NULL else NULL, grad_output + o, scale,
                                weight + o * in_features + i0, in_features, y, mode == AXPY_START,
                                some * in_features if far else 0)
                else:
                    b = 0
                    while b < rows:
                        axpy(<int> min(high, rows - b), width, some, grad_output + b * out_features + o, out_features,
                             1, <const real*> weight + o * in_features + i0, in_features, y + b * y_row, y_row, 0, mode)
                        b += high
                    if x != NULL:
                        grad_weight_part(x, grad_output, scale, weight, rows, o, o + some, i0, i0 + width, in_features,
                                         out_features, scratch)
                mode = AXPY_CONTINUE
                o += group
            if o0:
                add_rows(<const real*> waiting, chunk, out + i0, in_features, rows, width)
            o0 = o1
        i0 += width


cdef inline bint is_thin(Py_ssize_t ins, const real* dtype) noexcept nogil:
    return ins * <Py_ssize_t> sizeof(real) <= MOST_COLS * VECTOR_BYTES


cdef enum InputWay:
    CHAINS, STREAM, PRODUCT


cdef inline InputWay grad_input_way(Py_ssize_t batch, Py_ssize_t ins, Py_ssize_t in_features, Py_ssize_t out_features,
                                    const real* dtype) noexcept nogil:
    """Few rows stream, unless columns are so few that their chains of additions would wait for themselves. From four
    rows on there are chains enough, and what counts is where W comes from."""
    cdef Py_ssize_t vectors = pieces(ins, VECTOR_BYTES // <int> sizeof(real))
    if batch < COPIED_BATCH:
        return CHAINS if (is_thin(ins, dtype) and batch * vectors <= ENOUGH_CHAINS
                          and batch * out_features > O_BLOCK) else STREAM
    if batch < FAR_ROWS and not is_thin(ins, dtype) and is_past_l2(in_features * out_features, dtype):
        return STREAM
    return PRODUCT


cdef void grad_input_part(const real* grad_output, const real* weight, real* out, Py_ssize_t b_begin, Py_ssize_t b_end,
                          Py_ssize_t i_begin, Py_ssize_t i_end, Py_ssize_t in_features, Py_ssize_t out_features,
                          char* scratch) noexcept nogil:
    cdef Py_ssize_t batch = b_end - b_begin, ins = i_end - i_begin, b, i
    cdef InputWay way
    if batch == 0 or ins == 0:
        return
    grad_output += b_begin * out_features
    out += b_begin * in_features
    if out_features == 0:
        for b in range(batch):
            for i in range(ins):
                out[b * in_features + i_begin + i] = 0
        return
    if in_features == 1:
        # The only column of W lies as a row does: the sum over o is one of forward's, with its lanes.
        forward_part(grad_output, weight, <const real*> NULL, out, 0, batch, 0, 1, out_features, 1, scratch)
        return
    way = grad_input_way(batch, ins, in_features, out_features, out)
    if way == CHAINS:
        few_chains(grad_output, weight + i_begin, out + i_begin, batch, ins, in_features, out_features)
    elif way == STREAM:
        stream(<const real*> NULL, grad_output, <real> 0, <real*> weight, out, batch, i_begin, i_end, in_features,
               out_features, scratch)
    else:
        product(False, <real> 1, grad_output, out_features, 1, <real> 1, weight + i_begin, in_features, out + i_begin,
                in_features, batch, ins, out_features, scratch)


cdef void few_chains(const real* grad_output, const real* weight, real* out, Py_ssize_t batch, Py_ssize_t ins,
                     Py_ssize_t in_features, Py_ssize_t out_features) noexcept nogil:
    """A few vectors of columns, of few rows: whole blocks of o side by side, then what is left."""
    cdef Py_ssize_t b, o
    cdef int n, most = MOST_COLS // <int> pieces(ins, VECTOR_BYTES // <int> sizeof(real))
    for b in range(batch):
        o = 0
        while o < out_features:
            n = <int> max(min((out_features - o) // O_BLOCK, most), 1)
            chains(n, <int> ins, min(O_BLOCK, out_features - o), grad_output + b * out_features + o,
                   weight + o * in_features, in_features, out + b * in_features, o == 0)
            o += n * O_BLOCK


cdef void grad_input_share(const real* grad_output, const real* weight, real* out, Py_ssize_t batch,
                           Py_ssize_t in_features, Py_ssize_t out_features, int thread, int threads,
                           char* scratch) noexcept nogil:
    """What one of `threads` does: some of the columns, or of the rows."""
    scratch += thread * <size_t> SCRATCH_BYTES
    if in_features >= batch:
        grad_input_part(grad_output, weight, out, 0, batch, share(in_features, GRAIN, thread, threads),
                        share(in_features, GRAIN, thread + 1, threads), in_features, out_features, scratch)
    else:
        grad_input_part(grad_output, weight, out, share(batch, MOST_ROWS, thread, threads),
                        share(batch, MOST_ROWS, thread + 1, threads), 0, in_features, in_features, out_features,
                        scratch)


cdef void grad_input_loops(const real* grad_output, const real* weight, real* out, Py_ssize_t batch,
                           Py_ssize_t in_features, Py_ssize_t out_features, int threads, char* scratch) noexcept nogil:
    cdef int thread
    if threads == 1:
        grad_input_share(grad_output, weight, out, batch, in_features, out_features, 0, 1, scratch)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            grad_input_share(grad_output, weight, out, batch, in_features, out_features, thread, threads, scratch)


cdef void update_part(const real* x, const real* grad_output, real lr, real* weight, real* out, Py_ssize_t batch,
                      Py_ssize_t i_begin, Py_ssize_t i_end, Py_ssize_t in_features, Py_ssize_t out_features,
                      char* scratch) noexcept nogil:
    cdef Py_ssize_t ins = i_end - i_begin
    # In a thin layer, the steps of more rows than one are too small a piece at a time: apart is up to a fifth faster.
    cdef bint together = not is_thin(ins, x) or (
        batch == 1 and grad_input_way(batch, ins, in_features, out_features, x) == STREAM)
    if out != NULL and 0 < batch <= MOST_ROWS and out_features and in_features > 1 and together:
        stream(x, grad_output, -lr, weight, out, batch, i_begin, i_end, in_features, out_features, scratch)
    else:
        if out != NULL:
            grad_input_part(grad_output, weight, out, 0, batch, i_begin, i_end, in_features, out_features, scratch)
        grad_weight_part(x, grad_output, -lr, weight, batch, 0, out_features, i_begin, i_end, in_features, out_features,
                         scratch)


cdef void update_share(const real* x, const real* grad_output, real lr, real* weight, real* bias, real* out,
                       Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int thread, int threads,
                       char* scratch) noexcept nogil:
    """What one of `threads` does: some of the columns, because those of W change for no other columns of grad_input."""
    update_part(x, grad_output, lr, weight, out, batch, share(in_features, GRAIN, thread, threads),
                share(in_features, GRAIN, thread + 1, threads), in_features, out_features,
                scratch + thread * <size_t> SCRATCH_BYTES)
    if bias != NULL and thread == 0:
        grad_bias_loops(grad_output, -lr, bias, batch, out_features)


cdef void update_loops(const real* x, const real* grad_output, double lr, real* weight, real* bias, real* out,
                       Py_ssize_t batch, Py_ssize_t in_features, Py_ssize_t out_features, int threads,
                       char* scratch) noexcept nogil:
    cdef int thread
    if threads == 1:
        update_share(x, grad_output, lr, weight, bias, out, batch, in_features, out_features, 0, 1, scratch)
    else:
        for thread in prange(threads, num_threads=threads, schedule="static"):
            update_share(x, grad_output, lr, weight, bias, out, batch, in_features, out_features, thread, threads,
                         scratch)


# ---- step

cdef void step_loops(const real* gradient, double lr, real* parameter, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(size):
        parameter[j] -= <real> lr * gradient[j]


# ---- for Python: typed memoryviews, the same names and signatures as in reference.py
# With 0 <= thread < threads, a function does what that one of the threads would do, on the calling thread: so what
# each thread does can be tested by itself. -1 is all of it.

cdef int check_length(str name, Py_ssize_t got, Py_ssize_t expected) except -1:
    if got != expected:
        raise ValueError(f"{name} has length {got} where {expected} was expected")
    return 0


cdef char* check_threads(int threads, int thread) except NULL:
    """The scratch for them."""
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads must be from 1 to 1024, got {threads}")
    if not -1 <= thread < threads:
        raise ValueError(f"thread must be from 0 to {threads - 1}, or -1 for all, got {thread}")
    cdef char* scratch = thread_scratch(threads * <size_t> SCRATCH_BYTES)
    if scratch == NULL:
        raise MemoryError(f"no {threads} MiB for the scratch of {threads} threads")
    return scratch


def forward(const real[:, ::1] x, const real[:, ::1] weight, const real[::1] bias, real[:, ::1] out, int threads=1,
            int thread=-1):
    """out[b, o] = sum_i x[b, i] weight[o, i] + bias[o]. out is overwritten; bias can be None."""
    cdef char* scratch = check_threads(threads, thread)
    check_length("x's axis 1", x.shape[1], weight.shape[1])
    check_length("out's axis 0", out.shape[0], x.shape[0])
    check_length("out's axis 1", out.shape[1], weight.shape[0])
    if bias is not None:
        check_length("bias", bias.shape[0], weight.shape[0])
    cdef const real* b = &bias[0] if bias is not None else NULL
    with nogil:
        if thread < 0:
            forward_loops(&x[0, 0], &weight[0, 0], b, &out[0, 0], x.shape[0], x.shape[1], weight.shape[0], threads,
                          scratch)
        else:
            forward_share(&x[0, 0], &weight[0, 0], b, &out[0, 0], x.shape[0], x.shape[1], weight.shape[0], thread,
                          threads, scratch)


def forward_by(str way, const real[:, ::1] x, const real[:, ::1] weight, real[:, ::1] out):
    """forward without bias by one of the ways "dots", "narrow" and "packed", for bench/fit.py and the tests."""
    cdef char* scratch = check_threads(1, -1)
    cdef Way by = <Way> <int> ["dots", "narrow", "packed"].index(way)
    cdef Py_ssize_t most = NARROW if by == NARROW_W else LONG_BLOCKS * (K_BLOCK_BYTES // <Py_ssize_t> sizeof(real))
    check_length("x's axis 1", x.shape[1], weight.shape[1])
    check_length("out's axis 0", out.shape[0], x.shape[0])
    check_length("out's axis 1", out.shape[1], weight.shape[0])
    if not (0 < x.shape[1] <= most and x.shape[0] and weight.shape[0]):
        raise ValueError(f"{way} takes 1 to {most} features and at least a row and an output")
    with nogil:
        forward_block(by, &x[0, 0], &weight[0, 0], <const real*> NULL, &out[0, 0], x.shape[0], x.shape[1],
                      weight.shape[0], x.shape[1], weight.shape[0], False, scratch)


def grad_input(const real[:, ::1] grad_output, const real[:, ::1] weight, real[:, ::1] out, int threads=1,
               int thread=-1):
    """out[b, i] = sum_o grad_output[b, o] weight[o, i]. out is overwritten."""
    cdef char* scratch = check_threads(threads, thread)
    check_length("grad_output's axis 1", grad_output.shape[1], weight.shape[0])
    check_length("out's axis 0", out.shape[0], grad_output.shape[0])
    check_length("out's axis 1", out.shape[1], weight.shape[1])
    with nogil:
        if thread < 0:
            grad_input_loops(&grad_output[0, 0], &weight[0, 0], &out[0, 0], grad_output.shape[0], weight.shape[1],
                             weight.shape[0], threads, scratch)
        else:
            grad_input_share(&grad_output[0, 0], &weight[0, 0], &out[0, 0], grad_output.shape[0], weight.shape[1],
                             weight.shape[0], thread, threads, scratch)


def grad_weight(const real[:, ::1] x, const real[:, ::1] grad_output, double scale, real[:, ::1] out, int threads=1,
                int thread=-1):
    """out[o, i] += sum_b scale grad_output[b, o] x[b, i]. out is accumulated."""
    cdef char* scratch = check_threads(threads, thread)
    check_length("grad_output's axis 0", grad_output.shape[0], x.shape[0])
    check_length("out's axis 0", out.shape[0], grad_output.shape[1])
    check_length("out's axis 1", out.shape[1], x.shape[1])
    with nogil:
        if thread < 0:
            grad_weight_loops(&x[0, 0], &grad_output[0, 0], scale, &out[0, 0], x.shape[0], x.shape[1],
                              grad_output.shape[1], threads, scratch)
        else:
            grad_weight_share(&x[0, 0], &grad_output[0, 0], <real> scale, &out[0, 0], x.shape[0], x.shape[1],
                              grad_output.shape[1], thread, threads, scratch)


def grad_bias(const real[:, ::1] grad_output, double scale, real[::1] out):
    """out[o] += sum_b scale grad_output[b, o]. out is accumulated."""
    check_length("out", out.shape[0], grad_output.shape[1])
    with nogil:
        grad_bias_loops(&grad_output[0, 0], scale, &out[0], grad_output.shape[0], grad_output.shape[1])


def update(const real[:, ::1] x, const real[:, ::1] grad_output, double lr, real[:, ::1] weight, real[::1] bias,
           real[:, ::1] out, int threads=1, int thread=-1):
    """grad_input into out (overwritten; can be None), then weight -= lr grad_output^T x and bias -= lr sum_b
    grad_output in place; bias can be None. out comes from the weights as they were. The bias is the first thread's."""
    cdef char* scratch = check_threads(threads, thread)
    check_length("grad_output's axis 0", grad_output.shape[0], x.shape[0])
    check_length("weight's axis 0", weight.shape[0], grad_output.shape[1])
    check_length("weight's axis 1", weight.shape[1], x.shape[1])
    if bias is not None:
        check_length("bias", bias.shape[0], weight.shape[0])
    if out is not None:
        check_length("out's axis 0", out.shape[0], x.shape[0])
        check_length("out's axis 1", out.shape[1], x.shape[1])
    cdef real* b = &bias[0] if bias is not None else NULL
    cdef real* gx = &out[0, 0] if out is not None else NULL
    with nogil:
        if thread < 0:
            update_loops(&x[0, 0], &grad_output[0, 0], lr, &weight[0, 0], b, gx, x.shape[0], x.shape[1],
                         weight.shape[0], threads, scratch)
        else:
            update_share(&x[0, 0], &grad_output[0, 0], <real> lr, &weight[0, 0], b, gx, x.shape[0], x.shape[1],
                         weight.shape[0], thread, threads, scratch)


def step(const real[::1] gradient, double lr, real[::1] parameter):
    """parameter[j] -= lr gradient[j], in place."""
    check_length("gradient", gradient.shape[0], parameter.shape[0])
    with nogil:
        step_loops(&gradient[0], lr, &parameter[0], parameter.shape[0])


# ---- for Layer: the same without Python, in a table for each dtype

cdef KernelTable kernel_table = KernelTable(
    Kernels(<forward_kernel> forward_loops[float], <grad_input_kernel> grad_input_loops[float],
            <grad_weight_kernel> grad_weight_loops[float], <grad_bias_kernel> grad_bias_loops[float],
            <update_kernel> update_loops[float], <step_kernel> step_loops[float]),
    Kernels(<forward_kernel> forward_loops[double], <grad_input_kernel> grad_input_loops[double],
            <grad_weight_kernel> grad_weight_loops[double], <grad_bias_kernel> grad_bias_loops[double],
            <update_kernel> update_loops[double], <step_kernel> step_loops[double]))
table = PyCapsule_New(&kernel_table, "fastlinear.KernelTable", NULL)
