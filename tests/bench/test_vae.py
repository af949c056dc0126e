"""The example trains: both versions to equal losses, on the faces, in two steps; and its step is VDVAE's."""

import pytest
import torch
from bench.peers.formulas import vdvae

from bench.vae import __main__ as command
from bench.vae import run as example
from bench.vae.model import SIDE, Fused, Ladder, Plain


def test_both_versions_train_to_equal_losses(tmp_path, capsys, monkeypatch):
    trained = {}
    monkeypatch.setattr(command, "summary", lambda runs: trained.update(runs) or "")
    monkeypatch.setattr(command, "SHOWN", 2)
    assert command.main(["--steps", "2", "--batch", "2", "--device", "cpu", "--out", str(tmp_path)]) == 0
    plain, fused = (trained[name].losses for name in (example.PLAIN, example.FUSED))
    assert len(plain) == 2
    assert plain[0] != plain[1]
    assert fused == pytest.approx(plain, rel=1e-5)
    assert (tmp_path / "vae.png").read_bytes().startswith(b"\x89PNG")


def test_the_summary_tells_the_largest_difference():
    plain, fused = Ladder(Plain()), Ladder(Fused())
    runs = {
        example.PLAIN: example.Run(plain, [2.0, 1.0], [0.2, 0.4, 0.3]),
        example.FUSED: example.Run(fused, [2.0, 1.25], [0.1, 0.1, 0.1]),
        example.CONTROL: example.Run(plain, [2.5, 1.0], [0.1, 0.1, 0.1]),
    }
    _, *rows, _, ratio = command.summary(runs).splitlines()
    assert [row.split()[-1] for row in rows] == ["0.0e+00", "2.5e-01", "5.0e-01"]
    assert ratio.endswith(" 3.00")


def test_the_gradient_reaches_every_parameter():
    model = Ladder(Fused())
    update = example._update(model)
    for _ in range(2):  # the heads start at zero: what lies behind them learns from the second step on
        update(torch.randn(2, 1, SIDE, SIDE))
    assert not [name for name, parameter in model.named_parameters() if not parameter.grad.any()]


def test_the_plain_step_is_vdvaes():
    q, p = torch.randn(2, 2, 8, 3, 3)
    torch.manual_seed(1)
    z, kl = Plain()(q, p)
    torch.manual_seed(1)
    expected_z, expected_kl = vdvae(q, p)
    torch.testing.assert_close(z, expected_z)
    torch.testing.assert_close(kl, expected_kl)
    mean, log_std = p.chunk(2, 1)
    torch.manual_seed(1)
    noise = torch.randn_like(mean)
    for step in (Plain(), Fused()):
        torch.manual_seed(1)
        torch.testing.assert_close(step.sample(p, 0.5), mean + 0.5 * log_std.exp() * noise)


def test_the_faces_are_faces():
    faces = example.load_faces()
    assert faces.shape == (100, 1, SIDE, SIDE)
    torch.testing.assert_close(torch.stack([faces.mean(), faces.std()]), torch.tensor([0.0, 1.0]), atol=1e-5, rtol=0)
    batch = example.random_faces(faces, 50, torch.Generator().manual_seed(0))
    found = [(faces == face).flatten(1).all(1).any().item() for face in batch]
    assert 5 < sum(found) < 45  # the others are mirrored
    mirrored = [(faces == face.flip(-1)).flatten(1).all(1).any().item() for face in batch]
    assert all(a or b for a, b in zip(found, mirrored, strict=True))
