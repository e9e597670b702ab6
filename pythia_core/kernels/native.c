/* Element-wise passes of a training step on a CPU, one pass over memory each.
 *
 * Compiled on first use by pythia_core/kernels/native.py with the system's C compiler, cached, and
 * called through ctypes; without a compiler the callers run torch code instead. Matrix
 * products stay in torch. Every function exists for float and for bfloat16 (stored as uint16_t).
 * Rows are split statically over OpenMP threads and each row is reduced by one thread, so results
 * do not change from call to call. Statistics and sums are fp32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

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

/* e^x to about 1 ulp for x in [-87, 88], constant outside: 2^n times a polynomial in x - n ln 2. */
static inline float exp_fast(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  float n = rintf(x * 1.44269504f);
  float r = fmaf(n, -0.693145752f, x); /* ln 2 in two parts */
  r = fmaf(n, -1.42860677e-6f, r);
  float p = 1.98756915e-4f;
  p = fmaf(p, r, 1.39819994e-3f);
  p = fmaf(p, r, 8.33345205e-3f);
  p = fmaf(p, r, 4.16657962e-2f);
  p = fmaf(p, r, 1.66666657e-1f);
  p = fmaf(p, r, 5.00000000e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  return p * bits_float((uint32_t)((int32_t)n + 127) << 23);
}

/* Length of the unmasked part of a row, rounded up so that loops have no scalar remainder. */
static inline int whole_vectors(int length, int seq) {
  int width = (length + 15) & ~15;
  return width < seq ? width : seq;
}

/* x/2 (1 + tanh(0.79788456 x (1 + 0.044715 x^2))) = x sigmoid(2 * that argument) */
#define GELU_A 1.59576912f
#define GELU_B 0.0713548162f

#define DEFINE(T, SUFFIX, LOAD, STORE)                                                             \
                                                                                                   \
  void gelu_forward_##SUFFIX(const T *x, T *y, i64 n) {                                            \
    _Pragma("omp parallel for simd schedule(static)") for (i64 i = 0; i < n; i++) {                \
      float v = LOAD(x[i]), u = v * fmaf(GELU_B * v, v, GELU_A);                                   \
      y[i] = STORE(v / (1.0f + exp_fast(-u)));                                                     \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  void gelu_backward_##SUFFIX(const T *x, const T *dy, T *dx, i64 n) {                             \
    _Pragma("omp parallel for simd schedule(static)") for (i64 i = 0; i < n; i++) {                \
      float v = LOAD(x[i]), u = v * fmaf(GELU_B * v, v, GELU_A);                                   \
      float s = 1.0f / (1.0f + exp_fast(-u)), du = fmaf(3.0f * GELU_B * v, v, GELU_A);             \
      dx[i] = STORE(LOAD(dy[i]) * fmaf(v * s * (1.0f - s), du, s));                                \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* qkv (batch, seq, heads, 3, dim) -> packed (3, batch, heads, seq, dim), q and k rotated */     \
  void pack_rotated_##SUFFIX(const T *qkv, T *packed, const float *cos, const float *sin,          \
                             i64 batch, i64 seq, i64 heads, i64 dim, i64 half) {                   \
    _Pragma("omp parallel for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)       \
      for (i64 h = 0; h < heads; h++)                                                              \
        for (i64 part = 0; part < 3; part++)                                                       \
          for (i64 t = 0; t < seq; t++) {                                                          \
            const T *from = qkv + (((b * seq + t) * heads + h) * 3 + part) * dim;                  \
            T *to = packed + (((part * batch + b) * heads + h) * seq + t) * dim;                   \
            memcpy(to, from, dim * sizeof(T));                                                     \
            if (part == 2) continue;                                                               \
            for (i64 i = 0; i < half; i++) {                                                       \
              float c = cos[t * half + i], s = sin[t * half + i];                                  \
              float p = LOAD(from[i]), q = LOAD(from[half + i]);                                   \
              to[i] = STORE(p * c - q * s);                                                        \
              to[half + i] = STORE(q * c + p * s);                                                 \
            }                                                                                      \
          }                                                                                        \
  }                                                                                                \
                                                                                                   \
  /* the gradient of pack_rotated: back to the packed layout of the product, rotated back */       \
  void unpack_rotated_##SUFFIX(const T *packed, T *qkv, const float *cos, const float *sin,        \
                               i64 batch, i64 seq, i64 heads, i64 dim, i64 half) {                 \
    _Pragma("omp parallel for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)       \
      for (i64 t = 0; t < seq; t++)                                                                \
        for (i64 h = 0; h < heads; h++)                                                            \
          for (i64 part = 0; part < 3; part++) {                                                   \
            T *to = qkv + (((b * seq + t) * heads + h) * 3 + part) * dim;                          \
            const T *from = packed + (((part * batch + b) * heads + h) * seq + t) * dim;           \
            memcpy(to, from, dim * sizeof(T));                                                     \
            if (part == 2) continue;                                                               \
            for (i64 i = 0; i < half; i++) {                                                       \
              float c = cos[t * half + i], s = sin[t * half + i];                                  \
              float p = LOAD(from[i]), q = LOAD(from[half + i]);                                   \
              to[i] = STORE(p * c + q * s);                                                        \
              to[half + i] = STORE(q * c - p * s);                                                 \
            }                                                                                      \
          }                                                                                        \
  }                                                                                                \
                                                                                                   \
  /* scores (n, seq, seq) -> causal softmax of scale * scores, in place; the future becomes 0 */   \
  void causal_softmax_##SUFFIX(T *scores, float scale, i64 n, i64 seq) {                           \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n * seq; r++) {               \
      T *row = scores + r * seq;                                                                   \
      int length = r % seq + 1, width = whole_vectors(length, seq);                                \
      float e[width], top = -INFINITY, sum = 0.0f;                                                 \
      _Pragma("omp simd reduction(max : top)") for (int i = 0; i < width; i++) {                   \
        e[i] = i < length ? LOAD(row[i]) * scale : -INFINITY;                                      \
        top = e[i] > top ? e[i] : top;                                                             \
      }                                                                                            \
      _Pragma("omp simd reduction(+ : sum)") for (int i = 0; i < width; i++) {                     \
        e[i] = i < length ? exp_fast(e[i] - top) : 0.0f;                                           \
        sum += e[i];                                                                               \
      }                                                                                            \
      float inverse = 1.0f / sum;                                                                  \
      _Pragma("omp simd") for (int i = 0; i < width; i++) row[i] = STORE(e[i] * inverse);          \
      memset(row + width, 0, (seq - width) * sizeof(T));                                           \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* grad = scale * p * (grad - sum(grad * p)) row by row, in place; p is 0 in the future */       \
  void causal_softmax_backward_##SUFFIX(const T *p, T *grad, float scale, i64 n, i64 seq) {        \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n * seq; r++) {               \
      const T *prob = p + r * seq;                                                                 \
      T *row = grad + r * seq;                                                                     \
      int width = whole_vectors(r % seq + 1, seq);                                                 \
      float dot = 0.0f;                                                                            \
      _Pragma("omp simd reduction(+ : dot)") for (int i = 0; i < width; i++)                       \
        dot += LOAD(prob[i]) * LOAD(row[i]);                                                       \
      _Pragma("omp simd") for (int i = 0; i < width; i++)                                          \
        row[i] = STORE(scale * LOAD(prob[i]) * (LOAD(row[i]) - dot));                              \
      memset(row + width, 0, (seq - width) * sizeof(T));                                           \
    }                                                                                              \
  }                                                                                                \
                                                                                                   \
  /* logits (n, vocab) -> softmax - onehot(target), in place; losses (n) in nats */                \
  void cross_entropy_##SUFFIX(T *logits, const i64 *target, float *losses, i64 n, i64 vocab) {     \
    _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++) {                     \
      T *row = logits + r * vocab;                                                                 \
      float top = -INFINITY, sum = 0.0f, at_target = LOAD(row[target[r]]);                         \
      _Pragma("omp simd reduction(max : top)") for (i64 i = 0; i < vocab; i++) {                   \
        float v = LOAD(row[i]);                                                                    \
        top = v > top ? v : top;                                                                   \
      }                                                                                            \
      _Pragma("omp simd reduction(+ : sum)") for (i64 i = 0; i < vocab; i++)                       \
        sum += exp_fast(LOAD(row[i]) - top);                                                       \
      float inverse = 1.0f / sum;                                                                  \
      losses[r] = logf(sum) + top - at_target;                                                     \
      float p_target = exp_fast(at_target - top) * inverse;                                        \
      _Pragma("omp simd") for (i64 i = 0; i < vocab; i++)                                          \
        row[i] = STORE(exp_fast(LOAD(row[i]) - top) * inverse);                                    \
      row[target[r]] = STORE(p_target - 1.0f);                                                     \
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
  }

