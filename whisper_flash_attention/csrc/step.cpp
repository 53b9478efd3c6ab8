// The decoding step, compiled once per level with that level's flags.
//
// Weights are read where they lie, by rows, each once, and every sum is in float32. No number depends on how many
// threads share the work: whatever is summed is summed by one of them, in one order.
#include "library.h"
#include "vectors.h"

namespace {

// The part of `count` things, in groups of `group`, that one of `threads` does.
struct Range {
  int64_t begin, end;
};

Range part(int64_t count, int64_t group, int64_t thread, int64_t threads) {
  const int64_t groups = (count + group - 1) / group;
  return {least(groups * thread / threads * group, count), least(groups * (thread + 1) / threads * group, count)};
}

float sum(Floats x) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
#else
  const __m256 eight = (__m256)x;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
#else
  const Floats four = x;
#endif
  return (four[0] + four[2]) + (four[1] + four[3]);
}

Floats smaller(Floats x, Floats y) { return x < y ? x : y; }

// The error function, to some units in the last place: the rational function of Eigen and XLA on [-3.83, 3.83].
Floats erf(Floats x) {
  constexpr float END = 3.8325069f;
  x = smaller(all(END), larger(all(-END), x));
  const Floats s = x * x;
  Floats p = 0.00022905065861350646f * s + 0.0034082910107109506f;
  p = p * s + 0.050955695062380861f;
  p = p * s + 0.18520832239976145f;
  p = p * s + 1.128379143519084f;
  Floats q = -1.1791602954361697e-7f * s + 0.000023547966471313185f;
  q = q * s + 0.0010179625278914885f;
  q = q * s + 0.014070470171167667f;
  q = q * s + 0.11098505178285362f;
  q = q * s + 0.49746925110067538f;
  q = q * s + 1.0f;
  const Floats y = x * p / q;
  return smaller(all(1.0f), larger(all(-1.0f), y));
}

// Fetch the lines `AHEAD` bytes after these `SIZE` numbers. A processor looks ahead by itself, but not far enough where
// each number takes part in several sums. Milliseconds of a step of tiny.en in float32 without cross-attention, with
// 4 KiB and without, on a Xeon with AVX-512 whose memory gives two cores 20 to 28 GB/s:
//
// | rows    | 1         | 2         | 4         | 8          | 16          |
// | AVX-512 | 3.4 / 4.2 | 3.1 / 4.0 | 4.5 / 6.6 | 4.5 / 10.0 | 9.5 / 15.7  |
// | AVX2    | 3.4 / 4.3 | 3.8 / 5.4 | 4.3 / 7.7 | 5.3 / 10.4 | 10.4 / 17.9 |
//
// 1 KiB is a fifth slower, 2 to 8 KiB tie. One row on a Zen 3 lost a fifth by it.
template <int64_t SIZE, int64_t AHEAD = 4096, class Number> void prefetch(const Number *from) {
  const char *ahead = (const char *)from + AHEAD;
#pragma GCC unroll 8
  for (int64_t line = 0; line < SIZE * int64_t(sizeof(Number)); line += 64) __builtin_prefetch(ahead + line);
}

// ---- Products ------------------------------------------------------------------------------------------------------

// One row of weights times M rows of x, which are `size` long: out[m * stride] = sum over k of weight[k] x[m][k].
template <class Number, int M> void dot(const Number *weight, const float *x, int64_t size, float *out, int64_t stride) {
  // As many sums side by side as hide the latency of an addition, and as there are registers for.
  constexpr int SUMS = M == 1 ? 8 : M == 2 ? 4 : M <= 4 ? 2 : 1;
  Floats sums[M][SUMS];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int i = 0; i < SUMS; ++i) sums[m][i] = Floats{};
  }
  int64_t k = 0;
  for (; k + SUMS * LANES <= size; k += SUMS * LANES) {
    if (M > 1 || LANES == 16) prefetch<SUMS * LANES>(weight + k);
#pragma GCC unroll 8
    for (int i = 0; i < SUMS; ++i) {
      const Floats w = load(weight + k + i * LANES);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) sums[m][i] += w * load(x + m * size + k + i * LANES);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int i = 1; i < SUMS; ++i) sums[m][0] += sums[m][i];
  }
  for (; k + LANES <= size; k += LANES) {
    const Floats w = load(weight + k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] += w * load(x + m * size + k);
  }
  if (k < size) {
    const Floats w = load(weight + k, size - k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) sums[m][0] += w * load(x + m * size + k, size - k);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) out[m * stride] = sum(sums[m][0]);
}

