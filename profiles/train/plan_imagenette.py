"""The stages that make the profile ``imagenette`` from photographs (``--data``).

500 of the training photographs are held out of every stage; settings are chosen on them. The
validation photographs are read once, by ``publish``, to report on.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import numpy.typing as npt
import torch

from profiles import amend, export_janus
from profiles.export import local_onnx
from profiles.pools import Costs, Layers
from profiles.train import (
    augment,
    autoencoder,
    computing,
    deepcod_stage,
    evaluate,
    filter,
    light,
    local,
    mae,
    photo_exits,
    publish,
    slim,
    superres,
    teach,
    teacher,
    vit_photos,
)
from profiles.train.deepcod import Weights
from profiles.train.deepcod_stage import Aim, Plan
from profiles.train.job import Job, Stage
from profiles.train.loop import Tick
from profiles.train.photos import IMAGENETTE, Photos, load, split_off
from server.models.autoencoder import AutoEncoderConfig
from server.models.checkpoint import save_weights
from server.models.cnn import CnnConfig
from server.models.deepcod import DeepCODConfig
from server.models.mae import MAEConfig
from server.models.vit import ViTConfig

CLASSES = tuple(IMAGENETTE[wnid] for wnid in sorted(IMAGENETTE))
VIT = ViTConfig(
    dim=192, depth=6, heads=3, classes=len(CLASSES), stem="local", stem_width=32, mixers=3
)
MAE = MAEConfig(dim=192, depth=4, heads=4, decoder_dim=128, decoder_depth=3, decoder_heads=4)
QUALITY = 25
"""Of the mosaic JPEG: the smallest that cost no accuracy on frames held out, through the pair."""
SHARE = 0.35
"""Mean share of the patches that A-MOT's defaults may send."""
AREA = 0.25
"""Share of the patches that DF's filter learns to call crucial."""
DF = {"r": 0.4, "floor": 0.0, "recovery": "none", "codec": "mosaic", "quality": 15}
"""DF's settings, chosen on photographs held out."""
CNN = CnnConfig(len(CLASSES), (48, 96, 192, 160), depths=(1, 2, 1, 1), shrink=2)
"""The backbone of DeepCOD: the teacher's first layers and a narrower last stage, 2.8 MB."""
AUTOENCODER = AutoEncoderConfig((224, 224))
TIERS = {"dimec": Layers(2, 4, 6), "dimee": Layers(3, 5, 6)}
"""m, n and l, chosen on photographs held out."""
COSTS = Costs(gamma=6.0, unit=0.0006)
"""Of DIMEC-DC and DIMEE: a charge per layer, and the whole model on the mobile weighs half a point,
as with the sentences."""
STORED = 2_400
"""Photographs whose first rounds the light inference learns from."""

_INPUT = DeepCODConfig((112, 112), 3, 48, 8, 33, widths=(48, 32, 16, 8))
_BLOCK1 = DeepCODConfig((28, 28), 48, 32, 2, 33, widths=(48, 40))
_BLOCK3 = DeepCODConfig((14, 14), 96, 48, 2, 33, widths=(64, 64))
_BLOCK4 = DeepCODConfig((7, 7), 192, 32, 1, 25, widths=(64,))
DEEPCOD = Plan(
    (
        Aim("input", _INPUT, 900, 13.5),
        Aim("input", replace(_INPUT, levels=57), 1600, 6, after=True),
        Aim("input", replace(_INPUT, levels=57), 1900, 4, Weights(rate=0.2), after=True),
        Aim("block-1", _BLOCK1, 900, 1.5),
        Aim("block-2", _BLOCK1, 750, 6.5, Weights(rate=0.2)),
        Aim("block-3", _BLOCK3, 500, 2),
        Aim("block-4", _BLOCK4, 200, 4),
        Aim("block-4", _BLOCK4, 300, 4, Weights(rate=0.1)),
        Aim("block-4", _BLOCK4, 330, 3.5, Weights(rate=0.04)),
    ),
    backbone="cnn", flip=True, default=("input", 3), runtime="onnx",
)  # fmt: skip
"""A codec at each point where the CNN can be cut, three at the input and at the deepest."""


def _split(job: Job) -> tuple[Photos, Photos]:
    photos = load(job.photos(), "train")
    chosen, held = split_off(photos)
    return photos.take(chosen), photos.take(held)


def train_teacher(job: Job) -> None:
    """The convolutional teacher, on crops of 96 to 128 pixels."""
    figures = teacher.train(job.photos(), job.out, job.minutes(15), job.seed, job.resume)
    job.record("teacher", **figures)


def write_lessons(job: Job) -> None:
    """The teacher's answers on the crops that the students learn from."""
    teach.write(_teacher(job), _split(job)[0], job.out / "lessons", job.seed)


