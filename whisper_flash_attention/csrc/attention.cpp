// Exact attention of many queries over many keys, compiled once per level with that level's flags.
//
// Queries lie along the vectors: each number of a key or a value is multiplied with those of N vectors of queries, so that
// nothing is summed up across a vector. A block of keys and values is copied, as float32, for several groups of queries
// to meet. Their weights are made relative to the largest score so far (Milakov and Gimelshein, 2018), as in
// FlashAttention. Every sum is in float32, and none depends on which thread makes it.
#include "library.h"
#include "vectors.h"

namespace {

// So many rows of results meet N vectors of queries at a time: as many sums as there are registers for.
constexpr int TILE = LANES == 16 ? 8 : 4;

// M rows of the product of a with b, (depth, N vectors): out[m][n] = sum over k of a[m * row + k * column] b[k][n]. With
// `factors` it is added to what was there times those.
template <int M, int N>
__attribute__((noinline)) void multiply(const float *a, int64_t row, int64_t column, const float *b, int64_t depth, float *out, const Floats *factors) {
  Floats sums[M][N];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) sums[m][n] = Floats{};
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    Floats x[N];
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) x[n] = load(b + (k * N + n) * LANES);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const Floats y = all(a[m * row + k * column]);
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) sums[m][n] += y * x[n];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 3
    for (int n = 0; n < N; ++n) {
      float *to = out + (m * N + n) * LANES;
      store(to, factors ? load(to) * factors[n] + sums[m][n] : sums[m][n], LANES);
    }
  }
}

// All `rows` of such a product.
template <int N>
void multiply_all(int64_t rows, const float *a, int64_t row, int64_t column, const float *b, int64_t depth, float *out, const Floats *factors) {
  int64_t m = 0;
  for (; m + TILE <= rows; m += TILE) multiply<TILE, N>(a + m * row, row, column, b, depth, out + m * N * LANES, factors);
  for (; m < rows; ++m) multiply<1, N>(a + m * row, row, column, b, depth, out + m * N * LANES, factors);
}

// Up to 3 vectors of queries of one head, and what is known of them so far.
struct Group {
  int64_t start, count;
  float *queries_t, *sums_t;  // (head_dim, vectors)
  Floats tops[3], totals[3];  // of the scores and of the weights, which are relative to the tops
};

// Some queries of one head over all its keys.
class Unit {
 public:
  Unit(const Attention &call, int64_t batch, int64_t head, int64_t start, float *scratch)
      : call(call), batch(batch), head(head), size(call.head_dim), keys(scratch), values(keys + KEYS * size),
        scores_t(values + KEYS * size) {
    float *room = scores_t + KEYS * GROUP;
    const int64_t stop = least(start + QUERIES, call.queries);
    for (; start < stop; start += GROUP, room += 2 * size * GROUP) {
      groups[count++] = {start, least(GROUP, stop - start), room, room + size * GROUP, {}, {}};
    }
  }

  void attend() {
    for (int64_t g = 0; g < count; ++g) begin(groups[g]);
    for (int64_t first = 0; first < call.keys; first += KEYS) {
      const int64_t some = least(KEYS, call.keys - first);
      read(call.key, first, some, keys);
      read(call.value, first, some, values);
      for (int64_t g = 0; g < count; ++g) {
        switch (vectors(groups[g])) {
          case 1: attend<1>(groups[g], some); break;
          case 2: attend<2>(groups[g], some); break;
          default: attend<3>(groups[g], some); break;
        }
      }
    }
    for (int64_t g = 0; g < count; ++g) end(groups[g]);
  }

 private:
  static constexpr int64_t GROUP = 3 * LANES;
  static_assert(GROUP <= MOST_IN_GROUP && GROUP <= KEYS && QUERIES % GROUP == 0);

  const Attention &call;
  const int64_t batch, head, size;
  float *const keys, *const values, *const scores_t;  // in float32; the keys' room also serves for other rows
  Group groups[QUERIES / GROUP];
  int64_t count = 0;

