import pytest
import torch
from torch import nn

from perf_tests.machine.place import Place
from perf_tests.measure.memory import ROUND, measure_memory, model_bytes, peak_beyond
from perf_tests.subjects.subject import Stage, Subject

KILOBYTE = 1024


class Scripted(nn.Module):
    """A model of 4 KiB whose `generate` allocates by `plan`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(KILOBYTE))
        self.kept: torch.Tensor | None = None

    def generate(self, features: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class Transient(Scripted):
    """Has 3 + 5 KiB alive at once, then 6."""

    def generate(self, features: torch.Tensor) -> torch.Tensor:
        first = torch.empty(3 * KILOBYTE, dtype=torch.uint8)
        second = torch.empty(5 * KILOBYTE, dtype=torch.uint8)
        del first, second
        return torch.empty(6 * KILOBYTE, dtype=torch.uint8)


class Keeping(Scripted):
    """Keeps 7 KiB from its first call on, and takes 2 in each."""

    def generate(self, features: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.empty(7 * KILOBYTE, dtype=torch.uint8)
        return torch.empty(2 * KILOBYTE, dtype=torch.uint8)


class Rearranging(Scripted):
    """Moves its weight to new storage in its first call, and takes 2 KiB in each."""

    def generate(self, features: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = self.weight.data = self.weight.data.clone()
        return torch.empty(2 * KILOBYTE, dtype=torch.uint8)


def measured(model: nn.Module):
    place = Place(torch.device("cpu"), torch.float32)
    return measure_memory(Subject("scripted", model, torch.zeros(1), {}, place))


@pytest.mark.parametrize(("kind", "beyond"), [(Transient, 8), (Keeping, 9), (Rearranging, 2)])
def test_the_peak_is_what_was_alive_at_once(kind: type[Scripted], beyond: int) -> None:
    memory = measured(kind())
    assert memory.model == 4 * KILOBYTE
    assert memory.peak_allocated == (4 + beyond) * KILOBYTE
    assert memory.peak_reserved is None


@pytest.mark.parametrize("implementation", ["original", "flash"])
def test_the_peak_repeats_to_the_byte_beside_other_models(implementation: str, stage: Stage) -> None:
    first = measure_memory(stage.build(implementation))
    other = stage.build("eager")
    other.run_round()
    again = measure_memory(stage.build(implementation))
    assert again == first
    assert first.peak_allocated > first.model > 0


def test_shared_storage_counts_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    model[1].weight = model[0].weight
    assert model_bytes(model) == 8 * 8 * 4


def test_a_slice_counts_as_its_whole_storage() -> None:
    model = nn.Linear(8, 4, bias=False)
    model.weight.data = torch.zeros(100)[:32].view(4, 8)
    assert model_bytes(model) == 400


def event(index: int, time: float, address: int, size: int, device: int = 0) -> dict[str, object]:
    arguments = {"Ev Idx": index, "Addr": address, "Bytes": size, "Device Type": device}
    return {"name": "[memory]", "ts": time, "args": arguments}


def test_events_outside_of_the_round_make_no_peak() -> None:
    events = [
        event(3, 31, 30, 5),
        event(1, 1, 10, 100),
        event(2, 2, 10, -100),
        {"name": ROUND, "ts": 20, "dur": 20},
        event(4, 32, 99, -7),
        event(5, 33, 40, 11, device=1),
        event(6, 41, 50, 1000),
    ]
    assert peak_beyond(events, frozenset()) == 5


def test_a_trace_without_the_round_is_refused() -> None:
    with pytest.raises(ValueError, match="no event"):
        peak_beyond([], frozenset())
