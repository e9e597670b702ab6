/* Attention and the element-wise passes of a training step, and the scoring of tokens, on a CPU.
 *
 * Compiled on first use by pythia_core/kernels/native.py with the system's C compiler, cached, and
 * called through ctypes; without a compiler the callers run torch code instead. Matrix products
 * stay in torch, except those of attention and scoring. Functions of a training step exist for
 * float and for bfloat16 (stored as uint16_t), those of evaluation for float only. Rows are split
 * statically over OpenMP threads and each row is reduced by one thread, so results do not change
 * from call to call. Statistics and sums are fp32.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

typedef int64_t i64;
typedef uint16_t bf16;

static inline float bits_float(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t float_bits(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static inline float load_bf16(bf16 b) { return bits_float((uint32_t)b << 16); }
static inline bf16 store_bf16(float f) { /* round to nearest even; NaN stays NaN */
  uint32_t u = float_bits(f), rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (bf16)((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
static inline float load_f32(float f) { return f; }
static inline float store_f32(float f) { return f; }

/* W floats at once. GCC and Clang turn these into the widest instructions of the machine; a few
 * that they do not find themselves are named. */
#define W 16
typedef float vec __attribute__((vector_size(4 * W), may_alias, aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * W), may_alias, aligned(4)));
typedef uint16_t hvec __attribute__((vector_size(2 * W), may_alias, aligned(2)));

static inline vec splat(float x) { return x - (vec){0}; }
static inline vec load_vec_f32(const float *p) { return *(const vec *)p; }
static inline void store_vec_f32(float *p, vec x) { *(vec *)p = x; }
static inline vec load_vec_bf16(const bf16 *p) {
  return (vec)(__builtin_convertvector(*(const hvec *)p, ivec) << 16);
}
#ifdef __AVX512BF16__
static inline void store_vec_bf16(bf16 *p, vec x) {
  _mm256_storeu_si256((__m256i *)p, (__m256i)_mm512_cvtneps_pbh((__m512)x));
}
#else
static inline void store_vec_bf16(bf16 *p, vec x) {
  for (int i = 0; i < W; i++) p[i] = store_bf16(x[i]);
}
#endif
#ifdef __AVX512F__ /* a NaN in b is the result */
static inline vec max_vec(vec a, vec b) { return (vec)_mm512_max_ps((__m512)a, (__m512)b); }
static inline vec times_power_of_two(vec x, vec n) {
  return (vec)_mm512_scalef_ps((__m512)x, (__m512)n);
}
#else
static inline vec max_vec(vec a, vec b) {
  ivec mask = a > b;
  return (vec)((mask & (ivec)a) | (~mask & (ivec)b));
}
static inline vec times_power_of_two(vec x, vec n) {
  n = -max_vec(splat(-127.0f), -n);
  return x * (vec)((__builtin_convertvector(n, ivec) + 127) << 23);
}
#endif
static inline float sum_vec(vec x) {
  float sum = 0.0f;
  for (int i = 0; i < W; i++) sum += x[i];
  return sum;
}

/* e^x to about 1 ulp: 2^n times a polynomial in x - n ln 2. Constant below -87, huge above 88. */
static inline vec exp_vec(vec x) {
  x = max_vec(splat(-87.0f), x);
  vec n = (x * 1.44269504f + 12582912.0f) - 12582912.0f; /* rounded to a whole number */
  vec r = n * -0.693145752f + x; /* ln 2 in two parts */
  r = n * -1.42860677e-6f + r;
  vec p = r * 1.98756915e-4f + 1.39819994e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 5.00000000e-1f;
  p = p * (r * r) + r + 1.0f;
  return times_power_of_two(p, n);
}

static inline float exp_fast(float x) { return exp_vec(splat(x))[0]; }

/* x/2 (1 + tanh(0.79788456 x (1 + 0.044715 x^2))) = x sigmoid(2 * that argument) */
#define GELU_A 1.59576912f
#define GELU_B 0.0713548162f
static inline vec gelu(vec v) { return v / (1.0f + exp_vec(-v * (GELU_B * v * v + GELU_A))); }
static inline vec gelu_slope(vec v) {
  vec s = 1.0f / (1.0f + exp_vec(-v * (GELU_B * v * v + GELU_A)));
  return v * s * (1.0f - s) * (3.0f * GELU_B * v * v + GELU_A) + s;
}

/* --- attention ---------------------------------------------------------------------------------
 *
 * One head of one row at a time, in fp32, from buffers that stay in the first-level caches. A block
 * of W queries lies in the W lanes of a vector, so that a softmax over keys never crosses lanes.
 * Numbers of a block are stored per key or per dim: W floats, one per query. Rows of queries, keys
 * and values are padded to `dim` floats, a multiple of W, and their number to a multiple of W.
 */
#define UNROLL 8

/* out[j] = sum over d of rows[j][d] * columns[d], for j < n */
static inline void products(const float *rows, const float *columns, float *out, int n, int dim) {
  for (int j = 0; j < n; j += UNROLL) {
    vec sum[UNROLL] = {{0}};
    for (int d = 0; d < dim; d++)
      for (int u = 0; u < UNROLL; u++)
        sum[u] += rows[(j + u) * dim + d] * *(const vec *)(columns + d * W);
    for (int u = 0; u < UNROLL; u++) *(vec *)(out + (j + u) * W) = sum[u];
  }
}

/* out[d] = sum over j < n of rows[j][d] * weights[j] */
static inline void mix_rows(const float *rows, const float *weights, float *out, int n, int dim) {
  for (int d = 0; d < dim; d += W) {
    vec sum[W] = {{0}};
    for (int j = 0; j < n; j++)
      for (int u = 0; u < W; u++)
        sum[u] += rows[j * dim + d + u] * *(const vec *)(weights + j * W);
    for (int u = 0; u < W; u++) *(vec *)(out + (d + u) * W) = sum[u];
  }
}

/* out[j] += sum over the W queries i of weights[j][i] * rows[i], for j < n */
static inline void add_products(const float *weights, const float *rows, float *out, int n,
                                int dim) {
  for (int d = 0; d < dim; d += W)
    for (int j = 0; j < n; j += UNROLL) {
      vec sum[UNROLL];
      for (int u = 0; u < UNROLL; u++) sum[u] = *(vec *)(out + (j + u) * dim + d);
      for (int i = 0; i < W; i++)
        for (int u = 0; u < UNROLL; u++)
          sum[u] += weights[(j + u) * W + i] * *(const vec *)(rows + i * dim + d);
      for (int u = 0; u < UNROLL; u++) *(vec *)(out + (j + u) * dim + d) = sum[u];
    }
}

static inline void transpose(const float *rows, float *columns, int dim) {
  for (int i = 0; i < W; i++)
    for (int d = 0; d < dim; d++) columns[d * W + i] = rows[i * dim + d];
}

/* Entries whose key comes after their query become `value`; `start` is the block's first query. */
static inline void mask_future(float *numbers, int start, float value) {
  for (int j = 1; j < W; j++)
    for (int i = 0; i < j; i++) numbers[(start + j) * W + i] = value;
}

/* The block's outputs, (dim, W), and the logarithms of its sums of exponentials. */
static inline __attribute__((always_inline)) void attend(
    const float *q, const float *k, const float *v, float *columns, float *scores, float *out,
    float *lse, int start, int dim) {
  int n = start + W;
  transpose(q + start * dim, columns, dim);
  products(k, columns, scores, n, dim);
  mask_future(scores, start, -INFINITY);
  vec top = *(vec *)scores, sum = {0};
  for (int j = 1; j < n; j++)
    top = max_vec(top, *(vec *)(scores + j * W));
  for (int j = 0; j < n; j++) {
    vec e = exp_vec(*(vec *)(scores + j * W) - top);
    sum += e;
    *(vec *)(scores + j * W) = e;
  }
  mix_rows(v, scores, out, n, dim);
  for (int d = 0; d < dim; d++) *(vec *)(out + d * W) /= sum;
  for (int i = 0; i < W; i++) lse[start + i] = top[i] + logf(sum[i]);
}

/* The gradient of the block's queries, (dim, W); adds the block's part to those of k and v. */
static inline __attribute__((always_inline)) void attend_backward(
    const float *q, const float *k, const float *v, const float *dout, const float *lse,
    float *columns, float *scores, float *dscores, float *dq, float *dk, float *dv, int start,
    int dim) {
  int n = start + W;
  transpose(q + start * dim, columns, dim);
  products(k, columns, scores, n, dim);
  transpose(dout + start * dim, columns, dim);
  products(v, columns, dscores, n, dim);
  vec dot = {0}, log_sum = *(const vec *)(lse + start);
  for (int j = 0; j < n; j++)
    *(vec *)(scores + j * W) = exp_vec(*(vec *)(scores + j * W) - log_sum);
  mask_future(scores, start, 0.0f); /* exp_vec(-inf): 1e-38, its products subnormal and slow */
  for (int j = 0; j < n; j++)
    dot += *(vec *)(scores + j * W) * *(vec *)(dscores + j * W);
  for (int j = 0; j < n; j++) {
    vec *ds = (vec *)(dscores + j * W);
    *ds = *(vec *)(scores + j * W) * (*ds - dot);
  }
  add_products(scores, dout + start * dim, dv, n, dim);
  add_products(dscores, q + start * dim, dk, n, dim);
  mix_rows(k, dscores, dq, n, dim);
}

#define DEFINE(T, SUFFIX, LOAD, STORE)                                                             \
                                                                                                   \
  /* the first n elements, at most W, of an array, followed by zeros */                            \
  static inline vec load_some_##SUFFIX(const T *p, i64 n) {                                        \
    if (n >= W) return load_vec_##SUFFIX(p);                                                       \
    T padded[W] = {0};                                                                             \
    memcpy(padded, p, n * sizeof(T));                                                              \
    return load_vec_##SUFFIX(padded);                                                              \
  }                                                                                                \
  static inline void store_some_##SUFFIX(T *p, vec x, i64 n) {                                     \
    if (n >= W) return store_vec_##SUFFIX(p, x);                                                   \
    T padded[W];                                                                                   \
    store_vec_##SUFFIX(padded, x);                                                                 \
    memcpy(p, padded, n * sizeof(T));                                                              \
  }                                                                                                \
                                                                                                   \
  /* y = gelu(x + bias), (n, d), or gelu(x) if bias is null */                                     \
  void gelu_##SUFFIX(const T *x, const T *bias, T *y, i64 n, i64 d) {                              \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++)                       \
      for (i64 i = 0; i < d; i += W) {                                                             \
        vec v = load_some_##SUFFIX(x + r * d + i, d - i);                                          \
        if (bias) v += load_some_##SUFFIX(bias + i, d - i);                                        \
        store_some_##SUFFIX(y + r * d + i, gelu(v), d - i);                                        \
      }                                                                                            \
  }                                                                                                \
                                                                                                   \
  /* gradients of gelu; dbias (blocks, d), if not null: a partial sum per block of rows */         \
  void gelu_backward_##SUFFIX(const T *x, const T *bias, const T *dy, T *dx, float *dbias, i64 n,  \
                            i64 d, i64 blocks) {                                                   \
    _Pragma("omp parallel for schedule(static)") for (i64 block = 0; block < blocks; block++) {    \
      float *db = dbias + block * d;                                                               \
      if (dbias) memset(db, 0, d * sizeof(float));                                                 \
      for (i64 r = n * block / blocks; r < n * (block + 1) / blocks; r++)                          \
        for (i64 i = 0; i < d; i += W) {                                                           \
          vec v = load_some_##SUFFIX(x + r * d + i, d - i);                                        \
          if (bias) v += load_some_##SUFFIX(bias + i, d - i);                                      \
          vec g = load_some_##SUFFIX(dy + r * d + i, d - i) * gelu_slope(v);                       \
          store_some_##SUFFIX(dx + r * d + i, g, d - i);                                           \
          if (dbias) store_some_f32(db + i, load_some_f32(db + i, d - i) + g, d - i);              \
        }                                                                                          \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* rows of one head, `stride` apart -> (seq, padded) floats, rotated if half > 0, times scale */ \
  static void load_rows_##SUFFIX(const T *from, i64 stride, float *to, const float *cos,           \
                               const float *sin, i64 seq, i64 dim, i64 padded, i64 half,           \
                               float scale) {                                                      \
    for (i64 t = 0; t < seq; t++, from += stride, to += padded, cos += half, sin += half) {        \
      for (i64 i = 0; i < dim; i++) to[i] = LOAD(from[i]) * scale;                                 \
      for (i64 i = 0; i < half; i++) {                                                             \
        float p = to[i], q = to[half + i];                                                         \
        to[i] = p * cos[i] - q * sin[i];                                                           \
        to[half + i] = q * cos[i] + p * sin[i];                                                    \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* the inverse of load_rows; overwrites `from` */                                                \
  static void store_rows_##SUFFIX(float *from, T *to, i64 stride, const float *cos,                \
                                const float *sin, i64 seq, i64 dim, i64 padded, i64 half) {        \
    for (i64 t = 0; t < seq; t++, from += padded, to += stride, cos += half, sin += half) {        \
      for (i64 i = 0; i < half; i++) {                                                             \
        float p = from[i], q = from[half + i];                                                     \
        from[i] = p * cos[i] + q * sin[i];                                                         \
        from[half + i] = q * cos[i] - p * sin[i];                                                  \
      }                                                                                            \
      for (i64 i = 0; i < dim; i++) to[i] = STORE(from[i]);                                        \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* qkv (batch, seq, heads, 3, dim) -> out (batch, seq, heads, dim), lse (batch, heads, rows),    \
     where rows is seq rounded up to a multiple of W */                                            \
  void attention_##SUFFIX(const T *qkv, const float *cos, const float *sin, T *out, float *lse,    \
                        i64 batch, i64 seq, i64 heads, i64 dim, i64 half) {                        \
    i64 rows = (seq + W - 1) / W * W, padded = (dim + W - 1) / W * W, size = rows * padded;        \
    i64 stride = heads * 3 * dim;                                                                  \
    i64 bytes = (3 * size + rows * W + 2 * padded * W) * sizeof(float);                            \
    _Pragma("omp parallel") {                                                                      \
      float *q = aligned_alloc(64, bytes), *k = q + size, *v = k + size, *scores = v + size;       \
      float *columns = scores + rows * W, *result = columns + padded * W;                          \
      memset(q, 0, bytes);                                                                         \
      _Pragma("omp for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)              \
        for (i64 h = 0; h < heads; h++) {                                                          \
          const T *from = qkv + (b * seq * heads + h) * 3 * dim;                                   \
          float scale = 1.0f / sqrtf(dim), *sums = lse + (b * heads + h) * rows;                   \
          load_rows_##SUFFIX(from, stride, q, cos, sin, seq, dim, padded, half, scale);            \
          load_rows_##SUFFIX(from + dim, stride, k, cos, sin, seq, dim, padded, half, 1.0f);       \
          load_rows_##SUFFIX(from + 2 * dim, stride, v, cos, sin, seq, dim, padded, 0, 1.0f);      \
          for (i64 start = 0; start < rows; start += W) {                                          \
            if (padded == W) attend(q, k, v, columns, scores, result, sums, start, W);             \
            else attend(q, k, v, columns, scores, result, sums, start, padded);                    \
            for (i64 i = 0; i < W && start + i < seq; i++) {                                       \
              T *to = out + ((b * seq + start + i) * heads + h) * dim;                             \
              for (i64 d = 0; d < dim; d++) to[d] = STORE(result[d * W + i]);                      \
            }                                                                                      \
          }                                                                                        \
        }                                                                                          \
      free(q);                                                                                     \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* the gradient of qkv from that of the result of attention */                                   \
  void attention_backward_##SUFFIX(const T *qkv, const float *cos, const float *sin,               \
                                 const T *dout, const float *lse, T *dqkv, i64 batch, i64 seq,     \
                                 i64 heads, i64 dim, i64 half) {                                   \
    i64 rows = (seq + W - 1) / W * W, padded = (dim + W - 1) / W * W, size = rows * padded;        \
    i64 stride = heads * 3 * dim;                                                                  \
    i64 bytes = (7 * size + 2 * rows * W + 2 * padded * W) * sizeof(float);                        \
    _Pragma("omp parallel") {                                                                      \
      float *q = aligned_alloc(64, bytes), *k = q + size, *v = k + size, *g = v + size;            \
      float *dq = g + size, *dk = dq + size, *dv = dk + size, *scores = dv + size;                 \
      float *dscores = scores + rows * W, *columns = dscores + rows * W;                           \
      float *result = columns + padded * W;                                                        \
      memset(q, 0, bytes);                                                                         \
      _Pragma("omp for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)              \
        for (i64 h = 0; h < heads; h++) {                                                          \
          i64 at = (b * seq * heads + h) * 3 * dim;                                                \
          const T *from = qkv + at, *grad = dout + (b * seq * heads + h) * dim;                    \
          T *to = dqkv + at;                                                                       \
          float scale = 1.0f / sqrtf(dim);                                                         \
          const float *sums = lse + (b * heads + h) * rows;                                        \
          load_rows_##SUFFIX(from, stride, q, cos, sin, seq, dim, padded, half, scale);            \
          load_rows_##SUFFIX(from + dim, stride, k, cos, sin, seq, dim, padded, half, 1.0f);       \
          load_rows_##SUFFIX(from + 2 * dim, stride, v, cos, sin, seq, dim, padded, 0, 1.0f);      \
          load_rows_##SUFFIX(grad, heads * dim, g, cos, sin, seq, dim, padded, 0, 1.0f);           \
          memset(dk, 0, 2 * size * sizeof(float));                                                 \
          for (i64 start = 0; start < rows; start += W) {                                          \
            if (padded == W)                                                                       \
              attend_backward(q, k, v, g, sums, columns, scores, dscores, result, dk, dv, start,   \
                              W);                                                                  \
            else                                                                                   \
              attend_backward(q, k, v, g, sums, columns, scores, dscores, result, dk, dv, start,   \
                              padded);                                                             \
            for (i64 i = 0; i < W; i++)                                                            \
              for (i64 d = 0; d < padded; d++)                                                     \
                dq[(start + i) * padded + d] = result[d * W + i] * scale;                          \
          }                                                                                        \
          store_rows_##SUFFIX(dq, to, stride, cos, sin, seq, dim, padded, half);                   \
          store_rows_##SUFFIX(dk, to + dim, stride, cos, sin, seq, dim, padded, half);             \
          store_rows_##SUFFIX(dv, to + 2 * dim, stride, cos, sin, seq, dim, padded, 0);            \
        }                                                                                          \
      free(q);                                                                                     \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* logits (n, vocab) -> e^(logit - largest of the row) in place, but 0 at the target; losses (n) \
     in nats; inverse (n): 1 / the row's sum; error (n): the target's probability - 1;             \
     scaled (n, d): rows of hidden times inverse */                                                \
  void cross_entropy_##SUFFIX(T *logits, const i64 *target, const T *hidden, float *losses,        \
                            float *inverse, float *error, T *scaled, i64 n, i64 vocab, i64 d) {    \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++) {                     \
      T *row = logits + r * vocab;                                                                 \
      float top = -INFINITY, at_target = LOAD(row[target[r]]);                                     \
      _Pragma("omp simd reduction(max : top)") for (i64 i = 0; i < vocab; i++) {                   \
        float v = LOAD(row[i]);                                                                    \
        top = v > top ? v : top;                                                                   \
      }                                                                                            \
      vec sums = {0};                                                                              \
      i64 whole = vocab / W * W;                                                                   \
      for (i64 i = 0; i < whole; i += W) {                                                         \
        vec e = exp_vec(load_vec_##SUFFIX(row + i) - top);                                         \
        sums += e;                                                                                 \
        store_vec_##SUFFIX(row + i, e);                                                            \
      }                                                                                            \
      float sum = sum_vec(sums);                                                                   \
      for (i64 i = whole; i < vocab; i++) {                                                        \
        float e = exp_fast(LOAD(row[i]) - top);                                                    \
        sum += e;                                                                                  \
        row[i] = STORE(e);                                                                         \
      }                                                                                            \
      row[target[r]] = STORE(0.0f);                                                                \
      losses[r] = logf(sum) + top - at_target;                                                     \
      inverse[r] = 1.0f / sum;                                                                     \
      error[r] = exp_fast(at_target - top) / sum - 1.0f;                                           \
      _Pragma("omp simd") for (i64 i = 0; i < d; i++)                                              \
        scaled[r * d + i] = STORE(LOAD(hidden[r * d + i]) * inverse[r]);                           \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* total += x */                                                                                 \
  void add_##SUFFIX(float *total, const T *x, i64 n) {                                             \
    _Pragma("omp parallel for simd schedule(static)") for (i64 i = 0; i < n; i++)                  \
      total[i] += LOAD(x[i]);                                                                      \
  }                                                                                                \
                                                                                                   \
  /* What cross_entropy left out of the gradients: dhidden (n, d) is multiplied by inverse, and the\
     targets' terms are added to it and to dweight (vocab, d) */                                   \
  void cross_entropy_targets_##SUFFIX(const T *hidden, const T *weight, const i64 *target,         \
                                    const float *inverse, const float *error, T *dhidden,          \
                                    float *dweight, i64 n, i64 d) {                                \
    for (i64 r = 0; r < n; r++) {                                                                  \
      const T *h = hidden + r * d, *w = weight + target[r] * d;                                    \
      T *dh = dhidden + r * d;                                                                     \
      float *dw = dweight + target[r] * d;                                                         \
      for (i64 i = 0; i < d; i++) {                                                                \
        dh[i] = STORE(fmaf(LOAD(dh[i]), inverse[r], error[r] * LOAD(w[i])));                       \
        dw[i] = fmaf(error[r], LOAD(h[i]), dw[i]);                                                 \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* LayerNorm of x (n, d) float -> y (n, d); stores mean and 1/std */                             \
  void layer_norm_##SUFFIX(const float *x, const float *weight, const float *bias, T *y,           \
                           float *mean, float *rstd, float eps, i64 n, i64 d) {                    \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++) {                     \
      const float *row = x + r * d;                                                                \
      float sum = 0.0f, square = 0.0f;                                                             \
      _Pragma("omp simd reduction(+ : sum)") for (i64 i = 0; i < d; i++) sum += row[i];            \
      float m = sum / d;                                                                           \
      _Pragma("omp simd reduction(+ : square)") for (i64 i = 0; i < d; i++)                        \
        square += (row[i] - m) * (row[i] - m);                                                     \
      float s = 1.0f / sqrtf(square / d + eps);                                                    \
      _Pragma("omp simd") for (i64 i = 0; i < d; i++)                                              \
        y[r * d + i] = STORE(fmaf((row[i] - m) * s, weight[i], bias[i]));                          \
      mean[r] = m, rstd[r] = s;                                                                    \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* gradients of layer_norm; dweight and dbias (blocks, d): a partial sum per block of rows */    \
  void layer_norm_backward_##SUFFIX(const float *x, const T *dy, const float *weight,              \
                                    const float *mean, const float *rstd, float *dx,               \
                                    float *dweight, float *dbias, i64 n, i64 d, i64 blocks) {      \
    _Pragma("omp parallel for schedule(static)") for (i64 block = 0; block < blocks; block++) {    \
      float *dw = dweight + block * d, *db = dbias + block * d;                                    \
      memset(dw, 0, d * sizeof(float)), memset(db, 0, d * sizeof(float));                          \
      for (i64 r = n * block / blocks; r < n * (block + 1) / blocks; r++) {                        \
        const float *row = x + r * d;                                                              \
        float m = mean[r], s = rstd[r], sum = 0.0f, dot = 0.0f;                                    \
        _Pragma("omp simd reduction(+ : sum, dot)") for (i64 i = 0; i < d; i++) {                  \
          float g = LOAD(dy[r * d + i]), hat = (row[i] - m) * s, gw = g * weight[i];               \
          dw[i] += g * hat;                                                                        \
          db[i] += g;                                                                              \
          sum += gw;                                                                               \
          dot += gw * hat;                                                                         \
        }                                                                                          \
        sum /= d, dot /= d;                                                                        \
        _Pragma("omp simd") for (i64 i = 0; i < d; i++) {                                          \
          float gw = LOAD(dy[r * d + i]) * weight[i];                                              \
          dx[r * d + i] = s * (gw - sum - (row[i] - m) * s * dot);                                 \
        }                                                                                          \
      }                                                                                            \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* z = x + (branch1 + branch2), or x itself without branches; two LayerNorms of z */             \
  void layer_norm_pair_##SUFFIX(const float *x, const T *branch1, const T *branch2,                \
                              const float *weight1, const float *bias1, const float *weight2,      \
                              const float *bias2, float *z, T *y1, T *y2, float *mean,             \
                              float *rstd, float eps, i64 n, i64 d) {                              \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++) {                     \
      const float *row = x + r * d;                                                                \
      float sum = 0.0f, square = 0.0f;                                                             \
      if (branch1) {                                                                               \
        float *out = z + r * d;                                                                    \
        _Pragma("omp simd") for (i64 i = 0; i < d; i++)                                            \
          out[i] = row[i] + (LOAD(branch1[r * d + i]) + LOAD(branch2[r * d + i]));                 \
        row = out;                                                                                 \
      }                                                                                            \
      _Pragma("omp simd reduction(+ : sum)") for (i64 i = 0; i < d; i++) sum += row[i];            \
      float m = sum / d;                                                                           \
      _Pragma("omp simd reduction(+ : square)") for (i64 i = 0; i < d; i++)                        \
        square += (row[i] - m) * (row[i] - m);                                                     \
      float s = 1.0f / sqrtf(square / d + eps);                                                    \
      _Pragma("omp simd") for (i64 i = 0; i < d; i++) {                                            \
        float hat = (row[i] - m) * s;                                                              \
        y1[r * d + i] = STORE(fmaf(hat, weight1[i], bias1[i]));                                    \
        y2[r * d + i] = STORE(fmaf(hat, weight2[i], bias2[i]));                                    \
      }                                                                                            \
      mean[r] = m, rstd[r] = s;                                                                    \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* gradients of layer_norm_pair: dx (n, d), also rounded to dbranch, and sums (blocks, 4, d) of  \
     weight1, bias1, weight2, bias2; dz is the gradient of z, or null */                           \
  void layer_norm_pair_backward_##SUFFIX(const float *z, const float *dz, const T *dy1,            \
                                       const T *dy2, const float *weight1,                         \
                                       const float *weight2, const float *mean,                    \
                                       const float *rstd, float *dx, T *dbranch, float *sums,      \
                                       i64 n, i64 d, i64 blocks) {                                 \
    _Pragma("omp parallel for schedule(static)") for (i64 block = 0; block < blocks; block++) {    \
      float *dw1 = sums + block * 4 * d, *db1 = dw1 + d, *dw2 = db1 + d, *db2 = dw2 + d;           \
      memset(dw1, 0, 4 * d * sizeof(float));                                                       \
      for (i64 r = n * block / blocks; r < n * (block + 1) / blocks; r++) {                        \
        const float *row = z + r * d;                                                              \
        float m = mean[r], s = rstd[r], sum = 0.0f, dot = 0.0f;                                    \
        _Pragma("omp simd reduction(+ : sum, dot)") for (i64 i = 0; i < d; i++) {                  \
          float g1 = LOAD(dy1[r * d + i]), g2 = LOAD(dy2[r * d + i]), hat = (row[i] - m) * s;      \
          float gw = fmaf(g1, weight1[i], g2 * weight2[i]);                                        \
          dw1[i] += g1 * hat, db1[i] += g1;                                                        \
          dw2[i] += g2 * hat, db2[i] += g2;                                                        \
          sum += gw;                                                                               \
          dot += gw * hat;                                                                         \
        }                                                                                          \
        sum /= d, dot /= d;                                                                        \
        _Pragma("omp simd") for (i64 i = 0; i < d; i++) {                                          \
          float g1 = LOAD(dy1[r * d + i]), g2 = LOAD(dy2[r * d + i]), hat = (row[i] - m) * s;      \
          float gw = fmaf(g1, weight1[i], g2 * weight2[i]), g = s * (gw - sum - hat * dot);        \
          dx[r * d + i] = g + (dz ? dz[r * d + i] : 0.0f);                                         \
          if (dbranch) dbranch[r * d + i] = STORE(dx[r * d + i]);                                  \
        }                                                                                          \
      }                                                                                            \
    }                                                                                              \
  }

/* --- evaluation, in float only ----------------------------------------------------------------- */

/* hidden (n, d), weight (vocab, d) -> log of the sum of exponentials, and largest, of the logits of
 * each row. Logits are not stored: a tile of weights stays in cache while it meets a group of rows,
 * of which W lie in the lanes of a vector. */
#define TILE 64 /* rows of weight; a multiple of UNROLL */
#define GROUP 8 /* blocks of W rows of hidden */
void log_sum_exp_f32(const float *hidden, const float *weight, float *result, float *largest,
                     i64 n, i64 vocab, i64 d) {
  _Pragma("omp parallel") {
    float *columns = aligned_alloc(64, (GROUP * W + TILE) * d * sizeof(float));
    float *padded = columns + GROUP * W * d;
    _Pragma("omp for schedule(static)") for (i64 start = 0; start < n; start += GROUP * W) {
      i64 left = (n - start + W - 1) / W, blocks = left < GROUP ? left : GROUP;
      vec tops[GROUP], sums[GROUP];
      for (i64 b = 0; b < blocks; b++) {
        tops[b] = splat(-INFINITY), sums[b] = splat(0);
        for (i64 i = 0; i < W; i++) { /* unused lanes repeat the last row */
          i64 row = start + b * W + i < n ? start + b * W + i : n - 1;
          for (i64 c = 0; c < d; c++) columns[(b * d + c) * W + i] = hidden[row * d + c];
        }
      }
      for (i64 first = 0; first < vocab; first += TILE) {
        const float *tile = weight + first * d;
        i64 size = vocab - first < TILE ? vocab - first : TILE;
        if (size < TILE) { /* products reads whole tiles */
          memset(padded, 0, TILE * d * sizeof(float));
          tile = memcpy(padded, tile, size * d * sizeof(float));
        }
        for (i64 b = 0; b < blocks; b++) {
          vec logits[TILE], top = tops[b], sum = {0};
          products(tile, columns + b * W * d, (float *)logits, TILE, d);
          for (i64 j = 0; j < size; j++) top = max_vec(top, logits[j]);
          for (i64 j = 0; j < size; j++) sum += exp_vec(logits[j] - top);
          sums[b] = sums[b] * exp_vec(tops[b] - top) + sum;
          tops[b] = top;
        }
      }
      for (i64 i = start; i < n && i < start + blocks * W; i++) {
        float sum = sums[(i - start) / W][i % W], top = tops[(i - start) / W][i % W];
        largest[i] = isnan(sum) ? sum : top; /* max_vec forgets a NaN, the sum does not */
        result[i] = logf(sum) + top;
      }
    }
    free(columns);
  }
}

/* The logits of targets[p] in row index[p] of hidden, for p < n. They come from `products`, as in
 * log_sum_exp, so that they equal its largest logit to the bit. Of the products only the diagonal
 * is used, which is cheap beside the whole vocabulary. */
void target_logits_f32(const float *hidden, const float *weight, const i64 *index,
                       const i64 *targets, float *result, i64 n, i64 d) {
  _Pragma("omp parallel") {
    float *rows = aligned_alloc(64, 2 * W * d * sizeof(float)), *columns = rows + W * d;
    memset(rows, 0, 2 * W * d * sizeof(float));
    _Pragma("omp for schedule(static)") for (i64 start = 0; start < n; start += W) {
      i64 some = n - start < W ? n - start : W;
      float logits[W * W];
      for (i64 i = 0; i < some; i++) {
        const float *state = hidden + index[start + i] * d;
        memcpy(rows + i * d, weight + targets[start + i] * d, d * sizeof(float));
        for (i64 c = 0; c < d; c++) columns[c * W + i] = state[c];
      }
      products(rows, columns, logits, W, d);
      for (i64 i = 0; i < some; i++) result[start + i] = logits[i * W + i];
    }
    free(rows);
  }
}

/* Copy the query or key of a token, and rotate the copy. */
static inline void rotate(const float *from, float *to, const float *cos, const float *sin,
                          i64 dim, i64 half) {
  memcpy(to, from, dim * sizeof(float));
  for (i64 i = 0; i < half; i++) {
    to[i] = from[i] * cos[i] - from[half + i] * sin[i];
    to[half + i] = from[half + i] * cos[i] + from[i] * sin[i];
  }
}

/* qkv (batch, seq, heads, 3, dim), not yet rotated -> attention (batch, seq, heads, dim). The query
 * of token t reads the keys of the tokens j <= t < ends[j]. Every row has its own tables cos and sin
 * (batch, seq, half) and ends (batch, seq).
 * The 16 lanes of a vector are 16 queries, which read the keys and values of a head from cache. */
void tree_attention_f32(const float *qkv, float *out, const float *all_cos, const float *all_sin,
                        const i64 *all_ends, i64 batch, i64 seq, i64 heads, i64 dim, i64 half) {
  float scale = 1 / sqrtf(dim);
  i64 stride = heads * 3 * dim, columns = (dim + 3) & ~3;
  _Pragma("omp parallel for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)
    for (i64 h = 0; h < heads; h++) {
      float keys[seq + 3][dim], values[seq][columns], row[dim];
      vec q[dim], e[seq + 3], o[columns];
      const float *head = qkv + b * seq * stride + h * 3 * dim;
      const float *cos = all_cos + b * seq * half, *sin = all_sin + b * seq * half;
      const i64 *ends = all_ends + b * seq;
      memset(keys[seq], 0, 3 * dim * sizeof(float));
      memset(values, 0, seq * columns * sizeof(float));
      for (i64 t = 0; t < seq; t++) {
        rotate(head + t * stride + dim, keys[t], cos + t * half, sin + t * half, dim, half);
        memcpy(values[t], head + t * stride + 2 * dim, dim * sizeof(float));
      }
      /* only the first queries, which have the fewest keys, may leave lanes unused */
      for (i64 first = 0, stop = (seq - 1) % 16 + 1; first < seq; first = stop, stop += 16) {
        for (i64 l = 0; l < 16; l++) { /* unused lanes repeat the last query */
          i64 t = first + l < stop ? first + l : stop - 1;
          rotate(head + t * stride, row, cos + t * half, sin + t * half, dim, half);
          for (i64 i = 0; i < dim; i++) ((float *)&q[i])[l] = scale * row[i];
        }
        for (i64 j = 0; j < stop; j += 4) {
          vec dots[4] = {{0}};
          for (i64 i = 0; i < dim; i++)
            for (int r = 0; r < 4; r++) dots[r] += q[i] * keys[j + r][i];
          for (int r = 0; r < 4; r++) e[j + r] = dots[r];
        }
        for (i64 j = 0; j < stop; j++)
          if (j > first || ends[j] < stop)
            for (i64 l = 0; l < 16; l++)
              if (first + l < j || first + l >= ends[j]) ((float *)&e[j])[l] = -INFINITY;
        vec top = e[0], sum = {0};
        for (i64 j = 1; j < stop; j++) top = max_vec(e[j], top);
        for (i64 j = 0; j < stop; j++) sum += e[j] = exp_vec(e[j] - top);
        for (i64 c = 0; c < columns; c += 4) {
          vec sums[4] = {{0}};
          for (i64 j = 0; j < stop; j++)
            for (int r = 0; r < 4; r++) sums[r] += e[j] * values[j][c + r];
          for (int r = 0; r < 4; r++) o[c + r] = sums[r] / sum;
        }
        for (i64 t = first; t < stop; t++)
          for (i64 i = 0; i < dim; i++)
            out[((b * seq + t) * heads + h) * dim + i] = ((float *)&o[i])[t - first];
      }
    }
}

DEFINE(float, f32, load_f32, store_f32)
DEFINE(bf16, bf16, load_bf16, store_bf16)
