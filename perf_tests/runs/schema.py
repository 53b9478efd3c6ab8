"""Every key that the suite records, declared once: name, type, unit, meaning, whether null is allowed.

Four tables: ``EXTRA_INFO`` (beside each case's rounds), ``MACHINE_INFO`` (what the suite adds to
pytest-benchmark's), ``PERF_CASES`` (one entry of the run's top-level list) and ``PERF_SESSIONS`` (one entry for each
session that measured a part of the run). A case that was counted without timing has its figures in its entry of
``perf_cases`` (``COUNTED_CASE``): the keys of a timed one, with null for what only timing gives (``COUNTED_INFO``).
``validation.py`` checks a run against them.
"""

from typing import NamedTuple

SCHEMA_VERSION = 2
OUTCOMES = ("passed", "failed", "skipped")
# NVML's reasons for clocks below what was asked for that mean trouble: hardware slow-down, thermal (software and
# hardware), power brake. Idle clocks, clocks that were set, and the power cap of a busy GPU are not among them.
HARMFUL_THROTTLE_REASONS = 0x08 | 0x20 | 0x40 | 0x80


class Field(NamedTuple):
    """One recorded key.

    ``kind`` is a JSON type: ``string``, ``integer``, ``number`` (finite), ``boolean``, ``numbers`` (a list),
    ``numbers or nulls`` (likewise), ``strings`` (an object of strings), ``counts`` (of integers), ``numbers by name``
    (of numbers) or ``object`` (described by ``fields``).
    """

    name: str
    kind: str
    unit: str | None
    meaning: str
    nullable: bool = False
    fields: tuple["Field", ...] = ()


_CONTROL = (
    Field("implementation", "string", None, "what ran as the control"),
    Field("rounds_seconds", "numbers", "s", "the control's time beside each round, paired with stats.data"),
    Field("position", "string", None, "`before` or `after` each round; `both` where processes of both are pooled"),
)
_YARDSTICK = (
    Field("version", "integer", None, "which work it is: only like versions compare"),
    Field(
        "rounds_seconds",
        "object",
        "s",
        "its time beside each round, paired with stats.data",
        fields=(
            Field("encoder", "numbers", None, "seconds of its encoder"),
            Field("decoding", "numbers", None, "seconds of its decoding"),
        ),
    ),
)
_SPEEDUP = (
    Field("median", "number", None, "median over the pairs of control / flash"),
    Field(
        "low",
        "number",
        None,
        "lower end of the 95 % interval of the median; null with a single pair",
        nullable=True,
    ),
    Field(
        "high",
        "number",
        None,
        "upper end of the 95 % interval of the median; null with a single pair",
        nullable=True,
    ),
)
_PARITY = (
    Field(
        "max_abs_error",
        "number",
        "logit",
        "largest difference of a teacher-forced logit from the reference; of a component's output, relative to its"
        " largest value",
    ),
    Field(
        "original_max_abs_error",
        "number",
        "logit",
        "the original's own difference; 0 where it is the reference",
    ),
    Field("bound", "number", "logit", "what max_abs_error may be at most"),
    Field("reference_max_abs", "number", "logit", "largest magnitude among the reference's logits"),
    Field("reference", "string", None, "what the error is against, e.g. `original float32`"),
    Field(
        "tokens_equal",
        "boolean",
        None,
        "whether the greedy tokens are the original's, all of them; null where the work chooses none",
        nullable=True,
    ),
    Field("first_difference", "integer", "token", "index of the first new token that differs", nullable=True),
    Field(
        "rows_different",
        "integer",
        "rows",
        "sequences whose tokens differ; in half precision each is judged to its end, and the first choice is a tie",
        nullable=True,
    ),
    Field(
        "token_regret",
        "number",
        "logit",
        "how far below the reference's best a token lies that was chosen in such a row, at most; where none differs, in"
        " any of the original's; half precision only",
        nullable=True,
    ),
    Field("token_regret_bound", "number", "logit", "what token_regret may be at most", nullable=True),
)
_DEVICE_STATE = (
    Field(
        "load_average",
        "number",
        "processes",
        "the system's 1-minute load average after timing",
        nullable=True,
    ),
    Field("foreign_cpu_cores", "number", "cores", "cores kept busy by other processes while timing, on average"),
    Field("cpu_frequency_hz", "number", "Hz", "the CPU's clock after timing", nullable=True),
    Field(
        "rounds",
        "object",
        None,
        "lists paired with stats.data, of each round with its control and yardstick",
        fields=(
            Field("begin_seconds", "numbers", "s", "when it began, since the watch did"),
            Field("end_seconds", "numbers", "s", "when it ended, since the watch began"),
            Field(
                "foreign_cpu_cores",
                "numbers",
                "cores",
                "cores kept busy by other processes meanwhile; short rounds share what was read over several of them",
            ),
        ),
    ),
    Field(
        "gpu",
        "object",
        None,
        "the GPU's state in samples, from the last before the rounds to the one after them; empty lists where NVML is"
        " missing, null in them where it refused; null on a CPU",
        nullable=True,
        fields=(
            Field("at_seconds", "numbers", "s", "when each was taken, since the watch began"),
            Field("sm_clock_hz", "numbers or nulls", "Hz", "the SM clock"),
            Field("temperature_celsius", "numbers or nulls", "°C", "the GPU's temperature"),
            Field("throttle_reasons", "numbers or nulls", None, "NVML's bit mask of clock throttle reasons"),
            Field("foreign_processes", "numbers or nulls", "processes", "other processes that compute on the GPU"),
            Field("sampler_cpu_seconds", "number", "s", "CPU time of the thread that took them"),
        ),
    ),
)

