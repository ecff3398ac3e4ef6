"""What a published profile's exits say of samples, and the embeddings a device routes them by.

Both by what is served: the device's own front, and the server's weights.
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
from profiles.train import bert
from server.models.bert import Bert
from server.models.checkpoint import load_model

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