  static int64_t vectors(const Group &group) { return (group.count + LANES - 1) / LANES; }

  // Some rows of this head in float32, side by side.
  void read(const View &view, int64_t first, int64_t rows, float *to) const {
    const int64_t offset = batch * view.batch + head * view.head + first * view.row;
    switch (call.dtype) {
      case FLOAT32: read((const float *)view.data + offset, view.row, rows, to); break;
      case BFLOAT16: read((const BFloat16 *)view.data + offset, view.row, rows, to); break;
      case FLOAT16: read((const Float16 *)view.data + offset, view.row, rows, to); break;
    }
  }
  template <class Number> void read(const Number *from, int64_t stride, int64_t rows, float *to) const {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t d = 0; d < size; d += LANES) store(to + i * size + d, load(from + i * stride + d, size - d), size - d);
    }
  }

  void begin(Group &group) {
    const int64_t width = vectors(group) * LANES;
    const float scale = LOG2_E * float(call.scale);
    read(call.query, group.start, group.count, keys);
    for (int64_t d = 0; d < size; ++d) {
      for (int64_t i = 0; i < width; ++i) group.queries_t[d * width + i] = i < group.count ? scale * keys[i * size + d] : 0.0f;
    }
    for (Floats &top : group.tops) top = all(-__builtin_inff());
    __builtin_memset(group.sums_t, 0, size * width * sizeof(float));
  }

  template <int N> void attend(Group &group, int64_t count) {
    multiply_all<N>(count, keys, size, 1, group.queries_t, size, scores_t, nullptr);
    Floats bases[N], factors[N], parts[N] = {};
    for (int n = 0; n < N; ++n) {
      Floats top = group.tops[n];
      for (int64_t i = 0; i < count; ++i) top = larger(load(scores_t + (i * N + n) * LANES), top);
      // Where all are minus infinity so far, they weigh nothing beside what may come.
      bases[n] = top == -__builtin_inff() ? Floats{} : top;
      factors[n] = exp2(group.tops[n] - bases[n]);
      group.tops[n] = top;
    }
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 3
      for (int n = 0; n < N; ++n) {
        float *score = scores_t + (i * N + n) * LANES;
        const Floats weight = exp2(load(score) - bases[n]);
        parts[n] += weight;
        store(score, weight, LANES);
      }
    }
    for (int n = 0; n < N; ++n) group.totals[n] = group.totals[n] * factors[n] + parts[n];
    multiply_all<N>(size, values, 1, size, scores_t, count, group.sums_t, factors);
  }

  void end(const Group &group) {
    const int64_t width = vectors(group) * LANES;
    for (int64_t i = 0; i < group.count; ++i) {
      const float total = group.totals[i / LANES][i % LANES];
      for (int64_t d = 0; d < size; ++d) keys[d] = group.sums_t[d * width + i] / total;
      const int64_t offset = ((batch * call.queries + group.start + i) * call.heads + head) * size;
      switch (call.dtype) {
        case FLOAT32: write((float *)call.out + offset); break;
        case BFLOAT16: write((BFloat16 *)call.out + offset); break;
        case FLOAT16: write((Float16 *)call.out + offset); break;
      }
    }
  }
  template <class Number> void write(Number *to) const {
    for (int64_t d = 0; d < size; d += LANES) store(to + d, load(keys + d, size - d), size - d);
  }
};

}  // namespace

// Take some queries of one head after others, until none are left.
extern "C" void NAME_OF(wfa_attend_, LEVEL)(const Attention &call, int64_t *next, int64_t thread) {
  const int64_t blocks = (call.queries + QUERIES - 1) / QUERIES, units = call.batch * call.heads * blocks;
  for (int64_t unit; (unit = __atomic_fetch_add(next, 1, __ATOMIC_RELAXED)) < units;) {
    Unit(call, unit / blocks / call.heads, unit / blocks % call.heads, unit % blocks * QUERIES, call.scratch + thread * own_scratch(call)).attend();
  }
}