// The outputs of `range` of a projection of x, (rows, size): `out(row, n, count, values)` gets up to LANES at a time.
template <class Number, class Out>
void project(const Projection &projection, const float *x, int64_t rows, int64_t size, Range range, Out out) {
  const Number *weight = (const Number *)projection.weight, *bias = (const Number *)projection.bias;
  for (int64_t n = range.begin; n < range.end; n += LANES) {
    const int64_t count = least(LANES, range.end - n);
    const Floats added = bias ? load(bias + n, count) : Floats{};
    for (int64_t row = 0; row < rows; row += ROWS) {
      const int64_t together = least(ROWS, rows - row);
      float values[ROWS][LANES] = {};
      for (int64_t i = 0; i < count; ++i) {
        const Number *w = weight + (n + i) * size;
        const float *from = x + row * size;
        switch (together) {
          case 1: dot<Number, 1>(w, from, size, values[0] + i, LANES); break;
          case 2: dot<Number, 2>(w, from, size, values[0] + i, LANES); break;
          case 3: dot<Number, 3>(w, from, size, values[0] + i, LANES); break;
          case 4: dot<Number, 4>(w, from, size, values[0] + i, LANES); break;
          case 5: dot<Number, 5>(w, from, size, values[0] + i, LANES); break;
          case 6: dot<Number, 6>(w, from, size, values[0] + i, LANES); break;
          case 7: dot<Number, 7>(w, from, size, values[0] + i, LANES); break;
          default: dot<Number, 8>(w, from, size, values[0] + i, LANES); break;
        }
      }
      for (int64_t m = 0; m < together; ++m) out(row + m, n, count, load(values[m]) + added);
    }
  }
}

template <class Number> void normalize(const Norm &norm, const float *x, float *y, int64_t width) {
  const Number *weight = (const Number *)norm.weight, *bias = (const Number *)norm.bias;
  Floats total = {}, squares = {};
  for (int64_t i = 0; i < width; i += LANES) total += load(x + i, width - i);
  const float mean = sum(total) / float(width);
  for (int64_t i = 0; i < width; i += LANES) {
    Floats away = load(x + i, width - i) - mean;
    if (width - i < LANES) {
      float some[LANES] = {};
      __builtin_memcpy(some, &away, (width - i) * sizeof(float));
      away = load(some);
    }
    squares += away * away;
  }
  const float factor = 1.0f / __builtin_sqrtf(sum(squares) / float(width) + float(norm.epsilon));
  for (int64_t i = 0; i < width; i += LANES) {
    Floats normal = (load(x + i, width - i) - mean) * factor * load(weight + i, width - i);
    if (bias) normal += load(bias + i, width - i);
    store(y + i, normal, width - i);
  }
}

// ---- Attention -----------------------------------------------------------------------------------------------------

// Turn `count` scores into weights 2^(score - top) and return top and their sum. Room for LANES more is behind them.
struct Softmax {
  float top, total;
};

Softmax soften(float *scores, int64_t count) {
  Floats tops = all(-__builtin_inff());
  int64_t whole = 0;
  for (; whole + LANES <= count; whole += LANES) tops = larger(load(scores + whole), tops);
  float top = -__builtin_inff();
  for (int64_t i = 0; i < LANES; ++i) top = tops[i] > top ? tops[i] : top;
  for (; whole < count; ++whole) top = scores[whole] > top ? scores[whole] : top;
  // Where all are minus infinity the others' weights count; where there are no others, the sum of 0 says so.
  const float base = top == -__builtin_inff() ? 0.0f : top;
  Floats total = {};
  for (int64_t i = 0; i < count; i += LANES) {
    store(scores + i, exp2(load(scores + i, count - i) - base), LANES);
    if (count - i < LANES) __builtin_memset(scores + count, 0, LANES * sizeof(float));
    total += load(scores + i);
  }
  return {top, sum(total)};
}

// Add `count` rows of `size` numbers, weighted, to `out`; V vectors at a time.
template <class Number, int V>
void mix_part(const Number *rows, const float *weights, int64_t count, int64_t size, float *out) {
  Floats sums[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) sums[v] = load(out + v * LANES);
  for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums[v] += weights[i] * load(rows + i * size + v * LANES);
    prefetch<V * LANES>(rows + i * size);
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) store(out + v * LANES, sums[v], LANES);
}

