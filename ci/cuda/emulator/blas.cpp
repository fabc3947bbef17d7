// The function of cuBLAS that this project uses, by its definition: columns, float32 accumulation.
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" int emulator_later(void (*work)(void*), void* argument);

namespace {

constexpr int SUCCESS = 0, NOT_SUPPORTED = 15, FLOAT32 = 0, BFLOAT16 = 14;

struct Product {
    int m, n, k, lda, ldb, ldc;
    bool ta, tb;
    float alpha, beta;
    const void *a, *b;
    void* c;
    int inputs, output;
};

float read(const void* data, int type, size_t i) {
    if (type == FLOAT32) return static_cast<const float*>(data)[i];
    const uint32_t bits = uint32_t(static_cast<const uint16_t*>(data)[i]) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

void write(void* data, int type, size_t i, float value) {
    if (type == FLOAT32) {
        static_cast<float*>(data)[i] = value;
        return;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const bool nan = (bits & 0x7fffffff) > 0x7f800000;
    static_cast<uint16_t*>(data)[i] = nan ? 0x7fff : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The matrix as float32, `rows` x `cols`, by rows.
std::vector<float> dense(const void* data, int type, int rows, int cols, int leading, bool transposed) {
    std::vector<float> out(size_t(rows) * cols);
    for (int i = 0; i < rows; ++i) {
        for (int j = 0; j < cols; ++j) {
            const size_t at = transposed ? size_t(i) * leading + j : size_t(j) * leading + i;
            out[size_t(i) * cols + j] = read(data, type, at);
        }
    }
    return out;
}

void run(void* argument) {
    Product* p = static_cast<Product*>(argument);
    const auto a = dense(p->a, p->inputs, p->m, p->k, p->lda, p->ta);
    const auto b = dense(p->b, p->inputs, p->n, p->k, p->ldb, !p->tb);
    for (int i = 0; i < p->m; ++i) {
        for (int j = 0; j < p->n; ++j) {
            const float *x = &a[size_t(i) * p->k], *y = &b[size_t(j) * p->k];
            float sum = 0;
            for (int l = 0; l < p->k; ++l) sum += x[l] * y[l];
            const size_t at = size_t(j) * p->ldc + i;
            // with beta = 0 the old value is not read: it may be NaN
            const float old = p->beta == 0 ? 0 : p->beta * read(p->c, p->output, at);
            write(p->c, p->output, at, p->alpha * sum + old);
        }
    }
    delete p;
}

}  // namespace

extern "C" {

int cublasCreate_v2(void** handle) { return *handle = new char, SUCCESS; }
int cublasDestroy_v2(void* handle) { return delete static_cast<char*>(handle), SUCCESS; }
int cublasSetStream_v2(void*, void*) { return SUCCESS; }
int cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int a_type, int lda,
                 const void* b, int b_type, int ldb, const void* beta, void* c, int c_type, int ldc, int, int) {
    // the combinations of cuBLAS's table that accumulate in float32
    const bool known = a_type == b_type && (a_type == FLOAT32 ? c_type == FLOAT32
                                                              : a_type == BFLOAT16 && (c_type == FLOAT32 || c_type == BFLOAT16));
    if (!known || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return NOT_SUPPORTED;
    return emulator_later(run, new Product{m, n, k, lda, ldb, ldc, ta != 0, tb != 0, *static_cast<const float*>(alpha),
                                           *static_cast<const float*>(beta), a, b, c, a_type, c_type});
}

}  // extern "C"
