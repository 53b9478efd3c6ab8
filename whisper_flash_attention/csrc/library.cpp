// The entrance to the compiled code: checks a call, gathers the threads and runs the level that was asked for.
#include "library.h"

#include <linux/futex.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>

#ifdef RANDOM_DELAYS
#include <cstdlib>
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

// The build finds these bytes in the file, so that stale kernels are not served.
static const char marked_hash[] = "whisper_flash_attention sources " SOURCE_HASH;

EXPORT const char *wfa_source_hash() { return marked_hash + sizeof(marked_hash) - sizeof(SOURCE_HASH); }

struct Team {
  alignas(64) int64_t arrived = 0;
  alignas(64) int phase = 0;
  int sleepers = 0;
};

static void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// A thread that was put aside for another process is waited for at every barrier. Who waits looks for some tens of
// microseconds, as long as phases differ by, and then sleeps: on a core that has fallen idle the system lets the thread
// go on that all are waiting for. (The barriers of OpenMP look for a millisecond and more.)
constexpr int LOOKS = 2000;

extern "C" void wfa_wait(Team *team, int64_t threads) {
#ifdef RANDOM_DELAYS
  static thread_local unsigned seed = unsigned(gettid());
  usleep(rand_r(&seed) % 200);
#endif
  const int phase = __atomic_load_n(&team->phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == threads) {
    __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&team->phase, phase + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&team->sleepers, __ATOMIC_SEQ_CST)) {
      syscall(SYS_futex, &team->phase, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
    return;
  }
  for (int look = 0; look < LOOKS; ++look) {
    if (__atomic_load_n(&team->phase, __ATOMIC_ACQUIRE) != phase) return;
    relax();
  }
  __atomic_add_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&team->phase, __ATOMIC_SEQ_CST) == phase) {
    syscall(SYS_futex, &team->phase, FUTEX_WAIT_PRIVATE, phase, nullptr, nullptr, 0);
  }
  __atomic_sub_fetch(&team->sleepers, 1, __ATOMIC_SEQ_CST);
}

struct Level {
  Run *run;
  Attend *attend;
};

static Level level_of(int64_t level) {
  if (level == 0) return {wfa_run_portable, wfa_attend_portable};
#ifdef HAS_X86_LEVELS
  if (level == 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return {wfa_run_avx2, wfa_attend_avx2};
  }
  if (level == 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return {wfa_run_avx512, wfa_attend_avx512};
  }
#endif
  return {};
}

// Whether a level (0 portable, 1 AVX2 with FMA and F16C, 2 AVX-512) is here and this processor has it.
EXPORT int64_t wfa_has_level(int64_t level) { return level_of(level).run != nullptr; }

// How many floats of scratch a call needs.
EXPORT int64_t wfa_scratch_size(const Decoder &decoder, int64_t rows, int64_t threads) {
  return Scratch(decoder, rows).size(threads);
}

static Result check(const Decoder &decoder, const Call &call) {
  const int64_t sequences = call.rows / call.fresh;
  // Every audio has as many rows as any other: one from each of its slots, or one for all of them.
  const int64_t audios = decoder.slots / decoder.beams;
  const bool fills_slots =
      decoder.slots % sequences == 0 && call.stride == decoder.slots / sequences && sequences % audios == 0;
  if (call.start < 0 || call.start > decoder.capacity - call.fresh || !fills_slots) {
    return CACHE_OUT_OF_RANGE;
  }
  for (int64_t row = 0; row < call.rows; ++row) {
    const int64_t position = call.start + row % call.fresh, place = call.places ? call.places[row] : position;
    if (call.tokens[row] < 0 || call.tokens[row] >= decoder.tokens) return TOKEN_OUT_OF_RANGE;
    if (place < 0 || place >= decoder.places) return PLACE_OUT_OF_RANGE;
    if (call.first && (call.first[row] < 0 || call.first[row] > position)) return CACHE_OUT_OF_RANGE;
  }
  return call.scratch_size < Scratch(decoder, call.rows).size(call.threads) ? SCRATCH_TOO_SMALL : DONE;
}

// Run new tokens through the decoder, write their keys and values, and give the logits of each sequence's last one.
// Nothing is touched unless the result is DONE.
EXPORT Result wfa_step(const Decoder &decoder, const Call &call) {
  Run *const run = level_of(call.level).run;
  if (!run) return NO_SUCH_LEVEL;
  const Result result = check(decoder, call);
  if (result != DONE) return result;
  Team team;
#pragma omp parallel num_threads(int(call.threads))
  run(decoder, call, &team, omp_get_thread_num(), omp_get_num_threads());  // a team may be smaller than was asked for
  return DONE;
}

// How many floats of scratch an attention needs.
EXPORT int64_t wfa_attention_scratch_size(const Attention &attention) { return attention.threads * own_scratch(attention); }

EXPORT Result wfa_attend(const Attention &attention) {
  Attend *const attend = level_of(attention.level).attend;
  if (!attend) return NO_SUCH_LEVEL;
  if (attention.scratch_size < wfa_attention_scratch_size(attention)) return SCRATCH_TOO_SMALL;
  int64_t next = 0;
#pragma omp parallel num_threads(int(attention.threads))
  attend(attention, &next, omp_get_thread_num());
  return DONE;
}