def train_mae(job: Job) -> None:
    """The masked autoencoder, on crops at full size."""
    photos, held = _split(job)

    def frames(tick: Tick) -> npt.NDArray[np.uint8]:
        return augment.random_crops(tick.rng, photos.frames[tick.indices], 224, (0.4, 1.0))

    model, seconds = mae.train(
        MAE, frames, len(photos), job.checkpoint("mae"), job.minutes(12), job.seed, job.resume
    )
    save_weights(model, job.weights("mae"))
    error = {
        f"rmse_at_{share}": mae.recovery_error(model, held.frames[:300], share)
        for share in (0.15, 0.25, 0.4)
    }
    job.record("mae", seconds, **error)


def train_local(job: Job) -> None:
    """The device's model, distilled from the teacher's stored answers."""
    photos, held = _split(job)
    lessons = teach.Lessons(job.out / "lessons")

    def batch(tick: Tick) -> local.Batch:
        frames, said = lessons.batch(tick.indices, tick.rng)
        top, left = (int(v) for v in tick.rng.integers(0, teach.SIDE - local.SIDE + 1, 2))
        part = frames[:, top : top + local.SIDE, left : left + local.SIDE]
        return teacher.to_tensor(part), torch.from_numpy(photos.labels[tick.indices]), said.logits

    model, seconds = local.train(
        len(CLASSES), batch, len(photos), job.checkpoint("local"), job.minutes(4), job.seed,
        job.resume,
    )  # fmt: skip
    torch.save(model.state_dict(), job.out / "local.pt")
    local_onnx(model, job.out / "local.onnx")
    job.record("local", seconds, held_out=local.accuracy(model, held))


def train_vit(job: Job) -> None:
    """Phase 1 of the classifier, at 128 pixels."""
    photos, held = _split(job)
    lessons = teach.Lessons(job.out / "lessons")
    labels = torch.from_numpy(photos.labels)
    student, seconds = vit_photos.phase_one(
        VIT, lessons, labels, job.checkpoint("vit128"), job.minutes(35), job.seed, job.resume
    )
    grown = vit_photos.enlarge(student, VIT)
    torch.save(grown.state_dict(), job.out / "vit128.pt")
    save_weights(grown.vit, job.weights("vit"))
    small = Photos(augment.central(held.frames, teach.SIDE), held.labels)
    job.record(
        "vit", seconds, held_out_128=evaluate.full(student.vit, small),
        held_out=evaluate.full(grown.vit, held),
    )  # fmt: skip


def finish_vit(job: Job) -> None:
    """Phase 2 of the classifier, at 224 pixels with recovered frames."""
    photos, held = _split(job)
    student = vit_photos.Student(VIT)
    student.load_state_dict(torch.load(job.out / "vit128.pt", weights_only=True))
    seconds = vit_photos.phase_two(
        student, teach.Scale(job.out / "lessons"), _teacher(job),
        evaluate.trained_mae(job.weights("mae"), MAE), photos,
        job.checkpoint("vit224"), job.minutes(24), job.seed, job.resume,
    )  # fmt: skip
    save_weights(student.vit, job.weights("vit"))
    before = job.recorded("vit")
    job.record(
        "vit", seconds + before["seconds"], held_out_128=before["held_out_128"],
        held_out=evaluate.full(student.vit, held),
    )  # fmt: skip


def train_superres(job: Job) -> None:
    """The network that sharpens frames sent at low resolution."""
    photos, held = _split(job)
    superres.stage(job, "imagenette", photos.frames, held.frames[:100])