template <class Number> void mix(const Number *rows, const float *weights, int64_t count, int64_t size, float *out) {
  int64_t begin = 0;
  for (; begin + 8 * LANES <= size; begin += 8 * LANES) mix_part<Number, 8>(rows + begin, weights, count, size, out + begin);
  for (; begin + 4 * LANES <= size; begin += 4 * LANES) mix_part<Number, 4>(rows + begin, weights, count, size, out + begin);
  for (; begin + LANES <= size; begin += LANES) mix_part<Number, 1>(rows + begin, weights, count, size, out + begin);
  if (begin == size) return;
  Floats rest = load(out + begin, size - begin);
  for (int64_t i = 0; i < count; ++i) rest += weights[i] * load(rows + i * size + begin, size - begin);
  store(out + begin, rest, size - begin);
}

// Add to each of `count` scores the products of F features of a query with rows of keys, `frames` apart.
template <class Number, int F>
void score_part(const Number *keys_t, int64_t frames, const float *query, float scale, int64_t count, float *scores, bool first) {
  float factors[F];
#pragma GCC unroll 8
  for (int f = 0; f < F; ++f) factors[f] = query[f] * scale;
  auto add = [&](int64_t t, int64_t some) __attribute__((always_inline)) {
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) prefetch<1, 512>(keys_t + f * frames + t);
    Floats total = first ? Floats{} : load(scores + t);
#pragma GCC unroll 8
    for (int f = 0; f < F; ++f) total += factors[f] * load(keys_t + f * frames + t, some);
    store(scores + t, total, LANES);
  };
  int64_t t = 0;
  for (; t + LANES <= count; t += LANES) add(t, LANES);
  if (t < count) add(t, count - t);
}

// ---- The step ------------------------------------------------------------------------------------------------------