EXTRA_INFO = (
    Field("schema_version", "integer", None, "version of this registry"),
    Field("case_definition", "string", None, "short hash of what defines the work"),
    Field("device", "string", None, "where it ran: `cpu`, `cuda` or `cuda:1`"),
    Field("dtype", "string", None, "of weights and features: `float32`, `float16` or `bfloat16`"),
    Field("batch_size", "integer", "windows", "30 s windows of audio per round"),
    Field("new_tokens", "integer", "tokens", "tokens generated per window, forced"),
    Field("weights", "string", None, "`random` (seeded) or `pretrained`"),
    Field("audio", "string", None, "`synthetic` or the data set's name"),
    Field("parameter_count", "integer", "parameters", "distinct parameters of the model"),
    Field("attention_backend", "strings", None, "which kernel served which kind of call"),
    Field("model_memory_bytes", "integer", "B", "distinct storage of parameters and buffers, after warm-up"),
    Field("peak_memory_allocated_bytes", "integer", "B", "the allocator's peak in one round, weights included"),
    Field(
        "peak_memory_reserved_bytes",
        "integer",
        "B",
        "the allocator's reserved peak; CUDA only",
        nullable=True,
    ),
    Field("aten_op_count", "integer", "ops", "operators dispatched in one round"),
    Field("flop_count", "integer", "FLOP", "floating-point operations of one round's products and attention"),
    Field(
        "kernel_launch_count",
        "integer",
        "launches",
        "a replayed graph counts as one; CUDA only",
        nullable=True,
    ),
    Field(
        "host_sync_count",
        "integer",
        "syncs",
        "host waits for the device in one round; CUDA only",
        nullable=True,
    ),
    Field(
        "op_counts",
        "counts",
        "ops",
        "operators dispatched in one round, by name; they sum up to aten_op_count",
        nullable=True,
    ),
    Field(
        "op_shares",
        "numbers by name",
        None,
        "fraction of a round's time by operator or kernel, the largest ones; with --perf-profile only",
        nullable=True,
    ),
    Field("control", "object", None, "the paired control rounds; flash only", nullable=True, fields=_CONTROL),
    Field("speedup", "object", None, "control / flash; flash only", nullable=True, fields=_SPEEDUP),
    Field(
        "yardstick",
        "object",
        None,
        "a Whisper of fixed code beside each round; test_generate's flash on a CPU only",
        nullable=True,
        fields=_YARDSTICK,
    ),
    Field(
        "process_rounds",
        "numbers",
        "rounds",
        "how many rounds of stats.data each process measured, in their order; null where there was one",
        nullable=True,
    ),
    Field("parity", "object", None, "the numerical check", fields=_PARITY),
    Field(
        "tokens_per_second",
        "number",
        "tokens/s",
        "new tokens of the whole batch over the median round; null where the work makes none, or by another clock than"
        " time.perf_counter",
        nullable=True,
    ),
    Field(
        "real_time_factor",
        "number",
        None,
        "median round over the duration of the 30 s windows it took; null where it takes no audio, or by another clock",
        nullable=True,
    ),
    Field("limit_bytes", "integer", "B", "bytes that a round moves at least; components only", nullable=True),
    Field("limit_flops", "integer", "FLOP", "operations of a round at least; components only", nullable=True),
    Field(
        "floor_seconds",
        "number",
        "s",
        "what these take at this machine's limits; components only",
        nullable=True,
    ),
    Field(
        "fraction_of_limit",
        "number",
        None,
        "floor_seconds over the median round; null by another clock",
        nullable=True,
    ),
    Field("word_error_rate", "number", None, "errors per word that was said; test_accuracy only", nullable=True),
    Field("device_state", "object", None, "the machine's state beside the rounds", fields=_DEVICE_STATE),
    Field(
        "pass_seconds",
        "numbers by name",
        "s",
        "where the case's time went; the cell's weights and input are made in its first case, before it builds a model",
    ),
)

# What components alone record.
COMPONENT_KEYS = ("limit_bytes", "limit_flops", "floor_seconds", "fraction_of_limit", "word_error_rate")