def train_light(job: Job) -> None:
    """The light inference of A-MOT's second round, beside the published classifier."""
    photos, held = _split(job)

    def frames(chosen: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        return augment.random_crops(rng, photos.frames[chosen], 224, (0.4, 1.0))

    light.stage(job, "imagenette", frames, photos.labels, min(STORED, len(photos)), held)


def train_cnn(job: Job) -> None:
    """The CNN behind DeepCOD's codecs, distilled from the teacher's stored answers."""
    photos, held = _split(job)
    model, seconds = slim.train(
        CNN, _teacher(job), teach.Lessons(job.out / "lessons"), photos.labels,
        job.checkpoint("cnn"), job.minutes(10), job.seed, job.resume,
    )  # fmt: skip
    save_weights(model, job.weights("cnn"))
    job.record("cnn", seconds, held_out=slim.accuracy(model, held))
    amend.amend(
        publish.PROFILES / "imagenette", models={"cnn": (job.weights("cnn"), asdict(CNN))},
        made={"cnn": job.recorded("cnn")},
    )  # fmt: skip


def train_autoencoder(job: Job) -> None:
    """Offload-AE+, which DeepCOD is compared with."""
    photos, held = _split(job)
    autoencoder.stage(job, "imagenette", AUTOENCODER, photos.frames, held)


def train_deepcod(job: Job) -> None:
    """DeepCOD's codecs before the published CNN."""
    photos, held = _split(job)
    deepcod_stage.stage(job, "imagenette", DEEPCOD, photos.frames, held)


def train_exits(job: Job) -> None:
    """Exits for the published classifier, and DIMEC-DC and DIMEE with them."""
    photos, held = _split(job)
    photo_exits.stage(job, "imagenette", photos, held, TIERS, COSTS, quality=75)


def add_janus(job: Job) -> None:
    """Janus: the graphs of the published classifier's layers, for the device."""
    export_janus.publish(publish.PROFILES / "imagenette")


def add_po(job: Job) -> None:
    """PO: the first layers of the published classifier, for the device."""
    computing.po(job, "imagenette")


def train_df(job: Job) -> None:
    """DF: the filter learns where the teacher finds most evidence of any class."""
    photos, held = _split(job)
    lessons = teach.Lessons(job.out / "lessons")

    def batch(tick: Tick) -> tuple[torch.Tensor, torch.Tensor]:
        frames, said = lessons.batch(tick.indices, tick.rng)
        grid = frames.shape[1] // 8  # the crops stand for frames of twice their size
        most = said.evidence.amax(2).view(len(frames), 1, grid // 2, grid // 2)
        return teacher.to_tensor(frames), filter.highest(teach.per_patch(most, grid)[..., 0], AREA)

    known = held.take(np.arange(min(100, len(held))))
    with torch.no_grad():
        _, _, evidence = teach.ask(_teacher(job), teacher.to_tensor(known.frames))
    most = teach.per_patch(evidence.amax(1, keepdim=True), 14)[..., 0]
    marked = filter.Marked(known.frames, filter.highest(most, AREA).numpy())
    computing.df(job, "imagenette", batch, len(photos), marked, DF)


def train_mbc(job: Job) -> None:
    """MBC: the bottleneck around the split of the published classifier."""
    photos, held = _split(job)

    def frames(tick: Tick) -> npt.NDArray[np.uint8]:
        taken = photos.frames[tick.indices]
        return taken[:, :, ::-1] if tick.rng.random() < 0.5 else taken

    first = photos.frames[:: max(1, len(photos) // 200)]
    computing.mbc(job, "imagenette", 16, 8, frames, first, len(photos), held)


def make_profile(job: Job) -> None:
    """Choose A-MOT's settings on held-out photographs, report on the validation set, publish."""
    vit, model = (
        evaluate.trained_vit(job.weights("vit"), VIT),
        evaluate.trained_mae(job.weights("mae"), MAE),
    )
    held = _split(job)[1]
    best = evaluate.choose(evaluate.choices(vit, model, held), SHARE)
    photos = load(job.photos(), "val")
    rounds = evaluate.two_rounds(vit, model, photos, best.r1, [best.r2])
    final = evaluate.at(rounds[0], best.r1, best.r2, best.threshold)
    device = local.LocalNet(len(CLASSES))
    device.load_state_dict(torch.load(job.out / "local.pt", weights_only=True))
    accuracy = {
        "frames": f"{len(photos)} validation photographs; raw patches, in torch",
        "full": evaluate.full(vit, photos),
        "amot": asdict(final),
        "one_round_equal_share": evaluate.one_round(vit, model, photos, final.share),
        "local": local.accuracy(device, photos),
        "teacher_at_144": teacher.accuracy(_teacher(job), photos, 144),
        "held_out": {"full": evaluate.full(vit, held), "amot": asdict(best)},
    }
    made = publish.Made(
        "Imagenette2 at 224 pixels, training split, 500 photographs held out to choose settings; "
        "reported on the validation split",
        "./run train all imagenette --data imagenette.tar",
        accuracy,
    )
    publish.publish(job, "imagenette", CLASSES, VIT, MAE, best, made, QUALITY)


def _teacher(job: Job) -> teacher.Teacher:
    model = teacher.Teacher(len(CLASSES))
    model.load_state_dict(torch.load(job.out / "teacher.pt", weights_only=True))
    return model.eval()


STAGES: dict[str, Stage] = {
    "teacher": train_teacher,
    "teach": write_lessons,
    "mae": train_mae,
    "local": train_local,
    "vit": train_vit,
    "finish": finish_vit,
    "publish": make_profile,
    "superres": train_superres,
    "light": train_light,
    "po": add_po,
    "df": train_df,
    "mbc": train_mbc,
    "cnn": train_cnn,
    "autoencoder": train_autoencoder,
    "deepcod": train_deepcod,
    "janus": add_janus,
    "exits": train_exits,
}
