"""torch.randn on a CPU as csrc makes it: its numbers, its state afterwards, and when ATen makes them instead."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

from ladder_kernels import info, noise, normal_sample, normal_sample_kl
from ladder_kernels.backends import cpp
from ladder_kernels.noise import draw_noise
from tests.inputs import packed

CPU = torch.device("cpu")


def draw(*shape: int, generator: torch.Generator | None = None) -> torch.Tensor:
    return draw_noise(shape, torch.float32, CPU, generator)


def generators() -> tuple[torch.Generator, torch.Generator]:
    return torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)


def advance(generator: torch.Generator, choice: int, count: int) -> None:
    """What else a program does with a generator."""
    match choice:
        case 0:
            torch.rand(count % 1000, generator=generator)
        case 1:
            torch.randint(2**40, (count % 1000,), generator=generator)
        case 2:  # one by one, with a number left over in the state
            torch.randn(count % 16, generator=generator)
        case 3:
            torch.randn(count % 1000, dtype=torch.float64, generator=generator)
        case 4:
            torch.empty(30, 2).t().normal_(generator=generator)
        case 5:
            generator.manual_seed(count)
        case 6:
            state = generator.get_state()
            torch.randperm(50, generator=generator)
            generator.set_state(state)


def follow_randn(draws: int, largest: int) -> None:
    """Random draws of up to `largest` numbers, and other things in between, beside torch.randn."""
    assert noise.reason_aten_draws() is None
    ours, atens = generators()
    choices = torch.Generator().manual_seed(draws)
    span = torch.tensor(largest / 16).log2()
    for _ in range(draws):
        count = int(16 * 2 ** (span * torch.rand((), generator=choices)))
        choice = int(torch.randint(12, (), generator=choices))
        advance(ours, choice, count)
        advance(atens, choice, count)
        drawn = torch.empty(count)
        assert noise._fill(drawn, ours)
        torch.testing.assert_close(drawn, torch.randn(count, generator=atens), rtol=0, atol=1e-6)
        assert torch.equal(ours.get_state(), atens.get_state())


def test_numbers_and_states_are_those_of_randn():
    follow_randn(500, 1e4)
    follow_randn(5, 1e6)


@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_every_instruction_set_draws_as_atens_does(capability):
    code = "from tests.test_noise_cpu import follow_randn; follow_randn(200, 1e4)"
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("count", [noise._FEWEST - 1, noise._FEWEST, 50_001])
@pytest.mark.parametrize("given", [False, True], ids=["default generator", "given generator"])
def test_noise_is_randn_by_whomever_it_is_made(count, given):
    ours, atens = generators() if given else (None, None)
    torch.manual_seed(5)
    expected = torch.randn(count, generator=atens)
    after = torch.rand(3, generator=atens)
    torch.manual_seed(5)
    drawn = draw(count, generator=ours)
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-6)
    assert torch.equal(torch.rand(3, generator=ours), after)


def test_large_float32_noise_of_a_cpu_is_made_by_csrc(monkeypatch):
    made = []
    fill = cpp.fill_normal
    monkeypatch.setattr(cpp, "fill_normal", lambda out, state: made.append(tuple(out.shape)) or fill(out, state))
    params = packed((2, 8, 32, 32))
    normal_sample(params)
    normal_sample_kl(params, generator=torch.Generator())
    torch.ops.ladder_kernels.draw_noise(torch.zeros(0), (1, 8, 32, 32), 2)
    assert made == [(2, 8, 32, 32), (2, 8, 32, 32), (1, 8, 32, 32)]
    normal_sample(params.double())
    normal_sample(packed((2, 8, 2, 2)))
    assert len(made) == 3


def test_the_number_of_threads_changes_nothing():
    drawn = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            drawn.append(draw(100_007))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_a_fork_of_the_generator_leaves_no_trace():
    torch.manual_seed(1)
    expected = draw(5000)
    torch.manual_seed(1)
    with torch.random.fork_rng():
        draw(5000)
    assert torch.equal(draw(5000), expected)


def test_a_checkpoint_draws_the_same_again():
    params = packed((2, 4, 32, 32)).requires_grad_()

    def run(params):
        return normal_sample_kl(params).z.square().sum()

    torch.manual_seed(2)
    (expected,) = torch.autograd.grad(run(params), params)
    torch.manual_seed(2)
    (grad,) = torch.autograd.grad(checkpoint(run, params, use_reentrant=False), params)
    assert torch.equal(grad, expected)


def test_compiled_and_eager_noise_are_the_same_bits(fresh_compiler):
    compiled = torch.compile(lambda: draw(2, 4096), backend="aot_eager", fullgraph=True)
    torch.manual_seed(3)
    expected = draw(2, 4096)
    torch.manual_seed(3)
    assert torch.equal(compiled(), expected)


def test_threads_that_draw_here_share_the_generator():
    """No number is drawn twice: together they take as many words as one draw of all."""
    ours, atens = generators()
    work = [threading.Thread(target=lambda: [draw(4096, generator=ours) for _ in range(40)]) for _ in range(4)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    torch.randn(4 * 40 * 4096, generator=atens)
    assert torch.equal(ours.get_state(), atens.get_state())


def test_a_draw_of_another_thread_by_aten_is_not_drawn_a_second_time(monkeypatch):
    ours, atens = generators()
    fill = cpp.fill_normal

    def disturbed(out, state):
        torch.rand(7, generator=ours)
        return fill(out, state)

    monkeypatch.setattr(cpp, "fill_normal", disturbed)
    drawn = draw(5000, generator=ours)
    torch.rand(7, generator=atens)
    assert torch.equal(drawn, torch.randn(5000, generator=atens))
    assert torch.equal(ours.get_state(), atens.get_state())


@pytest.mark.parametrize(
    ("field", "value"), [(8, 700), (8, 0), (16, 3), (16, 700)], ids=["left", "nothing left", "next", "next beyond"]
)
def test_a_state_that_does_not_fit_together_is_left_alone(field, value):
    generator = torch.Generator().manual_seed(1)
    torch.rand(100, generator=generator)
    state = generator.get_state()
    state[field : field + 4] = torch.tensor([value], dtype=torch.int32).view(torch.uint8)
    before, out = state.clone(), torch.zeros(16)
    assert not cpp.fill_normal(out, state)
    assert torch.equal(state, before)
    assert torch.equal(out, torch.zeros(16))


def wrong_number(out, state):
    done = FILL(out, state)
    out[-1] += 1e-5
    return done


def wrong_state(out, state):
    done = FILL(out, state)
    state[24] ^= 1  # a word, of which 32 bits count
    return done


FILL = cpp.fill_normal
FAULTS = {
    "numbers": (wrong_number, "16 numbers made by csrc are not those of torch.randn"),
    "state": (wrong_state, "after 16 numbers csrc leaves another state than torch.randn"),
    "refusal": (lambda out, state: False, "16 numbers made by csrc are not those of torch.randn"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_where_csrc_draws_something_else_aten_draws_and_info_says_so(fault, monkeypatch):
    broken, said = FAULTS[fault]
    monkeypatch.setattr(cpp, "fill_normal", broken)
    noise.reason_aten_draws.cache_clear()
    try:
        torch.manual_seed(4)
        drawn = draw(5000)
        assert said in info.defaults()["CPU tensors"]
    finally:
        noise.reason_aten_draws.cache_clear()
    torch.manual_seed(4)
    assert torch.equal(drawn, torch.randn(5000))


def test_another_layout_of_the_state_is_left_to_aten(monkeypatch):
    monkeypatch.setattr(noise, "_STATE_SIZE", 5000)
    noise.reason_aten_draws.cache_clear()
    try:
        assert noise.reason_aten_draws() == "a generator's state has 5056 bytes, not 5000"
    finally:
        noise.reason_aten_draws.cache_clear()


def test_fake_noise_is_fake_and_draws_nothing():
    before = torch.get_rng_state()
    with FakeTensorMode():
        assert type(draw(5000)).__name__ == "FakeTensor"
    assert torch.equal(torch.get_rng_state(), before)


def test_a_tracer_sees_randn():
    traced = make_fx(lambda x: x + draw(5000))(torch.zeros(5000))
    assert any("randn" in str(node.target) for node in traced.graph.nodes)


def test_a_vectorised_map_decides_whether_its_samples_differ():
    with pytest.raises(RuntimeError, match="random"):
        torch.func.vmap(lambda x: x + draw(5000))(torch.zeros(2, 5000))
    drawn = torch.func.vmap(lambda x: x + draw(5000), randomness="different")(torch.zeros(2, 5000))
    assert not torch.equal(drawn[0], drawn[1])
