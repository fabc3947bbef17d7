// The convolution kernel of S4 (ops/low_rank_kernel.rs): its generating function at the roots of unity from sums over
// modes, then an inverse Fourier transform of any length.
// Kept for backward: the parameters.
//
// All in double precision, as the function's terms cancel near Nyquist. Bound by arithmetic. A transform of length
// R * C takes R + C products an element, as a sum over columns and one over rows.
#include "diagonal.cuh"

constexpr int NODE_THREADS = 128;

// 2 tan(pi j / length) is the imaginary part of z at node j, half of it that of 2 / (1 + w), whose real part is 1.
struct Node {
    double2 z, factor;

    __device__ __forceinline__ Node(int j, int length) {
        double s, c;
        sincospi(double(j) / length, &s, &c);
        z = make_double2(0, 2 * s / c);
        factor = make_double2(1, s / c);
    }
};

// Sums over modes and conjugates of the products B C, B conj(P), P C and |P|^2 over a pole each.
struct NodeSums {
    double2 bc, bq, pc, pq;
};

struct Products {
    double2 lambda, bc, bq, pc, pq;
};

// step / (z - step lambda), and the same for the conjugate of lambda.
__device__ __forceinline__ void poles(double2 z, double2 lambda, double step, double2& here, double2& mirrored) {
    here = step * inverse(z - step * lambda);
    mirrored = step * inverse(z - step * conjugate(lambda));
}

__device__ __forceinline__ Products products_of(const Diagonal& model, const float* p, int kernel, int channel, int i) {
    const double2 b = model.b_of(channel, i), c = model.c_of(kernel, channel, i);
    const double2 v = Diagonal::pair(p, model.place(channel, i));
    return {model.lambda_of(channel, i), b * c, b * conjugate(v), v * c, v * conjugate(v)};
}

// f(j, sums, sum of Re B C, step) for node j of each thread; all threads of a block take part.
template <typename F>
__device__ __forceinline__ void at_nodes(const Diagonal& model, const float* p, int length, F f) {
    __shared__ Products tile[NODE_THREADS];
    const int j = blockIdx.x * NODE_THREADS + threadIdx.x, channel = blockIdx.y, kernel = blockIdx.z;
    const bool nyquist = 2 * j == length;
    const Node node(nyquist ? 0 : j, length);
    const double step = model.step_of(channel);
    const double2 zero = make_double2(0, 0);
    NodeSums sums = {zero, zero, zero, zero};
    double direct = 0;
    for (int base = 0; base < model.n; base += NODE_THREADS) {
        __syncthreads();
        if (base + int(threadIdx.x) < model.n) {
            tile[threadIdx.x] = products_of(model, p, kernel, channel, base + threadIdx.x);
        }
        __syncthreads();
        for (int i = 0; i < smaller(NODE_THREADS, model.n - base); ++i) {
            const Products& v = tile[i];
            double2 here, mirrored;
            poles(node.z, v.lambda, step, here, mirrored);
            const auto term = [&](double2 product) { return product * here + conjugate(product) * mirrored; };
            sums.bc = sums.bc + term(v.bc);
            sums.bq = sums.bq + term(v.bq);
            sums.pc = sums.pc + term(v.pc);
            sums.pq = sums.pq + term(v.pq);
            direct += v.bc.x;
        }
    }
    if (2 * j <= length) f(j, nyquist, node, sums, direct, step);
}

KERNEL(128, low_rank_spectrum_f32, DIAGONAL_ARGUMENTS, const float* p, double2* spectrum, int length) {
    const Diagonal model = DIAGONAL_MODEL;
    spectrum += ((long long)blockIdx.z * h + blockIdx.y) * length;
    at_nodes(model, p, length, [&](int j, bool nyquist, const Node& node, const NodeSums& s, double direct, double dt) {
        double2 value = make_double2(direct * dt, 0);
        if (!nyquist) {
            const double2 one = make_double2(1, 0);
            value = (s.bc - s.bq * s.pc * inverse(one + s.pq)) * node.factor;
        }
        if (j == 0) value.y = 0;
        spectrum[j] = value;
        if (j > 0) spectrum[length - j] = conjugate(value);
    });
}

