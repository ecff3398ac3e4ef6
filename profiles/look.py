"""What a published profile's exits say of samples, and the embeddings a device routes them by.

By what is served: the server's weights, and of sentences the device's own front.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import profile
from common.errors import ConfigError
from device import front
from device.bundle import Bundle
from device.front import Text
from device.strategy import Frame
from profiles.pools import I64, Split
from profiles.train import bert, photo_exits
from profiles.train.photos import Photos
from server.models.bert import Bert
from server.models.checkpoint import load_model
from server.models.exits import Exits
from server.models.vit import VisionTransformer

STRATEGY = "dimec"


def look(directory: Path, texts: Sequence[str], labels: I64) -> Split:
    """The split of ``texts`` by the text profile in ``directory``.

    Raises ConfigError for a profile of another kind, Refused for a text without a known word.
    """
    made = profile.load(directory)
    bundle = Bundle(made.manifest, directory, {file.path for file in made.manifest.files})
    seer = front.load(bundle, made.manifest.params(STRATEGY))
    model = load_model(made.models["bert"].file, "bert", made.models["bert"].config)
    if not isinstance(seer, Text) or not isinstance(model, Bert):
        raise ConfigError(f"{directory} is no profile of text")
    frames = (Frame(row, str(row), text, 0.0) for row, text in enumerate(texts))
    embeddings = np.stack([seer(frame).embedding for frame in frames])
    ids = [seer.ids(text).astype(np.int64) for text in texts]
    return Split(bert.probabilities(model, ids), labels, embeddings)


def look_at(directory: Path, photos: Photos) -> Split:
    """The split of ``photos`` by the profile of pictures in ``directory``, from their pixels.

    The device's patch embedding is the classifier's own, so one pass gives everything. A server is
    sent a JPEG of a picture, which is not quite the picture: the links' bench has that.

    Raises ConfigError for a profile without exits on a vision transformer.
    """
    made = profile.load(directory)
    if not {"vit", "exits"} <= set(made.models):
        raise ConfigError(f"{directory} is no profile of pictures with exits")
    vit, exits = (load_model(each.file, each.kind, each.config) for each in
                  (made.models["vit"], made.models["exits"]))  # fmt: skip
    assert isinstance(vit, VisionTransformer)
    assert isinstance(exits, Exits)
    return photo_exits.told(exits, photo_exits.tokens(vit, photos), photos.labels)
