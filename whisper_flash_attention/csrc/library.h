// What the compiled code takes: `cpu_step.py` and `cpu_attention.py` mirror these structures field by field.
#pragma once

#include <cstdint>

extern "C" {

enum Dtype : int64_t { FLOAT32, BFLOAT16, FLOAT16 };

// A layer norm of `width` features. A null bias is none.
struct Norm {
  const void *weight, *bias;
  double epsilon;
};

// A projection with its weight by rows, (out, in) as in `torch.nn.Linear`. A null bias is none.
struct Projection {
  const void *weight, *bias;
};

// One decoder layer, and its part of the cache.
struct Layer {
  Norm self_norm;
  Projection query, key, value, self_out;
  Norm cross_norm;
  Projection cross_query, cross_out;
  Norm mlp_norm;
  Projection fc1, fc2;
  void *self_keys, *self_values;  // (slots, heads, capacity, head_dim)
  const void *cross_keys_t;       // (audios, heads, head_dim, frames)
  const void *cross_values;       // (audios, heads, frames, head_dim)
};

// A decoder and its cache; every address holds numbers of `dtype`, at any alignment.
struct Decoder {
  Dtype dtype;
  int64_t layers, heads, head_dim, feed_forward;
  int64_t tokens, vocabulary_size, places;  // rows of the token embedding, of its projection, of the position embedding
  int64_t slots, beams, capacity, frames;   // sequences in the cache, and how many of them belong to one audio
  const Layer *layer;
  const void *token_embedding, *place_embedding;
  Norm norm;
  Projection vocabulary;
};

// `rows` new tokens: `fresh` of each of rows / fresh sequences, which lie in the slots 0, stride, 2 stride, ….
struct Call {
  int64_t rows, fresh, stride, start;  // start: the cache position of each sequence's first new token
  const int64_t *tokens;               // (rows,)
  const int64_t *places;               // (rows,) which position embeddings they get; null for their cache positions
  const int64_t *first;                // (rows,) the first cache position that each sees; null for 0
  void *logits;                        // (rows / fresh, vocabulary_size) of the dtype: those of each sequence's last token
  float *scratch;
  int64_t scratch_size;  // floats there
  int64_t threads, level;
};

// Where numbers lie as (batch, heads, rows, head_dim): those of a head_dim side by side, the others so many numbers apart.
struct View {
  const void *data;
  int64_t batch, head, row;
};

// Exact attention of every query over every key, at any alignment.
struct Attention {
  Dtype dtype;
  int64_t batch, heads, queries, keys, head_dim;
  View query, key, value;
  void *out;  // (batch, queries, heads, head_dim)
  double scale;
  float *scratch;
  int64_t scratch_size;  // floats there
  int64_t threads, level;
};

enum Result : int64_t { DONE, TOKEN_OUT_OF_RANGE, PLACE_OUT_OF_RANGE, CACHE_OUT_OF_RANGE, SCRATCH_TOO_SMALL, NO_SUCH_LEVEL };

// The threads of one call.
struct Team;

}  // extern "C"

// Cross-attention goes through the frames in pieces of this many, whatever the number of threads, so that this number
// does not change a bit of the result.
constexpr int64_t PIECE = 512;

// Up to so many rows share one reading of the weights, and each thread prepares them for itself: a barrier less.
constexpr int64_t ROWS = 8;

inline int64_t pieces(const Decoder &decoder) { return (decoder.frames + PIECE - 1) / PIECE; }

// Where the parts of the scratch begin, in floats: what all threads share, then a part for each thread.
struct Scratch {
  int64_t hidden, query, context, mixed, expanded, prepared, shared, prepared_own, scores, own;

  Scratch(const Decoder &decoder, int64_t rows) {
    const int64_t width = decoder.heads * decoder.head_dim, longest = decoder.capacity > PIECE ? decoder.capacity : PIECE;
    const int64_t few = rows < ROWS ? rows : ROWS;
    int64_t end = 0;
    auto take = [&end](int64_t floats) {
      const int64_t begin = end;
      end += (floats + 15) / 16 * 16;  // whole cache lines, so that no two threads write to one
      return begin;
    };
    hidden = take(rows * width);
    query = take(rows * width);
    context = take(rows * width);
    mixed = take(rows * decoder.heads * pieces(decoder) * (decoder.head_dim + 2));
    expanded = take(rows * decoder.feed_forward);
    prepared = take(rows > ROWS ? rows * width : 0);
    shared = end;
    end = 0;
    prepared_own = take(few * width);
    scores = take(few * (longest + 16));
    own = end;
  }

  int64_t size(int64_t threads) const { return shared + threads * own; }
};

// Attention goes through so many queries and so many keys at a time, and through a group of the queries at once.
constexpr int64_t QUERIES = 96, KEYS = 64, MOST_IN_GROUP = 48;

// How many floats of scratch one thread of an attention needs: keys and values, scores, and queries and sums.
inline int64_t own_scratch(const Attention &attention) {
  return (2 * KEYS * attention.head_dim + KEYS * MOST_IN_GROUP + 2 * QUERIES * attention.head_dim + 15) / 16 * 16;
}

// Wait until all `threads` of a team have come here.
extern "C" void wfa_wait(Team *team, int64_t threads);

// What one thread does, compiled once per level: its part of a step, or what is left of an attention, whose next unit of
// work `next` counts.
extern "C" {
using Run = void(const Decoder &, const Call &, Team *, int64_t thread, int64_t threads);
using Attend = void(const Attention &, int64_t *next, int64_t thread);
Run wfa_run_portable, wfa_run_avx2, wfa_run_avx512;
Attend wfa_attend_portable, wfa_attend_avx2, wfa_attend_avx512;
}