// Derivatives of the loss by the four sums of each node, [kernels, h, length / 2 + 1, 4]; at Nyquist by the value.
KERNEL(128, low_rank_backward_nodes_f32, DIAGONAL_ARGUMENTS, const float* p, const double2* spectrum, double2* nodes,
       int length) {
    const Diagonal model = DIAGONAL_MODEL;
    const long long row = (long long)blockIdx.z * h + blockIdx.y;
    at_nodes(model, p, length, [&](int j, bool nyquist, const Node& node, const NodeSums& s, double, double) {
        // nodes in between count for their mirror image too
        const double count = j == 0 || nyquist ? 1 : 2;
        const double2 value = count / length * conjugate(spectrum[row * length + j]), zero = make_double2(0, 0);
        double2* to = nodes + (row * (length / 2 + 1) + j) * 4;
        if (nyquist) {
            to[0] = make_double2(value.x, 0);
            to[1] = to[2] = to[3] = zero;
            return;
        }
        const double2 g = value * node.factor, over = inverse(make_double2(1, 0) + s.pq);
        to[0] = g;
        to[1] = zero - g * s.pc * over;
        to[2] = zero - g * s.bq * over;
        to[3] = g * s.bq * s.pc * over * over;
    });
}

__device__ __forceinline__ double2 warp_sum(double2 v) { return make_double2(warp_sum(v.x), warp_sum(v.y)); }

// A warp a mode of a channel.
KERNEL(128, low_rank_backward_modes_f32, DIAGONAL_ARGUMENTS, const float* p, const double2* nodes, float* dc,
       float* da_real, float* da_imag, float* db, float* dstep, float* dp, int kernels, int length) {
    const Diagonal model = DIAGONAL_MODEL;
    const int channel = blockIdx.y, mode = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (mode >= n) return;
    const double dt = model.step_of(channel);
    const double2 zero = make_double2(0, 0), b_value = model.b_of(channel, mode);
    const double2 p_value = Diagonal::pair(p, model.place(channel, mode));
    double2 by_lambda = zero, by_b = zero, by_p = zero;
    double by_step = 0;
    for (int kernel = 0; kernel < kernels; ++kernel) {
        const Products v = products_of(model, p, kernel, channel, mode);
        const double2* rows = nodes + ((long long)kernel * h + channel) * (length / 2 + 1) * 4;
        NodeSums by = {zero, zero, zero, zero};
        double2 lambda = zero;
        double direct = 0, step_sum = 0;
        for (int j = lane; 2 * j <= length; j += 32) {
            const double2* g = rows + 4 * j;
            if (2 * j == length) {
                direct = g[0].x;
                continue;
            }
            const Node node(j, length);
            double2 here, mirrored;
            poles(node.z, v.lambda, dt, here, mirrored);
            // poles are step / (z - step lambda): their derivatives by lambda are their squares, by the step their
            // squares times z / step^2
            const double2 squares[2] = {here * here, mirrored * mirrored};
            const auto add = [&](double2& to, double2 derivative, double2 product) {
                to = to + derivative * here + conjugate(derivative * mirrored);
                const double2 ahead = derivative * product * squares[0];
                const double2 back = derivative * conjugate(product) * squares[1];
                lambda = lambda + ahead + conjugate(back);
                step_sum += ((ahead + back) * node.z).x;
            };
            add(by.bc, g[0], v.bc);
            add(by.bq, g[1], v.bq);
            add(by.pc, g[2], v.pc);
            add(by.pq, g[3], v.pq);
        }
        direct = warp_sum(direct);
        by = {warp_sum(by.bc) + make_double2(direct * dt, 0), warp_sum(by.bq), warp_sum(by.pc), warp_sum(by.pq)};
        by_lambda = by_lambda + warp_sum(lambda);
        by_step += warp_sum(step_sum) / (dt * dt) + direct * v.bc.x;
        const double2 c_value = model.c_of(kernel, channel, mode);
        if (lane == 0) {
            Diagonal::put(dc, model.c_place(kernel, channel, mode), by.bc * b_value + by.pc * p_value);
        }
        by_b = by_b + by.bc * c_value + by.bq * conjugate(p_value);
        // P enters as itself and as its conjugate
        by_p = by_p + by.pc * c_value + conjugate(by.bq * b_value) + 2 * by.pq.x * conjugate(p_value);
    }
    if (lane != 0) return;
    DiagonalShares{da_real, da_imag, db, dstep}.put(model, channel, mode, by_lambda, by_b, by_step);
    Diagonal::put(dp, (long long)channel * n + mode, by_p);
}