# What a case has that was counted without timing, and what it does not: these are null then.
TIMED_ONLY = (
    "control",
    "speedup",
    "yardstick",
    "process_rounds",
    "parity",
    "tokens_per_second",
    "real_time_factor",
    "device_state",
)
COUNTED_INFO = tuple(
    field._replace(nullable=True) if field.name in (*TIMED_ONLY, "peak_memory_allocated_bytes") else field
    for field in EXTRA_INFO
)

MACHINE_INFO = (
    Field(
        "gpu",
        "object",
        None,
        "the GPU in use; null on a CPU",
        nullable=True,
        fields=(
            Field("name", "string", None, "e.g. `NVIDIA H200`"),
            Field("memory_bytes", "integer", "B", "total device memory"),
            Field("driver", "string", None, "NVIDIA driver version", nullable=True),
            Field("compute_capability", "string", None, "e.g. `9.0`"),
            Field("mig", "boolean", None, "whether MIG is on", nullable=True),
        ),
    ),
    Field("torch", "string", None, "version"),
    Field("cuda", "string", None, "version that torch was built for", nullable=True),
    Field("transformers", "string", None, "version"),
    Field("xformers", "string", None, "version, where its kernels can be used", nullable=True),
    Field("xformers_problem", "string", None, "why xFormers does not serve on this GPU", nullable=True),
    Field("whisper_flash_attention", "string", None, "version"),
    Field("package_path", "string", None, "the folder of the package that was measured"),
    Field("package_hash", "string", None, "short hash of the code of the package that was measured"),
    Field(
        "compiled_step",
        "object",
        None,
        "the package's compiled step; null on a GPU, and where the commit has none",
        nullable=True,
        fields=(
            Field(
                "level",
                "string",
                None,
                "the instructions it used, e.g. `avx2`; null where it did not serve",
                nullable=True,
            ),
            Field("problem", "string", None, "why it did not serve", nullable=True),
        ),
    ),
    Field("thread_count", "integer", "threads", "torch's intra-op threads"),
    Field("available_cores", "number", "cores", "what the process may keep busy, by its affinity and a cgroup's quota"),
    Field(
        "openmp_waiting",
        "string",
        None,
        "how OpenMP's threads wait, e.g. `GOMP_SPINCOUNT=1000`; null where nothing says so",
        nullable=True,
    ),
    Field("tf32_matmul", "boolean", None, "whether CUDA matrix products may use TF32"),
    Field("tf32_cudnn", "boolean", None, "whether cuDNN may use TF32"),
    Field("reduced_precision_float16", "boolean", None, "whether float16 products may reduce in float16"),
    Field("reduced_precision_bfloat16", "boolean", None, "whether bfloat16 products may reduce in bfloat16"),
    Field(
        "limits",
        "object",
        None,
        "what this machine can do at most; measured where components are",
        nullable=True,
        fields=(
            Field("memory_bytes_per_second", "number", "B/s", "memory bandwidth"),
            Field("memory_way", "string", None, "how that was reached"),
            Field("flops_per_second", "numbers by name", "FLOP/s", "matrix throughput by dtype"),
            Field("flops_ways", "strings", None, "how that was reached, by dtype"),
        ),
    ),
)

PARAMS = (
    Field("checkpoint", "string", None, "a name of cases.CHECKPOINTS"),
    Field("decoder_layers", "integer", "layers", "decoder layers the model is built with"),
    Field("setting", "string", None, "a name of the matrix's settings or works"),
    Field("implementation", "string", None, "a name of the matrix's implementations"),
)

PERF_CASES = (
    Field("id", "string", None, "the item's name, e.g. `test_generate[tiny.en-4-single-flash]`"),
    Field("outcome", "string", None, " or ".join(OUTCOMES)),
    Field("reason", "string", None, "why it failed or was skipped; null when it passed", nullable=True),
    Field("session", "integer", None, "which of perf_sessions ended it; null where none or several", nullable=True),
)
# Of one that was counted and not timed: it is not among the run's ``benchmarks``, whose entries all have rounds.
COUNTED_CASE = (
    *PERF_CASES,
    Field("params", "object", None, "the case's parameters", fields=PARAMS),
    Field("extra_info", "object", None, "what was counted", fields=COUNTED_INFO),
)

# What may differ between the sessions of one run; all else is the run's ``machine_info``, which is the last one's.
PERF_SESSIONS = (
    Field("started", "number", "s", "when it began, since 1970"),
    Field("cases", "integer", "cases", "how many it ended"),
    Field("commit", "string", None, "the commit that was checked out", nullable=True),
    Field("node", "string", None, "the machine's name", nullable=True),
    Field("cpu", "string", None, "the machine's CPU", nullable=True),
    Field("thread_count", "integer", "threads", "torch's intra-op threads", nullable=True),
    Field("driver", "string", None, "NVIDIA driver version; null on a CPU", nullable=True),
)
