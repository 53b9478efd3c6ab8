import pytest

from perf_tests.matrix import cases
from perf_tests.matrix.cases import PRESETS, Case, Cell, Selection, SelectionError, select


@pytest.mark.parametrize(("preset", "count"), [("quick", 12), ("paper", 78), ("full", 96)])
def test_presets_have_their_number_of_cases(preset: str, count: int) -> None:
    chosen = select(preset, Selection())
    assert len(chosen) == count
    assert len({case.id for case in chosen}) == count


def test_paper_is_the_two_tables_of_2023() -> None:
    rows = {
        "tiny.en": (4, 2),
        "base.en": (6, 4, 2),
        "small.en": (12, 6, 4, 2),
        "medium.en": (24, 6, 4, 2),
    }
    expected = {
        Cell(checkpoint, layers, setting)
        for checkpoint, depths in rows.items()
        for layers in depths
        for setting in ("single", "batched")
    }
    assert set(PRESETS["paper"].cells) == expected
    assert len(PRESETS["paper"].cells) == 26


def test_cases_come_cell_by_cell() -> None:
    cells = [case.cell for case in select("full", Selection())]
    assert cells == [cell for cell in dict.fromkeys(cells) for _ in cases.IMPLEMENTATIONS]


def test_ids() -> None:
    case = Case("tiny.en", 4, "single", "flash")
    assert case.id == "tiny.en-4-single-flash"
    assert case.cell.id == "tiny.en-4-single"


def test_no_case_exceeds_the_decoder() -> None:
    longest = max(setting.new_tokens for setting in cases.SETTINGS.values())
    assert longest + 4 <= cases.MAX_TARGET_POSITIONS


def test_selection_keeps_the_tables_order() -> None:
    chosen = select("paper", Selection(checkpoints=("base.en", "tiny.en"), decoder_layers=(4,), settings=("single",)))
    assert [case.cell.id for case in chosen[::3]] == ["tiny.en-4-single", "base.en-4-single"]


def test_selection_of_implementations() -> None:
    chosen = select("quick", Selection(implementations=("flash",)))
    assert {case.implementation for case in chosen} == {"flash"}
    assert len(chosen) == 4


def test_full_depth_only() -> None:
    chosen = select("full", Selection(full_depth_only=True))
    assert {(case.checkpoint, case.decoder_layers) for case in chosen} == {
        (name, checkpoint.decoder_layers) for name, checkpoint in cases.CHECKPOINTS.items()
    }


@pytest.mark.parametrize(
    ("preset", "selection", "words"),
    [
        ("swift", Selection(), ["--perf-preset", "'swift'", "quick, paper, full"]),
        ("quick", Selection(checkpoints=("tiny",)), ["--perf-checkpoint", "'tiny'", "tiny.en"]),
        ("quick", Selection(settings=("double",)), ["--perf-setting", "'double'", "single"]),
        ("quick", Selection(implementations=("swift",)), ["--perf-implementation", "'swift'", "flash"]),
        ("quick", Selection(decoder_layers=(0,)), ["--perf-decoder-layers", "0 is too few"]),
        ("quick", Selection(decoder_layers=(-1,)), ["--perf-decoder-layers", "-1 is too few"]),
        ("full", Selection(decoder_layers=(33,)), ["33 is too many", "large-v3 has 32"]),
        ("paper", Selection(("tiny.en",), (5,)), ["5 is too many", "tiny.en has 4"]),
        ("paper", Selection(("tiny.en", "base.en"), (6, 5)), ["--perf-checkpoint tiny.en", "no cell", "no preset"]),
        ("paper", Selection(("tiny.en", "base.en"), (4, 5)), ["--perf-decoder-layers 5", "no cell"]),
        ("quick", Selection(("medium.en",)), ["--perf-checkpoint medium.en", "paper, full"]),
        ("quick", Selection((), (2,), ("batched_small",)), ["no cell", "no preset has one"]),
        ("quick", Selection((), (2,), (), (), full_depth_only=True), ["no cell"]),
    ],
)
def test_what_cannot_be_selected(preset: str, selection: Selection, words: list[str]) -> None:
    with pytest.raises(SelectionError) as error:
        select(preset, selection)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message