// roots[m] = exp(2 pi i m / length).
KERNEL(256, low_rank_roots_f64, double2* roots, int length) {
    for (int m = blockIdx.x * 256 + threadIdx.x; m < length; m += gridDim.x * 256) {
        double s, c;
        sincospi(2 * (double(m) / length), &s, &c);
        roots[m] = make_double2(c, s);
    }
}

// sum over i < count of x(i) w^(first + i step), w = exp(2 pi i / length), or its inverse in a forward transform.
template <typename F>
__device__ __forceinline__ double2 turned_sum(const double2* roots, int length, long long first, long long step,
                                              int count, bool forward, F x) {
    int at = int(first % length);
    const int by = int(step % length);
    double2 sum = make_double2(0, 0);
    for (int i = 0; i < count; ++i) {
        const double2 root = roots[at];
        sum = sum + x(i) * (forward ? conjugate(root) : root);
        at += by;
        if (at >= length) at -= length;
    }
    return sum;
}

__device__ __forceinline__ double2 complex_of(float v) { return make_double2(v, 0); }
__device__ __forceinline__ double2 complex_of(double2 v) { return v; }

// Element l = l1 * cols + l2 in time, k = k1 + rows * k2 in frequency: z[k1, l2] from x.
template <typename T>
__device__ __forceinline__ void transform_columns(const T* x, double2* z, const double2* roots, int rows, int cols,
                                                  bool forward) {
    const int length = rows * cols, i = blockIdx.x * 128 + threadIdx.x, k1 = i / cols, l2 = i % cols;
    if (i >= length) return;
    x += (long long)blockIdx.y * length;
    z[(long long)blockIdx.y * length + i] =
        turned_sum(roots, length, (long long)l2 * k1, (long long)cols * k1, rows, forward,
                   [&](int l1) { return complex_of(x[l1 * cols + l2]); });
}

// write(place, element k) of the transforms from z.
template <typename F>
__device__ __forceinline__ void transform_rows(const double2* z, const double2* roots, int rows, int cols, bool forward,
                                               F write) {
    const int length = rows * cols, k = blockIdx.x * 128 + threadIdx.x, k1 = k % rows, k2 = k / rows;
    if (k >= length) return;
    const long long start = (long long)blockIdx.y * length;
    write(start + k, turned_sum(roots, length, 0, (long long)rows * k2, cols, forward,
                                [&](int l2) { return z[start + (long long)k1 * cols + l2]; }));
}

KERNEL(128, low_rank_inverse_columns_f64, const double2* spectrum, double2* z, const double2* roots, int rows, int cols) {
    transform_columns(spectrum, z, roots, rows, cols, false);
}
KERNEL(128, low_rank_inverse_rows_f32, const double2* z, float* y, const double2* roots, int rows, int cols) {
    const double scale = 1.0 / (rows * cols);
    transform_rows(z, roots, rows, cols, false, [&](long long i, double2 v) { y[i] = float(v.x * scale); });
}
KERNEL(128, low_rank_forward_columns_f32, const float* dy, double2* z, const double2* roots, int rows, int cols) {
    transform_columns(dy, z, roots, rows, cols, true);
}
KERNEL(128, low_rank_forward_rows_f64, const double2* z, double2* spectrum, const double2* roots, int rows, int cols) {
    transform_rows(z, roots, rows, cols, true, [&](long long i, double2 v) { spectrum[i] = v; });
}
