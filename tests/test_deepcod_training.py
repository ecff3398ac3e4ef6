"""DeepCOD's training: what learns, what does not, and a profile that offers what came out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from common import profile, registry
from device.bundle import Bundle
from device.strategy import Frame
from device.strategy import Plan as FramePlan
from profiles.train import deepcod, deepcod_stage, principal, publish, slim
from profiles.train.deepcod_stage import Aim, Plan
from profiles.train.job import Job
from profiles.train.loop import Budget, Tick
from profiles.train.photos import Photos
from profiles.train.teacher import Teacher
from server.memory import NOTHING
from server.models.cnn import Cnn, CnnConfig
from server.models.deepcod import DeepCOD, DeepCODConfig, Rates, UpBlock, constrain, settle
from server.serving import Serving, strategies
from tests.profiles import tiny

CONFIG = DeepCODConfig((64, 64), channels=6, kernel=8, levels=9, widths=(8, 8, 4))

MAP = DeepCODConfig((16, 16), 8, 8, 2, 9, (8, 8))


def scenes(count: int, seed: int = 0) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 8, 8, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


def trained(
    checkpoint: Path, backbone: Cnn, steps: int, first: float = 0.5, point: str = "input",
    config: DeepCODConfig = CONFIG, seen: list[float] | None = None,
) -> DeepCOD:  # fmt: skip
    with torch.no_grad():
        data = backbone.before(deepcod.to_pictures(scenes(40)), point)

    def inputs(tick: Tick) -> torch.Tensor:
        if seen is not None:
            seen.append(tick.progress)
        return data[tick.indices]

    model, _ = deepcod.train(
        config, backbone, point, inputs, data, 40, len(data), checkpoint, Budget(steps=steps), 0,
        False, deepcod.Weights(first=first), batch=8,
    )  # fmt: skip
    return model


def small() -> Cnn:
    torch.manual_seed(0)
    return Cnn(CnnConfig(4, (8, 8, 8, 8)))


@pytest.mark.parametrize("point", ["input", "block-2"])
@torch.no_grad()
def test_it_starts_as_the_best_linear_codec(point: str) -> None:
    """Equation 7 holds; the bytes are those asked for; the decoder undoes the encoder."""
    config = MAP if point == "block-2" else CONFIG
    x = small().eval().before(deepcod.to_pictures(scenes(60)), point)
    model = principal.start(config, x, 20.0)
    assert float(model.isometry()) < 1e-4
    assert np.allclose(np.diff(model.quantizer.centres.tolist()), principal.STEP)
    symbols = model.encode(x)
    assert principal.entropy(symbols, config.levels) / 8 == pytest.approx(20, rel=0.05)
    energy = model.encoder(model.scaled(x)).square().sum((0, 2, 3))
    assert float((energy - energy.sort(descending=True).values).abs().max()) < 1e-3
    principal.level(constrain(model), x, fresh=True)
    settle(model)
    for block in model.decoder:
        if isinstance(block, UpBlock):
            block.gate.zero_()
    restored = model.scaled(model.decode(symbols))
    y = model.quantizer.centres[symbols] / model.unit
    back = torch.nn.functional.conv_transpose2d(y, model.encoder.weight, stride=config.kernel)
    linear = deepcod.coarser(back, config.shrink)
    assert float((restored - linear).square().mean()) < 0.1 * float(linear.square().mean())


@pytest.mark.parametrize("point", ["input", "block-2"])
def test_only_the_codec_learns(tmp_path: Path, point: str) -> None:
    backbone = small().eval().requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    config = MAP if point == "block-2" else CONFIG
    known = backbone.before(deepcod.to_pictures(scenes(40)), point)
    start = principal.start(config, known, 40)
    model = trained(tmp_path / "c.ckpt", backbone, 4, point=point, config=config)
    for name, value in backbone.state_dict().items():  # batch norm's statistics among them
        assert torch.equal(value, before[name]), name
    for part in ("encoder.weight", "quantizer.centres"):
        assert not torch.equal(model.get_parameter(part), start.get_parameter(part))
    for part in ("mean", "span", "unit"):
        assert torch.equal(model.get_buffer(part).half(), start.get_buffer(part).half())


def test_reconstruction_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    whole = deepcod.distilled

    def noted(*arguments: object) -> torch.Tensor:
        asked.append(1)
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(deepcod, "distilled", noted)
    seen: list[float] = []
    trained(tmp_path / "c.ckpt", small().eval(), steps=8, first=0.5, seen=seen)
    assert len(asked) == sum(progress >= 0.5 for progress in seen) == 4


@torch.no_grad()
def test_distillation_sums_over_every_layer() -> None:
    backbone = small().eval()
    pictures, others = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    found, wanted = (backbone.behind(each, "input") for each in (others, pictures))
    assert float(deepcod.distilled(wanted, wanted)) == 0
    parts = [
        float((a - b).square().mean() / b.square().mean())
        for a, b in zip(found, wanted, strict=True)
    ]
    value = float(deepcod.distilled(found, wanted, 3.0))
    assert value == pytest.approx(sum(parts) + 2 * parts[-1], rel=1e-4)


def test_it_learns_what_the_backbone_looks_at(tmp_path: Path) -> None:
    backbone = small().eval().requires_grad_(False)
    x = deepcod.to_pictures(scenes(8, seed=1))
    losses = []
    for steps in (1, 60):
        model = trained(tmp_path / f"{steps}.ckpt", backbone, steps, first=0.0)
        with torch.no_grad():
            restored = model.decode(model.encode(x))
            wanted = backbone.behind(deepcod.coarser(x, 2), "input")
            losses.append(float(deepcod.distilled(backbone.behind(restored, "input"), wanted)))
    assert losses[1] < 0.8 * losses[0]


def test_a_rate_starts_from_the_one_before(tmp_path: Path) -> None:
    backbone = small().eval()
    first = trained(tmp_path / "c.ckpt", backbone, 2)
    x = deepcod.to_pictures(scenes(40))
    model = principal.start(CONFIG, x, 20, first)
    assert torch.equal(model.encoder.weight, first.encoder.weight)
    assert torch.equal(model.decoder[0].weight, first.decoder[0].weight)  # type: ignore[arg-type]
    assert principal.entropy(model.encode(x), CONFIG.levels) / 8 == pytest.approx(20, rel=0.05)


def test_a_slim_cnn_starts_as_its_teacher_where_shapes_agree() -> None:
    """And what it was cut to is the same network: `before` and `behind` any point."""
    teacher = Teacher(4).eval()
    config = CnnConfig(4, (48, 96, 192, 16), depths=(1, 2, 1, 1), shrink=2)
    model = slim.start(config, teacher).eval()
    pictures = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = teacher.layers(torch.nn.functional.avg_pool2d(pictures, 2))
        for point, layer in (("block-1", 0), ("block-2", 1), ("block-3", 2)):
            assert torch.equal(model.before(pictures, point), wanted[layer])
        assert not torch.equal(model.head.weight, teacher.head.weight[:, :16])
        logits = model(pictures)[0]
        for point in model.points:
            again = model.behind(model.before(pictures, point), point)[-1]
            torch.testing.assert_close(again, logits)


def test_a_stage_makes_a_profile_that_serves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two points, one with two rates; every runtime gives torch's symbols, frame by frame."""
    monkeypatch.setattr(publish, "PROFILES", tmp_path)
    directory = tiny(tmp_path)
    job = Job((), tmp_path / "out", 0, Budget(steps=2), False)
    job.out.mkdir()
    at_input = DeepCODConfig((32, 32), channels=12, kernel=4, levels=9, widths=(12, 8, 4))
    at_block = DeepCODConfig((4, 4), 4, 4, 2, 9, (8, 8))
    plan = Plan(
        (
            Aim("input", at_input, 15, 1),
            Aim("input", at_input, 40, 1, after=True),
            Aim("block-3", at_block, 10, 1),
        ),
        backbone="cnn", default=("input", 2),
    )  # fmt: skip
    held = Photos(scenes(6, seed=2), np.arange(6) % 4)
    deepcod_stage.stage(job, "tiny", plan, scenes(20), held)

    loaded = profile.load(directory)
    params = loaded.manifest.params("deepcod")
    assert [point["name"] for point in params["points"]] == ["input", "block-1", "block-2",
                                                             "block-3"]  # fmt: skip
    sizes = [rate["bytes"] for rate in params["points"][0]["rates"]]
    assert sizes[0] < sizes[1]
    bundle = Bundle(loaded.manifest, loaded.directory, {f.path for f in loaded.manifest.files})
    needed = {file.path for file in bundle.needed("deepcod")}
    assert needed >= {
        "device/deepcod/input-2.tflite", "device/deepcod/block-3-1.npz",
        "device/deepcod/stage3.tflite", "weights/cnn-stage3.onnx", "weights/cnn.safetensors",
    }  # fmt: skip
    device = registry.load("device.strategies", "deepcod").create(bundle)
    serving = Serving(loaded)
    server = strategies(serving, ["deepcod"])["deepcod"]
    frame = Frame(0, "0", scenes(1, seed=5)[0], 0.0)
    cnn = serving.model("cnn", Cnn)
    codecs = serving.model("deepcod", Rates)
    for point, rate in plan.names():
        x = cnn.before(deepcod.to_pictures(frame.pixels[None]), point)
        wanted = deepcod.symbols(codecs.codec(rate, point), x)[0]
        for runtime in ("numpy", "onnx", "tflite"):
            params = {"point": point, "rate": rate, "runtime": runtime}
            query = next(device.infer(frame, FramePlan("deepcod", params)))
            work = server.prepare(query, NOTHING)
            found = work.arrays["symbols"]
            assert found.shape == wanted.shape
            assert (found != wanted).mean() < 0.02, (point, runtime)
        (outcome,) = server.forward([work])
        assert outcome.probabilities.sum() == pytest.approx(1, abs=1e-4)
    default = next(device.infer(frame, FramePlan("deepcod")))
    assert default.params == {"point": "input", "rate": 2}