template <class Number> class Thread {
 public:
  Thread(const Decoder &decoder, const Call &call, Team *team, int64_t thread, int64_t threads)
      : decoder(decoder), call(call), team(team), thread(thread), threads(threads),
        width(decoder.heads * decoder.head_dim), pieces(::pieces(decoder)), parts(decoder, call.rows),
        hidden(call.scratch + parts.hidden), query(call.scratch + parts.query), context(call.scratch + parts.context),
        mixed(call.scratch + parts.mixed), expanded(call.scratch + parts.expanded),
        own(call.scratch + parts.shared + thread * parts.own),
        // Where each thread has heads of its own, it needs nobody's queries but its own.
        heads(part(decoder.heads, 1, thread, threads)), owns_heads(decoder.heads % threads == 0) {}

  void run() {
    embed();
    for (int64_t index = 0; index < decoder.layers; ++index) {
      const Layer &layer = decoder.layer[index];
      attend_to_cache(layer);
      add_projection(layer.self_out, context, width);
      attend_to_audio(layer);
      add_projection(layer.cross_out, merge_pieces(), width);
      expand(layer);
      add_projection(layer.fc2, expanded, decoder.feed_forward);
    }
    to_vocabulary();
  }

 private:
  const Decoder &decoder;
  const Call &call;
  Team *const team;
  const int64_t thread, threads, width, pieces;
  const Scratch parts;
  float *const hidden, *const query, *const context, *const mixed, *const expanded, *const own;
  const Range heads;
  const bool owns_heads;

  void wait() { wfa_wait(team, threads); }

  int64_t slot_of(int64_t row) const { return row / call.fresh * call.stride; }
  int64_t position_of(int64_t row) const { return call.start + row % call.fresh; }

  void embed() {
    const Number *tokens = (const Number *)decoder.token_embedding, *places = (const Number *)decoder.place_embedding;
    const Range range = part(width, 16, thread, threads);
    for (int64_t row = 0; row < call.rows; ++row) {
      const Number *token = tokens + call.tokens[row] * width;
      const Number *place = places + (call.places ? call.places[row] : position_of(row)) * width;
      for (int64_t i = range.begin; i < range.end; i += LANES) {
        const int64_t count = range.end - i;
        store(hidden + row * width + i, load(token + i, count) + load(place + i, count), count);
      }
    }
    wait();
  }

  // Rows that a projection is to meet, by `make(row, to)`: few are made by each thread for itself, without a barrier.
  template <class Make> const float *prepare(int64_t rows, Make make) {
    if (rows <= ROWS) {
      float *to = own + parts.prepared_own;
      for (int64_t row = 0; row < rows; ++row) make(row, to + row * width);
      return to;
    }
    float *to = call.scratch + parts.prepared;
    const Range range = part(rows, 1, thread, threads);
    for (int64_t row = range.begin; row < range.end; ++row) make(row, to + row * width);
    wait();
    return to;
  }

  const float *normed(const Norm &norm) {
    return prepare(call.rows, [&](int64_t row, float *to) { normalize<Number>(norm, hidden + row * width, to, width); });
  }

  // The part of the features of all heads that this thread projects.
  Range head_features() const {
    if (owns_heads) return {heads.begin * decoder.head_dim, heads.end * decoder.head_dim};
    return part(width, 16, thread, threads);
  }

  void to_query(const Projection &projection, const float *x) {
    project<Number>(projection, x, call.rows, width, head_features(), [&](int64_t row, int64_t n, int64_t count, Floats values) {
      store(query + row * width + n, values, count);
    });
  }

  void to_cache(const Projection &projection, const float *x, Number *cache) {
    const int64_t head_dim = decoder.head_dim;
    project<Number>(projection, x, call.rows, width, head_features(), [&](int64_t row, int64_t n, int64_t count, Floats values) {
      Number numbers[LANES];
      store(numbers, values, LANES);
      const int64_t first_head = slot_of(row) * decoder.heads, position = position_of(row);
      for (int64_t i = 0; i < count; ++i) {
        const int64_t head = first_head + (n + i) / head_dim;
        cache[(head * decoder.capacity + position) * head_dim + (n + i) % head_dim] = numbers[i];
      }
    });
  }

  void attend_to_cache(const Layer &layer) {
    const int64_t head_dim = decoder.head_dim;
    Number *keys = (Number *)layer.self_keys, *values = (Number *)layer.self_values;
    const float *x = normed(layer.self_norm);
    to_query(layer.query, x);
    to_cache(layer.key, x, keys);
    to_cache(layer.value, x, values);
    if (!owns_heads) wait();
    const float scale = LOG2_E / __builtin_sqrtf(float(head_dim));
    float *scores = own + parts.scores;
    const Range range = owns_heads ? Range{heads.begin * call.rows, heads.end * call.rows}
                                   : part(decoder.heads * call.rows, 1, thread, threads);
    for (int64_t unit = range.begin; unit < range.end; ++unit) {
      const int64_t head = unit / call.rows, row = unit % call.rows;
      const int64_t first = call.first ? call.first[row] : 0, count = position_of(row) + 1 - first;
      const int64_t offset = ((slot_of(row) * decoder.heads + head) * decoder.capacity + first) * head_dim;
      const float *one = query + row * width + head * head_dim;
      for (int64_t i = 0; i < count; ++i) dot<Number, 1>(keys + offset + i * head_dim, one, head_dim, scores + i, 1);
      for (int64_t i = 0; i < count; ++i) scores[i] *= scale;
      const Softmax softmax = soften(scores, count);
      float *out = context + row * width + head * head_dim;
      __builtin_memset(out, 0, head_dim * sizeof(float));
      mix(values + offset, scores, count, head_dim, out);
      for (int64_t i = 0; i < head_dim; ++i) out[i] /= softmax.total;
    }
    wait();
  }

  // The weighted frames of a piece, with the top and the sum of its weights behind them.
  float *piece_of(int64_t row, int64_t head, int64_t piece) const {
    return mixed + ((row * decoder.heads + head) * pieces + piece) * (decoder.head_dim + 2);
  }

  void attend_to_audio(const Layer &layer) {
    to_query(layer.cross_query, normed(layer.cross_norm));
    if (!owns_heads) wait();
    const int64_t audios = decoder.slots / decoder.beams, units = audios * pieces;
    const Range range = owns_heads ? Range{heads.begin * units, heads.end * units} : part(decoder.heads * units, 1, thread, threads);
    for (int64_t unit = range.begin; unit < range.end; ++unit) {
      attend_to_piece(layer, unit / units, unit % units / pieces, unit % pieces, call.rows / audios);
    }
    wait();
  }

  // All rows of an audio, those of its beams too, meet a piece of its frames together.
  void attend_to_piece(const Layer &layer, int64_t head, int64_t audio, int64_t piece, int64_t rows) {
    const int64_t head_dim = decoder.head_dim, frames = decoder.frames, begin = piece * PIECE;
    const int64_t count = least(PIECE, frames - begin), length = PIECE + LANES;
    const int64_t offset = (audio * decoder.heads + head) * head_dim * frames;
    const Number *keys_t = (const Number *)layer.cross_keys_t + offset + begin;
    const Number *values = (const Number *)layer.cross_values + offset + begin * head_dim;
    const float scale = LOG2_E / __builtin_sqrtf(float(head_dim));
    float *scores = own + parts.scores;
    for (int64_t start = audio * rows; start < (audio + 1) * rows; start += ROWS) {
      const int64_t together = least(ROWS, (audio + 1) * rows - start);
      constexpr int F = 8;
      for (int64_t f = 0; f < head_dim; f += F) {
        for (int64_t i = 0; i < together; ++i) {
          const float *one = query + (start + i) * width + head * head_dim + f;
          if (f + F <= head_dim) {
            score_part<Number, F>(keys_t + f * frames, frames, one, scale, count, scores + i * length, f == 0);
            continue;
          }
          for (int64_t g = 0; f + g < head_dim; ++g) {
            score_part<Number, 1>(keys_t + (f + g) * frames, frames, one + g, scale, count, scores + i * length, f + g == 0);
          }
        }
      }
      for (int64_t i = 0; i < together; ++i) {
        float *out = piece_of(start + i, head, piece);
        const Softmax softmax = soften(scores + i * length, count);
        __builtin_memset(out, 0, head_dim * sizeof(float));
        out[head_dim] = softmax.top;
        out[head_dim + 1] = softmax.total;
      }
      const int64_t block = together == 1 ? count : 64;  // values that the second row finds in the nearest cache
      for (int64_t t = 0; t < count; t += block) {
        for (int64_t i = 0; i < together; ++i) {
          mix(values + t * head_dim, scores + i * length + t, least(block, count - t), head_dim, piece_of(start + i, head, piece));
        }
      }
    }
  }

  // The context of cross-attention from its pieces, (rows, width).
  const float *merge_pieces() {
    const int64_t head_dim = decoder.head_dim;
    return prepare(call.rows, [&](int64_t row, float *to) {
      for (int64_t head = 0; head < decoder.heads; ++head, to += head_dim) {
        float top = -__builtin_inff(), total = 0;
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const float its = piece_of(row, head, piece)[head_dim];
          top = its > top ? its : top;
        }
        __builtin_memset(to, 0, head_dim * sizeof(float));
        for (int64_t piece = 0; piece < pieces; ++piece) {
          const float *from = piece_of(row, head, piece);
          const float share = exp2(all(from[head_dim] - top))[0];
          total += share * from[head_dim + 1];
          for (int64_t i = 0; i < head_dim; ++i) to[i] += share * from[i];
        }
        for (int64_t i = 0; i < head_dim; ++i) to[i] /= total;
      }
    });
  }

  void add_projection(const Projection &projection, const float *x, int64_t size) {
    project<Number>(projection, x, call.rows, size, part(width, 16, thread, threads), [&](int64_t row, int64_t n, int64_t count, Floats values) {
      float *to = hidden + row * width + n;
      store(to, load(to, count) + values, count);
    });
    wait();
  }

  void expand(const Layer &layer) {
    const int64_t size = decoder.feed_forward;
    project<Number>(layer.fc1, normed(layer.mlp_norm), call.rows, width, part(size, 16, thread, threads), [&](int64_t row, int64_t n, int64_t count, Floats values) {
      // The GELU with the error function (Hendrycks and Gimpel, 2016).
      store(expanded + row * size + n, 0.5f * values * (1.0f + erf(values * 0.70710678f)), count);
    });
    wait();
  }

  void to_vocabulary() {
    const int64_t sequences = call.rows / call.fresh;
    const float *x = prepare(sequences, [&](int64_t sequence, float *to) {
      normalize<Number>(decoder.norm, hidden + ((sequence + 1) * call.fresh - 1) * width, to, width);
    });
    Number *logits = (Number *)call.logits;
    project<Number>(decoder.vocabulary, x, sequences, width, part(decoder.vocabulary_size, 16, thread, threads), [&](int64_t row, int64_t n, int64_t count, Floats values) {
      store(logits + row * decoder.vocabulary_size + n, values, count);
    });
  }
};

}  // namespace

extern "C" void NAME_OF(wfa_run_, LEVEL)(const Decoder &decoder, const Call &call, Team *team, int64_t thread, int64_t threads) {
  switch (decoder.dtype) {
    case FLOAT32: Thread<float>(decoder, call, team, thread, threads).run(); break;
    case BFLOAT16: Thread<BFloat16>(decoder, call, team, thread, threads).run(); break;
    case FLOAT16: Thread<Float16>(decoder, call, team, thread, threads).run(); break;
  }
}
