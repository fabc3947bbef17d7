// Complex numbers as pairs of floats or doubles.
#pragma once

#include "replica.cuh"

__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ float2 operator-(float2 a, float2 b) { return make_float2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) {
    return make_float2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
__device__ __forceinline__ float2 conjugate(float2 a) { return make_float2(a.x, -a.y); }

__device__ __forceinline__ double2 operator+(double2 a, double2 b) { return make_double2(a.x + b.x, a.y + b.y); }
__device__ __forceinline__ double2 operator-(double2 a, double2 b) { return make_double2(a.x - b.x, a.y - b.y); }
__device__ __forceinline__ double2 operator*(double2 a, double2 b) {
    return make_double2(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}
__device__ __forceinline__ double2 operator*(double a, double2 b) { return make_double2(a * b.x, a * b.y); }
__device__ __forceinline__ double2 conjugate(double2 a) { return make_double2(a.x, -a.y); }
__device__ __forceinline__ double norm(double2 a) { return a.x * a.x + a.y * a.y; }
// 1 / a; 0 for 0.
__device__ __forceinline__ double2 inverse(double2 a) {
    return 1 / larger(norm(a), 1e-300) * conjugate(a);
}
__device__ __forceinline__ double2 wide(float2 a) { return make_double2(a.x, a.y); }
__device__ __forceinline__ float2 narrow(double2 a) { return make_float2(float(a.x), float(a.y)); }
