"""The suite's command-line options, and the plan made from them."""

import sys

import pytest

from perf_tests.common.errors import BadInputError

from . import cases, components
from .plan import (
    DEFAULT_DATASET,
    DEFAULT_PRECISION_PERCENT,
    DTYPES,
    WEIGHTS,
    Options,
    Plan,
    Probes,
    count_cuda_devices,
    cpu_computes,
    make_plan,
    nvidia_driver_present,
)

PLAN = pytest.StashKey[Plan]()
TEST_FILES = "perf_tests"


def add_options(parser: pytest.Parser) -> None:
    """Add the ``--perf-`` options. Values are checked when the plan is made, to answer in one line."""
    add = parser.getgroup("perf", "performance suite (perf_tests)").addoption
    add(
        "--perf-preset",
        metavar="NAME",
        help=f"Which cells: {', '.join(cases.PRESETS)}. Default: quick on a CPU, paper on a GPU.",
    )
    add("--perf-device", metavar="DEVICE", help="cpu, cuda or cuda:N. Default: cuda where there is a GPU.")
    add(
        "--perf-dtype",
        metavar="DTYPE",
        help=f"{', '.join(DTYPES)}. Default: float32 on a CPU, float16 on a GPU.",
    )
    add(
        "--perf-rounds",
        metavar="N",
        help="Timed rounds per case, exactly; by setting: single=10,batched=2. Default: the setting's (fewer in preset"
        " quick), and for flash more where its speed-up is not known precisely enough by then.",
    )
    add(
        "--perf-precision",
        metavar="PERCENT",
        help="Time flash until the 95 %% interval of its speed-up is within this. Default:"
        f" {DEFAULT_PRECISION_PERCENT:g}.",
    )
    add(
        "--perf-case-budget",
        metavar="SECONDS",
        help="Time that more rounds for the sake of precision may take, per case. Default: the preset's.",
    )
    add(
        "--perf-control-after",
        action="store_true",
        help="Run the control right after each round of flash instead of right before.",
    )
    add(
        "--perf-dataset",
        metavar="NAME_OR_DIR",
        help=f"Speech: a data set on the Hub, a folder, or 'synthetic'. Default: {DEFAULT_DATASET}, and"
        " synthetic audio where that cannot be had.",
    )
    add(
        "--perf-weights",
        metavar="KIND",
        default="random",
        help=f"{' or '.join(WEIGHTS)}. Pretrained runs the full-depth rows only. Default: random (seeded).",
    )
    add(
        "--perf-counters-only",
        action="store_true",
        help="Count instead of timing: ATen ops and FLOPs of every case, and the peak memory of those with short"
        " rounds. Exact, so any machine can gate on it. Parity is not checked.",
    )
    select = {"action": "append", "default": []}
    add(
        "--perf-checkpoint",
        metavar="NAME",
        help=f"Only this one of {', '.join(cases.CHECKPOINTS)}.",
        **select,
    )
    add("--perf-decoder-layers", metavar="N", help="Only cells with N decoder layers.", **select)
    add("--perf-setting", metavar="NAME", help=f"Only this one of {', '.join(cases.SETTINGS)}.", **select)
    add(
        "--perf-implementation",
        metavar="NAME",
        help=f"Only this one of {', '.join(cases.IMPLEMENTATIONS)}.",
        **select,
    )
    add(
        "--perf-components",
        action="store_true",
        help="The parts of the model in place of generate: encoder, prefill, decode step, attention, training step,"
        " loading, and in preset full long-form audio; each against this machine's limits.",
    )
    add(
        "--perf-accuracy",
        action="store_true",
        help="Word error rates in place of generate: pretrained weights on the data set's clips.",
    )
    add(
        "--perf-profile",
        metavar="DIR",
        help="Write a trace (for Perfetto) and a table of operators by share for each case into DIR.",
    )


def plan_session(config: pytest.Config) -> None:
    """Make the plan.

    Raises:
        BadInputError: an option is wrong, or a file was named that has no case.
    """
    config.stash[PLAN] = make_plan(read_options(config), _probes(config))
    _check_named_files(config)


def read_options(config: pytest.Config) -> Options:
    """The ``--perf-`` options as typed."""
    value = config.getoption
    return Options(
        preset=value("perf_preset"),
        device=value("perf_device"),
        dtype=value("perf_dtype"),
        rounds=value("perf_rounds"),
        precision=value("perf_precision"),
        case_budget=value("perf_case_budget"),
        control_after=value("perf_control_after"),
        dataset=value("perf_dataset"),
        weights=value("perf_weights"),
        checkpoints=tuple(value("perf_checkpoint")),
        decoder_layers=tuple(value("perf_decoder_layers")),
        settings=tuple(value("perf_setting")),
        implementations=tuple(value("perf_implementation")),
        components=value("perf_components"),
        accuracy=value("perf_accuracy"),
        profile=value("perf_profile"),
        counters_only=value("perf_counters_only"),
    )


def make_plan_of(config: pytest.Config, *, components: bool, accuracy: bool) -> Plan:
    """The plan that the same options would make of another group of cases.

    Raises:
        BadInputError: they ask for something that this group does not have.
    """
    options = read_options(config)._replace(components=components, accuracy=accuracy)
    return make_plan(options, _probes(config))


def whole_number(text: str, option: str, unit: str) -> int:
    """The number of an option that takes 1 or more.

    Raises:
        BadInputError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise BadInputError(f"{option}: {text!r} is no whole number of {unit}, 1 or more")
    return int(text)


def is_perf_item(item: pytest.Item) -> bool:
    """Whether ``item`` is a case of the suite, as opposed to an ordinary test."""
    return item.path.parent.name == TEST_FILES and "benchmark" in getattr(item, "fixturenames", ())


def _check_named_files(config: pytest.Config) -> None:
    """A file of the suite that was named must have cases.

    Raises:
        BadInputError: the plan has none for it.
    """
    planned = {components.matrix_of(case).file for case in config.stash[PLAN].cases}
    for argument in config.args:
        path = config.invocation_params.dir / argument.partition("::")[0]
        name = path.stem
        if path.resolve().parent.name != TEST_FILES or not name.startswith("test_") or name in planned:
            continue
        groups = [group for group in (components.COMPONENTS, components.ACCURACY) if name == group.file]
        advice = f"give {groups[0].option}, or another preset" if groups else "leave out --perf-components or the like"
        raise BadInputError(f"{path.name}: no case of it is selected; {advice}")


def _probes(config: pytest.Config) -> Probes:
    """The machine's probes; where nothing will run, a driver is taken for a GPU, to spare torch's import."""
    if config.option.collectonly:
        return Probes(nvidia_driver_present, lambda: sys.maxsize, cpu_computes)
    return Probes(nvidia_driver_present, count_cuda_devices, cpu_computes)
