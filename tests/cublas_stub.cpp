// A stand-in for libcublas with its very functions, for `gpubp.cublas_library` to load: computes in host memory, column
// by column as cuBLAS does, and refuses what has the wrong handle, compute type or leading dimension.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

struct Handle {
    void* stream = nullptr;
    void* workspace = nullptr;
    size_t workspace_bytes = 0;
    int pointer_mode = -1, math_mode = -1;
};

struct Matrix {
    const void* address;
    int type, leading;
    long long stride;
};

struct Product {
    int transposes[2], sizes[3];
    double alpha, beta;  // read when the product is enqueued
    Matrix A, B, C;
    int count;
};

std::string log_text;
void (*enqueue)(const Product*) = nullptr;  // else a product is computed at once

template <typename T>
void compute(const Product& p) {
    const int m = p.sizes[0], n = p.sizes[1], k = p.sizes[2];
    for (int e = 0; e < p.count; ++e) {
        const T* A = static_cast<const T*>(p.A.address) + e * p.A.stride;
        const T* B = static_cast<const T*>(p.B.address) + e * p.B.stride;
        T* C = static_cast<T*>(const_cast<void*>(p.C.address)) + e * p.C.stride;
        for (int j = 0; j < n; ++j) {
            for (int i = 0; i < m; ++i) {
                T sum = 0;
                for (int l = 0; l < k; ++l) {
                    const T a = p.transposes[0] ? A[l + (long long)i * p.A.leading] : A[i + (long long)l * p.A.leading];
                    const T b = p.transposes[1] ? B[j + (long long)l * p.B.leading] : B[l + (long long)j * p.B.leading];
                    sum += a * b;
                }
                T& c = C[i + (long long)j * p.C.leading];
                c = T(p.alpha) * sum + (p.beta != 0 ? T(p.beta) * c : T(0));
            }
        }
    }
}

double scalar(const void* at, int type) {
    return type == 1 ? *static_cast<const double*>(at) : *static_cast<const float*>(at);
}

int product(const char* name, void* given, Product p, const void* alpha, const void* beta, int compute_type, int algo) {
    const Handle& handle = *static_cast<Handle*>(given);
    char line[300];
    snprintf(line, sizeof line, "%s stream=%p workspace=%p+%zu pointer=%d math=%d compute=%d algo=%d count=%d\n", name,
             handle.stream, handle.workspace, handle.workspace_bytes, handle.pointer_mode, handle.math_mode,
             compute_type, algo, p.count);
    log_text += line;
    const int type = p.C.type;
    if (p.A.type != type || p.B.type != type || (type != 0 && type != 1)) return 15;
    if (type == 1 ? compute_type != 70 : compute_type != 68 && compute_type != 75 && compute_type != 77) return 15;
    if (p.A.leading < (p.transposes[0] ? p.sizes[2] : p.sizes[0]) ||
        p.B.leading < (p.transposes[1] ? p.sizes[1] : p.sizes[2]) || p.C.leading < p.sizes[0] || algo != -1) {
        return 7;
    }
    p.alpha = scalar(alpha, type);
    p.beta = scalar(beta, type);
    if (enqueue) {
        enqueue(&p);
    } else {
        type == 1 ? compute<double>(p) : compute<float>(p);
    }
    return 0;
}

}  // namespace

extern "C" {

const char* stub_log() { return log_text.c_str(); }
void stub_clear() { log_text.clear(); }
void stub_enqueue(void (*function)(const Product*)) { enqueue = function; }
size_t stub_product_bytes() { return sizeof(Product); }
void stub_run(const Product* p) { p->C.type == 1 ? compute<double>(*p) : compute<float>(*p); }

int cublasCreate_v2(void** handle) {
    *handle = new Handle;
    return 0;
}

int cublasGetVersion_v2(void* handle, int* version) {
    if (!handle) return 1;
    *version = 130203;
    return 0;
}

int cublasSetStream_v2(void* handle, void* stream) {
    Handle& of = *static_cast<Handle*>(handle);
    of.stream = stream;
    of.workspace = nullptr;
    of.workspace_bytes = 0;
    return 0;
}

int cublasSetWorkspace_v2(void* handle, void* workspace, size_t bytes) {
    Handle& of = *static_cast<Handle*>(handle);
    of.workspace = workspace;
    of.workspace_bytes = bytes;
    return 0;
}

int cublasSetPointerMode_v2(void* handle, int mode) {
    static_cast<Handle*>(handle)->pointer_mode = mode;
    return 0;
}

int cublasSetMathMode(void* handle, int mode) {
    static_cast<Handle*>(handle)->math_mode = mode;
    return 0;
}

int cublasGemmEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha, const void* A, int Atype,
                 int lda, const void* B, int Btype, int ldb, const void* beta, void* C, int Ctype, int ldc,
                 int compute_type, int algo) {
    const Product p{{transa, transb}, {m, n, k}, 0, 0, {A, Atype, lda, 0}, {B, Btype, ldb, 0}, {C, Ctype, ldc, 0}, 1};
    return product("GemmEx", handle, p, alpha, beta, compute_type, algo);
}

int cublasGemmStridedBatchedEx(void* handle, int transa, int transb, int m, int n, int k, const void* alpha,
                               const void* A, int Atype, int lda, long long strideA, const void* B, int Btype, int ldb,
                               long long strideB, const void* beta, void* C, int Ctype, int ldc, long long strideC,
                               int count, int compute_type, int algo) {
    const Product p{{transa, transb},        {m, n, k}, 0, 0, {A, Atype, lda, strideA}, {B, Btype, ldb, strideB},
                    {C, Ctype, ldc, strideC}, count};
    return product("GemmStridedBatchedEx", handle, p, alpha, beta, compute_type, algo);
}
}
