// Activations by code: y(x) and its derivative.
#pragma once

#include "replica.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

struct Identity {
    static __device__ __forceinline__ float y(float x) { return x; }
    static __device__ __forceinline__ float slope(float) { return 1; }
};
// Its derivative at 0 is 0, as in PyTorch; NaN stays NaN.
struct Relu {
    static __device__ __forceinline__ float y(float x) { return x < 0 ? 0 : x; }
    static __device__ __forceinline__ float slope(float x) { return x > 0 ? 1 : 0; }
};
struct Gelu {
    static __device__ __forceinline__ float cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }
    static __device__ __forceinline__ float y(float x) { return x * cdf(x); }
    static __device__ __forceinline__ float slope(float x) {
        return cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);
    }
};
// With u = sqrt(2/pi) (x + 0.044715 x^3): (1 + tanh u) / 2 = sigmoid(2 u).
struct GeluTanh {
    static constexpr float A = 1.5957691216057308f, B = 0.044715f;
    static __device__ __forceinline__ float y(float x) { return x * sigmoid(A * x * (B * x * x + 1)); }
    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(A * x * (B * x * x + 1));
        return s + x * s * (1 - s) * A * (3 * B * x * x + 1);
    }
};
struct Silu {
    static __device__ __forceinline__ float y(float x) { return x * sigmoid(x); }
    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(x);
        return s * (1 + x * (1 - s));
    }
};
struct Sigmoid {
    static __device__ __forceinline__ float y(float x) { return sigmoid(x); }
    static __device__ __forceinline__ float slope(float x) {
        const float s = sigmoid(x);
        return s * (1 - s);
    }
};
struct Tanh {
    static __device__ __forceinline__ float y(float x) { return tanhf(x); }
    static __device__ __forceinline__ float slope(float x) {
        const float t = tanhf(x);
        return 1 - t * t;
    }
};
// log(1 + e^x); above 20 it is x to float precision.
struct Softplus {
    static __device__ __forceinline__ float y(float x) { return x > 20 ? x : log1pf(expf(x)); }
    static __device__ __forceinline__ float slope(float x) { return sigmoid(x); }
};

// Calls f with the activation of a code; all threads take the same branch.
template <typename F>
__device__ __forceinline__ void with_activation(int code, F f) {
    switch (code) {
        case 1: return f(Relu{});
        case 2: return f(Gelu{});
        case 3: return f(GeluTanh{});
        case 4: return f(Silu{});
        case 5: return f(Sigmoid{});
        case 6: return f(Tanh{});
        case 7: return f(Softplus{});
        default: return f(Identity{});
    }
}
