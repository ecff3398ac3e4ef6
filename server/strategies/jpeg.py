"""The whole frame as a JPEG or WebP, at any quality and scale, classified: what people do today."""

from __future__ import annotations

from common.errors import Refused
from common.messages import Query
from server.serving import Serving, no_step
from server.strategy import Memory, Work
from server.whole import WholeFrame

KEY = ("jpeg", "whole")


class Jpeg(WholeFrame):
    """Step "whole": "frame" uint8 [h, w, 3], JPEG or WebP, resampled here to the input's size."""

    def prepare(self, query: Query, memory: Memory) -> Work:
        """Decode and resample the frame. Raises Refused("bad" | "unknown")."""
        if query.step != "whole":
            raise no_step(query, "whole")
        if self.serving.tensor(query, "frame").codec not in ("jpeg", "webp"):
            raise Refused("bad", "frame must be a JPEG or WebP; others go by the strategy raw")
        return Work(KEY, {"patches": self.serving.scaled_frame(query)})


def create(serving: Serving) -> Jpeg:
    """The strategy for one profile."""
    return Jpeg(serving, KEY)