/* Functions for evaluation, in float only, on vectors of 16 floats. */

typedef float vector __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t int_vector __attribute__((vector_size(64)));

/* a > b ? a : b, which is b if either is NaN */
static inline vector larger(vector a, vector b) {
  int_vector first = a > b;
  return (vector)(((int_vector)a & first) | ((int_vector)b & ~first));
}

/* exp_fast for x <= 88; adding 1.5 * 2^23 rounds to an integer, which is then in the low bits */
static inline vector exp_vector(vector x) {
  const float shift = 12582912.0f;
  x = larger((vector){0} - 87.0f, x);
  vector shifted = x * 1.44269504f + shift, n = shifted - shift;
  vector r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  vector p = r * 1.98756915e-4f + 1.39819994e-3f;
  p = p * r + 8.33345205e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666657e-1f;
  p = p * r + 5.00000000e-1f;
  p = p * (r * r) + r + 1.0f;
  return (vector)((int_vector)p + ((int_vector)shifted << 23));
}

/* logits (n, vocab) -> log of the sum of exponentials, and largest logit, of each row */
void log_sum_exp_f32(const float *logits, float *result, float *largest, i64 n, i64 vocab) {
  _Pragma("omp parallel for schedule(static)") for (i64 r = 0; r < n; r++) {
    const float *row = logits + r * vocab;
    i64 whole = vocab & ~31;
    vector tops[2] = {(vector){0} - INFINITY, (vector){0} - INFINITY}, sums[2] = {{0}};
    for (i64 i = 0; i < whole; i += 32)
      for (int j = 0; j < 2; j++) tops[j] = larger(*(vector *)(row + i + 16 * j), tops[j]);
    tops[0] = larger(tops[0], tops[1]);
    float top = -INFINITY, sum = 0.0f;
    for (int l = 0; l < 16; l++) top = tops[0][l] > top ? tops[0][l] : top;
    for (i64 i = whole; i < vocab; i++) top = row[i] > top ? row[i] : top;
    for (i64 i = 0; i < whole; i += 32)
      for (int j = 0; j < 2; j++) sums[j] += exp_vector(*(vector *)(row + i + 16 * j) - top);
    sums[0] += sums[1];
    for (int l = 0; l < 16; l++) sum += sums[0][l];
    for (i64 i = whole; i < vocab; i++) sum += exp_fast(row[i] - top);
    result[r] = logf(sum) + top;
    largest[r] = top;
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
 * of token t reads the keys of the tokens j <= t < ends[j]. The tables cos and sin (seq, half) and
 * ends (seq) are shared by all rows if `own` is 0; if it is 1, every row has its own.
 * The 16 lanes of a vector are 16 queries, which read the keys and values of a head from cache. */
void tree_attention_f32(const float *qkv, float *out, const float *all_cos, const float *all_sin,
                        const i64 *all_ends, float scale, i64 own, i64 batch, i64 seq, i64 heads,
                        i64 dim, i64 half) {
  i64 stride = heads * 3 * dim, columns = (dim + 3) & ~3;
  _Pragma("omp parallel for collapse(2) schedule(static)") for (i64 b = 0; b < batch; b++)
    for (i64 h = 0; h < heads; h++) {
      float keys[seq + 3][dim], values[seq][columns], row[dim];
      vector q[dim], e[seq + 3], o[columns];
      const float *head = qkv + b * seq * stride + h * 3 * dim;
      const float *cos = all_cos + own * b * seq * half, *sin = all_sin + own * b * seq * half;
      const i64 *ends = all_ends + own * b * seq;
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
          vector dots[4] = {{0}};
          for (i64 i = 0; i < dim; i++)
            for (int r = 0; r < 4; r++) dots[r] += q[i] * keys[j + r][i];
          for (int r = 0; r < 4; r++) e[j + r] = dots[r];
        }
        for (i64 j = 0; j < stop; j++)
          if (j > first || ends[j] < stop)
            for (i64 l = 0; l < 16; l++)
              if (first + l < j || first + l >= ends[j]) ((float *)&e[j])[l] = -INFINITY;
        vector top = e[0], sum = {0};
        for (i64 j = 1; j < stop; j++) top = larger(e[j], top);
        for (i64 j = 0; j < stop; j++) sum += e[j] = exp_vector(e[j] - top);
        for (i64 c = 0; c < columns; c += 4) {
          vector sums[4] = {{0}};
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
